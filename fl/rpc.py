"""The gRPC service and the options of its channels: as few as possible, each with its reason.

`fl.FederatedLearning/Train` is one bidirectional stream per client, over opaque
bytes (`fl.wire` says what they hold). What is not set here has gRPC's default, on
purpose: flow-control windows with BDP probing, congestion control and resolver are
part of what a user's deployment does, and so of what is measured. Keepalive stays
off, as it is by default: a ping every few seconds would hold idle connections warm
and hide the slow start that follows each training.
"""

from __future__ import annotations

from typing import TypeAlias

__all__ = (
    "CLIENT_OPTIONS",
    "METHOD",
    "METHOD_PATH",
    "SERVER_OPTIONS",
    "SERVICE",
    "Options",
    "window_options",
    "with_given",
)

SERVICE = "fl.FederatedLearning"
METHOD = "Train"
METHOD_PATH = f"/{SERVICE}/{METHOD}"

Options: TypeAlias = tuple[tuple[str, int], ...]

# The default limit on what is received is 4 MB; the model has 4.8 MB. -1: unlimited.
_ANY_SIZE: Options = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

CLIENT_OPTIONS: Options = (
    *_ANY_SIZE,
    # gRPC shares connections between channels of a process; with this a new channel is a new connection.
    ("grpc.use_local_subchannel_pool", 1),
    # A refused connection is tried again after 0.2 s .. 1 s instead of 1 s .. 2 min: pods start in any order.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A proxy variable of the surrounding environment must not send the stream somewhere else.
    ("grpc.enable_http_proxy", 0),
)

SERVER_OPTIONS: Options = (
    *_ANY_SIZE,
    # With gRPC's default a second server on the port would share it silently instead of failing.
    ("grpc.so_reuseport", 0),
)


def with_given(usual: Options, given: Options) -> Options:
    """The usual arguments, but for those that are given: of two of a name gRPC takes the first."""
    names = {name for name, _ in given}
    return (*(one for one in usual if one[0] not in names), *given)


def window_options(window_bytes: int) -> Options:
    """A fixed HTTP/2 window for what one end receives, as peers have that do not probe; 0: gRPC's own."""
    if not window_bytes:
        return ()
    return (("grpc.http2.lookahead_bytes", window_bytes), ("grpc.http2.bdp_probe", 0))
