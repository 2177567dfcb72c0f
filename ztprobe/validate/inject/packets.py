"""Costs on a packet's way: chosen ones held or dropped, a port blocked for a while."""

from __future__ import annotations

import contextlib
import select
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ztprobe.emulation.delay_line.nfqueue import ACCEPT, DROP, QueueSocket
from ztprobe.errors import EnforcementError
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.validate.inject.scene import POLL_S, Note, Scene, prefer_this_thread

__all__ = ("DROPPED", "Blocker", "PacketHolder")

DROPPED = -1.0  # instead of milliseconds to hold
_FIRST_QUEUE = 600  # the delay line has the hundreds
_CHAIN = "ZTPROBE-HOLD"
_TABLE = "ztprobe_validate"


class PacketHolder:
    """Holds or drops chosen packets on the node's forward path, or inside the sending pod.

    :param matches: pod -> iptables' words for its packets; ``{}`` is the pod's address,
        ``{interface}`` its interface, ``{port}`` the server's port.
    :param decide: (pod, round, n-th match of this pod in this round, from 0) -> milliseconds to
        hold, 0 to let pass, `DROPPED` to drop. Called from the holder's thread.
    :param behind: inside the one pod of ``matches``, before its interface and everything that
        watches that: iptables' words for its packets that must not overtake a held one.
        None: on the node.
    """

    def __init__(
        self,
        kind: str,
        matches: Mapping[str, str],
        decide: Callable[[str, int, int], float],
        *,
        behind: str | None = None,
    ) -> None:
        self._kind = kind
        self._words = list(matches.items())  # a queue each
        self._decide = decide
        self._behind = behind
        if behind is not None:
            ((pod, _),) = self._words
            self._words.append((pod, behind))

    def rules(self, pods: Mapping[str, Pod], server_port: int) -> list[str]:
        """What it adds to its chain, for these pods by name and this port of the server."""

        def written(pod: Pod, words: str) -> str:
            return words.format(pod.address, interface=pod.interface, port=server_port)

        # Bypass: nobody behind the queue means that packets pass.
        return [
            f"-A {_CHAIN} {written(pods[pod], words)} -j NFQUEUE --queue-num {number} --queue-bypass"
            for number, (pod, words) in enumerate(self._words, _FIRST_QUEUE)
        ]

    @contextlib.contextmanager
    def __call__(self, scene: Scene) -> Iterator[None]:
        """See `Injector`. :raises EnforcementError: the node refuses the rules."""
        where, hook = scene.runtime.server.node_netns, "PREROUTING"
        if self._behind is not None:
            where, hook = scene.pod(self._words[0][0]).netns, "OUTPUT"
        queues = {number: pod for number, (pod, _) in enumerate(self._words, _FIRST_QUEUE)}
        with entered(where):
            queue = QueueSocket(queues, max_packets=1024, whole_gso=True)
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(scene, queue, queues, stop), daemon=True)
        thread.start()
        # The raw table: apart from the policies' and the delay line's chains.
        rules = self.rules({pod.name: pod for pod in scene.pods}, scene.server_port)
        try:
            _iptables(where, [f":{_CHAIN} - [0:0]", *rules, f"-I {hook} 1 -j {_CHAIN}"])
            yield
        finally:
            if where.exists():
                _iptables(where, [f"-D {hook} -j {_CHAIN}", f"-F {_CHAIN}", f"-X {_CHAIN}"], check=False)
            stop.set()
            thread.join()
            queue.close()

    def _run(self, scene: Scene, queue: QueueSocket, queues: dict[int, str], stop: threading.Event) -> None:
        prefer_this_thread()
        held: list[tuple[int, int, int, int, int]] = []  # due, queue, packet, begin, round
        seen: dict[tuple[str, int], int] = defaultdict(int)
        while not stop.is_set():
            wait_s = 0.05 if not held else max(0.0, (min(held)[0] - time.monotonic_ns()) / 1e9)
            select.select([queue.fileno()], [], [], min(wait_s, 0.05))
            now_ns = time.monotonic_ns()
            for number, packet, _ in queue.receive():
                pod, current = queues[number], scene.follower.round
                if self._behind is not None and number != _FIRST_QUEUE:
                    if held:  # released with it, after it, and no hold of its own
                        held.append((max(held)[0] + 1, number, packet, 0, current))
                    else:
                        queue.verdict([(number, packet)], ACCEPT)
                    continue
                hold_ms = self._decide(pod, current, seen[pod, current])
                seen[pod, current] += 1
                if hold_ms == DROPPED:
                    queue.verdict([(number, packet)], DROP)
                    scene.notes.append(
                        Note(kind="drop", pod=pod, round=current, begin_ns=now_ns, end_ns=now_ns)
                    )
                elif hold_ms:
                    held.append((now_ns + round(hold_ms * 1e6), number, packet, now_ns, current))
                else:
                    queue.verdict([(number, packet)], ACCEPT)
            for item in sorted(h for h in held if h[0] <= time.monotonic_ns()):
                held.remove(item)
                _, number, packet, begin_ns, current = item
                released_ns = time.monotonic_ns()
                queue.verdict([(number, packet)], ACCEPT)
                if not begin_ns:
                    continue
                scene.notes.append(
                    Note(
                        kind=self._kind,
                        pod=queues[number],
                        round=current,
                        begin_ns=begin_ns,
                        end_ns=released_ns,
                    )
                )
        queue.verdict([(number, packet) for _, number, packet, _, _ in held], ACCEPT) if held else None


