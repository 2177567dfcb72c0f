"""``--fl-...``: the workload's own options, as the workload declares them.

Names, choices, ranges and help come from `fl.options`, and so does what is wrong with a value; here is
the one place that imports it. From here on the options are a plain mapping: it goes into one
environment variable of the workload's containers and into run.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import click

from fl.options import FlOptions, OptionError
from fl.shapes import size_of
from ztprobe.errors import UsageError

__all__ = ("checked_fl_options", "fl_options", "study_fl_options")

_PREFIX = "fl_"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def fl_options(command: _Command) -> _Command:
    """Add an option for each field of `fl.options.FlOptions`."""
    for one in reversed(fields(FlOptions)):
        command = _option(one.name, dict(one.metadata))(command)
    return command


def checked_fl_options(values: Mapping[str, Any], *, clients: int) -> dict[str, Any]:
    """What was asked for that differs from the defaults, ready for JSON.

    :param values: of a command's parameters; others than ``fl_...`` are passed over.
    :raises UsageError: a value is out of range, superfluous, or does not fit the rest of the run.
    """
    chosen = {
        one.name: value for one in fields(FlOptions) if (value := values.get(_PREFIX + one.name)) is not None
    }
    try:
        options = FlOptions(**chosen)
        options.check(clients=clients, parameters=size_of("cnn"))
    except OptionError as error:
        raise UsageError(f"{_flag(error.name)}: {error.problem}") from None
    return options.given()


def study_fl_options(values: Mapping[str, Any], clients: int) -> dict[str, Any]:
    """Likewise, of a plan's cell, by the options' own names; None: not given.

    :raises UsageError: an option does not exist, or its value cannot be.
    """
    known = [one.name for one in fields(FlOptions)]
    for name in values:
        if name not in known:
            there_are = ", ".join(map(_flag, known))
            raise UsageError(f"{_flag(name)}: there is no such option; there are {there_are}")
    return checked_fl_options({f"{_PREFIX}{name}": value for name, value in values.items()}, clients=clients)


def _flag(name: str) -> str:
    return f"--{_PREFIX}{name}".replace("_", "-")


def _option(name: str, about: dict[str, Any]) -> Callable[[_Command], _Command]:
    flag, parameter, help_text = _flag(name), _PREFIX + name, about["help"]
    if "choices" in about:
        kind = click.Choice(about["choices"])
        return click.option(
            flag, parameter, type=kind, default=about["choices"][0], show_default=True, help=help_text
        )
    if "type" not in about:
        return click.option(flag, parameter, is_flag=True, help=help_text)
    effective = f" [default: {about['effective']:g}]" if about["effective"] is not None else ""
    return click.option(flag, parameter, type=about["type"], metavar="N", help=help_text + effective)
