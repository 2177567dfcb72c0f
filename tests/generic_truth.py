"""What those who played `tests.generic_deployment` wrote down, as seconds of each component."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Truth:
    """What those who did it wrote down."""

    def __init__(self, directory: Path) -> None:
        self._logs = {
            path.stem: [json.loads(line) for line in path.read_text().splitlines()]
            for path in directory.glob("*.jsonl")
        }

    def at(self, log: str, event: str, clock: str = "time_monotonic_ns", **facts: Any) -> float:
        """When it happened, in seconds."""
        return next(
            line[clock] / 1e9
            for line in self._logs[log]
            if line["event"] == event and all(line.get(name) == value for name, value in facts.items())
        )

    def of_round(self, number: int, client: str) -> dict[str, float]:
        """Component -> seconds on a client's way."""
        model, update = f"model-{number}-{client}", f"update-{number}-{client}"
        task = f"{client}-task-{number}"
        asked = {name: self.at("hub", "taken", "asked_ns", name=name) for name in (model, update)}
        return {
            "poll_wait": sum(asked[name] - self.at("hub", "stored", name=name) for name in (model, update)),
            "store_and_forward": sum(
                self.at("hub", "given", name=name) - self.at("hub", "taken", name=name)
                for name in (model, update)
            )
            + self.at(client, "forwarding", round=number)
            - self.at(client, "stored", name=f"update-{number}"),
            "task_start": self.at(task, "read_start") - self.at(client, "starting", round=number),
            "compute": self.at(task, "train_end") - self.at(task, "train_start"),
            "server": self.at("server", "aggregate_end", round=number)
            - self.at("server", "wait_end", round=number),
        }


class DirectTruth(Truth):
    """Of `tests.generic_direct`, where clients speak with the server itself."""

    def waited_s(self, number: int, client: str) -> float:
        """How long server and client waited for a CPU in a round, other than in their work.

        Between a system call and the line that logs it there is nothing else that takes long.
        """
        spans = (
            (("server", "round_start"), ("server", "round_end"), 1),
            (("server", "round_start"), ("server", "send_start"), -1),
            (("server", "wait_end"), ("server", "aggregate_end"), -1),
            ((client, "train_start"), (client, "train_end"), -1),
        )
        total = sum(
            sign * (self._waited_ns(*until, number) - self._waited_ns(*since, number))
            for since, until, sign in spans
        )
        before = [line for line in self._logs[client] if line.get("round", 0) == number - 1]
        total += self._waited_ns(client, "train_end", number)
        total -= before[-1]["waited_ns"] if before else self._logs[client][0]["waited_ns"]
        return max(0, total) / 1e9

    def _waited_ns(self, log: str, event: str, number: int) -> int:
        return next(
            int(line["waited_ns"])
            for line in self._logs[log]
            if line["event"] == event and line["round"] == number
        )

    def last(self, number: int) -> str:
        """The client whose update the server had last."""
        came = [
            (line["time_monotonic_ns"], str(line["client_id"]))
            for line in self._logs["server"]
            if line["event"] == "update_received" and line["round"] == number
        ]
        return max(came)[1]

    def of_direct_round(self, number: int, client: str, *, polls: bool) -> dict[str, float]:
        """Component -> seconds on a client's way.

        :param polls: whether clients ask again and again; else the server holds what they asked.
        """
        started, ready = (
            self.at("server", "round_start", round=number),
            self.at("server", "send_start", round=number),
        )
        taken = self.at("served", "taken", round=number, client_id=client)
        given = self.at("served", "given", round=number, client_id=client)
        aggregated = self.at("server", "aggregate_end", round=number) - self.at(
            "server", "wait_end", round=number
        )
        return {
            "server": (ready - started) + (given - taken) + aggregated,
            "poll_wait": taken - ready if polls else 0.0,
            "compute": self.at(client, "train_end", round=number)
            - self.at(client, "train_start", round=number),
        }