class Blocker:
    """Blocks a pod's way to a port while it trains, and opens it a while after its first try.

    :param port: nft's words for it; ``{port}`` is the server's.
    :param first_try: nft's words for the packet that counts as a try, beside ``port``.
    :param all_of_it: whether whatever else goes to the port is blocked as well.
    :param open_ms: round -> milliseconds from the first try to the opening; 0 or missing: do not block.
    """

    def __init__(
        self, pod: str, port: str, first_try: str, open_ms: Mapping[int, float], *, all_of_it: bool = True
    ) -> None:
        self._pod = pod
        self._port = port
        self._first_try = first_try
        self._all_of_it = all_of_it
        self._open_ms = dict(open_ms)

    def rule(self, address: str, server_port: int) -> str:
        """nft's words for a rule about the pod's packets to the port, without what becomes of them."""
        return f"add rule ip {_TABLE} gate ip saddr {address} {self._port.format(port=server_port)}"

    @contextlib.contextmanager
    def __call__(self, scene: Scene) -> Iterator[None]:
        """See `Injector`. :raises EnforcementError: nft refuses."""
        node = scene.runtime.server.node_netns
        # Where a NetworkPolicy's verdict falls: the node's forward hook.
        _nft(node, f"add table ip {_TABLE}")
        _nft(node, f"add chain ip {_TABLE} gate {{ type filter hook forward priority 5; }}")
        wanted: list[int] = []
        scene.follower.listen(
            lambda who, event: (
                wanted.append(int(event["round"]))
                if who == self._pod and event["event"] == "train_start" and self._open_ms.get(event["round"])
                else None
            )
        )
        done = threading.Event()
        thread = threading.Thread(target=self._run, args=(scene, node, wanted, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            if node.exists():
                _nft(node, f"delete table ip {_TABLE}")

    def _run(self, scene: Scene, node: Path, wanted: list[int], done: threading.Event) -> None:
        where = self.rule(scene.pod(self._pod).address, scene.server_port)
        while not done.wait(POLL_S):
            if not wanted:
                continue
            number = wanted.pop(0)
            _nft(
                node,
                f"{where} {self._first_try} counter drop" + (f"; {where} drop" if self._all_of_it else ""),
            )
            begin_ns = 0
            while not done.wait(0.01):
                if not begin_ns and _blocked(node):
                    begin_ns = time.monotonic_ns()
                if begin_ns and time.monotonic_ns() - begin_ns >= self._open_ms[number] * 1e6:
                    break
            _nft(node, f"flush chain ip {_TABLE} gate")
            end_ns = time.monotonic_ns()
            if begin_ns:
                scene.notes.append(
                    Note(kind="block", pod=self._pod, round=number, begin_ns=begin_ns, end_ns=end_ns)
                )


def _iptables(node: Path, lines: Sequence[str], *, check: bool = True) -> None:
    text = "\n".join(["*raw", *lines, "COMMIT", ""])
    with entered(node):
        done = subprocess.run(
            ["iptables-restore", "--noflush"], input=text, capture_output=True, text=True, check=False
        )
    if check and done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise EnforcementError(f"the rules that hold packets were refused: {reason}")


def _nft(node: Path, command: str) -> str:
    with entered(node):
        done = subprocess.run(["nft", command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnforcementError(f"nft {command}: {' '.join(done.stderr.split())}")
    return done.stdout


def _blocked(node: Path) -> bool:
    return "packets 0 " not in _nft(node, f"list chain ip {_TABLE} gate")
