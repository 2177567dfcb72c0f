"""Nothing is left of a run, however it ends, and nothing of anybody else's is taken."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kernel import workload_stub
from tests.kernel.workload_stub import ALLOWED, finish, traces, up
from ztprobe import paths
from ztprobe.runtime.local import journal

# What the command line does, without the command line: it is killed from outside.
_OWNER = """
import sys
from pathlib import Path
from tests.kernel import workload_stub
from ztprobe.process.interrupts import catching
runtime = workload_stub.runtime(Path(sys.argv[1]), level=3, clients=2)
with catching(print):
    try:
        print(runtime._run_id, flush=True)
        runtime.create(); print("created", flush=True)
        runtime.secure(); print("secured", flush=True)
        runtime.start_server(); print("serving", flush=True)
        sys.stdin.read()
    finally:
        runtime.down()
"""


def owner(tmp_path: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that owns a run, and the run's name."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=paths.REPO_DIR,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    """Read the owner's output up to a line."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise AssertionError(f"the owner ended before it was {word}")


@pytest.mark.parametrize("moment", [0.1, 0.3, "created", "secured", "serving"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_killed_run(
    tmp_path: Path, scratch_netns: Path, moment: float | str, number: signal.Signals
) -> None:
    allowed = ALLOWED.read_text()
    process, run_id = owner(tmp_path)
    try:
        if isinstance(moment, str):
            wait_for(process, moment)
        else:
            time.sleep(moment)
    finally:
        process.send_signal(number)
        process.communicate(timeout=20)
    if number is signal.SIGKILL:
        report = journal.clean_leftovers()
        if isinstance(moment, str):
            assert any(f"network namespace ztp-{run_id}-node removed" in line for line in report)
    assert traces(run_id) == []
    assert ALLOWED.read_text() == allowed
    assert scratch_netns.exists(), "somebody else's namespace"
    assert not any(run_id in line for line in journal.clean_leftovers())


def test_cleaning_leaves_a_live_run_alone(tmp_path: Path) -> None:
    with up(workload_stub.runtime(tmp_path, level=0, clients=1)) as runtime:
        assert not any(runtime._run_id in line for line in journal.clean_leftovers())
        runtime.secure()
        runtime.start_server()
        finish(runtime)


def test_cleaning_does_not_kill_a_process_that_has_inherited_a_pid(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        entry = journal.Journal(f"t{secrets.token_hex(4)}")
        entry.process(bystander.pid)
        entry._entries["processes"][0]["started_ticks"] -= 1
        entry._write()
        assert entry.close() == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
