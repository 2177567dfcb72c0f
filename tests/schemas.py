"""The JSON Schemas that are shipped, and what in a document does not fit them."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator

from ztprobe.rundir.store import dump_json

# Name of the document -> the package that writes it.
SCHEMAS = {
    "report": "analysis.report",
    "comparison": "analysis.results",
    "study-report": "analysis.results",
    "reproduction": "analysis.results",
    "run": "ztprobe.rundir",
}


@functools.cache
def schema(name: str) -> dict[str, Any]:
    return json.loads((resources.files(SCHEMAS[name]) / f"{name}.schema.json").read_text())


def problems(name: str, document: dict[str, Any]) -> list[str]:
    """One line each; the document as a reader gets it."""
    as_read = json.loads(dump_json(document))
    found = Draft202012Validator(schema(name)).iter_errors(as_read)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]
