"""What a study consists of: factors, their combinations, and the order in which they are run.

A *cell* is one combination of factors. Every repetition is a block that holds each cell once, in an order
drawn from the study's own seed, so that what drifts with time (a machine that warms up, other users) falls
on all cells alike. The order is a function of the plan: an interrupted study goes on with what is missing.

Each of the workload's options is a factor by its name on the command line (`fl-compression: [none, int8]`).
What its values may be is the workload's to say, so that whoever loads a plan brings the check.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema

from analysis.results.study_files import LOCAL, option_words
from ztprobe.documents.files import read_text
from ztprobe.documents.problem import DocumentError, shown
from ztprobe.documents.strict_yaml import Parsed, decimal_scalar, parse_yaml
from ztprobe.errors import UsageError
from ztprobe.experiment.level_switch import LevelSwitch, parse_level_switch
from ztprobe.experiment.names import DISTRIBUTIONS, LEVELS, MAX_SEED, Experiment
from ztprobe.experiment.request import TraceRequest

__all__ = (
    "PLANS_DIR",
    "Cell",
    "OptionCheck",
    "PlannedRun",
    "Study",
    "load_study",
    "pair_study",
    "plan_names",
)

PLANS_DIR = Path(__file__).parent / "plans"

_MOST_BYTES = 1 << 20
_KEPT = "none"  # of switch_level
_MOST_SHOWN = 160  # characters of what the schema says
# Options by name (x_y) and the number of clients -> those that differ from the defaults, or UsageError.
OptionCheck: TypeAlias = Callable[[Mapping[str, Any], int], Mapping[str, Any]]
_OPTION = "fl-"
_COUNT = {"type": "integer", "minimum": 1}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "rounds", "factors"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]*$"},
        "rounds": _COUNT,
        "clients": _COUNT,
        "repetitions": _COUNT,
        "retries": {"type": "integer", "minimum": 0, "maximum": 10},
        "contention_retries": {"type": "integer", "minimum": 0, "maximum": 10},
        "order_seed": {"type": "integer", "minimum": 0},
        "factors": {
            "type": "object",
            "additionalProperties": False,
            "minProperties": 1,
            "properties": {
                "profile": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                "level": {"type": "array", "minItems": 1, "items": {"enum": sorted(LEVELS)}},
                "distribution": {"type": "array", "minItems": 1, "items": {"enum": list(DISTRIBUTIONS)}},
                "seed": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
                },
                "clients": {"type": "array", "minItems": 1, "items": _COUNT},
                "reconnect": {"type": "array", "minItems": 1, "items": {"type": "boolean"}},
                "congestion_control": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "string", "pattern": "^[a-z0-9_]+$"},
                },
                "switch_level": {"type": "array", "minItems": 1, "items": {"type": "string"}},
            },
            "patternProperties": {
                f"^{_OPTION}[a-z]+(-[a-z]+)*$": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": ["string", "number", "boolean", "null"]},  # null: not given
                }
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of factors."""

    experiment: Experiment
    clients: int = 5
    reconnect: bool = False
    congestion_control: str = "cubic"  # of the pods' connections, as the kernel calls it
    level_switch: LevelSwitch | None = None  # while rounds go on
    fl: tuple[tuple[str, Any], ...] = ()  # the workload's options that differ from its defaults

    @property
    def name(self) -> str:
        """Of its directory, and the same for equal cells alone: net2-sec3, net2-sec3-c10, ..."""
        options = "".join(f"-{words}" for words in option_words(dict(self.fl)))
        clients = "" if self.clients == Cell.clients else f"-c{self.clients}"
        reconnect = "-reconnect" if self.reconnect else ""
        control = "" if self.congestion_control == Cell.congestion_control else f"-{self.congestion_control}"
        switch = "" if self.level_switch is None else f"-{self.level_switch.slug}"
        return f"{self.experiment.name}{clients}{reconnect}{control}{switch}{options}"

    @property
    def demands(self) -> tuple[Experiment, ...]:
        """What the machine must be able to run for it."""
        switch = self.level_switch
        later = () if switch is None else (dataclasses.replace(self.experiment, level=switch.level),)
        return (self.experiment, *later)

    def as_dict(self) -> dict[str, Any]:
        """As study.json has it: a switch and options only where there are some."""
        more: dict[str, Any] = {"fl": dict(self.fl)} if self.fl else {}
        if self.level_switch is not None:
            more["level_switch"] = self.level_switch.name
        values = dataclasses.asdict(self) | {"name": self.name}
        return {name: value for name, value in values.items() if name not in ("level_switch", "fl")} | more


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One repetition of one cell."""

    cell: Cell
    repetition: int  # from 1

    @property
    def directory(self) -> Path:
        """Below the study's own."""
        return Path("runs") / self.cell.name / f"r{self.repetition:02d}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A plan, checked."""

    name: str
    rounds: int
    cells: tuple[Cell, ...]
    repetitions: int = 1
    retries: int = 0
    contention_retries: int = 2  # how often a run that others have disturbed is made anew
    order_seed: int = 1
    dataset: str = "digits"
    data_dir: Path | None = None
    runtime: str = LOCAL  # that all of its runs are made by: local | kubernetes
    image: str | None = None  # of a cluster's workload; None: what the manifests say
    duet: bool = False  # of two cells: both at once, each on cores of its own

    def block(self, repetition: int) -> list[PlannedRun]:
        """A repetition's runs in their order."""
        cells = list(self.cells)
        random.Random(f"{self.order_seed} {repetition}").shuffle(cells)
        return [PlannedRun(cell=cell, repetition=repetition) for cell in cells]

    def runs(self) -> Iterator[PlannedRun]:
        """All of them, block by block."""
        for repetition in range(1, self.repetitions + 1):
            yield from self.block(repetition)

    def as_dict(self) -> dict[str, Any]:
        """As study.json has it."""
        values = dataclasses.asdict(self) | {
            "cells": [cell.as_dict() for cell in self.cells],
            "data_dir": None if self.data_dir is None else str(self.data_dir),
        }
        # As it was before there were others.
        left_out = {
            *(("runtime", "image") if self.runtime == LOCAL else ()),
            *(() if self.duet else ("duet",)),
        }
        return {name: value for name, value in values.items() if name not in left_out}


