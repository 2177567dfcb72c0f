"""Making files where somebody else may have been before; what needs a second user is in tests/kernel."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ztprobe import paths
from ztprobe.errors import RunDirError
from ztprobe.rundir import files, temporary
from ztprobe.rundir.store import RunDir
from ztprobe.runtime.local.journal import appearing_whole


def test_a_link_in_the_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "report.json").symlink_to(precious)
    files.write_whole(tmp_path / "report.json", b"new", durable=True)
    assert precious.read_text() == "mine"
    assert not (tmp_path / "report.json").is_symlink()
    assert (tmp_path / "report.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "report.json"]


def test_what_cannot_be_written_leaves_nothing_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with pytest.raises(IsADirectoryError) as refused:
        files.write_whole(tmp_path / "place", b"new")
    assert refused.value.filename == str(tmp_path / "place")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    with pytest.raises(FileNotFoundError):
        files.write_whole(tmp_path / "nowhere" / "file", b"new")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_only_a_regular_file_is_added_to(tmp_path: Path, make: object) -> None:
    make(tmp_path / "rounds.jsonl")  # type: ignore[operator]
    with pytest.raises(RunDirError, match=r"rounds\.jsonl: cannot be written"):
        RunDir(tmp_path).append_jsonl("rounds.jsonl", {"event": "round_start"})


def test_directories_are_reached_through_links_and_dots(tmp_path: Path) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/below")
    (tmp_path / "absolute").symlink_to(tmp_path / "link")
    files.write_whole(tmp_path / "absolute" / ".." / "file", b"here")
    assert (tmp_path / "real" / "file").read_bytes() == b"here"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        files.write_whole(tmp_path / "loop" / "file", b"")


def test_a_tree_is_removed_but_never_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "others")
    (tmp_path / "link").symlink_to(tmp_path / "others")
    assert files.remove_tree(tmp_path / "tree")
    assert not files.remove_tree(tmp_path / "tree")
    assert not files.remove_tree(tmp_path / "link")
    assert (tmp_path / "others" / "file").exists()


def test_results_are_hidden_under_a_name_that_nobody_can_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    out = tmp_path / "new" / ("x" * 250)
    names = set()
    for _ in range(2):
        with appearing_whole(out) as partial:
            assert stat.S_IMODE(partial.stat().st_mode) == 0o700
            assert str(os.getpid()) not in partial.name.split("-")
            names.add(partial.name)
            (partial / "run.json").touch()
        assert stat.S_IMODE(out.stat().st_mode) & 0o500 == 0o500
        (out / "run.json").unlink()  # an empty directory may be there
    assert len(names) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_results_do_not_replace_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    result = appearing_whole(tmp_path / "out")
    result.__enter__()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(RunDirError, match="cannot be made: Directory not empty"):
        result.__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_failures_leave_is_bounded_and_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    logs = tmp_path / "run" / "baseline" / "logs"
    logs.mkdir(parents=True)
    (logs / "server.log").write_text("a" * (3 << 20) + "the end")
    (logs / "link.log").symlink_to("/etc/passwd")
    for number in range(temporary.MOST_KEPT + 3):
        kept = temporary.keep_logs(tmp_path / "run")
        os.utime(kept, (number, number))
        os.utime(temporary.keep_traceback("Traceback"), (number, number))
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    (log,) = (kept / "baseline" / "logs").iterdir()
    assert log.read_text().endswith("the end")
    assert log.stat().st_size == 1 << 20
    assert kept.exists()
    assert len(list((tmp_path / "tmp").iterdir())) == 2 * temporary.MOST_KEPT
    with temporary.scratch() as used:
        dead = used.with_name("ztprobe-scratch-4194304-1-abcdef")
        dead.mkdir()
        cleaned = temporary.clean()
        assert list((tmp_path / "tmp").iterdir()) == [used]
    assert len(cleaned) == 2 * temporary.MOST_KEPT + 1
    assert list((tmp_path / "tmp").iterdir()) == []
