"""A diagnosis as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from analysis.report.wording import PART_NAMES, human_time, plural

__all__ = ("capture_lines", "certainty", "cost_words", "diagnosis_lines", "moment_clock", "why_words")

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
        yield from _cause_lines(cause)


def capture_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What a capture says, and what it cannot."""
    yield f"{found['file']}: {found['said']}"
    if not found["causes"]:
        yield "No cause: every connection that was tried was answered, and nothing else looks like a failure."
    for cause in found["causes"]:
        yield from _cause_lines(cause)
    yield ""
    for one in found["cannot"]:
        yield f"a capture cannot tell {one}"


def _cause_lines(cause: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{cause['rank']}. {cause['summary']}"
    how = f"{certainty(cause['confidence'])} ({cause['confidence']:.2f})"
    yield f"   {cause['id']}: {cause['title']}; {how}"
    for moment in cause["timeline"]:
        shows = f"\n         -> {moment['shows']}" if moment["shows"] else ""
        what = f"{moment_clock(moment['time_unix_s'])}  {moment['pod']}: {moment['event']}"
        yield f"   {moment['number']:>2}. {what}{shows}"
    if "cost" in cause:
        yield f"   cost: {cost_words(cause['cost'])}"
    yield f"   remedy: {cause['remedy']['words']}"
    if cause["remedy"]["yaml"]:
        yield "   missing, for `kubectl apply -f -`:"
        yield "---\n" + cause["remedy"]["yaml"].rstrip("\n")


def why_words(report: Mapping[str, Any]) -> str:
    """One sentence on what went wrong in a run that went through; empty: nothing did."""
    causes, troubles = report.get("causes") or (), report.get("troubles") or ()
    if causes:
        return (
            f"Why: {causes[0]['summary']} ({certainty(causes[0]['confidence'])}). "
            f"To mend it: {causes[0]['remedy']['words']}. `ztprobe diagnose RUN` shows the evidence."
        )
    # That a round was slow is in the table already; without a cause there is nothing to add.
    if failed := [one for one in troubles if one["kind"] != "slow"]:
        return f"Why: {failed[0]['words']}, and nothing that was seen explains it."
    if dropped := report.get("dropped_by_filter"):
        return (
            f"A packet filter dropped {plural(dropped, 'packet')} of the workload's, and no round suffered: "
            "`ztprobe drops RUN` lists them."
        )
    return ""


def moment_clock(unix_s: float) -> str:
    """``12:34:56.789``, UTC."""
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
