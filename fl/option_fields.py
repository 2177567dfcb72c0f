"""How an option is declared: a dataclass field whose metadata says what it may be, and the checks of that.

`help` is the command line's; `choices`, or `type` and `range`; `effective`: what is used where nothing was
given; `needs`: another option without which this one changes nothing, as FIELD=VALUE|VALUE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from fl.errors import ConfigError

__all__ = ("OptionError", "check_field", "choice", "is_needed", "number", "switch")

# No limit above.
_BIG = 10**9


class OptionError(ConfigError):
    """An option's value cannot be; `name` is the field of `FlOptions`."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"FL_OPTIONS: {name}: {problem}")
        self.name = name
        self.problem = problem


def choice(help_text: str, *choices: str) -> Any:
    """One of several words, the first unless given."""
    return field(default=choices[0], metadata={"help": help_text, "choices": choices})


def number(
    help_text: str, kind: type, effective: float | None, needs: str | None, least: float, most: float = _BIG
) -> Any:
    """A number, None unless given; `effective`: what is used then; `needs`: FIELD=VALUE|VALUE."""
    return field(
        default=None,
        metadata={
            "help": help_text,
            "type": kind,
            "effective": effective,
            "needs": needs,
            "range": (least, most),
        },
    )


def switch(help_text: str) -> Any:
    """On or off, off unless given."""
    return field(default=False, metadata={"help": help_text})


def is_needed(options: object, needs: str | None) -> bool:
    """Whether the option that `needs` names has a value with which this one counts."""
    if needs is None:
        return True
    name, _, values = needs.partition("=")
    return getattr(options, name) in values.split("|")


def check_field(options: object, name: str, about: Mapping[str, Any]) -> None:
    """:raises OptionError: the field has no value that it may have, or changes nothing."""
    value = getattr(options, name)
    if "choices" in about:
        if value not in about["choices"]:
            raise OptionError(name, f"{value!r}, expected one of {', '.join(about['choices'])}")
        return
    if "type" not in about:
        if not isinstance(value, bool):
            raise OptionError(name, f"{value!r}, expected true or false")
        return
    if value is None:
        return
    least, most = about["range"]
    kinds = (int,) if about["type"] is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        wanted = "a whole number" if about["type"] is int else "a number"
        limit = f"from {least:g} on" if most == _BIG else f"from {least:g} to {most:g}"
        raise OptionError(name, f"{value!r}, expected {wanted} {limit}")
    if not is_needed(options, about["needs"]):
        wanted = about["needs"].replace("=", " ").replace("|", " or ")
        raise OptionError(name, f"{value:g} changes nothing without {wanted}")
