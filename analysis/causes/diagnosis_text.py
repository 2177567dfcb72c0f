"""A diagnosis as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from analysis.report.wording import PART_NAMES, human_time, plural

__all__ = ("certainty", "cost_words", "diagnosis_lines")

_CERTAIN, _LIKELY = 0.85, 0.6


def certainty(confidence: float) -> str:
    """``certain``, ``likely`` or ``possible``."""
    return "certain" if confidence >= _CERTAIN else "likely" if confidence >= _LIKELY else "possible"


def diagnosis_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The troubles, then each cause with its timeline, cost and remedy."""
    if found["failed"] is not None:
        yield f"{found['experiment']} failed: {found['failed']['reason']}"
    for trouble in found["troubles"]:
        yield f"trouble: {trouble['words']}"
    if not found["causes"]:
        yield found["said"]
        return
    for cause in found["causes"]:
        yield ""
        yield f"{cause['rank']}. {cause['summary']}"
        yield f"   {cause['id']}: {cause['title']}; {certainty(cause['confidence'])} ({cause['confidence']:.2f})"
        for moment in cause["timeline"]:
            shows = f"\n         -> {moment['shows']}" if moment["shows"] else ""
            yield f"   {moment['number']:>2}. {_clock(moment['time_unix_s'])}  {moment['pod']}: {moment['event']}{shows}"
        yield f"   cost: {cost_words(cause['cost'])}"
        yield f"   remedy: {cause['remedy']['words']}"
        if cause["remedy"]["yaml"]:
            yield "   missing, for `kubectl apply -f -`:"
            yield "---\n" + cause["remedy"]["yaml"].rstrip("\n")


def _clock(unix_s: float) -> str:
    when = datetime.fromtimestamp(unix_s, UTC)
    return f"{when:%H:%M:%S}.{when.microsecond // 1000:03}"


def cost_words(cost: Mapping[str, Any]) -> str:
    """``round 3; 12.1 s of policy drop``."""
    rounds = cost["rounds"]
    parts = ["connection set-up"] if cost["set_up"] else []
    if rounds:
        numbers = ", ".join(map(str, rounds[:8])) + (", …" if rounds[8:] else "")
        parts.append(f"{plural(len(rounds), 'round')} ({numbers})")
    spent = [
        f"{human_time(value)} of {PART_NAMES.get(name, name)}"
        for name, value in cost["seconds"].items()
        if value
    ]
    return "; ".join([*(parts or ["the run"]), *spent])
