"""What run.json holds, as a JSON schema: the writer and the reader both go by it.

Only what the analysis relies on is pinned; a run may record more. Fields that a run
cannot be told without are required, the others may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ztprobe.rundir.attachment_schema import ATTACHMENT
from ztprobe.rundir.qdisc_schema import OBSERVED

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

_TEXT = {"type": "string"}
_MOST = (1 << 63) - 1  # what an integer column and a clock of nanoseconds hold
_COUNT = {"type": "integer", "minimum": 0, "maximum": _MOST}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_OBJECT = {"type": "object"}
_PROOFS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "expected", "observed", "passed"],
        "properties": {"name": _TEXT, "expected": _TEXT, "observed": _TEXT, "passed": {"type": "boolean"}},
    },
}

_RATE = {"type": ["number", "null"], "minimum": 0}
_CONDITION: dict[str, Any] = {
    "delay_ms": {"type": "number", "minimum": 0},
    "jitter_ms": {"type": "number", "minimum": 0},
    "distribution": _TEXT,
    "loss_pct": {"type": "number", "minimum": 0},
    "rate_mbit": _RATE,  # null: not limited
}
_ASKED_NUMBER = {"type": ["number", "null"], "minimum": 0}  # null: not asked
_REQUESTED: dict[str, Any] = {
    "type": ["object", "null"],
    "properties": dict.fromkeys(("delay_ms", "jitter_ms", "loss_pct", "rate_mbit"), _ASKED_NUMBER)
    | {"distribution": {"type": ["string", "null"]}},
}
# Of a profile that changes over time: what was asked for, and what was in force from when on.
_SCHEDULE = {
    "type": ["object", "null"],
    "required": ["name", "repeat", "steps", "changes"],
    "if": {"properties": {"repeat": {"const": True}}, "required": ["repeat"]},
    "then": {"required": ["period_s"], "properties": {"period_s": {"type": "number"}}},
    "properties": {
        "name": _TEXT,
        "repeat": {"type": "boolean"},
        "period_s": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "steps": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["from_s", *_CONDITION],
                "properties": {"from_s": {"type": "number"}, **_CONDITION},
            },
        },
        "changes": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["due_ns", "from_ns", "at_ns", "step", "skipped", "error", *_CONDITION],
                "properties": {
                    "due_ns": _COUNT,
                    "from_ns": _COUNT,
                    "at_ns": {"type": ["integer", "null"], "minimum": 0},  # null: it failed
                    "step": _COUNT,
                    "skipped": _COUNT,
                    "error": {"type": ["string", "null"]},
                    **_CONDITION,
                },
            },
        },
    },
}

# Profiles that somebody else put on some of the pods meanwhile (`ztprobe profile apply`).
_OTHERS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["lease", "profile", "backend", "direction", "to", "pods", "from_ns", "to_ns", "changes"],
        "properties": {
            "direction": {"enum": ["egress", "ingress", "both"]},
            "pods": {"type": "array", "items": _TEXT},
            "from_ns": _COUNT,
            "to_ns": {"type": ["integer", "null"], "minimum": 0},  # null: until the end
            "changes": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["at_ns", *_CONDITION],
                    "properties": {"at_ns": _COUNT, **_CONDITION},
                },
            },
        },
    },
}

_COUNTERS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {
            "stopped": {"type": "boolean"},
            "full_filesystems": {"type": "array", "items": _TEXT},
        },
        "additionalProperties": _COUNT,
    },
}
_CLOCK_SAMPLES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["time_unix_ns", "time_monotonic_ns"],
        "properties": {"time_unix_ns": _COUNT, "time_monotonic_ns": _COUNT},
    },
}
# Who serves whom, by the sockets that pods had open (`ztprobe.agent.endpoints`).
_TOPOLOGY = {
    "type": "object",
    "required": ["rounds_of", "pods", "endpoints", "connections", "serves", "behind_sidecar"],
    "properties": {
        "rounds_of": _TEXT,
        "pods": {"type": "array", "items": _TEXT},
        "endpoints": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pod", "container", "address", "port", "reachable"],
                "properties": {
                    "pod": _TEXT,
                    "container": _TEXT,
                    "address": _TEXT,
                    "port": _COUNT,
                    "reachable": {"type": "boolean"},  # from other pods
                },
            },
        },
        "connections": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pod", "container", "to", "port"],
                "properties": {"pod": _TEXT, "container": _TEXT, "to": _TEXT, "port": _COUNT},
            },
        },
        "serves": {"type": "object", "additionalProperties": {"type": "array", "items": _TEXT}},
        "behind_sidecar": {"type": "object", "additionalProperties": _TEXT},  # the sidecar's container
    },
}
# When a delay line let packets go late, by its own account.
_LATE = {
    "type": "object",
    "required": ["worst_ns", "spans"],
    "properties": {
        "worst_ns": _COUNT,
        "spans": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["from_ns", "to_ns", "worst_ns", "packets"],
                "properties": dict.fromkeys(("from_ns", "to_ns", "worst_ns", "packets"), _COUNT),
            },
        },
    },
}

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": [
        "experiment",
        "runtime",
        "kernel",
        "versions",
        "hooks",
        "clock_samples",
        "loss",
        "emulation",
        "enforcement",
    ],
    "properties": {
        "experiment": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": _TEXT,
                "profile": _TEXT,
                "distribution": _TEXT,
                "level": {"type": "integer", "minimum": 0, "maximum": 3},
                "seed": _COUNT,
            },
        },
        "options": _OBJECT,
        "pods": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "address"],
                "properties": {
                    "name": _TEXT,
                    "namespace": _TEXT,
                    "address": _TEXT,
                    "labels": _TEXTS,
                    "netns_inode": _COUNT,
                    "interface": _TEXT,
                },
            },
        },
        "drop_reasons": _TEXTS,
        # Of a run that failed: why, and when that was noticed (CLOCK_MONOTONIC)
        "failed": {
            "type": "object",
            "required": ["reason", "at_ns"],
            "properties": {"reason": _TEXT, "at_ns": _COUNT},
        },
        # When ztprobe itself knocked at doors that policies keep shut
        "proof": {
            "type": "object",
            "required": ["from_ns", "to_ns"],
            "properties": {"from_ns": _COUNT, "to_ns": _COUNT},
        },
        # A level that was put in force while rounds went on: when it was due, begun, there and proven
        "level_switch": {
            "type": "object",
            "required": ["to_level", "round", "due_ns", "sidecars_ns", "policies_ns", "proofs"],
            "properties": {
                "to_level": {"type": "integer", "minimum": 0, "maximum": 3},
                "round": _COUNT,
                **{
                    name: {"type": ["integer", "null"], "minimum": 0}
                    for name in ("due_ns", "from_ns", "sidecars_ns", "policies_ns", "proven_ns")
                },
                "proofs": _PROOFS,
            },
        },
        # Processes that ended, when that was noticed; a negative status is the signal that killed them
        "exits": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["process", "status", "at_ns"],
                "properties": {"process": _TEXT, "status": {"type": "integer"}, "at_ns": _COUNT},
            },
        },
        # What pods and containers had run into by then (`ztprobe.agent.pod_counters`)
        "pod_counters": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["at_ns", "pods", "containers"],
                "properties": {"at_ns": _COUNT, "pods": _COUNTERS, "containers": _COUNTERS},
            },
        },
        # SHA-256 of every file that the analysis reads, as the run wrote it
        "digests": _TEXTS
        | {"propertyNames": {"pattern": r"^(?:(?:rounds|clients)\.jsonl|events/[^/]+\.parquet)$"}},
        "clients_started_ns": _COUNT,
        "coverage": {"type": "number", "minimum": 0, "maximum": 1},
        "runtime": _TEXT,
        "kernel": _TEXT,
        "versions": _TEXTS,
        "hooks": _TEXTS,
        "facts": _OBJECT,
        "probes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["signal", "hook", "run_count", "run_time_ns"],
                "properties": {"signal": _TEXT, "hook": _TEXT, "run_count": _COUNT, "run_time_ns": _COUNT},
            },
        },
        "clock_samples": _CLOCK_SAMPLES,
        # each with the samples of its own clock, which the events of its pods carry
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "pods", "clock_samples"],
                "properties": {
                    "name": _TEXT,
                    "pods": {"type": "array", "items": _TEXT},
                    "clock_samples": _CLOCK_SAMPLES,
                },
            },
        },
        "topology": _TOPOLOGY,
        "attachment": ATTACHMENT,
        "loss": {"type": "object", "additionalProperties": _COUNT},
        "loss_log": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["from_ns", "to_ns", "channel", "count"],
                "properties": {
                    "from_ns": _COUNT,
                    "to_ns": _COUNT,
                    "channel": {"enum": list(LOSS_CHANNELS)},
                    "count": _COUNT,
                    "ring": _TEXT,
                },
            },
        },
        "table_rows": {"type": "object", "additionalProperties": _COUNT},
        "events_seen": _COUNT,
        "events_unread": _COUNT,
        "stalls": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["at_ns", "since_ns", "round", "waiting", "waits_for", "words"],
                "properties": {
                    "at_ns": _COUNT,
                    "since_ns": _COUNT,
                    "round": {"type": ["integer", "null"], "minimum": 0},
                    "waiting": _TEXT,
                    "waits_for": {"type": "array", "items": _TEXT},
                    "words": _TEXT,
                },
            },
        },
        "emulation": {
            "type": "object",
            "required": ["profile", "backend", "requested", "measured"],
            "properties": {
                "profile": _TEXT,
                "backend": {"type": ["string", "null"]},
                "requested": _REQUESTED,
                "measured": {"type": ["object", "null"]},
                "schedule": _SCHEDULE,
                "others": _OTHERS,
                "observed": OBSERVED,
                "stats": {
                    "type": ["object", "null"],
                    "properties": {"delay_line": {"type": "object", "properties": {"late": _LATE}}},
                },
            },
        },
        "enforcement": {
            "type": "object",
            "required": ["network_policy_expected", "mtls_expected"],
            "properties": {
                "network_policy_expected": {"type": "boolean"},
                "mtls_expected": {"type": "boolean"},
                "network_policy": _PROOFS,
                "mtls": _PROOFS,
                "details": _OBJECT,
            },
        },
        # What the table `machine` is about, and what was seen before round 1.
        "machine_load": {
            "type": "object",
            "properties": {
                "cpus": {"type": "integer", "minimum": 1},
                "cpu_model": {"type": ["string", "null"]},
                "source": _TEXT,
                "foreign_share_before": {"type": "number", "minimum": 0},
                "waited_s": {"type": "number", "minimum": 0},
            },
        },
        "agent_cpu_ns": _COUNT,
        # resident_bytes and kernel_maps_bytes of the agent at the end, first_...: when it began to see
        "agent_memory": {"type": "object", "additionalProperties": _COUNT},
        "emulator_cpu_ns": _COUNT,
        "wall_ns": _COUNT,
        "cores": _COUNT,
    },
}


def problem_in(meta: Mapping[str, Any]) -> str | None:
    """The worst thing that is wrong with run.json's content, in one line; None if it is sound."""
    import jsonschema  # 0.2 s to import

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(_SCHEMA).iter_errors(meta))
    if error is None:
        return None
    where = error.json_path.removeprefix("$").lstrip(".") or "top level"
    return f"{where}: {error.message.splitlines()[0][:160]}"
