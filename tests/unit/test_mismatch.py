"""What is named as the cause of a profile that measures wrong, from what was seen."""

from __future__ import annotations

import dataclasses

import pytest

from ztprobe.conformance.mismatch import PathActivity, moment_causes

QUIET = PathActivity(
    idle={"cpu0": 0.8, "cpu1": 0.3}, stolen=0.0, overflow=0, timer_resolution_ms=1e-6, timer_late_ms=0.06
)


@pytest.mark.parametrize(
    ("seen", "causes"),
    [
        ({}, []),
        # One busy CPU stops nobody: the other is free.
        ({"idle": {"cpu0": 0.0, "cpu1": 0.3}}, []),
        (
            {"idle": {"cpu0": 0.02, "cpu1": 0.04}, "timer_late_ms": 9.0},  # late because of that
            ["this machine's CPUs were 97 % busy meanwhile, which delays packets too"],
        ),
        ({"stolen": 0.35, "timer_late_ms": 4.0}, ["the hypervisor took 35 % of this machine's CPU time"]),
        ({"timer_late_ms": 1.7}, ["this kernel's timers come 1.7 ms late, on idle CPUs"]),
        # clock_getres without high-resolution timers: a tick of CONFIG_HZ=250
        (
            {"timer_resolution_ms": 4.0, "timer_late_ms": 3.9},
            ["this kernel's timers tick every 4 ms: no delay is finer than that (CONFIG_HIGH_RES_TIMERS"],
        ),
        ({"overflow": 23}, ["a queue overflowed: 23 packets were dropped that nobody asked to lose"]),
        (
            {"overflow": 7, "idle": {"cpu0": 0.0}, "timer_resolution_ms": 10.0},
            ["a queue overflowed: 7 packets", "this machine's CPUs were 100 %", "this kernel's timers tick"],
        ),
        ({"idle": {}}, []),
        ({"probes": 1500, "others": 150}, []),  # ARP, a few retransmissions
        (
            {"probes": 1500, "others": 4000, "overflow": 3},
            [
                "a queue overflowed",
                "other traffic shared the rate meanwhile (4000 packets beside 1500 probes)",
            ],
        ),
    ],
)
def test_causes_follow_from_what_was_seen(seen: dict[str, object], causes: list[str]) -> None:
    found = moment_causes(dataclasses.replace(QUIET, **seen))
    assert len(found) == len(causes)
    for cause, beginning in zip(found, causes, strict=True):
        assert cause.startswith(beginning)
