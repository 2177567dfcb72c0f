"""What an option's operations take by themselves, without a network: predictions of a round's compute.

`python -m tests.e2e.fl_standalone PART [cold] [beside]` reads a JSON list of [options, clients] and prints
who took how many CPU nanoseconds in each of the first rounds. The parts: `update`, what a client does to make
the bytes of an update and to answer whatever else it is asked; `model`, what the server does from the last
update to the next model, and an edge aggregator from its last update to its own; `training`. A process
for each part, as memory costs what the process makes of it: a synthetic client gives all of it back, and
the server has loaded PyTorch and keeps its own.

Cold: before each operation more memory is touched than the caches hold, as others do who are at work while a
process waits for seconds. Beside: a second process does the same at the same time, as clients do in a round;
they share caches, memory and, on many machines, the core.

Clock: CPU time of the one thread that works; the least of several times, as others can only add to it, and
the median where one of them is there on purpose.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from fl import memory, wire
from fl.aggregation.step import ServerStep
from fl.config import ClientConfig
from fl.events import EventLog
from fl.options import FlOptions
from fl.secure import quantisation
from fl.secure.server import SecureServer
from fl.shapes import size_of
from fl.synthetic import SyntheticTrainer
from fl.trainer import Trained
from fl.updates import UpdateMaker
from fl.wire import Encoding, Kind, Message, Payload, Vector

__all__ = ("Standalone", "standalone")

SIZE = size_of("cnn")
ROUNDS = 3
_CACHES_BYTES = 64 << 20  # more than a core's share of any cache
_TIMES = 3
# As the pods have it.
_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_Result = TypeVar("_Result")
Standalone = dict[str, list[int]]  # who ("server", "fl-client-0", ...) -> ns of each round


def standalone(
    part: str, wanted: Sequence[tuple[Mapping[str, Any], int]], *, cold: bool = False, beside: bool = False
) -> list[Standalone]:
    """For each of the (options, clients): who -> CPU nanoseconds of each round."""
    how = [word for word, is_so in (("cold", cold), ("beside", beside)) if is_so]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.fl_standalone", part, *how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | _ENVIRONMENT,
        )
        for _ in range(2 if beside else 1)
    ]
    try:
        for process in running:
            assert process.stdin is not None
            process.stdin.write(json.dumps(wanted))
            process.stdin.close()
            process.stdin = None
        said = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert not any(process.returncode for process in running)
    found: list[Standalone] = json.loads(said[0])
    return found


class _Run:
    """A run's clients and server step, in turn, with a clock on those of one part."""

    def __init__(self, part: str, options: FlOptions, clients: int, others: Vector | None) -> None:
        self._part = part
        self._others = others
        self.spent_ns: Standalone = {}
        self._options = options
        configs = [_client_config(index, clients, options) for index in range(clients)]
        self._trainers = [SyntheticTrainer(config) for config in configs] if part == "update" else []
        self._names = [config.client_id for config in configs]
        self._makers = [UpdateMaker(config, SIZE) for config in configs]
        self._step = ServerStep(options, SIZE, EventLog(io.StringIO()), rounds=ROUNDS)
        self._edges = [
            ServerStep(FlOptions(), SIZE, EventLog(io.StringIO()), rounds=0)
            for _ in range(options.edges or 0)
        ]
        # As PyTorch begins with the layer that has nearly all of the values.
        self._model = np.random.default_rng(0).uniform(-1 / 96, 1 / 96, SIZE).astype(np.float32)
        self._threshold = options.threshold(clients)

    def run(self, number: int) -> None:
        """One round."""
        if self._options.secure_aggregation == "masks":
            self._secure_round(number)
            return
        updates = []
        for index, (name, maker) in enumerate(zip(self._names, self._makers, strict=True)):
            trained, model = self._trained(index, number), self._model if maker.needs_model else None
            updates.append(
                wire.decode(self._timed(name, "update", number, maker.encode, trained, model, number))
            )
        if self._edges:
            updates = [
                self._timed(f"fl-edge-{edge}", "model", number, self._of_edge, edge, updates, number)
                for edge in range(len(self._edges))
            ]
        self._timed("server", "model", number, self._step.next_model, self._model, updates, number)

    def _secure_round(self, number: int) -> None:
        server = SecureServer(threshold=self._threshold, size=SIZE + 1, round_number=number)

        def answers(bodies: Mapping[str, bytes], kind: Kind) -> dict[str, Payload]:
            found = {}
            for index, (name, maker) in enumerate(zip(self._names, self._makers, strict=True)):
                body = np.frombuffer(bodies[name], dtype=np.uint8)
                encoding = Encoding.FLOAT32 if kind is Kind.MODEL else Encoding.OPAQUE
                message = Message(kind=kind, round=number, encoding=encoding, payload=body)
                if kind is Kind.INBOX:
                    trained = self._trained(index, number)
                    raw = self._timed(
                        name, "update", number, maker.encode, trained, self._model, number, message
                    )
                else:
                    assert maker.secure is not None
                    raw = self._timed(name, "update", number, maker.secure.answer, message)
                found[name] = wire.decode(raw).payload
            return found

        adverts = answers(dict.fromkeys(self._names, b""), Kind.MODEL)
        shares = answers(self._timed("server", "model", number, server.keys, adverts), Kind.KEYS)
        masked = answers(self._timed("server", "model", number, server.inboxes, shares), Kind.INBOX)
        unmask = answers(self._timed("server", "model", number, server.survivors, masked), Kind.SURVIVORS)
        self._timed("server", "model", number, self._after_sum, server, unmask, number)

    def _after_sum(self, server: SecureServer, answers: Mapping[str, Payload], number: int) -> Vector:
        summed, weight = quantisation.sums_of(server.total(answers))
        return self._step.after_sum(self._model, summed, weight, len(answers), number)

    def _of_edge(self, edge: int, updates: Sequence[Message], number: int) -> Message:
        of = [one for index, one in enumerate(updates) if index * len(self._edges) // len(updates) == edge]
        mean = self._edges[edge].next_model(self._model, of, number)
        name, examples = f"fl-edge-{edge}", sum(one.num_examples for one in of)
        raw = wire.encode(Kind.UPDATE, number, client_id=name, num_examples=examples, body=mean)
        return wire.decode(raw)

    def _trained(self, index: int, number: int) -> Trained:
        if self._trainers:
            self._trainers[index].load(self._model)
            return self._trainers[index].train(number)
        step = np.random.default_rng((index, number)).standard_normal(SIZE, dtype=np.float32)
        vector = self._model + step * np.float32(0.5 / SIZE**0.5)
        return Trained(vector=vector, num_examples=1, loss=None)

    def _timed(
        self, who: str, part: str, number: int, work: Callable[..., _Result], *arguments: Any
    ) -> _Result:
        if self._others is not None and part == self._part:
            self._others += 1
        begin_ns = time.thread_time_ns()
        result = work(*arguments)
        if part == self._part:
            rounds_ns = self.spent_ns.setdefault(who, [0] * ROUNDS)
            rounds_ns[number - 1] += time.thread_time_ns() - begin_ns
        return result


def _client_config(index: int, clients: int, options: FlOptions) -> ClientConfig:
    given = options.given() | {"client": "synthetic", "synthetic_compute_ms": 0}
    return ClientConfig.from_env(
        {
            "FL_CLIENTS": str(clients),
            "FL_OPTIONS": json.dumps(given),
            "POD_NAME": f"fl-client-{index}",
            "JOB_COMPLETION_INDEX": str(index),
            "FL_SERVER": "fl-server:50051",
        }
    )


def _once(part: str, options: FlOptions, clients: int, others: Vector | None) -> Standalone:
    if part == "training":
        return _training(options, clients)
    run = _Run(part, options, clients, others)
    for number in range(1, ROUNDS + 1):
        run.run(number)
    return run.spent_ns


def _training(options: FlOptions, clients: int) -> Standalone:
    from fl.model import Model
    from fl.torch_trainer import TorchTrainer

    spent_ns: Standalone = {}
    for index in range(clients):
        config = _client_config(index, clients, options)
        trainer = TorchTrainer(config)
        for number in range(1, ROUNDS + 1):
            trainer.load(Model(seed=0).vector)
            begin_ns = time.thread_time_ns()
            trainer.train(number)
            spent_ns.setdefault(config.client_id, []).append(time.thread_time_ns() - begin_ns)
    return spent_ns


def main(part: str, *how: str) -> None:
    """See the module."""
    if part == "model":
        import fl.server  # noqa: F401  the pod's process has loaded all of that

        memory.keep()
    others = np.zeros(_CACHES_BYTES // 4, dtype=np.float32) if "cold" in how else None
    of_times = np.median if "beside" in how else np.min
    found = []
    for options, clients in json.load(sys.stdin):
        times = [_once(part, FlOptions(**options), clients, others) for _ in range(_TIMES)]
        found.append({who: of_times([one[who] for one in times], axis=0).tolist() for who in times[0]})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
