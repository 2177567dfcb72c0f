"""All chosen faults, one run after the other, each kept: an interrupted call is taken up where it was.

Below the directory: ``plan.json`` (the runs, in order), ``runs/NAME`` (run directories, those of
failed runs too), ``manifests/NAME`` (the objects with the mistake), ``results/NAME.json`` and
``observed/NAME.txt`` (what others saw), and at the end ``faults.json`` and ``confusion.svg``. A run counts
as made once its result is there; what there is of one without a result is made anew. A diagnosis is
taken again from the saved run wherever it is asked for, so that a better one needs no new runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ztprobe import __version__
from ztprobe.documents.files import read_text
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_json import parse_json
from ztprobe.errors import RunDirError, UsageError, ZtprobeError
from ztprobe.progress import Progress
from ztprobe.rundir import files
from ztprobe.rundir.claim import claimed, holds_results
from ztprobe.rundir.store import dump_json, load_run, write_atomically
from ztprobe.runtime.deployments import clean_leftovers
from ztprobe.validate.faults.figure import write_confusion
from ztprobe.validate.faults.judgement import judged
from ztprobe.validate.faults.model import LeftOut
from ztprobe.validate.faults.plan import PlannedFault
from ztprobe.validate.faults.runner import Diagnose, NamedCause, run_fault

__all__ = ("diagnosed", "planned_names", "run_faults")

_PLAN = "plan.json"
_PLAN_VERSION = 1
_RESULT = ("name", "cause", "what", "experiment", "is_there", "ended", "problems")
_MOST_BYTES = 16 << 20  # of a plan, or of one result
# A busy machine may keep a profile from being what it should be, before there is anything to break.
_ATTEMPTS = 3
_NOT_MEASURED = "is not what the pods got"


def diagnosed(run_dir: Path) -> list[NamedCause]:
    """What ``ztprobe diagnose`` says of a saved run. :raises RunDirError: the run is damaged."""
    from analysis.causes.diagnosis import diagnose_run

    return [NamedCause(one["id"], one["confidence"]) for one in diagnose_run(load_run(run_dir))["causes"]]


def planned_names(out: Path) -> list[str]:
    """The names of the runs that an earlier call has planned there.

    :raises UsageError: no such call has been made there.
    """
    try:
        plan = parse_json(read_text(out / _PLAN, _MOST_BYTES))
        return [str(name) for name in plan["runs"]]
    except (DocumentError, KeyError, TypeError) as error:
        raise UsageError(f"--resume {out}: holds no validation of faults that could be taken up") from error


def run_faults(
    chosen: Sequence[PlannedFault],
    left_out: Sequence[LeftOut],
    out: Path,
    progress: Progress,
    *,
    resumes: bool = False,
    diagnose: Diagnose = diagnosed,
) -> dict[str, Any]:
    """Make what is missing, diagnose all of it, and return faults.json's content.

    :param resumes: ``out`` holds the beginning of it.
    :raises ZtprobeError: the machine refuses something that all need.
    """
    for line in clean_leftovers():
        progress.note(f"left by an interrupted run: {line}")
    with _opened(out, chosen, resumes=resumes):
        for number, planned in enumerate(chosen, 1):
            made = _result_file(out, planned).exists()
            progress.stage(planned.name, f"{number} of {len(chosen)}: {planned.variant.what}")
            if not made:
                _make(planned, out)
            progress.done(_words(_with_diagnosis(planned, out, diagnose), made=made))
        results = [_with_diagnosis(planned, out, diagnose) for planned in chosen]
        content = {
            "schema_version": 1,
            "ztprobe": __version__,
            "kernel": platform.release(),
            "machine": platform.machine(),
            **judged(results, [dataclasses.asdict(one) for one in left_out]),
        }
        write_atomically(out / "faults.json", dump_json(content))
        write_confusion(content["confusion"], out / "confusion.svg")
    return content


@contextlib.contextmanager
def _opened(out: Path, chosen: Sequence[PlannedFault], *, resumes: bool) -> Iterator[None]:
    """The directory with its plan, and nobody else in it."""
    if not resumes and holds_results(out):
        raise RunDirError(f"{out}: is not empty; choose another --out, or take it up with --resume {out}")
    with claimed(out, "validates there"):
        try:
            for room in ("runs", "manifests", "results", "observed"):
                (out / room).mkdir(exist_ok=True)
        except OSError as error:
            raise RunDirError(f"{out}: cannot be made: {error.strerror}; choose another --out") from error
        if not resumes:
            plan = {"schema_version": _PLAN_VERSION, "runs": [planned.name for planned in chosen]}
            write_atomically(out / _PLAN, dump_json(plan))
        _remove_unfinished(out)
        yield


def _remove_unfinished(out: Path) -> None:
    """What a call that was killed had begun to make."""
    for room in ("runs", "manifests"):
        for entry in (out / room).iterdir():
            if not (out / "results" / f"{entry.name}.json").exists():
                files.remove_tree(entry)


def _result_file(out: Path, planned: PlannedFault) -> Path:
    return out / "results" / f"{planned.name}.json"


def _make(planned: PlannedFault, out: Path) -> None:
    run_dir, manifests = out / "runs" / planned.name, out / "manifests" / planned.name
    for attempt in range(_ATTEMPTS):
        if attempt:
            files.remove_tree(run_dir)
            files.remove_tree(manifests)
        made = run_fault(planned, run_dir, manifests)
        if made.is_there or _NOT_MEASURED not in made.ended:
            break
    result = dataclasses.asdict(made)
    observed = result.pop("observed")
    write_atomically(out / "observed" / f"{planned.name}.txt", "\n".join([*observed, ""]).encode())
    write_atomically(_result_file(out, planned), dump_json(result))


def _with_diagnosis(planned: PlannedFault, out: Path, diagnose: Diagnose) -> dict[str, Any]:
    result = _saved_result(_result_file(out, planned))
    try:
        named = [one._asdict() for one in diagnose(out / "runs" / planned.name)]
    except ZtprobeError as error:
        named = []
        result["problems"] = [*result["problems"], f"not diagnosed: {error}"]
    return result | {"named": named}


def _saved_result(file: Path) -> dict[str, Any]:
    try:
        result = parse_json(read_text(file, _MOST_BYTES))
        if isinstance(result, dict) and set(_RESULT) <= set(result):
            return result
        why = "is no result of a fault"
    except DocumentError as error:
        why = error.problem
    raise RunDirError(f"{file}: {why}; remove it, and --resume makes that run anew")


def _words(result: dict[str, Any], *, made: bool) -> str:
    if not result["is_there"]:
        why = "; ".join(result["problems"]) or result["ended"] or "it went through"
        return f"the fault did not show: {why}"
    ids = [one["id"] for one in result["named"]]
    first = ids[0] if ids else "nothing"
    earlier = " (made earlier)" if made else ""
    if first == result["cause"]:
        return f"named rightly{earlier}"
    place = f", {ids.index(result['cause']) + 1}. in the list" if result["cause"] in ids else ""
    return f"named {first}, was {result['cause']}{place}{earlier}"
