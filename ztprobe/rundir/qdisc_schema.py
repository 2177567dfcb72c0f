"""What run.json holds of qdiscs that the agent saw at pods' interfaces, as JSON Schema."""

from __future__ import annotations

from typing import Any

__all__ = ("OBSERVED",)

_COUNT = {"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}
_REQUIRED = ["kind", "packets", "drops", "overlimits"]
_QDISC: dict[str, Any] = {
    "interface": {"type": "string"},
    "kind": {"type": "string"},
    **dict.fromkeys(("packets", "drops", "overlimits"), _COUNT),
}

# By pod, what stood there in the end and had counted since the agent knew the pod
# (`ztprobe.agent.observed_qdiscs`); null: the pod was gone.
OBSERVED: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {
        "type": ["object", "null"],
        "required": _REQUIRED,
        "properties": {
            **_QDISC,
            "others": {
                "type": "array",
                "items": {"type": "object", "required": _REQUIRED, "properties": _QDISC},
            },
        },
    },
}
