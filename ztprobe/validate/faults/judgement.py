"""How often the cause was named rightly, and what was named in its place. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ztprobe.validate.faults.model import NOTHING

__all__ = ("TOP_SHARE", "judged")

TOP_SHARE = 0.95  # of all faults: named first
_OF_EACH = 2 / 3  # of each cause's variants: named first
_POLICY = "policy."
_WITHOUT_POLICIES = ("sec0", "sec2")

Result = Mapping[str, Any]


def judged(results: Sequence[Result], left_out: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What faults.json says of these results.

    A run in which the fault did not show counts neither way, and keeps the whole from passing.

    :param results: of runs, as `ztprobe.validate.faults.suite` writes them.
    """
    faults = [one for one in results if one["cause"] != NOTHING and one["is_there"]]
    healthy = [one for one in results if one["cause"] == NOTHING]
    absent = [one["name"] for one in results if one["cause"] != NOTHING and not one["is_there"]]
    first = [one for one in faults if _rank(one) == 1]
    second = [one for one in faults if _rank(one) in (1, 2)]
    causes = _by_cause(faults)
    claimed = [one["name"] for one in healthy if one["named"]]
    unpoliced = [one for one in results if one["experiment"].endswith(_WITHOUT_POLICIES)]
    accused = [one["name"] for one in unpoliced if _accuses_policy(one)]
    limits = {
        "first": not faults or len(first) >= TOP_SHARE * len(faults),
        "first_two": len(second) == len(faults),
        "each_cause": all(one["first"] >= _OF_EACH * one["runs"] for one in causes),
        "healthy": not claimed,
        "no_policy_blamed_without_one": not accused,
        "all_there": not absent,
    }
    return {
        "passed": all(limits.values()),
        "limits": limits,
        "faults": len(faults),
        "first": len(first),
        "first_two": len(second),
        "healthy": len(healthy),
        "healthy_with_a_cause": claimed,
        "policy_blamed_without_one": accused,
        "did_not_show": absent,
        "causes": causes,
        "confusion": _confusion([*faults, *healthy]),
        "missed": [_missed(one) for one in faults if _rank(one) != 1],
        "left_out": [dict(one) for one in left_out],
        "runs": [dict(one) for one in results],
    }


def _rank(result: Result) -> int | None:
    ids = [one["id"] for one in result["named"]]
    return ids.index(result["cause"]) + 1 if result["cause"] in ids else None


def _accuses_policy(result: Result) -> bool:
    # A filter that was put there by hand is among the policy causes, and no policy.
    ids = [one["id"] for one in result["named"]]
    return not result["cause"].startswith(_POLICY) and any(one.startswith(_POLICY) for one in ids)


def _by_cause(faults: Sequence[Result]) -> list[dict[str, Any]]:
    by_cause: dict[str, list[Result]] = defaultdict(list)
    for one in faults:
        by_cause[one["cause"]].append(one)
    return [
        {
            "cause": cause,
            "runs": len(mine),
            "first": sum(_rank(one) == 1 for one in mine),
            "first_two": sum(_rank(one) in (1, 2) for one in mine),
        }
        for cause, mine in by_cause.items()
    ]


def _confusion(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Cause -> what was named first -> how often."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in results:
        counts[one["cause"]][one["named"][0]["id"] if one["named"] else NOTHING] += 1
    return {cause: dict(sorted(named.items())) for cause, named in counts.items()}


def _missed(result: Result) -> dict[str, Any]:
    return {
        "name": result["name"],
        "cause": result["cause"],
        "what": result["what"],
        "named": result["named"][:3],
        "rank": _rank(result),
    }
