"""Every reader of somebody else's text: whatever it is given comes back as a value or as one line.

Inputs are real ones that were changed: bits, cuts, doubled and exchanged pieces, and words that have
hurt before. A fixed number of them keeps the time bounded, and each is a function of its number: what
failed once fails again (`ZTPROBE_EXAMPLES=500` tries more).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from analysis.load import load_analysed
from analysis.report.report import build_report
from analysis.report.text_report import print_report
from tests.unit.kustomize_corpus import PATCHES, patched, written
from tests.unit.recorded_run import RECORDED
from tests.unit.test_manifests import options, overlay
from tests.unit.test_policy_command import OBJECTS, POLICIES
from ztprobe.documents.idx import check_idx
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_json import parse_json
from ztprobe.documents.strict_yaml import decimal_scalar, kubectl_scalar, kustomize_scalar, parse_yaml
from ztprobe.errors import RunDirError, UsageError
from ztprobe.kubernetes.answers import page_of
from ztprobe.paths import MANIFESTS_DIR, NETPROFILES_DIR
from ztprobe.policy.manifests import read_documents
from ztprobe.policy.objects import read_objects
from ztprobe.profile.model import load_profile
from ztprobe.rundir.store import RunDir, dump_json, load_run
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.workload import Workload, plan

EXAMPLES = int(os.environ.get("ZTPROBE_EXAMPLES", "60"))
# What has ended a reader with a traceback, hung it, or been taken for something else.
WORDS = [
    *("010", "1:20", "0x50", "1_0", "1e2", "1e999", ".inf", "-.inf", ".nan", "NaN", "Infinity", "9" * 5000),
    *("2026-02-31", "33715-01-01", "on", "yes", "null", "~", "true", "<<: *a", "&a [*a]", "*a", "!!binary x"),
    *(
        "[" * 200,
        "{" * 200,
        "? [a]\n: b\n",
        "a: 1\na: 2\n",
        "\\ud800",
        "\x00",
        "\x1b[31m",
        "\u202e",
        "'",
        '"',
    ),
    *("---\n", "\t", "- ", ": ", ",", "\n", "-1", "0", str(2**63), str(2**64), "[]", "{}", '""', "\ufeff"),
]


def changed(text: bytes, number: int) -> bytes:
    """The input of that number."""
    chance = random.Random(number)
    data = bytearray(text)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at, to = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
        to = min(to, at + 80)
        what = chance.randrange(6)
        if what == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif what == 1:
            del data[at:to]
        elif what == 2:
            data[at:at] = data[at:to]
        elif what == 3:
            data[at:to] = chance.choice(WORDS).encode()
        elif what == 4:
            del data[at:]
        else:  # a value in place of a value
            end = data.find(b"\n", at)
            start = max(data.rfind(b": ", 0, end), data.rfind(b",", 0, end)) + 1
            data[start : end if end > 0 else len(data)] = b" " + chance.choice(WORDS).encode()
    return bytes(data)


def value_or_line(
    errors: type[Exception], read: Callable[..., object], *arguments: object, most_lines: int = 1
) -> None:
    """Anything but these errors, with a short line each, is a traceback to a user."""
    try:
        read(*arguments)
    except errors as error:
        lines = str(error).split("\n")  # a profile's problems come together, a line each
        if len(lines) > most_lines or max(map(len, lines)) > 1000:
            raise AssertionError(f"not {most_lines} short lines: {str(error)[:2000]!r}") from error


numbers = pytest.mark.parametrize("block", range(4))


def block_of(block: int, examples: int = EXAMPLES) -> range:
    return range(block * examples // 4, (block + 1) * examples // 4)


PROFILES = sorted(path.name for path in NETPROFILES_DIR.glob("*.yaml"))
STEPS = """name: x
description: d
schedule:
  repeat: true
  steps:
  - {for_s: 1, delay_ms: 3}
