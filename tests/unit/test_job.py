"""What a traced job leaves where it fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ztprobe import paths
from ztprobe.errors import WorkloadError
from ztprobe.experiment import pair
from ztprobe.experiment.names import parse_experiment
from ztprobe.experiment.request import TraceRequest
from ztprobe.progress import QuietProgress


class Failing:
    """In place of a whole deployment: a client that says why and dies."""

    def __init__(self, spec: Any, target: Any, _progress: Any) -> None:
        self.spec, self.target = spec, target

    def run(self) -> None:
        log = self.target.path / "logs" / "fl-client-0.client.err"
        log.write_text("out of paper\n")
        raise WorkloadError(f"fl-client-0/client exited with status 1: out of paper (see {log})")


def test_the_log_that_a_failure_names_outlives_the_unfinished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_in = tmp_path / "tmp"
    kept_in.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(kept_in))
    monkeypatch.setattr(paths, "STATE_DIR", tmp_path / "state")
    monkeypatch.setattr(pair, "Job", Failing)
    experiment = parse_experiment("net0-sec0", ["net0"])
    request = TraceRequest(
        experiment=experiment,
        baseline=None,
        rounds=1,
        clients=1,
        dataset="digits",
        data_dir=None,
        out=tmp_path / "runs" / "run",
        reconnect=False,
    )
    with pytest.raises(WorkloadError) as failed:
        pair.run_pair(request, QuietProgress())
    named = re.search(r"\(see (.*)\)", str(failed.value))
    assert named is not None
    assert Path(named[1]).read_text() == "out of paper\n"
    assert Path(named[1]).is_relative_to(kept_in)
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
