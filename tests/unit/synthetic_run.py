"""Made-up but plausible runs, for whatever is built on top of the ledger."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.ledger.model import COMPONENTS, ClientRound, ConnectionSetup, Ledger, RoundLedger
from ztprobe.rundir.schema import LOSS_CHANNELS
from ztprobe.rundir.store import SCHEMA_VERSION, Run, create_run_dir

MS = 1_000_000
START_NS = 5_000_000_000
UNIX_OFFSET_NS = 1_760_000_000_000_000_000

# Typical milliseconds a round.
NET0_SEC0 = {"server": 160, "compute": 1650, "propagation": 0.2, "transmission": 45}
NET2_SEC3 = {
    "server": 200,
    "compute": 1900,
    "proxy": 50,
    "propagation": 161,
    "transmission": 2400,
    "retransmission": 90,
}


def make_round(
    number: int,
    parts_ms: Mapping[str, float],
    *,
    residual_ms: float = 30.0,
    start_ns: int = START_NS,
    clients: int = 5,
    seed: int = 0,
    spread: float = 0.06,
    accuracy: float | None = None,
    syn_count: int = 0,
) -> RoundLedger:
    """One round whose parts scatter by ``spread`` around ``parts_ms`` and close exactly."""
    chance = random.Random(f"{seed}/{number}")
    parts_ns = dict.fromkeys(COMPONENTS, 0) | {
        name: round(ms * MS * chance.gauss(1, spread)) for name, ms in parts_ms.items()
    }
    if accuracy is not None:
        parts_ns["server"] += 120 * MS
    residual_ns = round(residual_ms * MS * chance.uniform(0.5, 1.5))
    duration_ns = sum(parts_ns.values()) + residual_ns
    critical = chance.randrange(clients)
    sub_rows_ns: dict[str, dict[str, int]] = {
        "server": {
            "send_preparation": parts_ns["server"] // 5,
            "behind_other_clients": parts_ns["server"] // 4,
            "aggregation": parts_ns["server"] // 6,
            "evaluation": 120 * MS if accuracy is not None else 0,
        },
        "compute": {"cpu_wait": round(parts_ns["compute"] * 0.45)},
    }
    if parts_ns["transmission"] > 500 * MS:
        sub_rows_ns["transmission"] = {
            "congestion_window": round(parts_ns["transmission"] * 0.82),
            "receive_or_http2_window": round(parts_ns["transmission"] * 0.07),
        }
    server_end_ns = parts_ns["server"] // 2
    rows = []
    for index in range(clients):
        slack_ns = 0 if index == critical else round(duration_ns * chance.uniform(0.001, 0.25))
        compute_ns = round(parts_ns["compute"] * (1 if index == critical else chance.uniform(0.85, 1.02)))
        rows.append(
            ClientRound(
                client=f"fl-client-{index}",
                arrival_ns=duration_ns - server_end_ns - slack_ns,
                slack_ns=slack_ns,
                components_ns=parts_ns if index == critical else parts_ns | {"compute": compute_ns},
                compute_kernel_ns=compute_ns,
                compute_reported_ns=compute_ns - round(2.5 * MS * chance.uniform(0.5, 1.5)),
                syn_count=syn_count,
                retransmissions=chance.randrange(12) if parts_ns["retransmission"] else 0,
            )
        )
    return RoundLedger(
        round=number,
        start_ns=start_ns,
        duration_ns=duration_ns,
        critical_client=f"fl-client-{critical}",
        tie=any(0 < row.slack_ns < 10 * MS for row in rows),
        components_ns=parts_ns,
        residual_ns=residual_ns,
        sub_rows_ns=sub_rows_ns,
        clients=tuple(rows),
        exchanges=1.0,
        accuracy=accuracy,
    )


def make_ledger(
    parts_ms: Mapping[str, float] = NET2_SEC3,
    *,
    rounds: int = 10,
    clients: int = 5,
    seed: int = 0,
    syn_count: int = 0,
    tls: bool = True,
    notes: tuple[str, ...] = (),
) -> Ledger:
    """A ledger of ``rounds`` back-to-back rounds; the first one is slower, every fifth evaluates."""
    made: list[RoundLedger] = []
    start_ns = START_NS
    for number in range(1, rounds + 1):
        slower = {name: ms * (1.4 if number == 1 else 1.0) for name, ms in parts_ms.items()}
        made.append(
            make_round(
                number,
                slower,
                start_ns=start_ns,
                clients=clients,
                seed=seed,
                syn_count=syn_count,
                accuracy=min(0.99, 0.9 + number / 150) if number % 5 == 0 else None,
            )
        )
        start_ns += made[-1].duration_ns
    delay_ms = parts_ms.get("propagation", 0.0)
    setup = []
    for index in range(clients):
        spent_ns = {"dns": 3 * MS, "tcp_handshake": round((delay_ms + index) * MS), "http2_setup": 4 * MS}
        if tls:
            spent_ns |= {"tls_handshake": round((delay_ms + 8 + index) * MS), "proxy": 2 * MS}
        setup.append(
            ConnectionSetup(
                client=f"fl-client-{index}",
                components_ns=spent_ns,
                residual_ns=1 * MS,
                duration_ns=sum(spent_ns.values()) + MS,
                served_rounds=rounds,
                tls_version="1.3" if tls else None,
                mutual="yes" if tls else None,
                resumed=False if tls else None,
            )
        )
    return Ledger(rounds=tuple(made), setup=tuple(setup), coverage=1.0, notes=notes)


def make_meta(name: str = "net2-sec3", **changes: Any) -> dict[str, Any]:
    """run.json's content as a job writes it."""
    profile, level = name.split("-")[:2]
    secure = level == "sec3"

    def proof(what: str, seen: str) -> dict[str, Any]:
        return {"name": what, "expected": seen, "observed": seen, "passed": True}

    meta: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "complete": True,
        "experiment": {
            "name": name,
            "profile": profile,
            "level": int(level[-1]),
            "distribution": "iid",
            "seed": 0,
        },
        "options": {"rounds": 10, "clients": 5, "dataset": "digits", "reconnect": False},
        "runtime": "local",
        "kernel": "6.18.0",
        "versions": {"ztprobe": "0.1.0", "bcc": "0.26.0", "haproxy": "2.6.12", "python": "3.11.2"},
        "hooks": {"transfer": "tc clsact on eth0 and lo", "handshake": "tp_btf/inet_sock_set_state"},
        "facts": {"congestion_control": "cubic", "tcp_slow_start_after_idle": 1, "offloads": "off on eth0"},
        "probes": [
            {"signal": "transfer", "hook": "tc clsact", "run_count": 41_213, "run_time_ns": 12_480_113},
            {
                "signal": "connection",
                "hook": "inet_sock_set_state",
                "run_count": 1_204,
                "run_time_ns": 240_800,
            },
            {"signal": "run queue", "hook": "sched_switch", "run_count": 803_177, "run_time_ns": 160_635_400},
            {"signal": "drop", "hook": "kfree_skb", "run_count": 17, "run_time_ns": 6_120},
        ],
        "clock_samples": [
            {"time_unix_ns": START_NS + UNIX_OFFSET_NS, "time_monotonic_ns": START_NS},
            {"time_unix_ns": 65_000_000_000 + UNIX_OFFSET_NS, "time_monotonic_ns": 65_000_000_000},
        ],
        "loss": dict.fromkeys(LOSS_CHANNELS, 0),
        "events_seen": 2_311,
        "emulation": {
            "profile": profile,
            "backend": "userspace delay line (NFQUEUE)" if profile != "net0" else "none",
            "requested": {"delay_ms": 80.0, "jitter_ms": 20.0} if profile == "net2" else {},
            "measured": {"delay_ms": 80.31, "jitter_ms": 19.62} if profile == "net2" else {},
            "stats": {},
        },
        "enforcement": {
            "network_policy_expected": secure,
            "mtls_expected": secure,
            "network_policy": [
                proof("allowed: fl-client-0 -> fl-server:50051/tcp", "connected"),
                proof("forbidden: fl-client-0 -> fl-server:50052/tcp", "dropped by policy"),
                proof("forbidden: fl-client-0 -> fl-client-1:50051/tcp", "dropped by policy"),
            ]
            if secure
            else [],
            "mtls": [
                proof("the wire is TLS: fl-client-0 -> fl-server", "TLSv1.3, client certificate shown"),
                proof("no certificate: fl-client-0 -> fl-server", "refused by alert 116"),
            ]
            if secure
            else [],
            "details": {"session_resumption": "off"},
        },
        "pods": [{"name": "fl-server", "address": "10.77.0.10"}],
        "agent_cpu_ns": 1_310_000_000,
        "emulator_cpu_ns": 4_820_000_000 if profile == "net2" else 0,
        "wall_ns": 61_000_000_000,
        "cores": 2,
    }
    return meta | changes


