"""A run without processes or network: the workload's own trainers, messages and server step, in turn."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

from fl import data, wire
from fl.aggregation.step import ServerStep
from fl.config import ClientConfig
from fl.events import EventLog
from fl.model import Model
from fl.options import FlOptions
from fl.torch_trainer import TorchTrainer
from fl.training import evaluate
from fl.updates import UpdateMaker


def client_config(index: int, clients: int, options: FlOptions, **changes: Any) -> ClientConfig:
    """As the environment of `fl-client-INDEX` would say."""
    about: dict[str, Any] = {
        "clients": clients,
        "seed": 0,
        "dataset": "digits",
        "data_dir": None,
        "options": options,
        "client_id": f"fl-client-{index}",
        "client_index": index,
        "server": "",
        "distribution": "iid",
        "reconnect": False,
    }
    return ClientConfig(**about | changes)


@dataclass
class Outcome:
    """What a simulated run came to."""

    accuracy: float
    model: wire.Vector
    update_bytes: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def unusual(self) -> dict[str, list[bool]]:
        """Client -> whether it was flagged, round by round."""
        found: dict[str, list[bool]] = {}
        for event in self.events:
            if event["event"] == "update_inspected":
                found.setdefault(event["client_id"], []).append(bool(event["unusual"]))
        return found


def simulate(options: FlOptions, *, clients: int = 5, rounds: int = 5, **changes: Any) -> Outcome:
    """Train for so many rounds; `changes` are of the clients' configuration."""
    configs = [client_config(index, clients, options, **changes) for index in range(clients)]
    trainers = [TorchTrainer(config) for config in configs]
    makers = [UpdateMaker(config, trainer.size) for config, trainer in zip(configs, trainers, strict=True)]
    model, stream = Model(configs[0].seed, configs[0].model), io.StringIO()
    step = ServerStep(options, model.vector.size, EventLog(stream), rounds=rounds)
    sizes = []
    for number in range(1, rounds + 1):
        updates = []
        for trainer, maker in zip(trainers, makers, strict=True):
            trainer.load(model.vector)
            raw = maker.encode(trainer.train(number), model.vector, number)
            sizes.append(len(raw))
            updates.append(wire.decode(raw))
        model.load(step.next_model(model.vector, updates, number))
    accuracy, _ = evaluate(model, data.load("digits").test)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    return Outcome(accuracy, model.vector, sizes, events)
