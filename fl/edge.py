"""An edge aggregator: `python -m fl.edge`. Server to its clients, client to the server.

It says HELLO to the server once all of its clients have said so here, hands on each round's MODEL as the
very bytes that came, and sends up the weighted mean of what its clients made of it, with the sum of their
numbers of examples: the server's mean of means is the mean of all. Compressed updates are unpacked
here. If some of its clients miss the deadline it sends what there is; if all do, it ends with an error.

Events on standard output are the server's for what happens below it (`update_received`, `wait_end`,
`client_missing`, `aggregate_end`, ...) and the clients' for what happens above (`model_received`,
`update_sent`), all with this edge's `edge_id`.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial

from fl import compression, memory, wire
from fl.aggregation.step import ServerStep
from fl.config import EdgeConfig
from fl.errors import FLError, RoundError, Terminated
from fl.events import EventLog, now
from fl.options import FlOptions
from fl.process import raise_on_sigterm
from fl.rendezvous import Rendezvous
from fl.service import listen
from fl.shapes import size_of
from fl.stream import ClientStream
from fl.wire import Kind, Message

__all__ = ("main", "run")

# Of the round's deadline: what the clients of an edge may use up, so that the rest still reaches the server.
_SHARE = 0.9
_FAREWELL_S = 10.0
_FAILURE_S = 0.5


def run(config: EdgeConfig, log: EventLog | None = None) -> int:
    """Take part in a run until DONE; returns the number of rounds.

    :raises FLError: the port is taken, no clients, or the stream to the server broke.
    """
    log = log or EventLog(edge_id=config.edge_id)
    memory.keep()
    size = size_of(config.model)
    rendezvous = Rendezvous(config.own_clients, log)
    service, port = listen(
        config.listen,
        rendezvous,
        peers=config.own_clients,
        parameters=size,
        encoding=compression.ENCODINGS[config.options.compression],
        http2_window_bytes=config.http2_window_bytes,
        grpc_options=config.grpc_options,
    )
    log.emit("run_start", 0, port=port, parameters=size, clients=config.own_clients)
    reason = "completed"
    rounds = 0
    stream = ClientStream(config.server, config.http2_window_bytes, config.grpc_options)
    try:
        rounds = _Edge(config, log, rendezvous, stream, size).run()
        rendezvous.finish(rounds)
        service.stop(_FAREWELL_S).wait()
    except BaseException as error:
        reason = str(error) if isinstance(error, FLError) else type(error).__name__
        rendezvous.fail(reason)
        service.stop(_FAILURE_S).wait()
        raise
    finally:
        stream.close()
        log.emit("run_end", rounds, rounds=rounds, reason=reason)
    return rounds


class _Edge:
    def __init__(
        self, config: EdgeConfig, log: EventLog, rendezvous: Rendezvous, stream: ClientStream, size: int
    ) -> None:
        self._config = config
        self._log = log
        self._rendezvous = rendezvous
        self._stream = stream
        self._size = size
        self._wait_s = _SHARE * config.round_deadline_s
        # The mean alone: an optimiser is the server's.
        self._step = ServerStep(FlOptions(), size, log, rounds=0)

    def run(self) -> int:
        ready = self._rendezvous.wait_for_clients(self._wait_s)
        if not ready:
            raise RoundError(f"none of {self._config.own_clients} clients came within {self._wait_s:g} s")
        hello = wire.encode(Kind.HELLO, 0, client_id=self._config.edge_id)
        self._stream.send(hello, partial(self._log.emit, "hello_sent", 0))
        rounds = 0
        while True:
            raw = self._stream.receive()
            arrived = now()
            message = wire.decode(raw, self._size)
            if message.kind is Kind.DONE:
                return rounds
            number = message.round
            self._log.emit("model_received", number, at=arrived)
            update = self._aggregate(message, self._collect(number, raw))
            self._log.emit("aggregate_end", number)
            del raw, message
            self._stream.send(update, partial(self._log.emit, "update_sent", number))
            rounds += 1

    def _collect(self, number: int, model: bytes) -> list[Message]:
        self._rendezvous.open_round(number, model)
        self._rendezvous.wait_for_updates(time.monotonic() + self._wait_s)
        updates = self._rendezvous.close_round()
        if not updates:
            raise RoundError(
                f"round {number}: no update of {self._config.own_clients} came within {self._wait_s:g} s"
            )
        return updates

    def _aggregate(self, model: Message, updates: list[Message]) -> bytes:
        return wire.encode(
            Kind.UPDATE,
            model.round,
            client_id=self._config.edge_id,
            num_examples=sum(update.num_examples for update in updates),
            body=self._step.next_model(model.body, updates, model.round),
        )


def main() -> int:
    """Run as the environment says; the exit status, with one line on stderr when it is not 0."""
    try:
        raise_on_sigterm()
        run(EdgeConfig.from_env(os.environ))
    except Terminated as end:
        return end.exit_code
    except FLError as error:
        print(f"{os.environ.get('POD_NAME', 'fl-edge')}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
