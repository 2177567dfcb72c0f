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
import os
import sys

import torch

from fl import compression, data, memory
from fl.config import ServerConfig
from fl.errors import FLError, Terminated
from fl.events import EventLog
from fl.injection import Injection
from fl.model import Model
from fl.process import raise_on_sigterm
from fl.rendezvous import Rendezvous
from fl.rounds import Rounds
from fl.service import listen
from fl.wire import Encoding

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
    memory.keep()
    rendezvous = Rendezvous(config.participants, log)
    # Read before listening: once the port answers, the server is ready.
    split = data.load(config.dataset, config.data_dir)
    model = Model(config.seed, config.model)
    rounds = Rounds(config, rendezvous, model, split.test, log, injection or Injection())
    options = config.options
    server, port = listen(
        config.listen,
        rendezvous,
        peers=config.participants,
        parameters=model.vector.size,
        # An edge has unpacked its clients' updates.
        encoding=Encoding.FLOAT32 if config.edges else compression.ENCODINGS[options.compression],
        secure=options.secure_aggregation == "masks",
        http2_window_bytes=config.http2_window_bytes,
        grpc_options=config.grpc_options,
    )
    finished = 0
    reason = "completed"
    log.emit(
        "run_start",
        0,
        port=port,
        parameters=model.vector.size,
        data_reader=split.reader,
        config=dataclasses.asdict(config)
        | {
            "data_dir": config.data_dir and str(config.data_dir),
            "checkpoint_dir": config.checkpoint_dir and str(config.checkpoint_dir),
            "options": options.effective(),
        },
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
