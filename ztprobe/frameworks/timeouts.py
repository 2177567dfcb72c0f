"""The timeouts that frameworks have as they come, and where in their wheels each of them stands.

Whoever runs a deployment may have changed them: a limit here is the framework's own, and says how it is set.
What a limit bounds is one of the things that a trace measures (`BOUNDS`).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("BOUNDS", "FrameworkTimeout", "timeouts_of")

BOUNDS = {
    "part": "one request and its answer, with at most one part of a message in it",
    "message": "a whole model or update",
    "exchange": "a model to a client and its update back, polls and training included",
}

_S = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class FrameworkTimeout:
    """One limit."""

    name: str
    limit_ns: int
    bounds: str  # of BOUNDS
    source: str  # file in the wheel, and what it is called there
    setting: str  # how whoever runs the deployment changes it; empty: not at all


_FLOWER = (
    FrameworkTimeout(
        name="replies to the ServerApp",
        limit_ns=3600 * _S,
        bounds="exchange",
        source="flwr/serverapp/strategy/strategy.py: Strategy.start(timeout=3600)",
        setting="strategy.start(timeout=...)",
    ),
    FrameworkTimeout(
        name="life of a message",
        limit_ns=43_200 * _S,
        bounds="exchange",
        source="flwr/app/constants.py: DEFAULT_TTL",
        setting="Message(ttl=...)",
    ),
    FrameworkTimeout(
        name="parts of a message that is pushed",
        limit_ns=180 * _S,
        bounds="part",
        source="flwr/supercore/constant.py: OBJECT_PUSH_SESSION_TTL_SECONDS, anew with each part",
        setting="",
    ),
    FrameworkTimeout(
        name="pulling a whole message",
        limit_ns=7200 * _S,
        bounds="message",
        source="flwr/supercore/constant.py: PULL_MAX_TIME",
        setting="",
    ),
    FrameworkTimeout(
        name="HTTP silence",
        limit_ns=30 * _S,
        bounds="part",
        source="flwr/supercore/protobuf/client.py: httpx.Client(timeout=30.0), each read and write",
        setting="",
    ),
)
_FLOWER_GRPC = (
    FrameworkTimeout(
        name="gRPC keepalive",
        limit_ns=20 * _S,
        bounds="message",
        source="gRPC's GRPC_ARG_KEEPALIVE_TIMEOUT_MS; flwr/supercore/grpc.py pings after 210 s, and a ping "
        "waits behind the message that is being sent",
        setting="",
    ),
)
_NVFLARE = (
    FrameworkTimeout(
        name="a task or an update",
        limit_ns=300 * _S,
        bounds="message",
        source="nvflare/private/fed/client/fed_client_base.py: communication_timeout",
        setting="communication_timeout in fed_client.json",
    ),
    FrameworkTimeout(
        name="silence of a stream",
        limit_ns=600 * _S,
        bounds="part",
        source="nvflare/fuel/f3/streaming/transfer_progress.py: DEFAULT_STREAMING_IDLE_TIMEOUT",
        setting="streaming_idle_timeout in comm_config.json",
    ),
    FrameworkTimeout(
        name="heartbeat of a client",
        limit_ns=60 * _S,
        bounds="message",
        source="nvflare/private/fed/server/server_json_config.py: heartbeat_timeout; a heartbeat on the same "
        "stream waits behind what is being sent",
        setting="heart_beat_timeout in fed_server.json",
    ),
)


def timeouts_of(framework: str, version: str | None = None) -> tuple[FrameworkTimeout, ...]:
    """A framework's own limits; none of one whose wheel was not read.

    :param version: of the framework; None: not known, then what every version read has.
    """
    if framework == "nvflare":
        return _NVFLARE
    if framework != "flower":
        return ()
    # Until 1.39 SuperNodes spoke gRPC to their SuperLink.
    return (
        (*_FLOWER, *_FLOWER_GRPC) if _minor(version) is not None and (_minor(version) or 0) < 40 else _FLOWER
    )


def _minor(version: str | None) -> int | None:
    words = (version or "").split(".")
    return int(words[1]) if len(words) > 1 and words[0] == "1" and words[1].isdigit() else None
