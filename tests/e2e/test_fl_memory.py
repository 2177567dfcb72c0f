"""How far one machine goes: what the workload holds in memory, and what more clients cost."""

from __future__ import annotations

import pytest

from bench.clients import growth_of, measure_clients

pytestmark = pytest.mark.long


def test_twenty_clients_that_train_fit_into_six_gib() -> None:
    found = measure_clients(20, {})
    assert 1 << 30 < found.memory_bytes <= 6 << 30
    assert (found.lost, found.residual_share <= 0.05) == (0, True)


def test_two_hundred_synthetic_clients_and_what_grows_with_them() -> None:
    found = [measure_clients(clients) for clients in (5, 20, 60, 200)]
    assert [one.lost for one in found] == [0] * 4
    assert max(one.residual_share for one in found) <= 0.05
    assert 1 << 30 < found[-1].memory_bytes <= 12 << 30
    grows = growth_of(found)
    assert grows["report_bytes"] < 1.2, (grows, found)
    assert grows["analysis_s"] < 1.25, (grows, found)
    # More clients on the same CPUs wait for them more often, and each wait is an event.
    assert grows["events"] < 1.7, (grows, found)
