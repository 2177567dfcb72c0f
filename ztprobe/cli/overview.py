"""`ztprobe --help`, the same as click prints it but without importing click: help has to appear at once.

Half of what that took was click, and what runs commands. A test holds both texts against each other.
"""

from __future__ import annotations

import os
import sys
import textwrap

from ztprobe.cli.command_names import COMMANDS, EPILOG, HELP

__all__ = ("MOST_COLUMNS", "overview", "print_overview")

MOST_COLUMNS = 100
_FEWEST_COLUMNS = 50
_USUAL_COLUMNS = 80
_OPTIONS = (("--version", "Show the version and exit."), ("-h, --help", "Show this message and exit."))


def print_overview() -> bool:
    """Print it to standard output; False: that cannot be written to, and whoever says so has to try again."""
    if sys.stdout is None:
        return False
    try:
        sys.stdout.write(overview(_columns()))
        sys.stdout.flush()
    except OSError:
        return False
    return True


def overview(columns: int) -> str:
    """The text. :param columns: of the terminal."""
    width = max(min(columns, MOST_COLUMNS) - 2, _FEWEST_COLUMNS)
    names = max(map(len, COMMANDS))
    commands = [(name, _shortened(words, width - 6 - names)) for name, (_, words) in sorted(COMMANDS.items())]
    parts = [
        "Usage: ztprobe [OPTIONS] COMMAND [ARGS]...",
        _wrapped(HELP, width),
        f"Options:\n{_listed(_OPTIONS)}",
        f"Commands:\n{_listed(commands)}",
        *(_wrapped(paragraph, width) for paragraph in EPILOG),
    ]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  ")


def _listed(rows: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str:
    names = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{names}}  {words}" for name, words in rows)


def _shortened(sentence: str, most: int) -> str:
    """Without its full stop, or its first words and three dots where it is longer."""
    if len(sentence) <= most:
        return sentence
    words = sentence.split()
    while len(" ".join(words)) + 3 > most:
        words.pop()
    return f"{' '.join(words)}..."


def _columns() -> int:
    # As shutil.get_terminal_size does, which imports every kind of archive.
    try:
        columns = int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        columns = 0
    if columns <= 0:
        try:
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError):
            columns = _USUAL_COLUMNS
    return columns or _USUAL_COLUMNS
