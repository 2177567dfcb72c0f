"""What a run could leave behind on this machine, looked at from outside."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tests.e2e.command import Trace
from ztprobe.paths import STATE_DIR
from ztprobe.rundir.state import LOCK

__all__ = ("Machine", "assert_nothing_left", "look")

_NAME = re.compile(r"ztp-([0-9a-f]{6})\b")
_SYSCTLS = (Path("/proc/sys/net"), Path("/proc/sys/kernel"))
# They count or tire by themselves.
_RESTLESS = re.compile(
    r"/(random|ns_last_pid|pty/nr|conntrack_count|nf_conntrack_count|hostname|neigh/.*|flush|sched_domain/.*)"
)
_SETTLED_S = 5.0


@dataclass(frozen=True)
class Machine:
    """The machine's own state, without that of runs that are still going on."""

    namespaces: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    processes: frozenset[str]  # in cgroups of ours
    links: frozenset[str]
    sysctls: frozenset[tuple[str, str]]
    nft: str
    iptables: str
    state: frozenset[str]


def look() -> Machine:
    """Everything at once; takes about 0.2 s."""
    live = _live_runs()

    def others(text: str) -> bool:
        found = _NAME.search(text)
        return "ztp-t" in text or (found is not None and found[1] in live)

    def kept(lines: object) -> frozenset[str]:
        return frozenset(str(line) for line in lines if not others(str(line)))  # type: ignore[attr-defined]

    mounts = Path("/proc/self/mounts").read_text().splitlines()
    hierarchies = [Path(line.split()[1]) for line in mounts if line.split()[2] in ("cgroup", "cgroup2")]
    return Machine(
        namespaces=kept(Path("/run/netns").iterdir() if Path("/run/netns").is_dir() else ()),
        mounts=kept(mounts),
        cgroups=kept(place for root in hierarchies for place in root.glob("ztp-*")),
        processes=kept(_processes_in_our_cgroups()),
        links=kept(line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]),
        sysctls=frozenset(_sysctls()),
        nft=_rules("nft", "list", "ruleset"),
        iptables=_rules("iptables-save"),
        state=frozenset(p.name for p in STATE_DIR.iterdir() if p.name not in live | {LOCK})
        if STATE_DIR.is_dir()
        else frozenset(),
    )


def assert_nothing_left(before: Machine, trace: Trace) -> None:
    """The machine is as it was ``before`` the trace, of which nothing runs or exists any more.

    Waits for a few seconds: whom the machine's init has to reap takes its time.
    """
    assert trace.journals, "the run had not begun"
    assert trace.descendants
    for name in (name for journal in trace.journals.values() for name in journal["namespaces"]):
        assert not (Path("/run/netns") / str(name)).exists()
    for place in (place for journal in trace.journals.values() for place in journal["cgroups"]):
        assert not Path(str(place)).exists()
    for run_id in trace.journals:
        assert not (STATE_DIR / run_id).exists()
    assert _settled(lambda: not [p for p in trace.descendants if _alive(*p)]), [
        p for p in trace.descendants if _alive(*p)
    ]
    if not _settled(lambda: look() == before):
        now = look()
        assert now == before


def _settled(good: Callable[[], bool]) -> bool:
    give_up = time.monotonic() + _SETTLED_S
    while time.monotonic() < give_up:
        if good():
            return True
        time.sleep(0.1)
    return good()


def _alive(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _live_runs() -> set[str]:
    found = set()
    for journal in STATE_DIR.glob("*/journal.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if psutil.pid_exists(json.loads(journal.read_text())["owner"]["pid"]):
                found.add(journal.parent.name)
    return found


def _processes_in_our_cgroups() -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            ours = [line for line in place.read_text().splitlines() if "/ztp-" in line]
            found += [f"{place.parent.name} {ours[0]}"] if ours else []
    return found


def _sysctls() -> list[tuple[str, str]]:
    found = []
    for root in _SYSCTLS:
        for place in root.rglob("*"):
            if _RESTLESS.search(str(place)):
                continue
            with contextlib.suppress(OSError, UnicodeDecodeError):
                found.append((str(place), place.read_text()))
    return found


def _rules(*command: str) -> str:
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # Packet counters move, and iptables-save dates its output.
    return re.sub(r"(?m)^#.*\n|packets \d+ bytes \d+|\[\d+:\d+\]", "", text)
