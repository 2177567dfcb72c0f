"""What a study's directory says of itself: its plan, and the attempts that were kept. Read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

from ztprobe.documents.files import read_text
from ztprobe.documents.problem import DocumentError
from ztprobe.documents.strict_json import parse_json
from ztprobe.errors import RunDirError

__all__ = (
    "CLUSTER",
    "CONDITIONS_FILE",
    "CONTENTION",
    "LOCAL",
    "NOT_OF_DEPLOYMENT",
    "STUDY_FILE",
    "failed_attempts",
    "option_words",
    "read_commit",
    "read_node",
    "read_plan",
    "runtime_of",
)

STUDY_FILE = "study.json"
CONDITIONS_FILE = "reset.json"  # in each run of a study
# Classes of attempts that say nothing of the deployment, and that were made anew.
CONTENTION = "contention"  # others spoiled it
CLUSTER = "cluster"  # the cluster's API did not answer, or refused, where it had not before
NOT_OF_DEPLOYMENT = (CONTENTION, CLUSTER)
LOCAL = "local"  # the runtime of a study whose plan names none
_MOST_BYTES = 16 << 20
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 1_000_000}
# What is read of it here; ztprobe.study writes more.
_CELL = {
    "type": "object",
    "required": ["name", "experiment", "clients", "reconnect"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]*$"},  # of directories
        "fl": {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z]+(_[a-z]+)*$"},
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        },
        "experiment": {
            "type": "object",
            "required": ["profile", "level", "distribution", "seed"],
            "properties": {
                "profile": _TEXT,
                "level": {"type": "integer"},
                "distribution": _TEXT,
                "seed": {"type": "integer"},
            },
        },
        "clients": _COUNT,
        "reconnect": {"type": "boolean"},
        "level_switch": {"type": "string", "pattern": "^sec[0-3]@round[0-9]{1,6}$"},
    },
}
_PLAN = {
    "type": "object",
    "required": ["name", "rounds", "repetitions", "cells"],
    "properties": {
        "name": _TEXT,
        "rounds": _COUNT,
        "repetitions": _COUNT,
        "cells": {"type": "array", "minItems": 1, "items": _CELL},
        "runtime": {"enum": [LOCAL, "kubernetes"]},
    },
}
_CONDITIONS = {
    "type": "object",
    "properties": {"commit": {"type": ["string", "null"]}, "node": _TEXT},
}
_FAILURE = {"type": "object", "required": ["class"], "properties": {"class": _TEXT}}


def read_plan(study: Path) -> dict[str, Any]:
    """study.json's content. :raises RunDirError: it is not there, or is no plan."""
    return _read(study / STUDY_FILE, _PLAN, f"{study}: is no study ({STUDY_FILE} is missing or damaged)")


def runtime_of(plan: Mapping[str, Any]) -> str:
    """local | kubernetes"""
    return str(plan.get("runtime", LOCAL))


def read_commit(run: Path) -> str:
    """From which commit a study's run was made, or that nobody recorded it.

    :raises RunDirError: the file is damaged.
    """
    return _conditions(run).get("commit") or "not recorded"


def read_node(run: Path) -> str | None:
    """On which of a cluster's nodes a study's run was made; None: on none.

    :raises RunDirError: the file is damaged.
    """
    return _conditions(run).get("node")


def _conditions(run: Path) -> dict[str, Any]:
    file = run / CONDITIONS_FILE
    return _read(file, _CONDITIONS, f"{file}: is damaged") if file.exists() else {}


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options of the workload as they stand in names of cells and groups: compression-int8, inspect, ..."""
    return [
        name.replace("_", "-") + ("" if value is True else f"-{value}".lower().replace("+", ""))
        for name, value in sorted(options.items())
    ]


def failed_attempts(study: Path, cell: str, repetition: int | None = None) -> list[dict[str, Any]]:
    """What is kept of each attempt that was no run of the study's, with its directory's name as ``attempt``.

    :param repetition: None: of all.
    :raises RunDirError: a file is damaged.
    """
    which = "r[0-9]*" if repetition is None else f"r{repetition:02d}"
    return [
        _read(file, _FAILURE, f"{file}: is damaged") | {"attempt": file.parent.name}
        for file in sorted((study / "attempts").glob(f"{cell}-{which}-*/failure.json"))
    ]


def _read(file: Path, schema: dict[str, Any], problem: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = parse_json(read_text(file, _MOST_BYTES))
    except DocumentError as error:
        raise RunDirError(problem) from error
    if next(jsonschema.Draft202012Validator(schema).iter_errors(content), None) is not None:
        raise RunDirError(problem)
    return content
