"""Options that several commands have."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ztprobe.errors import PreflightError, UsageError

if TYPE_CHECKING:
    from ztprobe.kubernetes.access import ClusterAccess

__all__ = (
    "OutPath",
    "Time",
    "cluster_access",
    "cluster_options",
    "coverage_floor_option",
    "percent",
    "quiet_option",
    "schema_option",
    "wait_for_quiet_option",
)


class Time(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 alone
    """As `ztprobe.durations` reads it; seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """:raises UsageError: it is no time."""
        from ztprobe.durations import duration_s

        option = param.opts[0] if param is not None else "--for"
        return value if isinstance(value, float) else duration_s(option, str(value), longest_days=1)


class OutPath(click.Path):
    """A directory to write to; an empty word (an unset shell variable) is not the current one."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """A `Path`."""
        if not os.fspath(value):
            self.fail("is empty, expected a directory.", param, ctx)
        return super().convert(value, param, ctx)


def percent(option: str, text: str) -> float:
    """``5`` or ``5%`` as a share. :raises UsageError: neither."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"{option} {text}: expected per cent, such as 5%")
    return value / 100


def _number(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # no range keeps it out
        raise click.BadParameter("nan is not a number.")
    return value


_Command = TypeVar("_Command", bound=Callable[..., Any])


def schema_option(command: str, package: str, document: str) -> Callable[[_Command], _Command]:
    """``--schema``: prints the JSON Schema of what a command writes, and does nothing else.

    :param package: the one that writes it, beside whose code the schema stands.
    :param document: the name without ``.json``.
    """

    def show(context: click.Context, _parameter: click.Parameter, given: bool) -> None:
        if not given or context.resilient_parsing:
            return
        file = resources.files(package) / f"{document}.schema.json"
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise PreflightError(
                f"{file} is missing: this installation of ztprobe is incomplete, install it again"
            ) from error
        click.echo(text, nl=False)
        context.exit()

    return click.option(
        "--schema",
        is_flag=True,
        is_eager=True,  # before RUN is missed
        expose_value=False,
        callback=show,
        help=f"Print the JSON Schema of {document}.json, which says what each field means, and end: "
        f"ztprobe {command} --schema > {document}.schema.json",
    )


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Say nothing on the way, only the result.")

coverage_floor_option = click.option(
    "--coverage-floor",
    type=click.FloatRange(0, 100),
    callback=_number,
    default=95.0,
    show_default=True,
    metavar="PERCENT",
    help="Give no breakdown of rounds of whose events less was seen.",
)

wait_for_quiet_option = click.option(
    "--wait-for-quiet",
    type=click.FloatRange(0, 86_400),
    callback=_number,
    is_flag=False,
    flag_value=120.0,
    metavar="[SECONDS]",
    help="Wait before round 1, at most so long (120 s if no number is given), until other processes use less "
    "than 2 % of the machine's CPU time. Else a busy machine is only warned of.",
)


def cluster_options(command: _Command) -> _Command:
    """Which cluster, as kubectl has it."""
    for option in (
        click.option("--kubeconfig", metavar="FILE", help="Instead of $KUBECONFIG or ~/.kube/config."),
        click.option("--context", metavar="NAME", help="Of the kubeconfig, instead of its current one."),
    ):
        command = option(command)
    return command


def cluster_access(
    runtime: str | None,
    context: str | None,
    kubeconfig: str | None,
    *,
    namespace: str | None = None,
    node: str | None = None,
) -> ClusterAccess | None:
    """The cluster that is asked; None: --runtime says that none is.

    :param namespace: None: default.
    :raises UsageError: there is none, and an option is about it.
    """
    if runtime != "kubernetes":
        for option, given in {"--node": node, "--context": context, "--kubeconfig": kubeconfig}.items():
            if given is not None:
                raise UsageError(f"{option}: is about a cluster, which --runtime kubernetes asks")
        return None
    from ztprobe.kubernetes.access import ClusterAccess

    return ClusterAccess(namespace=namespace or "default", node=node, context=context, kubeconfig=kubeconfig)
