"""The node's side of the delay line: the rules that queue pods' packets, and the process that answers.

The rules stand in chains of their own in the ``mangle`` table of the node's namespace:
egress of a pod in FORWARD by source address, ingress in POSTROUTING by destination, so that
a packet between two such pods meets both, as it would meet two qdiscs. br_netfilter shows
bridged packets to iptables. The process starts first and the rules go first, so a queue
never has nobody behind it, and ``--queue-bypass`` lets packets pass if it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztprobe.emulation.delay_line import lateness
from ztprobe.emulation.delay_line.config import Config, change_to_json, to_json
from ztprobe.emulation.delay_line.impairment import Condition
from ztprobe.errors import EnforcementError, PreflightError
from ztprobe.kernelnet.monitor import NetlinkMonitor
from ztprobe.kernelnet.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.profile.model import GilbertElliott, Profile
from ztprobe.rundir import files

__all__ = (
    "CHAIN",
    "FIRST_QUEUE",
    "NodeQueue",
    "QueuedPod",
    "condition_of",
    "queued_by",
    "remove_rules",
    "rules_in_force",
)

CHAIN = "ZTPROBE-DELAY"
FIRST_QUEUE = 100  # queues are numbered per network namespace; this leaves room for others'

_BRIDGE_CALL = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_LEAST_PACKETS = 16_384
_BY_TABLE = ("pareto", "paretonormal", "samples")  # the others are drawn from a formula
_SUFFIX = {"egress": "", "ingress": "-IN"}
_READY_S = 10.0
_CHANGE_S = 2.0
_ANSWER_BYTES = 4096
_STOP_S = 3.0
_LOOK_NS = 1_000_000_000  # at the counters, which are written as often
_NEEDS = "boot a kernel with NFQUEUE and br_netfilter, or with netem, and install the package iptables"


_HOOKS = {"egress": ("FORWARD", "-s", "-d"), "ingress": ("POSTROUTING", "-d", "-s")}


@dataclass(frozen=True, kw_only=True)
class QueuedPod:
    """Whose packets one queue gets."""

    name: str  # of the pod
    address: str
    directions: tuple[str, ...] = ("egress",)
    peers: tuple[str, ...] | None = None  # addresses; None: any


class NodeQueue:
    """start -> stop; both can be called at any time, and stop again.

    :param queued: whose packets are held; nothing else is.
    :param chain: begins the names of the chains; unique in the node's namespace.
    :param first_queue: queues are numbered from here on.
    """

    def __init__(
        self,
        profile: Profile,
        queued: Sequence[QueuedPod],
        node_netns: Path,
        state_dir: Path,
        seed: int,
        *,
        chain: str = CHAIN,
        first_queue: int = FIRST_QUEUE,
    ) -> None:
        self._queued = queued
        self._chain = chain
        self._node = node_netns
        self._config_path = state_dir / "delayline.json"
        self._stats_path = state_dir / "delayline-stats.json"
        self._errors_path = state_dir / "delayline.err"
        self._process: subprocess.Popen[str] | None = None
        self._rules = False
        self._in_force = 0
        self._mean_ms = min(step.mean_ms for step in profile.steps)
        self._looked_ns = 0
        self._begun: dict[str, Any] | None = None
        self._late: str | None = None
        self._monitor: NetlinkMonitor | None = None
        self._config = Config(
            netns=str(node_netns),
            pods={pod.name: first_queue + index for index, pod in enumerate(queued)},
            condition=condition_of(profile.steps[0]),
            whole_gso=not profile.per_packet,
            # A rate's queue is the token bucket's; this one only has to hold what is under way.
            max_packets=max(profile.queue_limit_packets, _LEAST_PACKETS),
            seed=seed,
            stats_path=str(self._stats_path),
            parent_pid=os.getpid(),
        )

    @property
    def pid(self) -> int | None:
        """The delay line's process while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process, wait until it listens, then queue the pods' packets.

        :raises PreflightError: this kernel has no NFQUEUE or br_netfilter, or iptables is missing.
        """
        self._see_bridged_packets()
        self._start_process()
        rules, jumps = [], []
        for direction, (hook, own, other) in _HOOKS.items():
            chain = f"{self._chain}{_SUFFIX[direction]}"
            # Nothing but the addresses given: DNS and everyone else pass by.
            here = [
                f"-A {chain} {own} {pod.address}/32{f' {other} {peer}/32' if peer else ''}"
                f" -j NFQUEUE --queue-num {number} --queue-bypass"
                for pod, number in zip(self._queued, self._config.pods.values(), strict=True)
                if direction in pod.directions
                for peer in pod.peers or (None,)
            ]
            if here:
                rules += [f":{chain} - [0:0]", *here]
                jumps.append(f"-I {hook} 1 -j {chain}")
        self._rules = True
        _restore(self._node, [*rules, *jumps])
        self._in_force = rules_in_force(self._node, self._chain)
        self._monitor = NetlinkMonitor([self._node], rules=True)

    def problem(self) -> str | None:
        """Why packets pass undelayed, or some of them; None: nothing of the kind is known."""
        if self.pid is None:
            return "the delay line has died; packets pass undelayed"
        if (now_ns := time.monotonic_ns()) - self._looked_ns > _LOOK_NS:
            self._judge(self._stored(), now_ns)
        if self._late is not None:
            return self._late
        if self._monitor is not None and self._monitor.changed():
            found = rules_in_force(self._node, self._chain)
            if found < self._in_force:  # iptables-save may have met a change half-way
                found = rules_in_force(self._node, self._chain)
            if found < self._in_force:
                return (
                    f"somebody else has removed {self._in_force - found} of the delay line's {self._in_force}"
                    " rules; packets pass undelayed"
                )
        return None

    def change(self, profile: Profile) -> int:
        """Have packets that come from now on meet another condition; those held keep their due time.

        :param profile: a step of the profile that the delay line was started with.
        :returns: CLOCK_MONOTONIC in nanoseconds since which it is in force.
        :raises EnforcementError: the delay line has died, or does not answer.
        """
        return self._ask(change_to_json(condition_of(profile)))

    def _ask(self, line: str) -> int:
        process = self._process
        if process is None or process.poll() is not None:
            raise EnforcementError("the delay line has died: packets pass undelayed")
        assert process.stdin is not None
        assert process.stdout is not None
        answers = process.stdout.fileno()
        while select.select([answers], [], [], 0)[0] and os.read(answers, _ANSWER_BYTES):
            pass  # to what was asked before, and came too late
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise EnforcementError("the delay line has died: packets pass undelayed") from error
        if not select.select([answers], [], [], _CHANGE_S)[0]:
            raise EnforcementError(f"the delay line did not confirm a change within {_CHANGE_S:g} s")
        answer = os.read(answers, _ANSWER_BYTES)
        if not answer:
            raise EnforcementError("the delay line has died: packets pass undelayed")
        return int(json.loads(answer)["at_ns"])

    def stop(self) -> None:
        """Remove the rules, then end the process, which first lets go of what it holds."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._rules and self._node.exists():
            remove_rules(self._node, self._chain)
        self._rules = False
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def begin(self) -> None:
        """What was late until now, when nothing was measured yet, does not count."""
        self._begun = self.stats() or None

    def stats(self) -> dict[str, Any]:
        """The delay line's own counters as they are now, or the last it has written; empty without any."""
        with contextlib.suppress(EnforcementError):
            self._ask("{}")
        found = self._stored()
        self._judge(found, time.monotonic_ns())
        return found

    def _judge(self, stats: dict[str, Any], now_ns: int) -> None:
        self._looked_ns = now_ns
        self._late = lateness.problem_in(stats, self._mean_ms, now_ns, self._begun)

    def _stored(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._stats_path.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def _see_bridged_packets(self) -> None:
        with entered(self._node):
            if not _BRIDGE_CALL.exists():
                subprocess.run(["modprobe", "br_netfilter"], capture_output=True, check=False)
            try:
                # sysctl net.bridge.bridge-nf-call-iptables=1, of this namespace alone
                _BRIDGE_CALL.write_text("1")
            except OSError as error:
                raise PreflightError(
                    f"bridged packets cannot be delayed: no br_netfilter ({error.strerror}); {_NEEDS}"
                ) from error

    def _start_process(self) -> None:
        files.write_whole(self._config_path, to_json(self._config).encode(), mode=0o600, make=0o700)
        self._stats_path.unlink(missing_ok=True)
        self._errors_path.unlink(missing_ok=True)
        files.append(self._errors_path, b"")
        with self._errors_path.open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ztprobe.emulation.delay_line.process", str(self._config_path)],
                stdin=subprocess.PIPE,  # changes
                start_new_session=True,  # Ctrl-C is for the parent to handle
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=REPO_DIR,
            )
        stdout = self._process.stdout
        assert stdout is not None
        answer = stdout.readline().strip() if select.select([stdout], [], [], _READY_S)[0] else "no answer"
        if answer != "ready":
            lines = self._errors_path.read_text().splitlines() or ["no reason given"]
            raise PreflightError(f"the delay line did not start: {answer or lines[-1]}; {_NEEDS}")


