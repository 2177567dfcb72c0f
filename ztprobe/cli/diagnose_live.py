"""``ztprobe diagnose --live``: the causes of what goes wrong in a run that goes on, as they are seen."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import click

from ztprobe.cli.output import say
from ztprobe.errors import PreflightError, RunDirError, UsageError
from ztprobe.printable import escape_json, printable_lines
from ztprobe.process.interrupts import Interrupted, shielded

if TYPE_CHECKING:
    from ztprobe.attach.nodes.observation import Observation
    from ztprobe.attach.nodes.request import NodesRequest
    from ztprobe.experiment.live_state import RunSoFar
    from ztprobe.policy.model import Objects
    from ztprobe.rundir.store import Run

__all__ = ("watch_causes", "watch_nodes")

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
    _tell(_chosen(run), objects, seconds, as_json=as_json)


def watch_nodes(request: NodesRequest, *, seconds: float | None, as_json: bool) -> None:
    """The same of what runs on a cluster's nodes, through their agents, whoever has brought it up.

    :raises UsageError: the labels mean nobody.
    :raises ZtprobeError: the API or an agent refuses, does not answer, or sees no more.
    """
    from ztprobe.attach.nodes.transaction import observed
    from ztprobe.progress import PlainProgress

    with observed(request, PlainProgress(sys.stderr)) as seen:
        _tell(_OfNodes(seen), None, seconds, as_json=as_json)


def _tell(watched: _Watched, objects: Objects | None, seconds: float | None, *, as_json: bool) -> None:
    until = f"for {seconds:g} s" if seconds is not None else "until it ends; Ctrl-C ends this before"
    click.echo(printable_lines(f"watching run {watched.name} {until}"), err=True)
    try:
        _watch(watched, objects, seconds, as_json=as_json)
    except Interrupted as interrupt:
        if interrupt.exit_code != _CTRL_C:
            raise
    if watched.is_over:
        click.echo(f"run {watched.name} has ended", err=True)


class _Watched(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def is_over(self) -> bool: ...

    @property
    def told_s(self) -> float: ...

    def read(self) -> Run: ...

    def pause(self, seconds: float) -> None: ...


class _OfNodes:
    """What agents see, looked at again in every pause."""

    def __init__(self, seen: Observation) -> None:
        self._seen = seen
        self.name = str(seen.pods.server)
        self.told_s = time.monotonic()

    @property
    def is_over(self) -> bool:
        return self._seen.pods.server_is_over

    def read(self) -> Run:
        from ztprobe.attach.nodes.record import run_of

        self.pause(0)
        with shielded():
            return run_of(self._seen, so_far=True)

    def pause(self, seconds: float) -> None:
        with shielded():  # an answer that is not read would be the next question's
            self._seen.look()
        self.told_s = time.monotonic()
        time.sleep(seconds)


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


def _watch(watched: _Watched, objects: Objects | None, seconds: float | None, *, as_json: bool) -> None:
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
            watched.pause(_POLL_S)


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
