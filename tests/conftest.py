"""Who may skip, and a network namespace to play in.

Tests under tests/kernel, tests/e2e and tests/cluster need root and skip without it. Under
ZTPROBE_REQUIRE_KERNEL=1 (set by .ci/run) a skip there is a failure, so that CI cannot
turn green by testing nothing; a test for a feature that CI's kernel really lacks is
marked ``optional``. No test skips for want of a program (tests/programs.py).

Tests marked ``cluster`` are left out where the API server is not built, and the last lines say so.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Two shared cores: an example's time says nothing about the code.
hypothesis.settings.register_profile("ztprobe", deadline=None)
hypothesis.settings.load_profile("ztprobe")

_TESTS = Path(__file__).parent
_PRIVILEGED = (_TESTS / "kernel", _TESTS / "e2e", _TESTS / "cluster")
_REQUIRE = os.environ.get("ZTPROBE_REQUIRE_KERNEL") == "1"


def _privileged(path: Path) -> bool:
    return any(path.is_relative_to(place) for place in _PRIVILEGED)


_left_out = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)  # after -m, which may leave them out too
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_out_cluster(config, items)
    if os.geteuid() == 0:
        return
    for item in items:
        if _privileged(item.path):
            item.add_marker(pytest.mark.skip(reason="not root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF)"))


def _leave_out_cluster(config: pytest.Config, items: list[pytest.Item]) -> None:
    cluster = [item for item in items if item.get_closest_marker("cluster") is not None]
    if cluster:
        from tests.programs import has_api_server

        if not has_api_server():
            config.hook.pytest_deselected(items=cluster)
            items[:] = [item for item in items if item not in cluster]
            config.stash[_left_out] = len(cluster)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if number := config.stash.get(_left_out, 0):
        terminalreporter.write_line(
            f"{number} tests with a real API server did not run: make test-cluster builds it and runs them"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if _REQUIRE and _privileged(item.path) and item.get_closest_marker("optional") is None:
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    if _REQUIRE and _privileged(collector.path):
        _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"ZTPROBE_REQUIRE_KERNEL=1 and yet: {reason}"


@pytest.fixture
def scratch_netns() -> Iterator[Path]:
    """A network namespace for one test, removed with everything inside."""
    from ztprobe.kernelnet.netlink import create_netns, remove_netns

    name = f"ztp-t{secrets.token_hex(4)}"
    path = create_netns(name)
    try:
        yield path
    finally:
        remove_netns(name)