def plan_names() -> list[str]:
    """The plans that come with ztprobe."""
    return sorted(path.stem for path in PLANS_DIR.glob("*.yaml"))


def load_study(name: str, profiles: Sequence[str], check_options: OptionCheck | None = None) -> Study:
    """A plan by its name, or from a YAML file.

    :param profiles: the network profiles there are.
    :param check_options: of the workload; None: a plan may have none of them.
    :raises UsageError: there is none, or it is wrong; the line says where.
    """
    path = PLANS_DIR / f"{name}.yaml" if name in plan_names() else Path(name)
    if not path.exists():
        raise UsageError(f"study {name}: is neither a file nor one of {', '.join(plan_names())}")
    parsed = _read(path)
    plan = parsed.value
    factors = plan["factors"]
    for number, profile in enumerate(factors.get("profile", ())):
        if profile not in profiles:
            line = parsed.line(("factors", "profile", number))
            raise UsageError(
                f"{path}:{line}: factors.profile: {shown(profile)} is no network profile; "
                f"there are {', '.join(profiles)}"
            )
    if "clients" in factors and "clients" in plan:
        line = parsed.line(("clients",))
        raise UsageError(f"{path}:{line}: clients: is a factor and a fixed number; give one")
    return Study(
        name=plan["name"],
        rounds=plan["rounds"],
        cells=_with_options(_cells(path, parsed), factors, check_options, path),
        repetitions=plan.get("repetitions", 1),
        retries=plan.get("retries", 0),
        contention_retries=plan.get("contention_retries", Study.contention_retries),
        order_seed=plan.get("order_seed", 1),
    )


