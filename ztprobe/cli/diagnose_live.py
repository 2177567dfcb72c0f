"""``ztprobe diagnose --live``: the causes of what goes wrong in a run that goes on, as they are seen."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ztprobe.cli.output import say
from ztprobe.errors import PreflightError, RunDirError, UsageError
from ztprobe.printable import escape_json, printable_lines
from ztprobe.process.interrupts import Interrupted

if TYPE_CHECKING:
    from ztprobe.experiment.live_state import RunSoFar
    from ztprobe.policy.model import Objects

__all__ = ("watch_causes",)

_LEAST_S = 2.0  # between two looks
_TIMES = 4  # of what a look takes: reading a long run must not take a CPU from it
_SILENT_S = 20.0  # a run tells something of itself every five seconds
_POLL_S = 0.2
_CTRL_C = 130


def watch_causes(run: str | None, objects: Objects | None, *, seconds: float | None, as_json: bool) -> None:
    """Print a diagnosis at once and each time that it changes, until the run ends, or the time, or Ctrl-C.

    :param run: its name; None: the only one that goes on.
    :param objects: the policies that were in force (default: what the run has recorded).
    :param seconds: how long at most; None: until the run ends.
    :raises UsageError: no such run goes on, or several do.
    :raises PreflightError: not as root.
    """
    if os.geteuid() != 0:
        raise PreflightError("what a run has seen so far is for root alone: run it with sudo")
    watched = _chosen(run)
    until = f"for {seconds:g} s" if seconds is not None else "until it ends; Ctrl-C ends this before"
    click.echo(printable_lines(f"watching run {watched.name} {until}"), err=True)
    try:
        _watch(watched, objects, seconds, as_json=as_json)
    except Interrupted as interrupt:
        if interrupt.exit_code != _CTRL_C:
            raise
    if watched.is_over:
        click.echo(f"run {watched.name} has ended", err=True)


def _chosen(name: str | None) -> RunSoFar:
    from ztprobe.experiment.live_state import RunSoFar, runs_going_on

    there = runs_going_on()
    if name is not None and name not in there:
        others = f"; there is {', '.join(there)}" if there else ""
        raise UsageError(f"--run {name}: no such run is in its rounds{others}")
    if not there:
        raise UsageError(
            "--live: no run is in its rounds: start one in another terminal (ztprobe trace ...), or name a"
            " saved RUN"
        )
    if name is None and len(there) > 1:
        raise UsageError(f"--live: several runs go on: say which with --run: {', '.join(there)}")
    return RunSoFar(name or there[0])


def _watch(watched: RunSoFar, objects: Objects | None, seconds: float | None, *, as_json: bool) -> None:
    from analysis.causes.diagnosis import diagnose_run

    begun_s, said, silent = time.monotonic(), None, False
    while not watched.is_over:
        looked_s = time.monotonic()
        try:
            found = diagnose_run(watched.read(), objects)
        except (UsageError, RunDirError):
            if watched.is_over:
                return
            raise
        if (now := _gist(found)) != said:
            said = now
            _print(watched.name, found, as_json=as_json)
        if time.monotonic() - watched.told_s > _SILENT_S and not silent:
            silent = True
            click.echo(
                f"run {watched.name} has told nothing more for {_SILENT_S:g} s: has it ended?", err=True
            )
        took_s = time.monotonic() - looked_s
        again_s = time.monotonic() + max(_LEAST_S, _TIMES * took_s)
        while time.monotonic() < again_s and not watched.is_over:
            if seconds is not None and time.monotonic() - begun_s >= seconds:
                return
            time.sleep(_POLL_S)


def _gist(found: Mapping[str, Any]) -> Any:
    """What is said again only if it changes: which rounds are in trouble, and why."""
    troubles = {(one["kind"], tuple(one["rounds"]), tuple(one["pods"])) for one in found["troubles"]}
    return troubles, [(one["id"], sorted(one["pods"])) for one in found["causes"]]


def _print(name: str, found: Mapping[str, Any], *, as_json: bool) -> None:
    from analysis.causes.diagnosis_text import diagnosis_lines

    if as_json:
        value = {"run": name, "time_unix_s": round(time.time(), 3), **found}
        click.echo(escape_json(json.dumps(value, ensure_ascii=False, separators=(",", ":"))))
        return
    say(f"{datetime.now(UTC):%H:%M:%S} run {name}, {found['experiment']}")
    for line in diagnosis_lines(found):
        say(line)
