"""The parts of report.json that need no statistics over a baseline, one function each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis import statistics
from analysis.ledger.model import COMPONENTS, ClientRound, ConnectionSetup, Ledger, RoundLedger
from analysis.report.conditions import late_notes, late_spans, notes_of, problems_of, stall_notes
from analysis.report.contention_words import duet_notes, machine_differences, not_recorded
from analysis.report.level_switch import switch_notes
from analysis.report.wording import plural
from ztprobe.rundir.clock import Clock
from ztprobe.rundir.store import Run

__all__ = (
    "ACCURACY_TARGET",
    "COMPUTE_LIMIT_MS",
    "COMPUTE_LIMIT_PCT",
    "accuracy",
    "all_seconds",
    "compute_check",
    "connection_setup",
    "cpu",
    "enforcement",
    "loss_log",
    "notes",
    "seconds",
)

ACCURACY_TARGET = 0.95
# Training time as inferred and as reported agree if they differ by no more than either of these.
COMPUTE_LIMIT_PCT = 5.0
COMPUTE_LIMIT_MS = 10.0

_CLOCK_STEP_NS = 1_000_000
_TRAINING = ("train_end", "evaluate_end")  # events with a loss
_SEVERAL_EXCHANGES = 2.0
_COMPARABLE_OPTIONS = ("clients", "dataset", "reconnect")


def seconds(time_ns: float | None) -> float | None:
    """Nanoseconds as report.json has them: seconds with nine digits."""
    # + 0.0 turns -0.0, which JSON would print, into 0.0
    return None if time_ns is None else round(time_ns / 1e9, 9) + 0.0


def all_seconds(times_ns: Mapping[str, int]) -> dict[str, float | None]:
    """The same for every value."""
    return {name: seconds(time_ns) for name, time_ns in times_ns.items()}


def connection_setup(
    setup: Sequence[ConnectionSetup], setup_baseline: Sequence[ConnectionSetup]
) -> dict[str, Any]:
    """Per client, in the median, and spread over the rounds that each connection served."""
    names = [name for name in COMPONENTS if any(one.components_ns.get(name) for one in setup)]
    amortised_ns = [one.duration_ns / one.served_rounds for one in setup if one.served_rounds]
    return {
        "clients": [
            {
                "client": one.client,
                "duration_s": seconds(one.duration_ns),
                "components": all_seconds(one.components_ns),
                "residual_s": seconds(one.residual_ns),
                "served_rounds": one.served_rounds,
                "amortised_s": seconds(one.duration_ns / one.served_rounds) if one.served_rounds else None,
                "tls_version": one.tls_version,
                "mutual": one.mutual,
                "resumed": one.resumed,
                "syn_retransmissions": one.syn_retransmissions,
            }
            for one in setup
        ],
        "median_s": seconds(statistics.median_ns([one.duration_ns for one in setup])),
        "slowest_s": seconds(max((one.duration_ns for one in setup), default=None)),
        "amortised_s": seconds(float(np.median(amortised_ns)) if amortised_ns else None),
        "components": {
            name: {
                "median_s": seconds(statistics.median_ns([one.components_ns.get(name, 0) for one in setup]))
            }
            for name in names
        },
        "residual_median_s": seconds(statistics.median_ns([one.residual_ns for one in setup])),
        "baseline_median_s": seconds(statistics.median_ns([one.duration_ns for one in setup_baseline])),
    }


def compute_check(clients: Iterable[ClientRound]) -> dict[str, Any] | None:
    """How far training time as seen from the kernel is from what clients logged; None: nothing to compare."""
    pairs = [
        (one.compute_kernel_ns, one.compute_reported_ns)
        for one in clients
        if one.compute_kernel_ns is not None and one.compute_reported_ns is not None
    ]
    if not pairs:
        return None
    off_ms = float(np.median([abs(kernel - reported) / 1e6 for kernel, reported in pairs]))
    off_pct = float(
        np.median([100 * abs(kernel - reported) / max(reported, 1) for kernel, reported in pairs])
    )
    return {
        "pairs": len(pairs),
        "median_abs_difference_ms": round(off_ms, 6),
        "median_abs_difference_pct": round(off_pct, 6),
        "limit_ms": COMPUTE_LIMIT_MS,
        "limit_pct": COMPUTE_LIMIT_PCT,
        "within_limit": off_pct <= COMPUTE_LIMIT_PCT or off_ms <= COMPUTE_LIMIT_MS,
    }


def accuracy(run: Run, rounds: Sequence[RoundLedger]) -> dict[str, Any]:
    """Accuracy where it was evaluated, and the time from round 1's start to the target."""
    evaluated = [one for one in rounds if one.accuracy is not None]
    reached_ns = [
        event["time_monotonic_ns"] for event in run.rounds if event["event"] == "target_reached"
    ] or [
        one.start_ns + one.duration_ns
        for one in evaluated
        if one.accuracy is not None and one.accuracy >= ACCURACY_TARGET
    ]
    return {
        "final": evaluated[-1].accuracy if evaluated else None,
        "target": ACCURACY_TARGET,
        "time_to_target_s": seconds(min(reached_ns) - rounds[0].start_ns) if reached_ns else None,
    }


