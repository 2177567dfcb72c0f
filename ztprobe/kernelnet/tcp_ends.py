"""The ends of TCP connections in a network namespace, and what TCP itself knows of each (tcp_info)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from ztprobe.kernelnet.inet_diag import TcpRow, tcp_rows

__all__ = ("PROBE_TIMER", "RETRANSMIT_TIMER", "TcpEnd", "tcp_ends")

# include/net/tcp_states.h; listeners, closed and dead ones are no ends of a connection
_STATES = {
    1: "established",
    2: "syn_sent",
    3: "syn_recv",
    4: "fin_wait1",
    5: "fin_wait2",
    8: "close_wait",
    9: "last_ack",
    11: "closing",
}
# struct tcp_info (include/uapi/linux/tcp.h): backoff, rto, last_data_sent, last_data_recv, bytes_acked,
# bytes_received, bytes_sent, snd_wnd.
_INFO = struct.Struct("=4xB3xI32xI4xI64xQQ64xQ20xI")
RETRANSMIT_TIMER, _KEEPALIVE_TIMER, PROBE_TIMER = 1, 2, 4  # idiag_timer


@dataclass(frozen=True, kw_only=True)
class TcpEnd:
    """One end; ages are None where nothing of the kind has happened yet."""

    local: str
    local_port: int
    remote: str
    remote_port: int
    state: str
    unread_bytes: int  # received, and not read by the application
    unacked_bytes: int  # written, and not acknowledged: in flight or waiting to be sent
    window_bytes: int  # that the other end allows to be sent
    repeats: int  # of the oldest unacknowledged segment, of a SYN or of a window probe, so far
    timer: int  # *_TIMER; 0: none that matters
    timer_s: float  # until it fires
    keepalive_s: float | None  # until the next keep-alive probe; None: not asked for, or not due
    acked_bytes: int  # of ours, so far
    received_bytes: int
    sent_age_s: float | None  # since we last sent data
    received_age_s: float | None  # since data last came
    rto_s: float  # what the retransmission timer stands at, backed off already

    @property
    def key(self) -> tuple[str, int, str, int]:
        """Its addresses and ports; the other end's are these the other way round."""
        return self.local, self.local_port, self.remote, self.remote_port

    @property
    def other_key(self) -> tuple[str, int, str, int]:
        """The other end's `key`."""
        return self.remote, self.remote_port, self.local, self.local_port


def tcp_ends(netns: Path) -> list[TcpEnd]:
    """All of a namespace.

    :raises OSError: the namespace is gone.
    """
    mask = sum(1 << state for state in _STATES)
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found += [
                _end(row) for row in tcp_rows(netns, family, mask, with_info=True) if row.state in _STATES
            ]
        except OSError:  # no IPv6, or the list was cut short
            if family == socket.AF_INET:
                raise
    return found


def _end(row: TcpRow) -> TcpEnd:
    info = row.info.ljust(_INFO.size, b"\0")  # an older kernel says less
    (backoff, rto_us, data_sent_ms, data_received_ms, acked, received, sent, window_bytes) = (
        _INFO.unpack_from(info)
    )
    timer_s = row.expires_ms / 1e3
    return TcpEnd(
        local=row.local,
        local_port=row.local_port,
        remote=row.remote,
        remote_port=row.remote_port,
        state=_STATES[row.state],
        unread_bytes=row.receive_queue_bytes,
        unacked_bytes=row.write_queue_bytes,
        window_bytes=window_bytes,
        repeats=max(row.retransmissions, backoff),
        timer=row.timer,
        timer_s=timer_s,
        keepalive_s=timer_s if row.timer == _KEEPALIVE_TIMER else None,
        # A connection's own SYN and FIN count as a byte each.
        acked_bytes=max(0, acked - 1),
        received_bytes=received,
        sent_age_s=data_sent_ms / 1e3 if sent else None,
        received_age_s=data_received_ms / 1e3 if received else None,
        rto_s=rto_us / 1e6,
    )
