"""Options that several commands have."""

from __future__ import annotations

import click

__all__ = ("coverage_floor_option",)

coverage_floor_option = click.option(
    "--coverage-floor",
    type=click.FloatRange(0, 100),
    default=95.0,
    show_default=True,
    metavar="PERCENT",
    help="Give no breakdown of rounds of whose events less was seen.",
)
