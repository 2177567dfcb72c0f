"""The node's side of the delay line: the rules that queue pods' packets, and the process that answers.

The rules stand in a chain of their own in ``mangle FORWARD`` of the node's namespace, one
per pod by source address; br_netfilter shows bridged packets to iptables. The process
starts first and the rules go first, so a queue never has nobody behind it, and
``--queue-bypass`` lets packets pass if it dies.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ztprobe.emulation.delayline import Config, to_json
from ztprobe.emulation.target import Target
from ztprobe.errors import EnforcementError, PreflightError
from ztprobe.netns import entered
from ztprobe.paths import REPO_DIR
from ztprobe.profile import Profile

__all__ = ("CHAIN", "FIRST_QUEUE", "NodeQueue")

CHAIN = "ZTPROBE-DELAY"
FIRST_QUEUE = 100  # queues are numbered per network namespace; this leaves room for others'

_BRIDGE_CALL = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_LEAST_PACKETS = 16_384
_READY_S = 10.0
_STOP_S = 3.0
_NEEDS = "boot a kernel with NFQUEUE and br_netfilter, or with netem, and install the package iptables"


class NodeQueue:
    """start -> stop; both can be called at any time, and stop again."""

    def __init__(
        self, profile: Profile, pods: Sequence[Target], node_netns: Path, state_dir: Path, seed: int
    ) -> None:
        self._pods = pods
        self._node = node_netns
        self._config_path = state_dir / "delayline.json"
        self._stats_path = state_dir / "delayline-stats.json"
        self._errors_path = state_dir / "delayline.err"
        self._process: subprocess.Popen[str] | None = None
        self._rules = False
        self._config = Config(
            netns=str(node_netns),
            pods={pod.name: FIRST_QUEUE + index for index, pod in enumerate(pods)},
            delay_ns=round(profile.delay_ms * 1e6),
            jitter_ns=round(profile.jitter_ms * 1e6),
            distribution=profile.distribution,
            loss_probability=profile.loss_pct / 100,
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
        lines = [f":{CHAIN} - [0:0]"]
        lines += [
            # Nothing but the addresses given: DNS and everyone else pass by.
            f"-A {CHAIN} -s {pod.address}/32 -j NFQUEUE --queue-num {number} --queue-bypass"
            for pod, number in zip(self._pods, self._config.pods.values(), strict=True)
        ]
        self._rules = True
        self._restore([*lines, f"-I FORWARD 1 -j {CHAIN}"])

    def stop(self) -> None:
        """Remove the rules, then end the process, which first lets go of what it holds."""
        if self._rules and self._node.exists():
            self._restore([f"-D FORWARD -j {CHAIN}", f"-F {CHAIN}", f"-X {CHAIN}"], check=False)
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
        if process.stdout is not None:
            process.stdout.close()

    def stats(self) -> dict[str, Any]:
        """The delay line's own counters, at most a second old; empty before it has written any."""
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
        self._config_path.parent.mkdir(parents=True, exist_ok=True)
        self._config_path.write_text(to_json(self._config))
        self._stats_path.unlink(missing_ok=True)
        with self._errors_path.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ztprobe.emulation.delayline", str(self._config_path)],
                stdin=subprocess.DEVNULL,
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

    def _restore(self, lines: list[str], *, check: bool = True) -> None:
        text = "\n".join(["*mangle", *lines, "COMMIT", ""])
        try:
            # A child inherits the namespace of the thread that starts it.
            with entered(self._node):
                done = subprocess.run(
                    ["iptables-restore", "--noflush"], input=text, capture_output=True, text=True, check=False
                )
        except FileNotFoundError as error:
            raise PreflightError(f"iptables-restore is missing; {_NEEDS}") from error
        if check and done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
            raise EnforcementError(f"the delay line's rules were refused: {reason}; {_NEEDS}")