def remove_rules(node_netns: Path, chain: str) -> bool:
    """Take the chains of that name away, whoever made them; says whether there were any. Idempotent."""
    found = False
    for direction, (hook, _, _) in _HOOKS.items():
        name = f"{chain}{_SUFFIX[direction]}"
        lines = [f"-D {hook} -j {name}", f"-F {name}", f"-X {name}"]
        found |= _restore(node_netns, lines, check=False)
    return found


def queued_by(node_netns: Path, chain: str) -> set[str]:
    """The addresses whose egress that chain queues now."""
    rules = (line.split() for line in _rules(node_netns) if line.startswith(f"-A {chain} "))
    return {rule[index + 1].partition("/")[0] for rule in rules for index, w in enumerate(rule) if w == "-s"}


def rules_in_force(node_netns: Path, chain: str) -> int:
    """How many rules queue packets in the chains of that name, 0 if nothing leads to them."""
    lines = _rules(node_netns)
    found = 0
    for direction, (hook, _, _) in _HOOKS.items():
        name = f"{chain}{_SUFFIX[direction]}"
        if f"-A {hook} -j {name}" in lines:
            found += sum(line.startswith(f"-A {name} ") and "NFQUEUE" in line for line in lines)
    return found


def _rules(node_netns: Path) -> list[str]:
    with entered(node_netns):
        done = subprocess.run(["iptables-save", "-t", "mangle"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def condition_of(profile: Profile) -> Condition:
    """What a profile without a schedule does to each packet."""
    return Condition(
        delay_ns=round(profile.delay_ms * 1e6),
        jitter_ns=round(profile.jitter_ms * 1e6),
        distribution=profile.distribution,
        loss_probability=profile.loss_pct / 100,
        loss_states=_shares(profile.loss_states),
        samples=list(profile.delay_samples) if profile.distribution in _BY_TABLE else [],
        delay_correlation=profile.delay_correlation_pct / 100,
        reorder_probability=profile.reorder_pct / 100,
    )


def _shares(states: GilbertElliott | None) -> list[float] | None:
    if states is None:
        return None
    return [
        states.good_to_bad_pct / 100,
        states.bad_to_good_pct / 100,
        states.loss_in_bad_pct / 100,
        states.loss_in_good_pct / 100,
    ]


def _restore(node_netns: Path, lines: list[str], *, check: bool = True) -> bool:
    text = "\n".join(["*mangle", *lines, "COMMIT", ""])
    try:
        # A child inherits the namespace of the thread that starts it.
        with entered(node_netns):
            done = subprocess.run(
                ["iptables-restore", "--noflush"], input=text, capture_output=True, text=True, check=False
            )
    except FileNotFoundError as error:
        raise PreflightError(f"iptables-restore is missing; {_NEEDS}") from error
    if check and done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise EnforcementError(f"the delay line's rules were refused: {reason}; {_NEEDS}")
    return done.returncode == 0
