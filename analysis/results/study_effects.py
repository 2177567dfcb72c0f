"""Whether the costs of a study's factors add up, multiply or depend on each other, part by part.

A level is taken apart into NetworkPolicy and mutual TLS where the study's levels allow it, so that "mTLS"
under no profile (ciphers, proxies) is told apart from what mTLS takes more where the path is long (its
round trips, multiplied by the delay). On the linear scale effects are seconds, and those of the parts add
up to those of the round. On the logarithmic scale they are factors; a part that some run has nothing of has
no logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.report.wording import PART_NAMES, human_time, plural
from analysis.results.factorial import Design, Estimate, Factor, Fit, Term, design_of, fit
from analysis.results.samples import PARTS, RunGroup

__all__ = ("effects_of", "factors_of")

_SECURITY: dict[str, tuple[int, ...]] = {"policy": (0, 1, 0, 1), "mtls": (0, 0, 1, 1)}  # by level
_NAMES = {"policy": "NetworkPolicy", "mtls": "mTLS"}
_OPTION = "--fl-"  # of the workload, by its flag
_NOT_GIVEN = "not given"
_FEW_DEGREES = 4  # below, one interval says little, and a missing effect nothing
_LARGEST = 3
_LARGEST_LOGARITHM = 50.0  # of an interval's edge that says nothing anyway
_METHOD = (
    "ordinary least squares over runs' means, HC2 variances, Student's intervals with the degrees of freedom"
    " of Bell and McCaffrey"
)


def effects_of(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Effects and interactions of a study's factors on the round and on each part, as plain data.

    :param cells: as `analysis.results.study` has them, with the samples of their quiet runs.
    """
    runs = [(cell, sample) for cell in cells for sample in cell["samples"]]
    factors, coded = factors_of([cell for cell, _ in runs])
    design = design_of(factors, coded, three=[("policy", "mtls", "profile")])
    empty = {
        "runs": len(runs),
        "degrees": max(0, design.degrees),
        "parts": {},
        "joint": {},
        "method": _METHOD,
    }
    left_out = [{"term": _term_name(one.term), "reason": one.reason} for one in design.left_out]
    spoiled = []
    if contended := sum(cell.get("contended", 0) for cell in cells):
        every = plural(sum(cell["complete"] for cell in cells), "run")
        spoiled = [f"Others used the machine during {contended} of {every}, which the model leaves out."]
    # What only ever varied together with something else makes that one's effect a mixture of both.
    mixed = any(len(one.term) == 1 for one in design.left_out)
    if mixed or not design.terms:
        why = "what was varied cannot be told apart" if mixed else "nothing was varied"
        return empty | {"terms": [], "left_out": left_out, "said": [_cannot(why, left_out), *spoiled]}
    samples = tuple(sample for _, sample in runs)
    means_s = RunGroup(path=samples[0].path, experiment="", samples=samples).run_means_ns / 1e9
    contrasts = design.contrasts()
    parts: dict[str, Any] = {}
    joint: dict[str, Any] = {}
    for part, values_s in zip(PARTS, means_s.T, strict=True):
        if not values_s.any():
            continue
        linear = fit(design, values_s, contrasts)
        log = fit(design, np.log(values_s), contrasts) if (values_s > 0).all() else None
        parts[part] = {
            "linear": [_described(one, factors) for one in linear.estimates],
            "log": log and [_described(one, factors, logarithmic=True) for one in log.estimates],
        }
        if part == "duration":
            joint = {"linear": _joint(linear), "log": log and _joint(log)}
    found = empty | {
        "terms": [_term_name(term) for term in design.terms],
        "left_out": left_out,
        "parts": parts,
        "joint": joint,
    }
    return found | {"said": [*_sentences(design, found), *spoiled]}


