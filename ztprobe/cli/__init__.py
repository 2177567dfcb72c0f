"""The command line: thin commands over the library, and one place that turns errors into lines."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without typing's 3 ms
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("main",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code, as `ztprobe.cli.entry.main` does.

    :param arguments: without the program's name (default: ``sys.argv``).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["--help"], ["-h"]):
        from ztprobe.cli.overview import print_overview

        if print_overview():
            return 0
    from ztprobe.cli import entry  # click, and what runs commands

    return entry.main(arguments)
