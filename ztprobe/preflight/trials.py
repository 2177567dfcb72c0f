"""Try links, qdiscs, filters and queues in a network namespace that nobody else can see.

The namespace belongs to a thread of its own and has no name: the kernel removes it with
everything inside when the thread ends, however it ends.
"""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ztprobe.kernelnet import netns
from ztprobe.preflight.bpf import SCHED_CLS, attach_tcx, trivial_program

__all__ = ("NetworkTrials", "run_network_trials")

_CLSACT_EGRESS = 0xFFFFFFF3
_ETH_P_ALL = 3

_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_QUEUE = 3
_NFQNL_MSG_CONFIG = 2
_NFQA_CFG_CMD = 1
_NFQNL_CFG_CMD_BIND = 1
_NLM_F_REQUEST_ACK = 5
_NLMSG_ERROR = 2


@dataclass(frozen=True, kw_only=True)
class NetworkTrials:
    """What worked; None: not tried, for lack of root."""

    veth: bool | None = None
    bridge: bool | None = None
    tc_bpf: bool | None = None  # a direct-action program on clsact
    tcx: bool | None = None  # a program on a link, without a qdisc
    netem: bool | None = None
    htb: bool | None = None
    tbf: bool | None = None
    nfqueue: bool | None = None  # an iptables rule and a listener
    nft: bool | None = None  # a table with a rule on connection state


def run_network_trials() -> NetworkTrials:
    """Try everything; needs root. What fails for whatever reason counts as not offered."""
    results: dict[str, bool] = {}
    thread = threading.Thread(target=_run, args=(results,), name="network-trials")
    thread.start()
    thread.join()
    return NetworkTrials(**results)


def _run(results: dict[str, bool]) -> None:
    from ztprobe.kernelnet.netlink import netlink

    def attempt(name: str, trial: Callable[[], object]) -> None:
        try:
            trial()
            results[name] = True
        except Exception:
            # NetlinkError, OSError, and pyroute2 raises bare ones too: whatever it is, it does not work.
            results[name] = False

    try:
        netns.unshare(netns.CLONE_NEWNET)
    except OSError:
        results.update(dict.fromkeys(NetworkTrials.__dataclass_fields__, False))
        return
    with netlink() as ipr:
        # ip link add t0 type veth peer name t1; ip link add tb type bridge
        attempt("veth", lambda: ipr.link("add", ifname="t0", kind="veth", peer={"ifname": "t1"}))
        attempt("bridge", lambda: ipr.link("add", ifname="tb", kind="bridge"))
        # Without veth, loopback serves for the rest.
        link = (ipr.link_lookup(ifname="t0") or [1])[0]

        def tc_bpf() -> None:
            # tc qdisc add dev t0 clsact; tc filter add dev t0 egress bpf direct-action ...
            ipr.tc("add", "clsact", link)
            with trivial_program(SCHED_CLS) as fd:
                ipr.tc(
                    "add-filter",
                    "bpf",
                    link,
                    0,
                    fd=fd,
                    name="trial",
                    parent=_CLSACT_EGRESS,
                    direct_action=True,
                    protocol=_ETH_P_ALL,
                )

        def root_qdisc(kind: str, **options: object) -> Callable[[], None]:
            def trial() -> None:
                ipr.tc("add", kind, link, handle=0x10000, **options)
                ipr.tc("del", kind, link, handle=0x10000, **options)

            return trial

        def tcx() -> None:
            with trivial_program(SCHED_CLS) as fd:
                attach_tcx(fd, link)

        attempt("tc_bpf", tc_bpf)
        attempt("tcx", tcx)
        attempt("netem", root_qdisc("netem", delay=1000))
        attempt("htb", root_qdisc("htb", default=0x10))
        attempt("tbf", root_qdisc("tbf", rate=1_000_000, burst=10_000, latency="50ms"))
    attempt("nfqueue", _nfqueue)
    # Without the program nothing can be tried, and that it is missing is a line of its own.
    if shutil.which("nft") is not None:
        attempt("nft", _nft)


def _command(*arguments: str) -> None:
    # A child inherits the namespace of the thread that starts it.
    subprocess.run(arguments, check=True, capture_output=True, timeout=5, stdin=subprocess.DEVNULL)


def _nft() -> None:
    rule = "add rule ip trial c ct state established accept"
    _command("nft", f"add table ip trial; add chain ip trial c; {rule}")


def _nfqueue() -> None:
    _command("iptables", "-w", "-A", "FORWARD", "-j", "NFQUEUE", "--queue-num", "0")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as queue:
        queue.settimeout(2)
        queue.bind((0, 0))
        # struct nfgenmsg {AF_UNSPEC, version 0, queue number 0}, then NFQA_CFG_CMD {BIND, AF_INET}
        command = struct.pack("=HHBxH", 8, _NFQA_CFG_CMD, _NFQNL_CFG_CMD_BIND, socket.htons(socket.AF_INET))
        body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0) + command
        kind = _NFNL_SUBSYS_QUEUE << 8 | _NFQNL_MSG_CONFIG
        queue.send(struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST_ACK, 1, 0) + body)
        answer = queue.recv(4096)
    error_kind, error = struct.unpack_from("=H", answer, 4)[0], struct.unpack_from("=i", answer, 16)[0]
    if error_kind != _NLMSG_ERROR or error != 0:
        raise OSError(-error, "the kernel refused to bind a netfilter queue")
