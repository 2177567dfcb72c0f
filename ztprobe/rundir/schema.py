"""What run.json holds: ``run.schema.json`` beside this file, by which the writer and the reader both go."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

__all__ = ("LOSS_CHANNELS", "problem_in")

# Every way in which an event can fail to reach the ledger.
LOSS_CHANNELS = (
    "ring_buffer_full",
    "map_full",
    "recursion_missed",
    "reader_behind",
    "parse_failure",
    "unknown_pod",
    "queue_full",
)


def problem_in(meta: Mapping[str, Any]) -> str | None:
    """The worst thing that is wrong with run.json's content, in one line; None if it is sound."""
    import jsonschema  # 0.2 s to import

    error = jsonschema.exceptions.best_match(_validator().iter_errors(meta))
    if error is None:
        return None
    where = error.json_path.removeprefix("$").lstrip(".") or "top level"
    return f"{where}: {error.message.splitlines()[0][:160]}"


@functools.cache
def _validator() -> Any:
    import jsonschema

    text = (resources.files("ztprobe.rundir") / "run.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))
