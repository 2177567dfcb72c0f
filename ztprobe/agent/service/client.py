"""The collector's side: an agent on another machine, used as if it were here.

Calls and events are two streams of one connection. Whatever breaks on the way is tried again for a while:
a call is made once however often it is asked for, and batches that were on their way come again from the
agent's queue. What was lost in that queue is in the account that `stop` gives.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from ztprobe.agent.calls import Caller, answer_of
from ztprobe.agent.interface import Account, Status
from ztprobe.agent.lease_calls import LeaseCaller
from ztprobe.agent.node_view_calls import NodeViewCaller
from ztprobe.agent.pod_access_calls import PodAccessCaller
from ztprobe.agent.service import wire
from ztprobe.agent.service.wire import Tls
from ztprobe.agent.spool import END, NAMES
from ztprobe.agent.spool_sink import read_message
from ztprobe.errors import PreflightError, ZtprobeError
from ztprobe.printable import printable
from ztprobe.process.interrupts import shielded
from ztprobe.rundir.batches import BatchWriter

__all__ = ("AgentClient", "Connection", "SessionCaller", "error_of", "until_none")

_CALL_S = 600.0  # the longest call: a measurement that is repeated, probes that compile
_STATUS_S = 10.0
_FAREWELL_S = 2.0
_PATIENCE_S = 60.0
_AGAIN_S = (0.1, 2.0)  # between attempts: at first, at most
_LONGEST_MESSAGE = 300
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


class Connection:
    """To one agent's service; calls without a session.

    :param address: HOST:PORT or unix:PATH.
    :param tls: None: without, where the agent listens on a socket of this machine's.
    :param patience_s: how long an agent that does not answer is asked again; one that has been given up once
        is not waited for again.
    :param why_gone: says why an agent that does not answer never will; None: nothing is known of it.
    :raises UsageError: a certificate cannot be read.
    """

    def __init__(
        self,
        address: str,
        tls: Tls | None,
        *,
        patience_s: float = _PATIENCE_S,
        why_gone: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.address = address
        self.patience_s = patience_s
        self._why_gone = why_gone
        options = [
            *wire.OPTIONS,
            # gRPC would share connections between channels that look alike.
            ("grpc.use_local_subchannel_pool", 1),
            # And wait up to two minutes before it tries again.
            ("grpc.initial_reconnect_backoff_ms", round(1000 * _AGAIN_S[0])),
            ("grpc.min_reconnect_backoff_ms", round(1000 * _AGAIN_S[1])),
            ("grpc.max_reconnect_backoff_ms", round(1000 * _AGAIN_S[1])),
        ]
        if tls is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            certificate, key, authority = tls.read()
            credentials = grpc.ssl_channel_credentials(authority, key, certificate)
            options.append(("grpc.ssl_target_name_override", wire.SERVER_NAME))
            self._channel = grpc.secure_channel(address, credentials, options)
        self._call = self._channel.unary_unary(f"/{wire.SERVICE}/{wire.CALL}")
        self.events: Callable[..., Any] = self._channel.stream_stream(f"/{wire.SERVICE}/{wire.EVENTS}")
        self.drops: Callable[..., Any] = self._channel.stream_stream(f"/{wire.SERVICE}/{wire.DROPS}")

    def ask(self, said: dict[str, Any], *, patience_s: float | None = None) -> Any:
        """Make a call. :raises ZtprobeError: it was refused, or the agent does not answer."""
        patience_s = self.patience_s if patience_s is None else patience_s
        begun_s, pause_s = time.monotonic(), _AGAIN_S[0]
        while True:
            left_s = max(_STATUS_S, patience_s) if said["call"] == "agent_status" else _CALL_S
            try:
                reply = json.loads(self._call(wire.encoded(said), timeout=left_s))
                return answer_of(reply, f"see the log of the agent at {self.address}")
            except grpc.RpcError as error:
                if error.code() not in _AWAY:
                    raise error_of(error, self.address) from error
                self.wait_for(error, begun_s, patience_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _AGAIN_S[1])

    def wait_for(self, error: Any, since_s: float, patience_s: float | None = None) -> None:
        """Return where an agent that does not answer may be asked again.

        :param since_s: by time.monotonic, when it was heard last.
        :raises PreflightError: it is gone, or has been waited for long enough.
        """
        patience_s = self.patience_s if patience_s is None else patience_s
        why = self._why_gone() if patience_s > 0 else None
        if why is None and time.monotonic() - since_s <= patience_s:
            return
        self.patience_s = 0.0
        if why is not None:
            raise PreflightError(f"the agent at {self.address} does not answer: {why}") from error
        raise error_of(error, self.address) from error

    def status(self) -> dict[str, Any]:
        """What the agent says of itself. :raises ZtprobeError: it does not."""
        return dict(self.ask({"call": "agent_status"}))

    def offers(self) -> dict[str, Any]:
        """What its node offers (`ztprobe.agent.offers`). :raises ZtprobeError: it does not say."""
        return dict(self.ask({"call": "offers"}))

    def tell_round(self, duration_s: float) -> None:
        """One that has ended, for its figures. :raises ZtprobeError: it does not take it."""
        self.ask({"call": "round_ended", "duration_s": duration_s}, patience_s=0)

    def tell_run(self, figures: dict[str, Any]) -> None:
        """What a run's rounds consisted of (`ztprobe.agent.service.round_metrics`), for its figures.

        :raises ZtprobeError: it does not take it.
        """
        self.ask({"call": "run_analysed", "figures": figures})

    def close(self) -> None:
        """Idempotent."""
        self._channel.close()


class SessionCaller:
    """Calls within a session, one at a time, each made once however often it is asked for.

    :param wanted: what `open` is told.
    :raises ZtprobeError: the agent does not answer, or is at work for somebody else.
    """

    def __init__(self, connection: Connection, wanted: dict[str, Any]) -> None:
        self._connection = connection
        self._numbers = 0
        self._asking = threading.Lock()
        self._session = str(connection.ask({"call": "open", **wanted}))

    def _ask(self, call: str, **arguments: Any) -> Any:
        with self._asking:
            self._numbers += 1
            said = {"call": call, "session": self._session, "number": self._numbers, **arguments}
            return self._connection.ask(said)

    def leave(self) -> None:
        """End the session; an agent that is gone need not be told."""
        with contextlib.suppress(ZtprobeError):
            self._connection.ask({"call": "close", "session": self._session}, patience_s=_FAREWELL_S)


class AgentClient(SessionCaller, Caller, LeaseCaller, NodeViewCaller, PodAccessCaller):
    """An agent, its node's leases and its view (`ztprobe.agent.interface`) elsewhere; a context manager.

    It may be used from several threads; the agent is asked one thing at a time.

    :param batches: directory for its events (`ztprobe.rundir.batches`), to be made.
    :param run: what the agent calls the run for whom others ask.
    :param attached: of a deployment that ran already: see turns and process starts besides.
    :raises ZtprobeError: the agent does not answer, or is at work for somebody else.
    """

    def __init__(
        self,
        connection: Connection,
        batches: Path,
        *,
        run: str,
        probes: bool = True,
        attached: bool = False,
    ) -> None:
        super().__init__(connection, {"run": run, "probes": probes, "attached": attached})
        self._probes = probes
        self._writer = BatchWriter(batches)
        self._after = -1  # the newest batch that has been written
        self._closing, self._complete = threading.Event(), threading.Event()
        self._failure: str | None = None
        self._notes: list[str] = []
        self._heard_s = time.monotonic()
        self._stream: Any = None
        self._receiver = threading.Thread(target=self._receive, name="agent-events", daemon=True)
        self._receiver.start()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def status(self) -> Status:
        """See `Agent`; batches that cannot be had any more are a problem too."""
        found = super().status()
        notes = self._notes[:]
        del self._notes[: len(notes)]
        return Status(problem=found.problem or self._failure, notes=[*notes, *found.notes])

    def stop(self) -> Account:
        """See `Agent`. Returns when every batch has come."""
        account = super().stop()
        while self._probes and not self._complete.wait(_AGAIN_S[1]):
            if self._failure is not None:
                raise ZtprobeError(self._failure)
        if self._failure is not None:
            raise ZtprobeError(self._failure)
        return account

    def _receive(self) -> None:
        pause_s, broken_s = _AGAIN_S[0], None
        while not self._closing.is_set():
            try:
                self._follow()
                broken_s = None
            except grpc.RpcError as error:
                if self._closing.is_set():
                    return
                broken_s = broken_s or self._heard_s
                if error.code() not in _AWAY:
                    self._fail(str(error_of(error, self._connection.address)))
                    return
                try:
                    self._connection.wait_for(error, max(broken_s, self._heard_s))
                except PreflightError as gone:
                    self._fail(str(gone))
                    return
            except Exception as error:  # a full disk, a batch that is none
                self._fail(f"the events from {self._connection.address} cannot be kept: {error}")
                return
            if self._complete.is_set():
                return
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, _AGAIN_S[1])

    def _fail(self, why: str) -> None:
        self._failure = why
        self._complete.set()

    def _follow(self) -> None:
        acks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        acks.put(wire.encoded({"session": self._session, "after": self._after}))
        stream = self._stream = self._connection.events(until_none(acks))
        try:
            for message in stream:
                self._heard_s = time.monotonic()
                sequence, batch = wire.unframed(message)
                if sequence == wire.NO_MORE:
                    self._fail("the agent ended unexpectedly: what it saw last has no names and is lost")
                    return
                if sequence > self._after:
                    self._take(batch)
                    self._after = sequence
                acks.put(wire.encoded({"ack": sequence}))
        finally:
            acks.put(None)
            stream.cancel()

    def _take(self, batch: bytes) -> None:
        said, rows = read_message(batch)
        if said["kind"] not in (NAMES, END):
            self._writer.write(said["kind"], rows)
            return
        self._writer.end_part(json.loads(said["names"]))
        if said["kind"] == END:
            self._complete.set()

    def close(self) -> None:
        """See `Agent`."""
        with shielded():
            if self._closing.is_set():
                return
            self._closing.set()
            if self._stream is not None:
                self._stream.cancel()
            self.leave()
            self._receiver.join(_STATUS_S)
            self._connection.close()


def until_none(values: queue.SimpleQueue[bytes | None]) -> Iterator[bytes]:
    """What one side of a stream says, until it says None."""
    while (value := values.get()) is not None:
        yield value


def error_of(error: Any, address: str) -> ZtprobeError:
    """What a call's failure means, as one line that names the agent."""
    said = printable(" ".join(str(error.details() or "").split()), _LONGEST_MESSAGE)
    if error.code() == grpc.StatusCode.PERMISSION_DENIED:
        return PreflightError(f"the agent at {address} does not let us in: {said}")
    if error.code() in _AWAY:
        return PreflightError(
            f"the agent at {address} does not answer, or not to a certificate like ours: {said}"
        )
    return ZtprobeError(f"the agent at {address} failed ({error.code().name}): {said}")