def factors_of(cells: Sequence[Mapping[str, Any]]) -> tuple[list[Factor], list[dict[str, str]]]:
    """What varies over these cells (one a run), and each one's values; policy and mTLS before the rest."""
    levels = sorted({int(cell["level"]) for cell in cells})
    security = _security(levels)
    options = sorted({name for cell in cells for name in cell.get("fl", {})})
    coded: list[dict[str, str]] = []
    for cell in cells:
        values = {name: ("without", "with")[of[int(cell["level"])]] for name, of in security.items()}
        if not security:
            values["level"] = f"sec{cell['level']}"
        coded.append(
            values
            | {
                "profile": str(cell["profile"]),
                "clients": str(cell["clients"]),
                "connections": "new each round" if cell["reconnect"] else "kept",
                "congestion control": str(cell["congestion_control"]),
                "level switched": str(cell.get("level_switch", "none")),
                "distribution": str(cell["distribution"]),
                "seed": str(cell["seed"]),
            }
            | {_option_name(name): str(cell.get("fl", {}).get(name, _NOT_GIVEN)) for name in options}
        )
    factors = []
    for name in coded[0] if coded else ():
        values_of = list(dict.fromkeys(one[name] for one in coded))
        if len(values_of) > 1:
            values_of.sort(key=_first_of(name))
            factors.append(Factor(name=name, values=tuple(values_of), block=name == "seed"))
    return factors, coded


