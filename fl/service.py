"""The gRPC service that carries streams to a rendezvous, for whoever waits for updates: server or edge."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent import futures
from functools import partial
from typing import Any

import grpc

from fl import compression, rpc, wire
from fl.errors import RoundError, TransportError, WireError
from fl.rendezvous import Rendezvous
from fl.wire import Encoding, Kind, Message

__all__ = ("listen",)


def listen(
    address: str,
    rendezvous: Rendezvous,
    *,
    peers: int,
    parameters: int,
    encoding: Encoding,
    secure: bool = False,
    http2_window_bytes: int = 0,
    grpc_options: rpc.Options = (),
) -> tuple[Any, int]:
    """Start to serve; returns gRPC's server and the (first) port.

    :param address: where; several with commas between.
    :param peers: how many will come.
    :param parameters: the model's number of values.
    :param encoding: of their updates.
    :param secure: whether secure aggregation's messages come instead of updates.
    :raises TransportError: the port is taken, or the address is not ours.
    """
    # Two streams a client, because a new connection may arrive before the old one's end is noticed.
    workers = futures.ThreadPoolExecutor(2 * peers + 4)
    options = rpc.with_given(rpc.SERVER_OPTIONS + rpc.window_options(http2_window_bytes), grpc_options)
    server = grpc.server(workers, options=options)
    handler = grpc.stream_stream_rpc_method_handler(_Streams(rendezvous, parameters, encoding, secure).train)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(rpc.SERVICE, {rpc.METHOD: handler}),)
    )
    try:
        port, *_ = [server.add_insecure_port(one) for one in address.split(",")]
    except RuntimeError as error:
        raise TransportError(f"cannot listen on {address}: is the port taken, the address ours?") from error
    server.start()
    return server, port


class _Streams:
    """The service: each stream alternates between reading a message and answering it."""

    def __init__(self, rendezvous: Rendezvous, parameters: int, encoding: Encoding, secure: bool) -> None:
        self._rendezvous = rendezvous
        self._parameters = parameters
        self._secure = secure
        self._encoding = encoding
        self._numbers = itertools.count()

    def train(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        number = next(self._numbers)
        if not context.add_callback(partial(self._rendezvous.wake, number)):
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
