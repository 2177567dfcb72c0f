"""A diagnosis: the troubles of a saved run, and their causes with cost and remedy, as plain data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.causes.case import Case, case_of
from analysis.causes.findings import Cause, Trouble
from analysis.causes.ranking import acts_in, ranked
from analysis.causes.troubles import troubles_of
from analysis.results.drop_explanations import BY_FILTER
from ztprobe.errors import ZtprobeError
from ztprobe.policy.model import Objects
from ztprobe.rundir.store import Run, load_run

__all__ = ("DIAGNOSIS_SCHEMA_VERSION", "diagnose_run", "top_cause")

DIAGNOSIS_SCHEMA_VERSION = 1
_LATE_NS = 2_000_000_000  # what a proof sent before the clients started may be dropped so much later


def diagnose_run(run: Run, objects: Objects | None = None) -> dict[str, Any]:
    """Why rounds of a saved run failed, stalled or were slow.

    :param objects: the policies that were in force (default: those that the run recorded).
    :raises ztprobe.errors.RunDirError: the run is damaged.
    """
    case = case_of(run, objects)
    troubles = troubles_of(case)
    causes: list[tuple[Cause, float]] = []
    if troubles:
        # Importing them takes as long as all that is looked at before.
        from analysis.causes import application, attached, emulation, policy, resources, tls

        recognisers = (policy, tls, resources, emulation, application, attached)
        found = [cause for recogniser in recognisers for cause in recogniser.recognise(case, troubles)]
        causes = ranked(found, troubles, case.clients)
    return {
        "schema_version": DIAGNOSIS_SCHEMA_VERSION,
        "experiment": run.name,
        "failed": None
        if case.failed is None
        else {
            "reason": case.failed,
            "at_unix_s": _unix_s(case, int(run.meta["failed"]["at_ns"])),
        },
        "troubles": [_trouble(case, one) for one in troubles],
        "causes": [
            _cause(case, cause, confidence, troubles, rank)
            for rank, (cause, confidence) in enumerate(causes, 1)
        ],
        "dropped_by_filter": sum(
            drop.reason in BY_FILTER
            and case.since_ns > 0
            and case.is_ours(drop.source, drop.target, drop.protocol, drop.target_port, drop.ts_ns - _LATE_NS)
            for drop in case.dropped
        ),
        "said": _said(case, troubles, causes),
    }


def top_cause(run_dir: Path) -> str | None:
    """The first cause of a saved run in a few words; None: none was found, or it cannot be read."""
    try:
        causes = diagnose_run(load_run(run_dir))["causes"]
    except ZtprobeError:
        return None
    return str(causes[0]["summary"]) if causes else None


def _unix_s(case: Case, ts_ns: int) -> float:
    return float(round(case.clock.unix_ns(ts_ns) / 1e9, 9))


def _trouble(case: Case, one: Trouble) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "rounds": list(one.rounds),
        "from_unix_s": _unix_s(case, one.from_ns),
        "to_unix_s": _unix_s(case, one.to_ns),
        "pods": list(one.pods),
        "words": one.words,
    }


def _cause(
    case: Case, cause: Cause, confidence: float, troubles: Sequence[Trouble], rank: int
) -> dict[str, Any]:
    objects = list(cause.remedial.objects)
    return {
        "rank": rank,
        "id": cause.of.id,
        "class": cause.of.failure_class.value,
        "title": cause.of.title,
        "confidence": confidence,
        "summary": cause.summary,
        "pods": list(cause.pods),
        "timeline": [
            {
                "number": number,
                "time_unix_s": _unix_s(case, moment.ts_ns),
                "pod": moment.pod,
                "event": moment.event,
                "shows": moment.shows,
            }
            for number, moment in enumerate(cause.moments, 1)
        ],
        "cost": _cost(case, cause, acts_in(cause, troubles)),
        "remedy": {
            "kind": cause.of.remedy.value,
            "words": cause.remedial.words,
            "yaml": yaml.safe_dump_all(objects, sort_keys=False) if objects else None,
        },
        "details": dict(cause.details),
    }


def _cost(case: Case, cause: Cause, troubles: Sequence[Trouble]) -> dict[str, Any]:
    """Rounds, and seconds by component: of a round that ended, what its peers did not need."""
    seconds: dict[str, float] = defaultdict(float)
    for trouble in troubles:
        excess = _excess(case, trouble) if trouble.kind == "slow" else None
        if excess:
            for component, value in excess.items():
                seconds[component] += value
        else:
            begun_ns = max(trouble.from_ns, min(cause.began_ns, trouble.to_ns))
            seconds[cause.component] += (trouble.to_ns - begun_ns) / 1e9
    return {
        "rounds": sorted({number for trouble in troubles for number in trouble.rounds if number}),
        "set_up": any(0 in trouble.rounds for trouble in troubles),
        "seconds": {component: round(value, 3) for component, value in sorted(seconds.items())},
    }


def _excess(case: Case, trouble: Trouble) -> Mapping[str, float]:
    from analysis.flows.choice import build_ledger_of_attached
    from analysis.ledger.ledger import build_ledger

    build = build_ledger_of_attached if case.is_attached else build_ledger
    try:
        rounds = build(case.recorded).rounds
    except (ZtprobeError, KeyError, ValueError):
        return {}
    mine = [one for one in rounds if one.round in trouble.rounds]
    peers = [one for one in rounds[1:] if one.round not in trouble.rounds]
    if not mine or not peers:
        return {}
    parts = {**mine[0].components_ns, "residual": mine[0].residual_ns}
    usual = {
        name: float(np.median([{**one.components_ns, "residual": one.residual_ns}[name] for one in peers]))
        for name in parts
    }
    return {name: (value - usual[name]) / 1e9 for name, value in parts.items() if value - usual[name] > 5e7}


def _said(case: Case, troubles: Sequence[Trouble], causes: Sequence[tuple[Cause, float]]) -> str:
    if not troubles and case.is_attached and case.failed is not None:
        return (
            f"No cause: the trace failed ({case.failed}), and nothing is wrong with what it saw until then."
        )
    if not troubles and case.goes_on:
        return "No cause: no round stands still or is clearly slower than its peers so far."
    if not troubles:
        return "No cause: no round failed, stalled or was clearly slower than its peers."
    if not causes:
        if all(trouble.kind == "slow" for trouble in troubles):
            return f"No cause: {troubles[0].words}, and nothing that was seen is broken; networks vary."
        own = f" The run's own word: {case.failed}." if case.failed else ""
        return (
            f"No cause found: {troubles[0].words}, and nothing that the kernel's events and counters show "
            f"explains it.{own} What is left is the application itself: read its log."
        )
    return f"{causes[0][0].summary[:1].upper()}{causes[0][0].summary[1:]}."
