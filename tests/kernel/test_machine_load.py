"""Whose CPU time it was: known costs of others, of ztprobe's own children and of a deployment's cgroup.

Other processes of the machine run beside these tests, so foreign CPU time has a lower bound only; what is
ours must be ours all the same.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ztprobe.agent.cpu_account import CpuAccount, CpuTimes
from ztprobe.agent.machine_load import COLUMNS, INTERVAL_S, MachineLoad
from ztprobe.runtime.local.cgroups import detect, remove

BURN_S = 0.6
# Burns that much CPU time, whatever wall time it takes, once its standard input is closed.
BURN = f"""
import sys, time
print("ready", flush=True)
sys.stdin.read()
while time.process_time() < {BURN_S}: pass
print("done", flush=True)
"""
# Beforehand its parent goes away, so that it is no descendant of ours any more.
_ORPHAN = "import os\nif os.fork(): os._exit(0)\nos.setsid()\nprint(os.getpid(), flush=True)\n"
# Ten that burn one after the other and are gone before anybody could look twice.
_BRIEF = """
import os, time
for _ in range(10):
    if not (pid := os.fork()):
        while time.process_time() < 0.06: pass
        os._exit(0)
    os.waitpid(pid, 0)
"""
NS = 1e9
_FIRST_CGROUP_NAMESPACE = "cgroup:[4026531835]"  # the kernel's PROC_CGROUP_INIT_INO


def difference(after: CpuTimes, before: CpuTimes) -> dict[str, float]:
    """Seconds between two looks."""
    return {name: (getattr(after, name) - getattr(before, name)) / NS for name in vars(before)}


def foreign_s(spent: dict[str, float]) -> float:
    return spent["tasks_ns"] - spent["deployment_ns"] - spent["ztprobe_ns"] - spent["kernel_ns"]


@contextlib.contextmanager
def waiting(program: str, *, joins: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that begins when its standard input is closed, in a cgroup if need be."""
    command = [sys.executable, "-S", "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            if joins is not None:
                joins.write_text(str(process.pid))
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


@pytest.fixture
def accounts(tmp_path: Path) -> dict[str, CpuAccount]:
    """One account per source that this machine offers."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found = {}
    for kind in ("cgroup2", "cgroup", "none"):
        path = tmp_path / kind
        path.write_text("\n".join(line for line in mounts if line.split()[2] == kind))
        account = CpuAccount(mounts=path)
        found[account.source] = account
    assert "proc_stat" in found
    if os.environ.get("ZTPROBE_IN_VM"):
        assert "cgroup2" in found
    # In a cgroup namespace of its own (tools/fresh-machine) the machine's root groups cannot be seen; what
    # the one source says is held against the scheduler's account of each process there too.
    elif os.readlink("/proc/self/ns/cgroup") == _FIRST_CGROUP_NAMESPACE:
        assert len(found) > 1
    return found


@contextlib.contextmanager
def orphan(program: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A process that is nobody's descendant but init's: its pid, and its standard input and output."""
    command = [sys.executable, "-S", "-c", _ORPHAN + program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            parent.wait()
            yield pid, parent
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_an_other_process_is_foreign_by_every_source(accounts: dict[str, CpuAccount]) -> None:
    with orphan(BURN + "time.sleep(60)") as (pid, process):
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        before = {source: account.read() for source, account in accounts.items()}
        ran_s = -ran(pid)
        go(process)
        assert process.stdout.readline() == b"done\n"
        spent = {source: difference(account.read(), before[source]) for source, account in accounts.items()}
        ran_s += ran(pid)
    assert ran_s == pytest.approx(BURN_S, abs=0.1)
    for source, one in spent.items():
        # Ticks are 10 ms, and a kernel that samples them may be off by more.
        assert foreign_s(one) > ran_s * (0.6 if source == "proc_stat" else 0.85), (source, one)


def test_an_account_of_some_cpus_sees_who_runs_on_them_and_nobody_else() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    accounts = {cpu: CpuAccount(cpus=[cpu]) for cpu in cpus}
    for cpu in cpus[:2]:
        pinned = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\n{BURN}time.sleep(60)"
        with orphan(pinned) as (pid, process):
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            before = {each: account.read() for each, account in accounts.items()}
            ran_s = -ran(pid)
            go(process)
            assert process.stdout.readline() == b"done\n"
            spent = {each: difference(account.read(), before[each]) for each, account in accounts.items()}
            ran_s += ran(pid)
        assert ran_s == pytest.approx(BURN_S, abs=0.1)
        loose = 0.6 if accounts[cpu].source == "proc_stat" else 0.85
        assert foreign_s(spent[cpu]) > ran_s * loose, spent
        # Others of this machine may run there, but not this one.
        assert all(foreign_s(one) < ran_s / 2 for each, one in spent.items() if each != cpu), spent


def ran(pid: int) -> float:
    """Seconds that a process of one thread ran, by the scheduler's own account of it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / NS


def test_our_own_children_are_not_foreign() -> None:
    account = CpuAccount()
    with waiting(BURN) as process:
        before = account.read()
        go(process)
        process.wait()
        spent = difference(account.read(), before)
    assert spent["ztprobe_ns"] == pytest.approx(BURN_S, abs=0.15)
    tick_s = 1 / os.sysconf("SC_CLK_TCK")  # of /proc/stat; the other is by the scheduler's own clock
    assert spent["tasks_ns"] >= spent["ztprobe_ns"] - tick_s


def test_who_is_named_as_ours_is_not_foreign_nor_are_its_children() -> None:
    """A service is no child of its worker, which keeps the account."""
    burning_child = "if not os.fork(): exec(burn)\nos.wait()\n"
    program = f"burn = {BURN!r}\n{burning_child}import time\ntime.sleep(60)"
    with orphan(program) as (pid, process):
        account = CpuAccount(ours=[pid])
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        before = account.read()
        go(process)
        assert process.stdout.readline() == b"done\n"
        spent = difference(account.read(), before)
    assert spent["ztprobe_ns"] == pytest.approx(BURN_S, abs=0.2)


def test_children_too_brief_to_be_seen_are_counted_too() -> None:
    account = CpuAccount()
    before = account.read()
    subprocess.run([sys.executable, "-S", "-c", _BRIEF], check=True)
    spent = difference(account.read(), before)
    assert spent["ztprobe_ns"] == pytest.approx(0.6, abs=0.2)


def test_what_a_child_waited_for_is_ours_too() -> None:
    account = CpuAccount()
    program = (
        f'print("ready", flush=True)\nimport sys\nsys.stdin.read()\n{_BRIEF}\nprint("done", flush=True)\n'
    )
    with waiting(f"{program}import time\ntime.sleep(60)") as process:
        before = account.read()
        go(process)
        assert process.stdout is not None and process.stdout.readline() == b"done\n"
        spent = difference(account.read(), before)
    assert spent["ztprobe_ns"] == pytest.approx(0.6, abs=0.2)


def test_a_deployment_s_cgroup_is_its_own_and_counts_once() -> None:
    """Though its processes descend from us, and after they have gone."""
    roots = detect()
    if roots.unified is None:
        pytest.skip("no version 2 hierarchy, whose cgroups keep their own account")
    cgroup = roots.unified / f"ztp-t{secrets.token_hex(4)}"
    cgroup.mkdir()
    try:
        account = CpuAccount()
        with waiting(BURN, joins=cgroup / "cgroup.procs") as process:
            account.belongs([process.pid])
            before = account.read()
            go(process)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            spent = difference(account.read(), before)
            process.wait()
        assert spent["deployment_ns"] == pytest.approx(BURN_S, abs=0.15)
        assert spent["ztprobe_ns"] < 0.1
    finally:
        remove(cgroup)


def test_the_record_has_a_row_per_interval_and_costs_little() -> None:
    begun = time.monotonic()
    with MachineLoad() as load:
        time.sleep(5.2 * INTERVAL_S)
    elapsed = time.monotonic() - begun
    table = load.table()
    assert load.problem is None
    assert list(table.columns) == list(COLUMNS)
    assert 3 <= len(table) <= 6
    assert (table["from_ns"].iloc[1:].to_numpy() == table["to_ns"].iloc[:-1].to_numpy()).all()
    capacity_ns = (table["to_ns"] - table["from_ns"]) * load.cpus
    assert (table["tasks_ns"] <= 1.1 * capacity_ns).all()
    assert (table["foreign_ns"] > -0.05 * capacity_ns).all()
    assert load.cpu_ns / NS < 0.02 * elapsed
    facts = load.facts()
    assert facts["cpus"] == os.cpu_count()
    assert facts["source"] in ("cpuacct", "cgroup2", "proc_stat")


def test_who_makes_a_machine_busy_is_named() -> None:
    """By a process that is no child of ours."""
    with orphan("while 1: pass"), MachineLoad() as load:
        time.sleep(2.2 * INTERVAL_S)
        share = load.foreign_share(2 * INTERVAL_S)
        assert share is not None and share > 0.25 / load.cpus
        # Others may be busier still, but somebody is.
        assert "(pid " in (load.busiest() or "")
