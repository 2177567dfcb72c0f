"""Networks that ask for too much, or are where nobody expects them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ztprobe.profile.model import Profile
from ztprobe.validate.faults.acts.act import Act
from ztprobe.validate.faults.acts.links import link_mtu, other_profile, past_the_bridge
from ztprobe.validate.faults.catalogue.words import OTHER, TARGET, amid_round
from ztprobe.validate.faults.model import Fault, Variant

__all__ = ("FAULTS",)


def _with(**changes: Any) -> Callable[[Profile], Profile]:
    """The network's profile with other values, under a name that says so."""

    def change(profile: Profile) -> Profile:
        return replace(profile, name=f"{profile.name}-{'-'.join(changes).replace('_', '-')}", **changes)

    return change


def _profiled(
    cause: str, shows: str, *variants: tuple[str, int, Callable[[Profile], Profile]], **common: Any
) -> Fault:
    return Fault(
        cause=f"emulation.{cause}",
        variants=tuple(
            Variant(what=what, level=level, profile=profile, shows=shows, bulk=True, **common)
            for what, level, profile in variants
        ),
    )


FAULTS = (
    _profiled(
        "queue_overflow",
        "counts RetransSegs",
        ("a queue of 1 packet before 20 Mbit/s", 0, _with(rate_mbit=20.0, queue_limit_packets=1)),
        ("a queue of 1 packet before 25 Mbit/s", 1, _with(rate_mbit=25.0, queue_limit_packets=1)),
        (
            # Less than that does not let 20 Mbit/s through at all: packets come in small groups.
            "a queue of 3 packets before 15 Mbit/s, with sidecars",
            2,
            _with(rate_mbit=15.0, queue_limit_packets=3),
        ),
    ),
    _profiled(
        "loss_profile",
        "counts RetransSegs",
        ("25 % loss", 0, _with(loss_pct=25.0)),
        ("20 % loss", 1, _with(loss_pct=20.0)),
        ("15 % loss, with sidecars", 2, _with(loss_pct=15.0)),
    ),
    _profiled(
        "rate_too_low",
        "came within",
        ("2 Mbit/s, and rounds of 12 s", 0, _with(rate_mbit=2.0)),
        ("3 Mbit/s, and rounds of 12 s", 1, _with(rate_mbit=3.0)),
        ("2 Mbit/s, and rounds of 12 s, with sidecars", 2, _with(rate_mbit=2.0)),
    ),
    Fault(
        cause="emulation.delay_too_long",
        variants=tuple(
            Variant(
                what=f"{delay_ms:g} ms each way, and rounds of {deadline_s} s",
                level=level,
                profile=_with(delay_ms=delay_ms, jitter_ms=0.0, distribution="none"),
                shows="round 1: .* came within",
                bulk=True,
                deadline_s=deadline_s,
            )
            for delay_ms, deadline_s, level in ((800.0, 10, 0), (700.0, 10, 1), (800.0, 12, 2))
        ),
    ),
    Fault(
        cause="emulation.mtu_black_hole",
        variants=(
            Variant(
                what="packets above 1000 bytes do not reach a client",
                acts=(Act("mtu", link_mtu(OTHER, 1000)),),
                shows="counts RetransSegs",
            ),
            Variant(
                what="packets above 1200 bytes do not reach a client from round 2 on",
                level=1,
                acts=(Act("mtu", link_mtu(TARGET, 1200), amid_round(2)),),
                # Of what the client itself sends, the kernel counts no repetition that its own link refused.
                shows="counts (RetransSegs|TCPAbortOnTimeout)",
            ),
            Variant(
                what="packets above 600 bytes do not reach a client, with sidecars",
                level=2,
                acts=(Act("mtu", link_mtu(TARGET, 600)),),
                shows="counts RetransSegs",
            ),
        ),
    ),
    Fault(
        cause="emulation.leftover_profile",
        variants=tuple(
            Variant(
                what=f"{words} is on the pods already",
                level=level,
                prepare=(other_profile(profile),),
                shows="ended: .*is not what the pods got",
                networks=("net0",),  # on net2 the delay line refuses to share its place
            )
            for words, level, profile in (
                ("a delay of 120 ms", 0, Profile(name="left-over", delay_ms=120.0)),
                ("a loss of 20 %", 1, Profile(name="left-over", loss_pct=20.0)),
                ("a delay of 200 ms", 2, Profile(name="left-over", delay_ms=200.0)),
            )
        ),
    ),
    Fault(
        cause="emulation.wrong_interface",
        variants=tuple(
            Variant(
                what=f"packets go from pod to pod past the node's bridge, where the delay is ({words})",
                level=level,
                prepare=(past_the_bridge,),
                shows="ended: .*is not what the pods got",
                networks=("net2",),
            )
            for words, level in (("no controls", 0), ("policies", 1), ("sidecars", 2))
        ),
    ),
)
