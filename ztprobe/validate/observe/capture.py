"""What tcpdump saw at the pods' interfaces: the observation that the ledger is held against.

tcpdump shares nothing with the probes: other hooks (a packet socket), other clocks
(CLOCK_REALTIME, converted here), other parser. On egress a packet socket stands behind the
queueing discipline, where the probes stand before it; on arrival both see a packet within
some microseconds.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ztprobe.errors import PreflightError, WorkloadError
from ztprobe.kernelnet.netns import entered
from ztprobe.pods.model import Pod
from ztprobe.rundir import files

__all__ = ("Capture", "CapturedPacket", "read_pcap")

SYN, ACK, FIN, RST = 2, 16, 1, 4
_SNAP_BYTES = 144
_WHOLE_BYTES = 262_144
_BUFFER_KIB = 16_384
_READY_S = 5.0
_END_S = 5.0
# The kernel hands packets over in blocks, the last of which may be a second old.
_BLOCK_S = 1.1
_MAGIC_NS = 0xA1B23C4D
_RECORD = struct.Struct("<IIII")
_ETHERTYPE_IPV4 = b"\x08\x00"


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """One TCP or UDP packet at one interface; ``ts_ns`` is CLOCK_MONOTONIC."""

    ts_ns: int
    source: str
    target: str
    sport: int
    dport: int
    udp: bool
    seq: int
    ack: int
    flags: int
    window: int  # as carried, not scaled
    payload_bytes: int
    head: bytes  # the first bytes of the payload; of a SYN, the options

    @property
    def end_seq(self) -> int:
        """One past the last byte, modulo 2**32."""
        return (self.seq + self.payload_bytes) & 0xFFFFFFFF


@dataclass(frozen=True)
class _Tap:
    name: str
    netns: Path
    interface: str
    filter: str
    snap_bytes: int


def _taps(
    pods: Sequence[Pod], server_port: int, loopback_ports: Mapping[str, int | None], whole: Collection[str]
) -> Iterator[_Tap]:
    for pod in pods:
        places = {pod.name: (pod.interface, f"tcp port {server_port} or udp port 53")}
        if (port := loopback_ports[pod.name]) is not None:
            places[f"{pod.name}/lo"] = ("lo", f"tcp port {port}")
        for name, (interface, words) in places.items():
            yield _Tap(name, pod.netns, interface, words, _WHOLE_BYTES if name in whole else _SNAP_BYTES)


class Capture:
    """tcpdump at every given pod's interfaces; a context manager. What it saw can be read afterwards.

    :param server_port: at which other pods reach the server.
    :param loopback_ports: pod's name -> port between its application and its sidecar, if it has one.
    :param whole: where (POD, POD/lo) packets are kept with all their bytes; elsewhere with the first few.
    """

    def __init__(
        self,
        pods: Sequence[Pod],
        server_port: int,
        loopback_ports: Mapping[str, int | None],
        directory: Path,
        whole: Collection[str] = (),
    ) -> None:
        self._taps = list(_taps(pods, server_port, loopback_ports, whole))
        self._directory = directory
        self._offsets_ns: list[int] = []
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Capture:
        if shutil.which("tcpdump") is None:
            raise PreflightError("tcpdump is missing: apt-get install tcpdump")
        files.checked(self._directory)
        self._offsets_ns.append(_clock_offset_ns())
        try:
            for tap in self._taps:
                self._running.append(self._start(tap))
            for tap, process in zip(self._taps, self._running, strict=True):
                self._wait_ready(tap, process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            time.sleep(_BLOCK_S)
        self._stop()
        self._offsets_ns.append(_clock_offset_ns())

    def _start(self, tap: _Tap) -> subprocess.Popen[bytes]:
        # It must not outlive us, whatever ends us: it would keep the pod's namespace.
        command = ["setpriv", "--pdeathsig", "KILL", "tcpdump", "-n", "-Z", "root"]
        command += ["--time-stamp-precision=nano", "-i", tap.interface, "-s", str(tap.snap_bytes)]
        command += ["-B", str(_BUFFER_KIB), "-w", str(self._file(tap)), tap.filter]
        try:
            with entered(tap.netns), self._errors(tap).open("wb") as errors:
                # A session of its own: Ctrl-C is for the command line, which ends it in order.
                return subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
                )
        except FileNotFoundError as error:
            raise PreflightError("setpriv is missing: apt-get install util-linux") from error

    def _wait_ready(self, tap: _Tap, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _READY_S
        while b"listening on" not in self._errors(tap).read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                said = self._errors(tap).read_text(errors="replace").strip().splitlines() or ["nothing"]
                raise WorkloadError(f"tcpdump does not capture at {tap.name}: {said[-1]}")
            time.sleep(0.01)

    def _stop(self) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        for process in self._running:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _file(self, tap: _Tap) -> Path:
        return self._directory / f"{tap.name.replace('/', '.')}.pcap"

    def _errors(self, tap: _Tap) -> Path:
        return self._file(tap).with_suffix(".err")

    def packets(self) -> dict[str, list[CapturedPacket]]:
        """POD and POD/lo -> what passed there, in time order; call it after the capture's end.

        :raises WorkloadError: tcpdump lost packets, so the observation has holes.
        """
        offset_ns = sum(self._offsets_ns) // len(self._offsets_ns)
        for tap in self._taps:
            for line in self._errors(tap).read_text(errors="replace").splitlines():
                count, _, what = line.partition(" ")
                if what.startswith("packets dropped by kernel") and count != "0":
                    raise WorkloadError(f"{tap.name}: tcpdump lost {count} packets; is the machine busy?")
        return {tap.name: list(read_pcap(self._file(tap), offset_ns)) for tap in self._taps}


def _clock_offset_ns() -> int:
    """CLOCK_MONOTONIC minus CLOCK_REALTIME, from the quickest of a few readings."""
    best_ns, offset_ns = 1 << 62, 0
    for _ in range(20):
        before_ns = time.monotonic_ns()
        unix_ns = time.time_ns()
        after_ns = time.monotonic_ns()
        if after_ns - before_ns < best_ns:
            best_ns, offset_ns = after_ns - before_ns, (before_ns + after_ns) // 2 - unix_ns
    return offset_ns


def read_pcap(path: Path, offset_ns: int) -> Iterator[CapturedPacket]:
    """IPv4 TCP and UDP packets of a capture with nanosecond stamps, sorted by time.

    :param offset_ns: added to every stamp.
    :raises WorkloadError: not such a file.
    """
    data = path.read_bytes()
    if len(data) < 24 or struct.unpack_from("<I", data)[0] != _MAGIC_NS:
        raise WorkloadError(f"{path}: is no capture with nanosecond time stamps")
    found = []
    at = 24
    while at + _RECORD.size <= len(data):
        seconds, nanoseconds, captured, length = _RECORD.unpack_from(data, at)
        frame = data[at + _RECORD.size : at + _RECORD.size + captured]
        at += _RECORD.size + captured
        packet = _parse(frame, length, seconds * 1_000_000_000 + nanoseconds + offset_ns)
        if packet is not None:
            found.append(packet)
    yield from sorted(found, key=lambda p: p.ts_ns)


def _parse(frame: bytes, length: int, ts_ns: int) -> CapturedPacket | None:
    if len(frame) < 42 or frame[12:14] != _ETHERTYPE_IPV4 or frame[14] != 0x45 or frame[23] not in (6, 17):
        return None
    source, target = (".".join(map(str, frame[i : i + 4])) for i in (26, 30))
    sport, dport = struct.unpack_from(">HH", frame, 34)
    # From the IP header, not from the frame: short frames may be padded.
    ip_bytes = struct.unpack_from(">H", frame, 16)[0] or length - 14
    if frame[23] == 17:
        return CapturedPacket(
            ts_ns, source, target, sport, dport, True, 0, 0, 0, 0, ip_bytes - 28, frame[42:]
        )
    if len(frame) < 54:
        return None
    seq, ack, offset, flags, window = struct.unpack_from(">IIBBH", frame, 38)
    header_bytes = (offset >> 4) * 4
    return CapturedPacket(
        ts_ns,
        source,
        target,
        sport,
        dport,
        False,
        seq,
        ack,
        flags,
        window,
        max(0, ip_bytes - 20 - header_bytes),
        frame[54 : 34 + header_bytes] if flags & SYN else frame[34 + header_bytes :],
    )