def make_events(ledger: Ledger) -> list[dict[str, Any]]:
    """The server's log of ``ledger``: the two events that every framework has."""
    return [
        {
            "event": event,
            "round": one.round,
            "time_monotonic_ns": when_ns,
            "time_unix_ns": when_ns + UNIX_OFFSET_NS,
        }
        for one in ledger.rounds
        for event, when_ns in (("round_start", one.start_ns), ("round_end", one.start_ns + one.duration_ns))
    ]


def make_run(name: str = "net2-sec3", ledger: Ledger | None = None, **changes: Any) -> Run:
    """A run in memory, as if it had been loaded."""
    events = make_events(ledger or make_ledger())
    return Run(path=Path("runs") / name, meta=make_meta(name, **changes), rounds=events)


def save_run(path: Path, name: str = "net2-sec3", ledger: Ledger | None = None, **changes: Any) -> Path:
    """A complete run directory on disk; its events are empty."""
    run_dir = create_run_dir(path)
    run_dir.append_jsonl("rounds.jsonl", *make_events(ledger or make_ledger()))
    run_dir.append_jsonl("clients.jsonl")
    run_dir.finish(make_meta(name, **changes))
    return path


def baseline_pair(rounds: int = 10) -> tuple[Run, Ledger]:
    """net0-sec0 to compare with."""
    ledger = make_ledger(NET0_SEC0, rounds=rounds, seed=9, tls=False)
    return make_run("net0-sec0", ledger), ledger
