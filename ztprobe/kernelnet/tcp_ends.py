"""The ends of TCP connections in a network namespace, and what TCP itself knows of each (tcp_info)."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztprobe.kernelnet.netlink import NetlinkError, sock_diag

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
_INET_DIAG_INFO = 2  # include/uapi/linux/inet_diag.h
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
    with sock_diag(netns) as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                listed = diag.get_sock_stats(family=family, states=mask, extensions=1 << _INET_DIAG_INFO - 1)
                found += [_end(each) for each in listed if each["idiag_state"] in _STATES]
            except NetlinkError as error:  # no IPv6, or the dump was cut short
                if family == socket.AF_INET:
                    raise OSError(error.code, str(error)) from error
    return found


def _end(said: Any) -> TcpEnd:
    info = said.get_attr("INET_DIAG_INFO") or {}
    timer, timer_s = said["idiag_timer"], said["idiag_expires"] / 1e3
    # A connection's own SYN and FIN count as a byte each.
    acked, received = max(0, info.get("tcpi_bytes_acked", 0) - 1), info.get("tcpi_bytes_received", 0)
    sent = info.get("tcpi_bytes_sent", 0)
    return TcpEnd(
        local=_address(said["idiag_src"]),
        local_port=said["idiag_sport"],
        remote=_address(said["idiag_dst"]),
        remote_port=said["idiag_dport"],
        state=_STATES[said["idiag_state"]],
        unread_bytes=said["idiag_rqueue"],
        unacked_bytes=said["idiag_wqueue"],
        window_bytes=info.get("tcpi_snd_wnd", 0),
        repeats=max(said["idiag_retrans"], info.get("tcpi_backoff", 0)),
        timer=timer,
        timer_s=timer_s,
        keepalive_s=timer_s if timer == _KEEPALIVE_TIMER else None,
        acked_bytes=acked,
        received_bytes=received,
        sent_age_s=info.get("tcpi_last_data_sent", 0) / 1e3 if sent else None,
        received_age_s=info.get("tcpi_last_data_recv", 0) / 1e3 if received else None,
        rto_s=info.get("tcpi_rto", 0) / 1e6,
    )


def _address(text: str) -> str:
    address = ipaddress.ip_address(text)
    return str(getattr(address, "ipv4_mapped", None) or address)