source: {schedule: me}
"""
TRACES = (
    'time_s,delay_ms,rate_mbit\n0,1,2\n1,"2",\n2,3,0\n',
    "0.5 4\n1.5 0\n2.5 7\n",
    "5\n900\n1500\n1500\n2750\n",
)


@numbers
def test_profiles(tmp_path: Path, block: int) -> None:
    shutil.copy(NETPROFILES_DIR / "net7.csv", tmp_path)
    texts = [*((NETPROFILES_DIR / name).read_bytes() for name in PROFILES), STEPS.encode()]
    for number in block_of(block, 4 * EXAMPLES):
        (tmp_path / "p.yaml").write_bytes(changed(texts[number % len(texts)], number))
        value_or_line(UsageError, load_profile, tmp_path / "p.yaml", most_lines=10)


@numbers
def test_traces(tmp_path: Path, block: int) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text("name: x\ndescription: d\nschedule: {trace_file: t.csv}\nsource: {schedule: me}\n")
    for number in block_of(block, 4 * EXAMPLES):
        text = TRACES[number % len(TRACES)].encode()
        (tmp_path / "t.csv").write_bytes(changed(text, number))
        value_or_line(UsageError, load_profile, profile, most_lines=10)


def planned(level: int, manifests: Path) -> Workload:
    return plan(render(overlay(level, manifests)), options(level))


@numbers
def test_manifests(tmp_path: Path, block: int) -> None:
    manifests = tmp_path / "manifests"
    shutil.copytree(MANIFESTS_DIR, manifests)
    files = sorted(manifests.rglob("*.yaml"))
    for number in block_of(block):
        file = files[number % len(files)]
        before = file.read_bytes()
        file.write_bytes(changed(before, number))
        value_or_line(UsageError, planned, number % 4, manifests)
        file.write_bytes(before)


@numbers
def test_patches(tmp_path: Path, block: int) -> None:
    names = sorted(PATCHES)
    for number in block_of(block, 2 * EXAMPLES):
        files = patched(names[number % len(names)])
        overlay_dir = written(files, tmp_path)
        (tmp_path / "o" / "p.yaml").write_bytes(changed(files["o/p.yaml"].encode(), number))
        value_or_line(UsageError, render, overlay_dir)


@numbers
def test_yaml_and_json_of_any_kind(block: int) -> None:
    text = (RECORDED / "run.json").read_bytes()[:4000]
    for number in block_of(block, 8 * EXAMPLES):
        found = changed(text, number).decode("utf-8", "replace")
        value_or_line(DocumentError, parse_json, found)
        scalars = (decimal_scalar, kustomize_scalar, kubectl_scalar)[number % 3]
        value_or_line(DocumentError, parse_yaml, found, scalars)


@numbers
def test_objects_and_policies(block: int) -> None:
    text = f"{OBJECTS}---{POLICIES}"
    as_json = json.dumps(
        {"apiVersion": "v1", "kind": "List", "items": list(yaml.safe_load_all(text))}, indent=1
    )
    for number in block_of(block, 8 * EXAMPLES):
        found = changed((as_json if number % 2 else text).encode(), number).decode("utf-8", "replace")
        value_or_line(UsageError, lambda text: read_objects(read_documents(text, "objects.yaml")), found)


def answer() -> bytes:
    pods = [
        {
            "metadata": {"name": f"p{n}", "namespace": "fl", "uid": "u", "labels": {"app": "x"}},
            "spec": {"nodeName": "n", "hostNetwork": False},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        }
        for n in range(3)
    ]
    return json.dumps({"metadata": {"continue": "1"}, "items": pods}, indent=1).encode()


@numbers
def test_answers_of_an_api(block: int) -> None:
    for number in block_of(block, 8 * EXAMPLES):
        body = changed(answer(), number)
        value_or_line(DocumentError, page_of, body, "pods")


@numbers
def test_data_files(tmp_path: Path, block: int) -> None:
    content = b"\0\0\x08\x01" + (1000).to_bytes(4, "big") + bytes(range(250)) * 4
    for number in block_of(block, 4 * EXAMPLES):
        file = tmp_path / ("labels.gz" if number % 2 else "labels")
        file.write_bytes(changed(gzip.compress(content, mtime=0) if number % 2 else content, number))
        value_or_line(DocumentError, check_idx, file)


@pytest.fixture
def recorded_copy(tmp_path: Path) -> Path:
    shutil.copytree(RECORDED, tmp_path / "run", ignore=shutil.ignore_patterns("baseline"))
    return tmp_path / "run"


@numbers
def test_files_of_a_run(recorded_copy: Path, block: int) -> None:
    """As far as reading goes; what a ledger makes of damaged tables has tests of its own."""
    files = ["run.json", "rounds.jsonl", "clients.jsonl", "events/drops.parquet", "events/pairs.parquet"]
    RunDir(recorded_copy).finish(json.loads((recorded_copy / "run.json").read_text()))
    for number in block_of(block, 2 * EXAMPLES):
        file = recorded_copy / files[number % len(files)]
        before = file.read_bytes()
        file.write_bytes(changed(before, number))
        value_or_line(RunDirError, load_run, recorded_copy)
        file.write_bytes(before)


VALUES = (None, True, 0, -1, 2**63 - 1, 2**64, 1e300, 0.5, "", "x", "\x1b[31m", [], {}, [None], {"a": None})


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a value, of long lists the first four."""
    inside = (
        value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    )
    return [path, *(found for key, item in inside for found in places(item, (*path, key)))]


