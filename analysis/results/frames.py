"""A run as DataFrames, with a unit in every column's name: what ``ztprobe.load`` gives.

Rounds and all that belongs to them come from report.json's content, so figures made from these tables are the
report's own; messages and drops come from the run's events.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.ledger.model import COMPONENTS
from analysis.results.message_table import drop_frame, message_frame
from analysis.results.samples import load_report
from ztprobe.errors import RunDirError
from ztprobe.rundir.store import load_run

__all__ = ("LoadedRun", "load")

_NESTED = (
    *("components", "segments", "marks", "machine", "sub_rows", "clients", "conditions", "other_profiles"),
    "levels",
)


def load(path: str | Path) -> LoadedRun:
    """A saved run's results.

    :raises ztprobe.errors.RunDirError: no run stands there, or it cannot be analysed.
    """
    path = Path(path)
    if not (path / "run.json").is_file():
        raise RunDirError(f"{path}: is no run directory (it has no run.json)")
    return LoadedRun(path, load_report(path))


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What fits into cells; edge aggregators on the way as one text."""
    values = {name: value for name, value in entry.items() if name not in _NESTED}
    return {name: ", ".join(value) if isinstance(value, list) else value for name, value in values.items()}


class LoadedRun:
    """One saved run. Tables are made when they are first asked for; changing one changes no file."""

    def __init__(self, path: Path, report: Mapping[str, Any]) -> None:
        self.path = path
        self.report = report  # report.json's content

    def __repr__(self) -> str:
        return f"<{self.experiment}, {len(self.rounds)} rounds, {self.path}>"

    @property
    def experiment(self) -> str:
        """Its name, such as net2-sec3."""
        return str(self.report["experiment"])

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a round: round, counted, start_s, duration_s, critical_client, residual_s, coverage, ..."""
        return pd.DataFrame([_flat(one) for one in self.report["rounds"]])

    @cached_property
    def components(self) -> pd.DataFrame:
        """Tidy: round, counted, component, time_s; components and residual add up to the round.

        Rounds whose breakdown is withheld have none.
        """
        rows = [
            {"round": one["round"], "counted": one["counted"], "component": name, "time_s": time_s}
            for one in self.report["rounds"]
            for name, time_s in (*one["components"].items(), ("residual", one["residual_s"]))
            if time_s is not None
        ]
        return pd.DataFrame(rows, columns=["round", "counted", "component", "time_s"])

    @cached_property
    def sub_rows(self) -> pd.DataFrame:
        """Tidy: round, counted, component, sub_row, time_s; parts of components, not more of them."""
        rows = [
            {
                "round": one["round"],
                "counted": one["counted"],
                "component": component,
                "sub_row": name,
                "time_s": time_s,
            }
            for one in self.report["rounds"]
            for component, parts in one["sub_rows"].items()
            for name, time_s in parts.items()
        ]
        return pd.DataFrame(rows, columns=["round", "counted", "component", "sub_row", "time_s"])

    @cached_property
    def clients(self) -> pd.DataFrame:
        """One row a round and client: critical, arrival_s, slack_s, each component as COMPONENT_s, ..."""
        rows = []
        for one in self.report["rounds"]:
            for client in one["clients"]:
                row = {"round": one["round"], "counted": one["counted"]}
                row |= _flat(client)
                row |= {f"{name}_s": client["components"].get(name) for name in COMPONENTS}
                rows.append(row)
        return pd.DataFrame(rows)

    @cached_property
    def segments(self) -> pd.DataFrame:
        """Each client's way through each round: round, client, critical, component, start_s, end_s.

        Seconds from the round's start; a client's segments of a round leave no hole.
        """
        rows = [
            {
                "round": one["round"],
                "client": client["client"],
                "critical": client["critical"],
                "component": component,
                "start_s": start_s,
                "end_s": end_s,
            }
            for one in self.report["rounds"]
            for client in one["clients"]
            for component, start_s, end_s in client.get("segments", ())
        ]
        return pd.DataFrame(rows, columns=["round", "client", "critical", "component", "start_s", "end_s"])

    @cached_property
    def overhead(self) -> pd.DataFrame:
        """One row a part (duration, a component, residual): delta_s, and low_s, high_s of its 95 % interval.

        NaN where there is no interval; no rows without a baseline.
        """
        columns = ["part", "delta_s", "low_s", "high_s"]
        found = self.report["overhead"]
        if not found:
            return pd.DataFrame(columns=columns)
        entries = {"duration": found["duration"], **found["components"], "residual": found["residual"]}
        rows = []
        for part, entry in entries.items():
            low_s, high_s = entry["ci95"] or (None, None)
            rows.append({"part": part, "delta_s": entry["delta_s"], "low_s": low_s, "high_s": high_s})
        return pd.DataFrame(rows, columns=columns).astype({"delta_s": float, "low_s": float, "high_s": float})

    @cached_property
    def messages(self) -> pd.DataFrame:
        """Messages on the wire, with when they left and came (`analysis.results.message_table`)."""
        return message_frame(load_run(self.path))

    @cached_property
    def drops(self) -> pd.DataFrame:
        """Packets that the kernel dropped, each with the policies that deny it."""
        return drop_frame(load_run(self.path))

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """All of them by name."""
        names = ("rounds", "components", "sub_rows", "clients", "segments", "overhead", "messages", "drops")
        return {name: getattr(self, name) for name in names}
