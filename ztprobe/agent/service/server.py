"""The agent's side of its service: who may call, and what becomes of calls.

One session at a time watches; threads are few and counted, so nobody who has been let in can make it
grow, and nobody without a certificate of our authority is let in at all.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import grpc

from ztprobe import __version__
from ztprobe.agent.calls import CALLS, answered
from ztprobe.agent.counts import Counts
from ztprobe.agent.lease_calls import LEASE_CALLS
from ztprobe.agent.memory import held, together
from ztprobe.agent.node_view_calls import NODE_VIEW_CALLS
from ztprobe.agent.offers import node_offers
from ztprobe.agent.pod_access_calls import POD_ACCESS
from ztprobe.agent.service import wire
from ztprobe.agent.service.drop_streams import DropStreams
from ztprobe.agent.service.privileges import lacking
from ztprobe.agent.service.round_metrics import ToldRounds
from ztprobe.agent.service.session import Session, Sessions
from ztprobe.agent.service.wire import TlsFiles
from ztprobe.agent.spool import END, QueueSegment
from ztprobe.documents.problem import DocumentError
from ztprobe.errors import EnforcementError, PreflightError, UsageError
from ztprobe.leases import records

__all__ = ("AgentServer", "checked_address")

_THREADS = 8
# An agent queues what it saw once a second (`ztprobe.agent.spool_sink`); what is on its way is acknowledged.
_LOOK_S, _LOOK_FOR_ACKS_S = 0.2, 0.05
_END_S = 5.0
_UNIX = "unix:"


def checked_address(listen: str, tls: TlsFiles | None) -> str:
    """An address to listen on, as gRPC has it.

    :raises UsageError: it is none, or certificates are missing and anybody could call.
    """
    if listen.startswith(_UNIX):
        path = Path(listen.removeprefix(_UNIX))
        if not path.is_absolute():
            raise UsageError(f"--listen {listen}: expected an absolute path, such as unix:/run/ztprobe.sock")
        return listen
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {listen}: expected ADDRESS:PORT or unix:PATH")
    if tls is None:
        # On the loopback too: whoever may call has root do things to pods.
        raise UsageError(
            f"--listen {listen}: others can reach it, so it needs --cert, --key and --client-ca"
            " (without them: unix:PATH, a socket for root alone)"
        )
    return listen


class AgentServer:
    """Serves until `close`.

    :param address: as `checked_address` gives it.
    :param callers: SPIFFE names that certificates have to carry; empty: whoever has one of our authority's.
    :param node: this node's name, for status.
    :raises PreflightError: it cannot listen there.
    """

    def __init__(
        self,
        address: str,
        sessions: Sessions,
        *,
        tls: TlsFiles | None,
        callers: Sequence[str] = (),
        node: str = "",
    ) -> None:
        self._sessions = sessions
        self._callers = frozenset(callers)
        self._secured = tls is not None
        self._node = node
        self._since_unix_s = time.time()
        self.delivered: dict[str, int] = {}  # events that collectors have taken, by kind
        self._counting = Lock()
        self._ending = Event()
        self._drops = DropStreams(node, self._ending)
        self._rounds = ToldRounds()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(_THREADS, "agent-call"),
            options=wire.OPTIONS,
            maximum_concurrent_rpcs=2 * _THREADS,
        )
        handlers = {
            wire.CALL: grpc.unary_unary_rpc_method_handler(self._call),
            wire.EVENTS: grpc.stream_stream_rpc_method_handler(self._events),
            wire.DROPS: grpc.stream_stream_rpc_method_handler(self._watched_drops),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))
        before = os.umask(0o177)  # a socket in the file system is for its owner
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                certificate, key, authority = tls.read()
                credentials = grpc.ssl_server_credentials(
                    [(key, certificate)], root_certificates=authority, require_client_auth=True
                )
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise PreflightError(f"the agent cannot listen on {address}: is it taken?") from error
        finally:
            os.umask(before)
        self._server.start()

    def close(self) -> None:
        """Take no more calls; streams end."""
        self._ending.set()
        self._server.stop(_END_S).wait()

    def status(self) -> dict[str, Any]:
        """What `ztprobe agent status` shows."""
        return {
            "version": __version__,
            "node": self._node,
            "since_unix_s": self._since_unix_s,
            "memory": held(),
            "resident_bytes": self._resident_bytes(),
            "lacks": lacking(),
            "sessions": [one.as_dict() for one in self._sessions.all() if not one.is_beside],
            "leases": [
                {
                    "lease": lease.id,
                    "profile": lease.profile.name,
                    "state": lease.state,
                    "pods": sorted(map(str, lease.pods)),
                    "remaining_s": round(lease.remaining_s, 1),
                }
                for lease in records.all_leases()
            ],
        }

    def _resident_bytes(self) -> int:
        """Of the service and the processes with probes."""
        agents = [session.agent for session in self._sessions.all()]
        below = [Path(f"/proc/{agent.pid}") for agent in agents if agent is not None]
        try:
            return together([Path("/proc/self"), *below])
        except OSError:  # one has just ended
            return together([Path("/proc/self")])

    def tally(self) -> Counts:
        """What was seen since the service began, and told of rounds, counted."""
        return {**self._sessions.tally(), **self._rounds.counts()}

    def _admit(self, context: Any) -> None:
        if not self._secured or not self._callers:
            return
        names = context.auth_context().get("x509_subject_alternative_name", ())
        if self._callers.isdisjoint(name.decode(errors="replace") for name in names):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "this certificate's name may not call the agent")

    def _call(self, request: bytes, context: Any) -> bytes:
        self._admit(context)
        try:
            said = wire.decoded(request)
            name, number = str(said.pop("call")), int(said.pop("number", 0))
            token = str(said.pop("session", ""))
        except (DocumentError, KeyError, ValueError, TypeError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected a call as a JSON object")
        return wire.encoded(self._reply(name, number, token, said))

    def _reply(self, name: str, number: int, token: str, said: dict[str, Any]) -> dict[str, Any]:
        if name == "agent_status":
            return answered(self.status)
        if name == "offers":
            return answered(node_offers)
        if name == "open":
            return answered(lambda: self._open(said))
        if name == "close":
            return answered(lambda: self._sessions.end(token, "the session was closed"))
        if name == "round_ended":
            return answered(lambda: self._rounds.round_ended(said.get("duration_s")))
        if name == "run_analysed":
            return answered(lambda: self._rounds.run_analysed(said.get("figures")))
        if all(name not in calls for calls in (CALLS, LEASE_CALLS, NODE_VIEW_CALLS, POD_ACCESS)):
            return {"error": UsageError.__name__, "message": "the agent knows no such call: is it older?"}
        try:
            session = self._sessions.get(token)
        except EnforcementError as error:
            return {"error": EnforcementError.__name__, "message": str(error)}
        return session.call(number, {"call": name, **said})

    def _open(self, said: dict[str, Any]) -> str:
        attached = bool(said.get("attached", False))
        return self._sessions.open(
            str(said["run"]),
            probes=bool(said["probes"]),
            attached=attached,
            is_beside=bool(said.get("leases", False)),
        ).token

    def _events(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self._admit(context)
        try:
            first = wire.decoded(next(requests))
            session, after = self._sessions.get(str(first["session"])), int(first["after"])
        except EnforcementError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except (DocumentError, KeyError, ValueError, TypeError, StopIteration):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected a session and a sequence number")
        session.stream += 1
        stream = _Stream(session, after, requests, context, self._ending, self._count)
        yield from stream.messages()

    def _watched_drops(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self._admit(context)
        yield from self._drops.messages(requests, context)

    def _count(self, kind: str, rows: int) -> None:
        with self._counting:  # streams of several sessions may be acknowledged at once
            self.delivered[kind] = self.delivered.get(kind, 0) + rows


class _Stream:
    """What is queued, batch by batch, no more of them on the way than the window."""

    def __init__(
        self,
        session: Session,
        after: int,
        requests: Iterator[bytes],
        context: Any,
        ending: Event,
        count: Callable[[str, int], None],
    ) -> None:
        self._session = session
        self._number = session.stream
        self._sent = after
        self._acked = after
        self._context = context
        self._ending = ending
        self._count = count  # is told of events acknowledged: their kind, how many
        self._news = Event()  # an acknowledgement, or the end
        for segment in session.spool.segments():
            if segment.sequence <= after:  # it has arrived, and no acknowledgement of it has
                self._forget(segment)
        Thread(target=self._listen, args=(requests,), name="agent-acks", daemon=True).start()

    def _listen(self, requests: Iterator[bytes]) -> None:
        try:
            for request in requests:
                self._acked = int(wire.decoded(request)["ack"])
                self._news.set()
        except Exception:  # the stream has broken, or what came is no acknowledgement: either ends it
            self._context.cancel()
        self._news.set()

    @property
    def _is_wanted(self) -> bool:
        newest = self._session.stream == self._number
        return newest and not self._ending.is_set() and bool(self._context.is_active())

    def messages(self) -> Iterator[bytes]:
        """Until the last batch is acknowledged, the collector goes, or opens another stream."""
        on_their_way: deque[QueueSegment] = deque()
        last = False
        while self._is_wanted:
            self._session.touch()
            writing = self._session.is_writing  # asked first: what is queued afterwards is all there is
            waiting = [] if last else [s for s in self._session.spool.segments() if s.sequence > self._sent]
            for segment in waiting:
                while len(on_their_way) >= wire.WINDOW and self._is_wanted:
                    self._wait(on_their_way)
                if not self._is_wanted:
                    return
                message = segment.path.read_bytes()
                on_their_way.append(segment)
                self._sent = segment.sequence
                yield wire.framed(segment.sequence, message)
                last = segment.kind == END
            if last and not on_their_way:
                return
            if not waiting and not writing and not last:
                yield wire.framed(wire.NO_MORE, b"")
                return
            self._wait(on_their_way)

    def _wait(self, on_their_way: deque[QueueSegment]) -> None:
        self._news.wait(_LOOK_FOR_ACKS_S if on_their_way else _LOOK_S)
        self._news.clear()
        while on_their_way and on_their_way[0].sequence <= self._acked:
            self._forget(on_their_way.popleft())

    def _forget(self, segment: QueueSegment) -> None:
        """It has arrived. Counted at once: a collector that leaves ends this stream wherever it stands."""
        if self._session.spool.forget(segment) and segment.rows:
            self._count(segment.kind, segment.rows)