def _read(path: Path) -> Parsed:
    try:
        documents = parse_yaml(read_text(path, _MOST_BYTES), decimal_scalar)
    except DocumentError as error:
        raise UsageError(error.at(path)) from error
    if len(documents) != 1:
        raise UsageError(f"{path}: expected one plan, found {len(documents)} YAML documents")
    plan = documents[0].value
    # Whatever file was named, a message may not give away what it holds: only a plan is quoted.
    if not isinstance(plan, dict) or not set(plan) & set(_SCHEMA["properties"]):
        raise UsageError(f"{path}:1: expected a mapping of a plan's keys (name, rounds, factors, ...)")
    wrong = next(iter(jsonschema.Draft202012Validator(_SCHEMA).iter_errors(plan)), None)
    if wrong is not None:
        keys = tuple(wrong.absolute_path)
        where = ".".join(map(str, keys)) or "the plan"
        line = documents[0].line(keys)
        raise UsageError(f"{path}:{line}: {where}: {wrong.message.splitlines()[0][:_MOST_SHOWN]}")
    return documents[0]


def _cells(path: Path, parsed: Parsed) -> tuple[Cell, ...]:
    plan = parsed.value
    factors: Mapping[str, list[Any]] = plan["factors"]
    combinations = itertools.product(
        factors.get("profile", ["net0"]),
        factors.get("level", [0]),
        factors.get("distribution", ["iid"]),
        factors.get("seed", [0]),
        factors.get("clients", [plan.get("clients", Cell.clients)]),
        factors.get("reconnect", [False]),
        factors.get("congestion_control", [Cell.congestion_control]),
        enumerate(factors.get("switch_level", [_KEPT])),
    )
    cells = []
    for profile, level, distribution, seed, count, reconnect, control, (number, text) in combinations:
        experiment = Experiment(profile=profile, level=level, distribution=distribution, seed=seed)
        try:
            switch = None if text == _KEPT else parse_level_switch(text, experiment, plan["rounds"])
        except UsageError as error:
            line = parsed.line(("factors", "switch_level", number))
            raise UsageError(f"{path}:{line}: factors.switch_level: {error}") from error
        cells.append(
            Cell(
                experiment=experiment,
                clients=count,
                reconnect=reconnect,
                congestion_control=control,
                level_switch=switch,
            )
        )
    return tuple(dict.fromkeys(cells))


def _with_options(
    cells: Sequence[Cell], factors: Mapping[str, list[Any]], check: OptionCheck | None, path: Path
) -> tuple[Cell, ...]:
    """Each cell with each combination of the workload's options."""
    names = [name for name in factors if name.startswith(_OPTION)]
    if names and check is None:
        raise UsageError(f"{path}: factors.{names[0]}: options of the workload cannot be varied here")
    found = []
    for cell, values in itertools.product(cells, itertools.product(*(factors[name] for name in names))):
        given = {
            name.removeprefix(_OPTION).replace("-", "_"): value
            for name, value in zip(names, values, strict=True)
        }
        try:
            options = {} if check is None else check(given, cell.clients)
        except UsageError as error:
            words = ", ".join(f"{name} {shown(value)}" for name, value in zip(names, values, strict=True))
            raise UsageError(f"{path}: factors: {error} (of the cells with {words})") from None
        found.append(dataclasses.replace(cell, fl=tuple(options.items())))
    return tuple(dict.fromkeys(found))


def pair_study(request: TraceRequest, repetitions: int, *, duet: bool = False) -> Study:
    """An experiment and its baseline, again and again, in either order.

    :param duet: or both at once.
    :raises UsageError: the request has no baseline.
    """
    if request.baseline is None:
        raise UsageError(
            f"--repeat {repetitions}: {request.experiment.name} has no baseline to be compared with"
        )
    cells = [
        Cell(
            experiment=experiment,
            clients=request.clients,
            reconnect=request.reconnect,
            level_switch=request.level_switch if experiment is request.experiment else None,
            fl=tuple(fl.items()),
        )
        for experiment, fl in zip(request.experiments, (request.baseline_fl, request.fl), strict=True)
    ]
    return Study(
        name=f"{cells[1].name}-against-{cells[0].name}",
        rounds=request.rounds,
        cells=tuple(cells),
        repetitions=repetitions,
        dataset=request.dataset,
        data_dir=request.data_dir,
        duet=duet,
    )
