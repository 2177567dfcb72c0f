"""Where the members are that the programs read, for the compiler: from the running kernel's BTF."""

from __future__ import annotations

from collections.abc import Iterable

from ztprobe.errors import PreflightError
from ztprobe.probes.btf import Btf

__all__ = ("OFFSETS", "ipv6_flags", "offset_flags")

OFFSETS = {
    "SOCK_NET": "sock_common.skc_net.net",
    "SOCK_FAMILY": "sock_common.skc_family",
    "SOCK_STATE": "sock_common.skc_state",
    "SOCK_LADDR": "sock_common.skc_rcv_saddr",
    "SOCK_RADDR": "sock_common.skc_daddr",
    "SOCK_LPORT": "sock_common.skc_num",
    "SOCK_RPORT": "sock_common.skc_dport",
    "SOCK_PROTOCOL": "sock.sk_protocol",
    "INET_SPORT": "inet_sock.inet_sport",
    "NET_INUM": "net.ns.inum",
    "DEV_NET": "net_device.nd_net.net",
    "DEV_IFINDEX": "net_device.ifindex",
    "SKB_DEV": "sk_buff.dev",
    "SKB_SK": "sk_buff.sk",
    "SKB_CB": "sk_buff.cb",
    "SKB_HEAD": "sk_buff.head",
    "SKB_DATA": "sk_buff.data",
    "SKB_LEN": "sk_buff.len",
    "SKB_PROTOCOL": "sk_buff.protocol",
    "SKB_TAIL": "sk_buff.tail",
    "SKB_IIF": "sk_buff.skb_iif",
    "SKB_NETWORK_HEADER": "sk_buff.network_header",
    "TCP_COPIED_SEQ": "tcp_sock.copied_seq",
    "TCP_WRITE_SEQ": "tcp_sock.write_seq",
    "TCP_SND_UNA": "tcp_sock.snd_una",
    "TCP_SND_WND": "tcp_sock.snd_wnd",
    "TCP_SND_CWND": "tcp_sock.snd_cwnd",
    "TCP_PACKETS_OUT": "tcp_sock.packets_out",
    "TCP_SACKED_OUT": "tcp_sock.sacked_out",
    "TCP_LOST_OUT": "tcp_sock.lost_out",
    "TCP_RETRANS_OUT": "tcp_sock.retrans_out",
    "TCP_CLOCK_CACHE": "tcp_sock.tcp_clock_cache",
    "TCP_CHRONO_TYPE": "tcp_sock.chrono_type",
    "TCP_CA_STATE": "inet_connection_sock.icsk_ca_state",
    "TCP_RACK_MSTAMP": "tcp_sock.rack.mstamp",
    "TCP_RACK_RTT_US": "tcp_sock.rack.rtt_us",
    "TCP_DELIVERED_MSTAMP": "tcp_sock.delivered_mstamp",
    "TCP_SRTT_US": "tcp_sock.srtt_us",
    "TCP_RTT_MIN": "tcp_sock.rtt_min",
    "TCPCB_SEQ": "tcp_skb_cb.seq",
    "TCPCB_END_SEQ": "tcp_skb_cb.end_seq",
    "TASK_PID": "task_struct.pid",
    "TASK_TGID": "task_struct.tgid",
    "TASK_COMM": "task_struct.comm",
    "TASK_REAL_PARENT": "task_struct.real_parent",
    "TASK_STATE": "task_struct.__state",
    "TASK_LAST_QUEUED": "task_struct.sched_info.last_queued",
    "TASK_RUN_DELAY": "task_struct.sched_info.run_delay",
    "TASK_CFS_RQ": "task_struct.se.cfs_rq",
    "CFS_RQ_RQ": "cfs_rq.rq",
    "RQ_CLOCK": "rq.clock",
}
# A kernel that was built without IPv6 has none of these.
_IPV6_OFFSETS = {
    "SOCK_V6_LADDR": "sock_common.skc_v6_rcv_saddr",
    "SOCK_V6_RADDR": "sock_common.skc_v6_daddr",
}


def offset_flags(btf: Btf, names: Iterable[str]) -> list[str]:
    """``-D OFF_NAME=BYTES`` of some of `OFFSETS`. :raises PreflightError: this kernel has no such member."""
    flags = []
    for name in names:
        try:
            flags.append(f"-DOFF_{name}={btf.offset(OFFSETS[name])}")
        except KeyError:
            raise PreflightError(f"this kernel's BTF has no {OFFSETS[name]}, which the probes read") from None
    return flags


def ipv6_flags(btf: Btf) -> list[str]:
    """The same of `_IPV6_OFFSETS`; none where sockets have no addresses of IPv6."""
    try:
        return [f"-DOFF_{name}={btf.offset(member)}" for name, member in _IPV6_OFFSETS.items()]
    except KeyError:
        return []
