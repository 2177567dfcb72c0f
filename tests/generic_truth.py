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
