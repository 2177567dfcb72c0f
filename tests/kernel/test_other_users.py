"""What another user of the machine can do to root's commands: nothing."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.command import run
from tests.unit.recorded_run import RECORDED
from ztprobe import paths
from ztprobe.agent.service.session import Sessions
from ztprobe.errors import PreflightError, RunDirError
from ztprobe.rundir import files, state
from ztprobe.rundir.claim import LOCK, claimed
from ztprobe.rundir.store import write_atomically
from ztprobe.runtime.local.journal import appearing_whole

NOBODY = 65534
_HOLDING = (
    "import fcntl, os, sys, time; os.setuid(65534); fcntl.flock(os.open(sys.argv[1], 0), 2);"
    " print(flush=True); time.sleep(60)"
)


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory as /tmp is, that others can reach; the state is elsewhere."""
    place = Path(tempfile.mkdtemp(prefix="ztprobe-test-"))
    place.chmod(0o1777)
    monkeypatch.setattr(paths, "STATE_DIR", place / "state")
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
    yield place
    shutil.rmtree(place)


def as_nobody(action: Callable[[], object]) -> str:
    """Do something as another user; what it came to."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                action()
                said = "done"
            except OSError as error:
                said = type(error).__name__
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def test_unfinished_results_cannot_be_swapped_or_entered(public: Path) -> None:
    guessed = public / f".X.partial-{os.getpid()}"
    assert as_nobody(guessed.mkdir) == "done"
    with appearing_whole(public / "X") as partial:
        assert partial != guessed
        (partial / "logs").mkdir()
        assert as_nobody(lambda: partial.rename(public / "Y")) == "PermissionError"
        assert as_nobody(lambda: (partial / "logs" / "link").symlink_to("/etc")) == "PermissionError"
        assert as_nobody(lambda: os.listdir(partial)) == "PermissionError"
        assert as_nobody(lambda: (public / "X").symlink_to("/etc")) == "done"
        (public / "X").unlink()
    assert (public / "X").stat().st_uid == 0
    assert list(guessed.iterdir()) == []


def test_a_link_that_somebody_planted_is_not_followed(public: Path) -> None:
    secret = public / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    planted = [public / f".report.json.{os.getpid()}.tmp", public / "report.json"]
    for link in planted:
        assert as_nobody(lambda link=link: link.symlink_to(secret)) == "done"  # type: ignore[misc]
    write_atomically(public / "report.json", b"{}")
    assert secret.read_text() == "root's"
    assert not (public / "report.json").is_symlink()
    assert as_nobody(lambda: (public / "rounds.jsonl").symlink_to(secret)) == "done"
    with pytest.raises(OSError, match=r"rounds\.jsonl"):
        files.append(public / "rounds.jsonl", b"{}\n")
    assert as_nobody(lambda: (public / "way").symlink_to("/root")) == "done"
    with pytest.raises(RunDirError, match=r"way is a link that belongs to nobody \(user 65534\)"):
        write_atomically(public / "way" / "report.json", b"{}")


def test_nothing_is_made_behind_a_link_that_somebody_planted(public: Path) -> None:
    """Also where a directory is filled over several calls, or only made so that a file can stand in it."""
    hidden = public / "hidden"
    hidden.mkdir(0o700)
    assert as_nobody(lambda: (public / "way").symlink_to(hidden)) == "done"
    outcome = run("compare", RECORDED, RECORDED, "--out", public / "way" / "new")
    outcome.assert_refused(4, "way is a link that belongs to nobody (user 65534)")
    words = r"way is a link that belongs to nobody \(user 65534\); root does not follow it; choose another"
    for command in ("is running this study", "validates there"):
        with pytest.raises(RunDirError, match=words), claimed(public / "way" / "new", command):
            pytest.fail("it began")
    assert list(hidden.iterdir()) == []


def test_a_queue_of_somebody_else_is_not_taken_up(public: Path) -> None:
    theirs = public / "queue"
    assert as_nobody(theirs.mkdir) == "done"
    assert as_nobody(lambda: os.mkfifo(theirs / "service.json")) == "done"
    with pytest.raises(PreflightError, match=r"belongs to nobody .* choose another --state"):
        Sessions(theirs, queue_bytes=1 << 20, orphan_s=60)


def test_nobody_else_can_hold_up_a_study(public: Path) -> None:
    with claimed(public / "study", "is running this study"):
        pass
    assert as_nobody(lambda: os.open(public / "study" / LOCK, os.O_RDONLY)) == "PermissionError"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDING, str(public / "study")], stdout=subprocess.PIPE
    )  # the directory itself may be read, and so locked
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        with claimed(public / "study", "is running this study"):
            pass
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize(
    ("mode", "owner", "words"),
    [
        (0o755, NOBODY, r"belongs to nobody \(user 65534\), who could replace what root writes there"),
        (0o777, 0, "is writable by everyone"),
        (0o775, 0, "is writable by the group"),
    ],
)
def test_root_refuses_a_directory_that_others_can_change(
    public: Path, mode: int, owner: int, words: str
) -> None:
    theirs = public / "theirs"
    (theirs / "below").mkdir(parents=True)
    os.chown(theirs, owner, NOBODY)
    theirs.chmod(mode)
    for place in (theirs, theirs / "below", theirs / "new"):
        with pytest.raises(RunDirError, match=words):
            write_atomically(place / "report.json", b"{}")
    with pytest.raises(RunDirError, match=words), appearing_whole(theirs / "run"):
        pytest.fail("it began")
    assert [path.name for path in theirs.rglob("*")] == ["below"]
    outcome = run("trace", "--experiment", "net0-sec0", "--out", theirs / "run")
    outcome.assert_refused(4, str(theirs), "use a directory of your own", "--out")
    assert [path.name for path in theirs.rglob("*")] == ["below"]


def test_who_calls_sudo_may_have_results_at_home(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = public / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    home.chmod(0o775)
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    monkeypatch.setenv("SUDO_GID", str(NOBODY))
    write_atomically(home / "run" / "report.json", b"{}")
    assert stat.S_IMODE((home / "run").stat().st_mode) & 0o022 == 0


def test_nobody_else_can_hold_up_a_command(public: Path) -> None:
    with state.locked():
        pass
    for held in (paths.STATE_DIR, paths.STATE_DIR / state.LOCK):
        assert as_nobody(lambda held=held: fcntl.flock(os.open(held, os.O_RDONLY), fcntl.LOCK_EX)) == (  # type: ignore[misc]
            "PermissionError"
        )
    # A state directory of an earlier version may be open to all: then it can be locked, and nothing waits.
    paths.STATE_DIR.chmod(0o755)
    holder = subprocess.Popen([sys.executable, "-c", _HOLDING, str(paths.STATE_DIR)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        began = time.monotonic()
        outcome = run("clean", env={"ZTPROBE_STATE_DIR": str(paths.STATE_DIR)})
        assert outcome.status == 0
        assert time.monotonic() - began < 10
    finally:
        holder.kill()
        holder.wait()


def test_a_state_directory_of_somebody_else_is_not_acted_on(public: Path) -> None:
    victim = public / "victim"
    victim.mkdir()
    planted = public / "state" / "run"
    planted.mkdir(parents=True)
    (planted / "journal.json").write_text(f'{{"scratch": "{victim}"}}')
    os.chown(public / "state", NOBODY, NOBODY)
    outcome = run("clean", env={"ZTPROBE_STATE_DIR": str(public / "state")})
    outcome.assert_refused(3, "belongs to nobody")
    assert victim.exists()