def enforcement(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Per control what was expected and what was proven; ``proven`` is None where nothing was checked."""

    def control(name: str) -> dict[str, Any]:
        proofs = recorded.get(name, [])
        return {
            "expected": recorded.get(f"{name}_expected", bool(proofs)),
            "proven": all(proof["passed"] for proof in proofs) if proofs else None,
            "proofs": proofs,
        }

    return {
        "network_policy": control("network_policy"),
        "mtls": control("mtls"),
        # Only what a cluster adds at a level is tried.
        **({"hardening": control("hardening")} if recorded.get("hardening") else {}),
        "details": recorded.get("details", {}),
    }


def cpu(meta: Mapping[str, Any]) -> dict[str, Any]:
    """CPU time that measuring and emulating took beside the workload, and its share of the machine.

    The agent's holds the probes' runs in the kernel, which are shown once more by themselves.
    """
    available_ns = meta.get("wall_ns", 0) * meta.get("cores", 0)
    spent_ns = {
        "emulator": meta.get("emulator_cpu_ns"),
        "agent": meta.get("agent_cpu_ns"),
        "probes": sum(probe["run_time_ns"] for probe in meta.get("probes", [])),
    }
    rows = {
        name: {
            "cpu_s": seconds(time_ns),
            "machine_share": round(time_ns / available_ns, 9)
            if available_ns and time_ns is not None
            else None,
        }
        for name, time_ns in spent_ns.items()
    }
    return {"wall_s": seconds(meta.get("wall_ns")), "cores": meta.get("cores"), "rows": rows}


def memory(meta: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """``memory``: what the agent held when the last round had ended, in bytes; empty: not recorded."""
    recorded = meta.get("agent_memory")
    if not recorded:
        return {}
    return {"memory": {name: int(recorded[name]) for name in ("resident_bytes", "kernel_maps_bytes")}}


def loss_log(recorded: Sequence[Mapping[str, Any]], first_ns: int) -> list[dict[str, Any]]:
    """When what was lost, in seconds since the first round began."""
    return [
        {
            "channel": entry["channel"],
            "count": entry["count"],
            "from_s": seconds(entry["from_ns"] - first_ns),
            "to_s": seconds(entry["to_ns"] - first_ns),
        }
        for entry in recorded
    ]


def notes(
    run: Run, ledger: Ledger, report: Mapping[str, Any], baseline: tuple[Run, Ledger] | None
) -> list[str]:
    """What a reader should know before the numbers: what is missing, lost, unlike or out of its limits."""
    said = list(ledger.notes)
    if unknown := not_recorded(report):
        said.append(unknown)
    said += [*duet_notes(run.meta), *machine_differences(report)]
    ended = sum(event["event"] == "round_end" for event in run.rounds)
    if ended > len(ledger.rounds):
        said.append(f"{ended - len(ledger.rounds)} of {ended} finished rounds could not be placed.")
    if len(ledger.rounds) == 1:
        said.append("The only round counts although it warms everything up; run more rounds.")
    said += _loss_notes("", report["loss"], ledger, report["coverage_floor"])
    if unread := run.meta.get("events_unread"):
        said.append(f"{unread} events were handed over by the kernel and never read; please report this.")
    said += _divergence(run)
    if schedule := run.meta["emulation"].get("schedule"):
        said += problems_of(schedule)
    said += notes_of(run.meta["emulation"].get("others", ()), ledger.rounds)
    said += late_notes(late_spans(run.meta["emulation"]), ledger.rounds)
    said += [*switch_notes(report.get("level_switch")), *stall_notes(run.meta.get("stalls", ()))]
    check = report["compute_check"]
    if check and not check["within_limit"]:
        said.append(
            f"Training time from the kernel is off by {check['median_abs_difference_ms']:.1f} ms "
            f"({check['median_abs_difference_pct']:.1f} %) from what clients logged."
        )
    step_ns = Clock.of_run(run.meta).offset_change_ns
    if abs(step_ns) > _CLOCK_STEP_NS:
        said.append(
            f"The wall clock moved by {step_ns / 1e6:.0f} ms during the run; dates are off, times are not."
        )
    if any(one.through for each in ledger.rounds for one in each.clients):
        said.append(
            "Clients reach the server through edge aggregators: the critical path goes through both levels, "
            "and an edge's own time (sending the model on, waiting for its other clients, its mean) is in "
            "server."
        )
    if any(one.exchanges >= _SEVERAL_EXCHANGES for one in ledger.rounds):
        said.append(
            "A round has several exchanges, each of which waits for everybody: the critical path changes to "
            "whoever is last from one to the next, and the critical client is the one whose update was last."
        )
    elif (report.get("workload") or {}).get("secure_aggregation"):
        said.append(
            "Secure aggregation's short exchanges are below what counts as a message: those before training "
            "count to the model's transmission or to compute, the last one to the server."
        )
    if baseline:
        said += [f"Baseline: {note}" for note in baseline[1].notes]
        others = notes_of(baseline[0].meta["emulation"].get("others", ()), baseline[1].rounds)
        others += late_notes(late_spans(baseline[0].meta["emulation"]), baseline[1].rounds)
        said += [f"Baseline: {note}" for note in others]
        said += _loss_notes("Baseline: ", baseline[0].meta["loss"], baseline[1], report["coverage_floor"])
        if report["overhead"] is None:
            said.append("No overhead: no round of this run or none of its baseline has a breakdown.")
        mine, theirs = run.meta.get("options", {}), baseline[0].meta.get("options", {})
        said += [
            f"The baseline differs in --{name}: {theirs[name]} instead of {mine[name]}."
            for name in _COMPARABLE_OPTIONS
            if name in mine and name in theirs and mine[name] != theirs[name]
        ]
    return said


def _divergence(run: Run) -> list[str]:
    # Of the training, not of the network: a loss that is no finite number is logged as null.
    rounds = sorted(
        {
            event["round"]
            for event in (*run.rounds, *run.clients)
            if event["event"] in _TRAINING
            and event.get("loss", 0) is None
            and type(event.get("round")) is int
        }
    )
    if not rounds:
        return []
    numbers = ", ".join(map(str, rounds[:10])) + (", …" if rounds[10:] else "")
    return [
        f"The training diverged: its loss was no finite number in {plural(len(rounds), 'round')} ({numbers})."
        " Times are as measured; accuracies from there on say nothing."
    ]


def _loss_notes(whose: str, loss: Mapping[str, int], ledger: Ledger, floor: float) -> list[str]:
    said = []
    lost = sum(count for channel, count in loss.items() if channel != "reader_behind")
    touched = [one for one in ledger.rounds if one.lost_events]
    if lost and touched:
        numbers = ", ".join(str(one.round) for one in touched[:10]) + (", …" if touched[10:] else "")
        rounds = f"round {numbers}" if len(touched) == 1 else f"rounds {numbers}"
        said.append(f"{whose}{lost} events were lost or unreadable, so {rounds} may lack evidence.")
    elif lost:
        said.append(f"{whose}{lost} events were lost or unreadable, all outside of rounds.")
    if loss.get("reader_behind"):
        said.append(
            f"{whose}the reader fell behind {loss['reader_behind']} times; nothing is lost by that alone."
        )
    if withheld := [one for one in ledger.rounds if one.coverage < floor]:
        said.append(
            f"{whose}{len(withheld)} of {len(ledger.rounds)} rounds have no breakdown: less than "
            f"{100 * floor:g} % of their events were seen."
        )
    return said
