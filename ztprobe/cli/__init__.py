"""The command line: thin commands over the library, and one place that turns errors into lines."""

from ztprobe.cli.entry import main

__all__ = ("main",)
