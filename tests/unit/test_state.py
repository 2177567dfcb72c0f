"""The state directory's lock, and claiming a run's name while somebody else cleans up."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from ztprobe import paths
from ztprobe.errors import PreflightError
from ztprobe.rundir import state
from ztprobe.runtime.local.journal import Journal, clean_leftovers

_CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    return tmp_path / "state"


def _keep_cleaning(stop: Any) -> None:
    while not stop.is_set():
        clean_leftovers()


def test_cleaning_never_takes_a_run_that_is_starting(state_dir: Path) -> None:
    stop = _CONTEXT.Event()
    cleaners = [_CONTEXT.Process(target=_keep_cleaning, args=(stop,)) for _ in range(2)]
    for cleaner in cleaners:
        cleaner.start()
    lost = 0
    try:
        give_up = time.monotonic() + 20
        for number in range(400):
            journal = Journal(f"run-{number}")
            lost += not (journal.directory / "journal.json").exists()
            journal.close()
            assert time.monotonic() < give_up
    finally:
        stop.set()
        for cleaner in cleaners:
            cleaner.join()
    assert lost == 0
    assert [cleaner.exitcode for cleaner in cleaners] == [0, 0]
    state.leave()
    assert not state_dir.exists()


def test_a_dead_run_is_still_cleaned(state_dir: Path) -> None:
    child = _CONTEXT.Process(target=Journal, args=("dead",))
    child.start()
    child.join()
    assert (state_dir / "dead" / "journal.json").exists()
    clean_leftovers()
    assert not state_dir.exists()


def test_only_its_user_sees_the_state_and_its_lock(state_dir: Path) -> None:
    with state.locked():
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((state_dir / state.LOCK).stat().st_mode) == 0o600
    (state_dir / state.LOCK).chmod(0o644)
    with pytest.raises(PreflightError, match="not ours alone"), state.locked():
        pass
    (state_dir / state.LOCK).unlink()
    os.mkfifo(state_dir / state.LOCK, 0o600)
    with pytest.raises(PreflightError, match="not ours alone"), state.locked():
        pass


def _hold(ready: Any, seconds: float) -> None:
    with state.locked():
        ready.set()
        time.sleep(seconds)


def test_waiting_for_the_lock_has_an_end_and_names_the_holder(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = _CONTEXT.Event()
    holder = _CONTEXT.Process(target=_hold, args=(ready, 20))
    holder.start()
    try:
        assert ready.wait(10)
        words = rf"held for 0\.2 s by process {holder.pid} \(.*pytest"
        with pytest.raises(PreflightError, match=words), state.locked(0.2):
            pass
        monkeypatch.setattr(state, "_SILENT_S", 0.05)
        told: list[str] = []
        with state.telling(told.append), pytest.raises(PreflightError), state.locked(0.3):
            pass
        assert len(told) == 1
        assert told[0].startswith(f"waiting for process {holder.pid} (")
    finally:
        holder.kill()
        holder.join()
    with state.locked(0.2):
        pass


def test_the_lock_of_a_directory_that_was_taken_away_is_tried_again(state_dir: Path) -> None:
    with state.locked():
        old = os.open(state_dir / state.LOCK, os.O_RDWR)
        state.leave()  # it is held: nothing happens
        assert state_dir.exists()
    fcntl.flock(old, fcntl.LOCK_EX)
    (state_dir / state.LOCK).unlink()  # as its last user would
    state_dir.rmdir()
    with state.locked(0.2), contextlib.suppress(FileNotFoundError):
        assert (state_dir / state.LOCK).stat().st_ino != os.fstat(old).st_ino
    os.close(old)
    state.leave()
    assert not state_dir.exists()
