"""Signal by signal: which hook this kernel offers. Pure; the most stable hook comes first.

What `ztprobe doctor` says of a kernel and what a run writes down of its probes are the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ztprobe.preflight.features import KernelFeatures

__all__ = ("SIGNALS", "SignalHook", "choose_hooks", "hooks_in_use")


@dataclass(frozen=True, kw_only=True)
class _Hook:
    name: str
    offered: Callable[[KernelFeatures], bool]


@dataclass(frozen=True, kw_only=True)
class _Signal:
    name: str
    gives: str
    hooks: tuple[_Hook, ...]
    remedy: str


@dataclass(frozen=True, kw_only=True)
class SignalHook:
    """The verdict on one signal."""

    signal: str
    gives: str  # what the ledger has it for
    hook: str | None  # None: this kernel has none of them
    remedy: str  # what would provide it; empty when it is there


def _raw(*names: str) -> _Hook:
    return _Hook(
        name="tp_btf " + ", ".join(names),
        offered=lambda kernel: kernel.bpf is not False and kernel.raw_tracepoints.issuperset(names),
    )


def _kprobes(function: str) -> _Hook:
    return _Hook(
        name=f"{_KPROBES} {function}", offered=lambda kernel: kernel.bpf is not False and kernel.kprobes
    )


def _packets(kind: str, *interfaces: str) -> _Hook:
    # Not tried without root counts as offered: the doctor says elsewhere that it could not try.
    return _Hook(
        name=f"{kind} on " + " and ".join(interfaces),
        offered=lambda kernel: (kernel.network.tcx if kind == _TCX else kernel.network.tc_bpf) is not False,
    )


def _on(*interfaces: str) -> tuple[_Hook, ...]:
    return _packets(_TCX, *interfaces), _packets(_CLSACT, *interfaces)


def _both(first: _Hook, second: _Hook) -> _Hook:
    return _Hook(
        name=f"{first.name} + {second.name}",
        offered=lambda kernel: first.offered(kernel) and second.offered(kernel),
    )


def _with_reasons(hook: _Hook) -> _Hook:
    return _Hook(name=f"{hook.name} (reasons from BTF)", offered=lambda k: hook.offered(k) and k.drop_reasons)


_KPROBES = "kprobe and kretprobe"
_TCX, _CLSACT = "tcx", "tc clsact"
_TC_REMEDY = "a kernel with CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS"

SIGNALS = (
    _Signal(
        name="tcp_life_cycle",
        gives="TCP handshakes, connection ends",
        hooks=(_raw("inet_sock_set_state"),),
        remedy="Linux 4.16 or newer",
    ),
    _Signal(name="tls_phases", gives="TLS handshake phases", hooks=_on("eth0"), remedy=_TC_REMEDY),
    _Signal(
        name="transfer_edges",
        gives="first and last byte of each message",
        hooks=_on("eth0", "lo"),
        remedy=_TC_REMEDY,
    ),
    _Signal(
        name="app_reads",
        gives="when the application has a message",
        hooks=(_raw("sock_recv_length"), _kprobes("tcp_recvmsg")),
        remedy="Linux 6.3 or newer, or CONFIG_KPROBES",
    ),
    _Signal(
        name="app_writes",
        gives="when the application hands a message over",
        hooks=(_raw("sock_send_length"), _kprobes("tcp_sendmsg")),
        remedy="Linux 6.3 or newer, or CONFIG_KPROBES",
    ),
    _Signal(
        name="retransmissions",
        gives="what loss cost",
        hooks=tuple(_both(hook, _raw("tcp_retransmit_skb")) for hook in _on("eth0")),
        remedy=f"Linux 4.15 or newer, and {_TC_REMEDY}",
    ),
    _Signal(
        name="drops",
        gives="dropped packets with the reason",
        hooks=(_with_reasons(_raw("kfree_skb")),),
        remedy="Linux 5.17 or newer",
    ),
    _Signal(name="dns", gives="name resolution", hooks=_on("eth0"), remedy=_TC_REMEDY),
    _Signal(
        name="run_queue",
        gives="waiting for a CPU",
        hooks=(_raw("sched_switch"),),
        remedy="a kernel with CONFIG_TRACEPOINTS and CONFIG_DEBUG_INFO_BTF",
    ),
)


def choose_hooks(kernel: KernelFeatures, signals: Sequence[_Signal] = SIGNALS) -> tuple[SignalHook, ...]:
    """The best hook on offer for each signal, in the order of ``signals``."""
    return tuple(_choose(signal, kernel) for signal in signals)


def hooks_in_use(*, kprobes: bool, packets: str) -> dict[str, str]:
    """Signal -> hook of probes that have been attached.

    :param kprobes: instead of tracepoints, for those signals that have both.
    :param packets: where packet programs hang: "tcx" or "tc clsact".
    """
    others = {_TCX, _CLSACT} - {packets} | (set() if kprobes else {_KPROBES})
    wanted = _KPROBES if kprobes else packets

    def in_use(hooks: list[str]) -> str:
        left = [hook for hook in hooks if not hook.startswith(tuple(others))]
        return next((hook for hook in left if hook.startswith(wanted)), left[0])

    return {signal.name: in_use([hook.name for hook in signal.hooks]) for signal in SIGNALS}


def _choose(signal: _Signal, kernel: KernelFeatures) -> SignalHook:
    hook = next((hook.name for hook in signal.hooks if hook.offered(kernel)), None)
    return SignalHook(
        signal=signal.name, gives=signal.gives, hook=hook, remedy="" if hook is not None else signal.remedy
    )