@numbers
def test_what_run_json_says(recorded_copy: Path, block: int) -> None:
    """Valid JSON with one value exchanged: refused, or a whole report."""
    whole = json.loads((recorded_copy / "run.json").read_text())
    # What this run had none of: a schedule, and somebody else's profile meanwhile.
    condition = {
        "delay_ms": 80.0,
        "jitter_ms": 20.0,
        "distribution": "normal",
        "loss_pct": 1.0,
        "rate_mbit": None,
    }
    times = {"due_ns": 0, "from_ns": 0, "at_ns": 5, "step": 0, "skipped": 0, "error": None}
    whole["emulation"]["schedule"] = {
        "name": "x",
        "repeat": True,
        "period_s": 9.0,
        "steps": [condition | {"from_s": 0.0}],
        "changes": [condition | times, condition | times | {"at_ns": 10**13, "step": 0}],
    }
    who = {
        "lease": "l",
        "profile": "p",
        "backend": "netem",
        "direction": "both",
        "to": None,
        "pods": ["fl-client-0"],
    }
    whole["emulation"]["others"] = [
        who | {"from_ns": 0, "to_ns": None, "changes": [condition | {"at_ns": 1}]}
    ]
    text = json.dumps(whole)
    (recorded_copy / "run.json").write_text(text)
    assert b'"conditions"' in report(recorded_copy)
    everywhere = [path for path in places(whole) if path and path[0] != "drop_reasons"]
    emulated = [path for path in everywhere if path[0] == "emulation" and path[1:2] != ("details",)]
    for number in block_of(block, EXAMPLES // 2):
        chance = random.Random(number)
        *way, last = chance.choice(emulated if number % 2 else everywhere)
        meta = inner = json.loads(text)
        for key in way:
            inner = inner[key]
        inner[last] = chance.choice(VALUES)
        (recorded_copy / "run.json").write_text(json.dumps(meta))
        value_or_line(RunDirError, report, recorded_copy)


@numbers
@pytest.mark.parametrize("name", ["rounds.jsonl", "clients.jsonl"])
def test_what_the_logs_say(recorded_copy: Path, block: int, name: str) -> None:
    """The same with one field of a round's events."""
    lines = (recorded_copy / name).read_text().splitlines()
    for number in block_of(block, EXAMPLES // 2):
        chance = random.Random(number)
        at = chance.randrange(len(lines))
        event = json.loads(lines[at])
        event[chance.choice(sorted(event))] = chance.choice(VALUES)
        (recorded_copy / name).write_text(
            "\n".join([*lines[:at], json.dumps(event), *lines[at + 1 :]]) + "\n"
        )
        value_or_line(RunDirError, report, recorded_copy)


def report(run_dir: Path) -> bytes:
    analysed = load_analysed(run_dir)
    built = build_report(analysed.run, analysed.ledger, analysed.baseline)
    print_report(built, io.StringIO())
    return dump_json(built)
