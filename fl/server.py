"""The FL server: `python -m fl.server`.

The main thread runs the rounds (`fl.rounds`); gRPC's threads carry the streams and meet it in
`fl.rendezvous`. A round is open, wait, aggregate, evaluate, back to back, and all of
it lies between `round_start` and `round_end`.

Events on standard output, in this order within a round: `round_start`, `send_start`
(bytes ready, streams released), `update_received` per client, `wait_end`,
`client_missing` per client that the deadline cut off, `update_inspected` per client and
`update_chosen` (Krum's) and `privacy_spent` where the options ask for it, `aggregate_end`,
`evaluate_end` (when evaluated), `target_reached` (once), `round_end`. Around the
rounds: `run_start`, `client_ready`, `run_end`; `update_late` may come at any time.
Secure aggregation adds `exchange_start` and `exchange_end` for each of its exchanges, `message_received` (or
`message_late`) for what is no update, and `secure_sum`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import torch

from fl import compression, data, rpc, wire
from fl.config import ServerConfig
from fl.errors import FLError, RoundError, Terminated, TransportError, WireError
from fl.events import EventLog
from fl.injection import Injection
from fl.model import Model
from fl.process import raise_on_sigterm
from fl.rendezvous import Rendezvous
from fl.rounds import Rounds
from fl.wire import Kind, Message

__all__ = ("main", "run")

# After DONE, how long a client that missed the last deadline may take to fetch it.
_FAREWELL_S = 10.0
# After a failure, how long the reason may take to reach those who wait; who trains is cut off.
_FAILURE_S = 0.5


def run(config: ServerConfig, log: EventLog | None = None, injection: Injection | None = None) -> None:
    """Serve one run and return when every round is done.

    :raises FLError: the port is taken, too few clients, bad data.
    """
    log = log or EventLog()
    torch.set_num_threads(1)
    rendezvous = Rendezvous(config.clients, log)
    # Read before listening: once the port answers, the server is ready.
    split = data.load(config.dataset, config.data_dir)
    model = Model(config.seed, config.model)
    rounds = Rounds(config, rendezvous, model, split.test, log, injection or Injection())
    server, port = _listen(config, rendezvous, model.vector.size)
    finished = 0
    reason = "completed"
    log.emit(
        "run_start",
        0,
        port=port,
        parameters=model.vector.size,
        data_reader=split.reader,
        config=dataclasses.asdict(config)
        | {"data_dir": config.data_dir and str(config.data_dir), "options": config.options.effective()},
    )
    try:
        for round_number in rounds.run():
            finished = round_number
        rendezvous.finish(config.rounds)
        server.stop(_FAREWELL_S).wait()
    except BaseException as error:
        reason = str(error) if isinstance(error, FLError) else type(error).__name__
        rendezvous.fail(reason)
        server.stop(_FAILURE_S).wait()
        raise
    finally:
        log.emit("run_end", finished, rounds=finished, reason=reason)


def _listen(config: ServerConfig, rendezvous: Rendezvous, parameters: int) -> tuple[Any, int]:
    # Two streams a client, because a new connection may arrive before the old one's end is noticed.
    workers = futures.ThreadPoolExecutor(2 * config.clients + 4)
    options = rpc.SERVER_OPTIONS + rpc.window_options(config.http2_window_bytes)
    server = grpc.server(workers, options=options)
    handler = grpc.stream_stream_rpc_method_handler(_Streams(rendezvous, parameters, config).train)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(rpc.SERVICE, {rpc.METHOD: handler}),)
    )
    try:
        port = server.add_insecure_port(config.listen)
    except RuntimeError as error:
        raise TransportError(
            f"cannot listen on {config.listen}: is the port taken, the address ours?"
        ) from error
    server.start()
    return server, port


class _Streams:
    """The service: each stream alternates between reading a message and answering it."""

    def __init__(self, rendezvous: Rendezvous, parameters: int, config: ServerConfig) -> None:
        self._rendezvous = rendezvous
        self._parameters = parameters
        self._secure = config.options.secure_aggregation == "masks"
        self._encoding = compression.ENCODINGS[config.options.compression]
        self._numbers = itertools.count()

    def train(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        number = next(self._numbers)
        if not context.add_callback(self._rendezvous.wake):
            return
        try:
            for raw in requests:
                message = self._checked(wire.decode(raw, self._parameters))
                answer = self._rendezvous.exchange(message, number, context.is_active)
                if answer is None:
                    return
                yield answer
                if len(answer) == wire.HEADER_BYTES:  # DONE
                    return
        except WireError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except RoundError as error:
            context.abort(grpc.StatusCode.ABORTED, str(error))
        except grpc.RpcError:
            return  # the client went away while we read; its round ends at the deadline

    def _checked(self, message: Message) -> Message:
        if message.kind in (Kind.UPDATE, Kind.ADVERTISE) and (message.kind is Kind.UPDATE) is self._secure:
            expected = Kind.ADVERTISE if self._secure else Kind.UPDATE
            raise WireError(f"{message.kind.name} instead of {expected.name}: FL_OPTIONS differ")
        if message.kind is not Kind.UPDATE:
            return message
        if message.encoding is not self._encoding:
            raise WireError(
                f"UPDATE is {message.encoding.name}, expected {self._encoding.name}: FL_OPTIONS differ"
            )
        if message.payload.size:
            compression.check(message.encoding, message.payload, self._parameters)
        return message


def main() -> int:
    """Run as the environment says; the exit status, with one line on stderr when it is not 0."""
    try:
        raise_on_sigterm()
        run(ServerConfig.from_env(os.environ), injection=Injection.from_env(os.environ))
    except Terminated as end:
        return end.exit_code
    except FLError as error:
        print(f"fl-server: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
