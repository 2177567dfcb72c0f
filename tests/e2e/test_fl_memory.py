"""What the workload's processes hold in memory, with clients that train."""

from __future__ import annotations

import pytest

from bench.clients import measure_clients

pytestmark = pytest.mark.long


def test_twenty_clients_that_train_fit_into_six_gib() -> None:
    found = measure_clients(20, {})
    assert 1 << 30 < found.memory_bytes <= 6 << 30
    assert (found.lost, found.residual_share <= 0.05) == (0, True)
