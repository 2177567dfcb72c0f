"""What undoing a run takes away on disk, and what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztprobe import paths
from ztprobe.runtime.local.journal import Journal


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    return Journal("job-1")


def test_unfinished_results_go_with_the_directories_made_for_them(journal: Journal, tmp_path: Path) -> None:
    partial = tmp_path / "new" / "below" / ".run.partial"
    journal.scratch(partial)
    partial.mkdir(parents=True)
    (partial / "run.json").touch()
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_directories_that_were_there_or_hold_something_stay(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    partial = tmp_path / "old" / "new" / "newer" / ".run.partial"
    journal.scratch(partial)
    partial.mkdir(parents=True)
    partial.rename(tmp_path / "old" / "new" / "run")
    journal.close()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "old", "run"]