def _security(levels: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The halves of a level that vary, if these levels tell them apart; else none."""
    varying = {name: of for name, of in _SECURITY.items() if len({of[level] for level in levels}) > 1}
    columns = [[of[level] for level in levels] for of in varying.values()]
    rank = np.linalg.matrix_rank(np.array([[1] * len(levels), *columns]))
    return dict(varying) if rank == 1 + len(varying) else {}


def _option_name(name: str) -> str:
    return f"{_OPTION}{name.replace('_', '-')}"


def _first_of(name: str) -> Any:
    """How values are sorted: what means nothing in particular comes first."""
    if name in ("clients", "seed"):
        return int
    if name in _SECURITY:
        return lambda value: value == "with"
    if name == "connections":
        return lambda value: value != "kept"
    if name.startswith(_OPTION):
        return lambda value: (value != _NOT_GIVEN, value)
    return lambda value: (value not in ("iid", "cubic", "none"), value)


def _term_name(term: Term) -> str:
    return " × ".join(_NAMES.get(name, name) for name in term)


def _change_name(name: str, value: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    if name == "clients":
        return f"{value} clients"
    if name.startswith(_OPTION):
        flag = name if value == "True" else f"{name} {value}"
        return f"no {name}" if value == _NOT_GIVEN else flag
    return f"connections {value}" if name == "connections" else value


def _given_name(name: str, value: str) -> str:
    return f"{value} {_NAMES[name]}" if name in _NAMES else f"under {_change_name(name, value)}"


def _described(one: Estimate, factors: Sequence[Factor], *, logarithmic: bool = False) -> dict[str, Any]:
    contrast = one.contrast
    name = " × ".join(_change_name(*change) for change in contrast.changes)
    if contrast.given:
        name += f" {' '.join(_given_name(*given) for given in contrast.given)}"
    firsts = {factor.name: factor.values[0] for factor in factors}
    kind = "interaction" if len(contrast.changes) > 1 else "under" if contrast.given else "main"
    scale = _ratio if logarithmic else float
    estimate = "ratio" if logarithmic else "delta_s"
    interval = None if one.interval is None else [_rounded(scale(edge)) for edge in one.interval]
    return {
        "name": name,
        "kind": kind,
        "changes": [[factor, firsts[factor], value] for factor, value in contrast.changes],
        "given": [list(given) for given in contrast.given],
        estimate: _rounded(scale(one.value)),
        "ci95": interval,
        "degrees": None if one.degrees is None else round(one.degrees, 3),
        "p": None if one.p_value is None else float(f"{one.p_value:.6g}"),
        "partial_eta_squared": None if one.effect_size is None else round(one.effect_size, 6),
    }


def _ratio(logarithm: float) -> float:
    return math.exp(min(logarithm, _LARGEST_LOGARITHM))


def _rounded(value: float) -> float:
    return round(value, 9)


def _joint(found: Fit) -> dict[str, float] | None:
    """Of all interactions together."""
    if found.joint_f is None or found.joint_p is None:
        return None
    return {"f": round(found.joint_f, 6), "p": float(f"{found.joint_p:.6g}")}


def _sentences(design: Design, found: Mapping[str, Any]) -> list[str]:
    said = []
    for one in found["parts"]["duration"]["linear"]:
        if one["kind"] == "interaction" and len(one["changes"]) == 2:
            said.append(_interaction_sentence(one, found, design.degrees))
    if not said:
        said.append(_cannot("no two factors' interaction can be told", found["left_out"]))
        return said
    if design.degrees < _FEW_DEGREES:
        said.append(
            f"Noise is told by {plural(design.degrees, 'degree')} of freedom alone"
            f" ({plural(found['runs'], 'run')} for {design.matrix.shape[1]} parameters), so intervals are"
            " wide and an effect that is not seen may be there: more repetitions or seeds would tell."
        )
    for one in found["left_out"]:
        said.append(f"{one['term']} is not in the model: {one['reason']}.")
    return said


def _cannot(why: str, left_out: Sequence[Mapping[str, str]]) -> str:
    reasons = "; ".join(f"{one['term']}: {one['reason']}" for one in left_out)
    return f"Additive or not cannot be said: {why}{f' ({reasons})' if reasons else ''}."


def _interaction_sentence(one: Mapping[str, Any], found: Mapping[str, Any], degrees: int) -> str:
    """One interaction on both scales: what is seen, and in which parts it lies."""
    duration = found["parts"]["duration"]
    words = f"{one['name']}: {human_time(one['delta_s'], signed=True)} a round together more than one by one"
    interval = one["ci95"]
    if interval is None:
        return f"{words}, without an interval: no degree of freedom is left for noise."
    words += f" (95 % interval {' … '.join(human_time(edge, signed=True) for edge in interval)})"
    if interval[0] <= 0 <= interval[1]:
        verdict = "nothing seen" if degrees < _FEW_DEGREES else "they add up as far as these runs can tell"
        words += f": {verdict}"
    else:
        words += ": they do not add up"
        if (largest := _largest(one["name"], found["parts"])) is not None:
            words += f", mostly {largest}"
    log = next((other for other in duration["log"] or () if other["name"] == one["name"]), None)
    if log is not None and log["ci95"] is not None:
        words += f"; {_as_factors(log, seen=not interval[0] <= 0 <= interval[1])}"
    return f"{words}."


def _as_factors(log: Mapping[str, Any], *, seen: bool) -> str:
    """The same interaction on the logarithmic scale. :param seen: on the linear scale there is one."""
    low, high = log["ci95"]
    words = f"as factors × {log['ratio']:.3g} ({low:.3g} … {high:.3g})"
    if low <= 1 <= high:
        return (
            f"{words}, they multiply as far as these runs can tell"
            if seen
            else f"{words}, nothing seen either"
        )
    return f"{words}, they do not multiply{' either' if seen else ''}"


def _largest(name: str, parts: Mapping[str, Any]) -> str | None:
    """The parts that an interaction mostly lies in."""
    deltas_s = {
        part: next(one["delta_s"] for one in of["linear"] if one["name"] == name)
        for part, of in parts.items()
        if part != "duration"
    }
    whole_s = next(one["delta_s"] for one in parts["duration"]["linear"] if one["name"] == name)
    same = [part for part, delta_s in deltas_s.items() if delta_s * whole_s > 0]
    largest = sorted(same, key=lambda part: -abs(deltas_s[part]))[:_LARGEST]
    found = [part for part in largest if abs(deltas_s[part]) >= 0.1 * abs(whole_s)]
    return (
        ", ".join(f"{PART_NAMES[part]} {human_time(deltas_s[part], signed=True)}" for part in found) or None
    )
