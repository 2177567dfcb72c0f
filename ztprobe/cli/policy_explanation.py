"""What ``ztprobe policy explain`` prints: lines for people, dictionaries for --json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ztprobe.policy.deviations import Deviation
    from ztprobe.policy.explanation import Explanation
    from ztprobe.policy.selections import Endpoint
    from ztprobe.policy.sides import RuleRef, Side

__all__ = ("explanation_dict", "explanation_lines", "yaml_text")


def yaml_text(documents: Iterable[dict[str, Any]]) -> str:
    """Objects as ``kubectl apply -f -`` takes them."""
    import yaml

    return yaml.safe_dump_all(documents, sort_keys=False, explicit_start=True)


def explanation_lines(
    found: Explanation, rules: Sequence[dict[str, Any]], deviations: Sequence[Deviation]
) -> Iterator[str]:
    """An explanation for people, with the missing rules and the deviations that may apply."""
    yield f"{found.source.name} -> {found.target.name} {found.port}/{found.protocol}: {found.verdict}"
    for side, word in ((found.egress, "from"), (found.ingress, "to")):
        yield f"{side.direction} {word} {side.end.name}: {side.verdict}"
        yield f"  {side.reason}"
        if side.selected_by:
            yield f"  selected by: {', '.join(side.selected_by)}"
        for rule in side.passed_by:
            yield f"  passed on by {rule}"
        others = [*side.allowed_by, *side.denied_by] if side.verdict == "undecidable" else side.allowed_by[1:]
        for rule in others:
            yield f"  {'could be' if side.verdict == 'undecidable' else 'also'} {_says(rule)}"
    for fact in found.missing:
        yield f"not known: {fact}"
    for note in found.notes:
        yield f"note: {note}"
    for one in deviations:
        yield f"may differ with {one.plugin}: {one.what} ({one.source})"
    if rules:
        yield "missing:" if len(rules) == 1 else "missing (both):"
        yield yaml_text(rules).rstrip("\n")
    elif found.verdict == "denied":
        yield "no further object can allow it: the rule that denies has to change"


def _says(rule: RuleRef) -> str:
    return f"{'allowed' if rule.action == 'Accept' else 'denied'} by {rule}"


def explanation_dict(
    found: Explanation, rules: Sequence[dict[str, Any]], deviations: Sequence[Deviation]
) -> dict[str, Any]:
    """The same for programs."""
    return {
        "source": _end_dict(found.source),
        "target": _end_dict(found.target),
        "protocol": found.protocol,
        "port": found.port,
        "verdict": found.verdict,
        "egress": _side_dict(found.egress),
        "ingress": _side_dict(found.ingress),
        "missing_facts": list(found.missing),
        "missing_rules": list(rules),
        "deviations": [{"plugin": one.plugin, "what": one.what, "source": one.source} for one in deviations],
        "notes": list(found.notes),
    }


def _end_dict(end: Endpoint) -> dict[str, Any]:
    return {
        "pod": None if end.pod is None else end.pod.id,
        "address": None if end.address is None else str(end.address),
    }


def _side_dict(side: Side) -> dict[str, Any]:
    return {
        "verdict": side.verdict,
        "reason": side.reason,
        "selected_by": list(side.selected_by),
        "allowed_by": [_rule_dict(rule) for rule in side.allowed_by],
        "denied_by": [_rule_dict(rule) for rule in side.denied_by],
        "passed_by": [_rule_dict(rule) for rule in side.passed_by],
        "isolated_by": list(side.isolated_by),
        "missing_facts": list(side.missing),
    }


def _rule_dict(rule: RuleRef) -> dict[str, Any]:
    return {
        "policy": rule.policy,
        "tier": rule.tier,
        "rule": rule.number,
        "field": rule.field,
        "name": rule.name,
        "action": rule.action,
    }
