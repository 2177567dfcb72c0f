"""What kernel tests share. A module may have `pods` of its own; `watched` watches those."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.pods import TestPod, two_pods
from tests.kernel.watching import Watched


@pytest.fixture
def pods() -> Iterator[tuple[TestPod, TestPod]]:
    """A and B, joined by a veth pair."""
    with two_pods() as made:
        yield made


@pytest.fixture
def watched(pods: tuple[TestPod, TestPod]) -> Iterator[Watched]:
    """The probes on both."""
    watcher = Watched(pods)
    try:
        yield watcher
    finally:
        watcher.close()
