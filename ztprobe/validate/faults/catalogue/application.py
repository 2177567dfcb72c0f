"""Processes, timeouts, names and messages."""

from __future__ import annotations

import json
import signal

from ztprobe.validate.faults.acts.act import NODE, Act
from ztprobe.validate.faults.acts.filters import change_names
from ztprobe.validate.faults.acts.links import link_down, sysctl
from ztprobe.validate.faults.acts.processes import evict, kill, limit_address_space, stop
from ztprobe.validate.faults.catalogue.words import EDGE, OTHER, SERVER, TARGET, amid_round
from ztprobe.validate.faults.model import Fault, Variant
from ztprobe.validate.faults.objects import Edit, EditedObjects
from ztprobe.validate.scenarios.plan import per_round

__all__ = ("FAULTS",)

_HOST = "fl-server.fl.svc.cluster.local"
_NOBODY, _ELSEWHERE = "10.244.0.99", "10.99.0.1"  # in the pods' network; beyond it
_PERSISTENT, _RECONNECTING = ("persistent",), ("reconnecting",)
_EDGE_ENDED = r"ended: .*fl-edge-0/edge (was killed|exited)"
_LONG_TRAINING = {"FL_INJECT_COMPUTE_SLEEP_MS": per_round({}, 6000.0)}


def _client_calls(server: str) -> Edit:
    def edit(objects: EditedObjects) -> None:
        objects.set_env("fl-client", "client", {"FL_SERVER": server})

    return edit


def _proxy_calls(port: int) -> Edit:
    def edit(objects: EditedObjects) -> None:
        objects.replace("fl-client-proxy", f"{_HOST}:50051", f"{_HOST}:{port}")

    return edit


def _server_listens(where: str) -> Edit:
    def edit(objects: EditedObjects) -> None:
        objects.set_env("fl-server", "server", {"FL_LISTEN": where})

    return edit


def _grpc(owner: str, container: str, **arguments: int) -> Edit:
    """gRPC's channel arguments at one end."""
    text = json.dumps({f"grpc.{name}": value for name, value in arguments.items()})

    def edit(objects: EditedObjects) -> None:
        objects.set_env(owner, container, {"FL_GRPC_OPTIONS": text})

    return edit


def _idle_timeout(config: str, seconds: int) -> Edit:
    def edit(objects: EditedObjects) -> None:
        for side in ("client", "server"):
            objects.replace(config, f"timeout {side} 1h", f"timeout {side} {seconds}s")

    return edit


def _ends(cause: str, shows: str, *variants: tuple[str, int, Act]) -> Fault:
    return Fault(
        cause=f"application.{cause}",
        variants=tuple(
            Variant(what=what, level=level, acts=(act,), shows=shows) for what, level, act in variants
        ),
    )


_PINGS = {"keepalive_time_ms": 500, "keepalive_permit_without_calls": 1, "http2.max_pings_without_data": 0}

FAULTS = (
    Fault(
        cause="application.nothing_listens",
        variants=(
            Variant(
                what="clients call a port at which nobody listens",
                edit=_client_calls(f"{_HOST}:50061"),
                shows="fl-server counts OutRsts",
            ),
            Variant(
                what="the server listens on its loopback only",
                level=1,
                edit=_server_listens("127.0.0.1:50051"),
                shows="fl-server counts OutRsts",
            ),
            Variant(
                what="the clients' sidecars call a port at which nobody listens",
                level=2,
                edit=_proxy_calls(50061),
                shows="fl-server counts OutRsts",
            ),
        ),
    ),
    _ends(
        "server_died",
        "ended: .*fl-server/server (was killed|exited)",
        ("the server is killed in round 2", 0, Act("kill", kill(SERVER, "server"), amid_round(2))),
        ("the server is killed in round 3", 1, Act("kill", kill(SERVER, "server"), amid_round(3))),
        (
            "the server crashes in round 2",
            2,
            Act("kill", kill(SERVER, "server", signal.SIGSEGV), amid_round(2)),
        ),
    ),
    _ends(
        "client_died",
        "ended: .*fl-client-[01]/client (was killed|exited)",
        ("a client is killed in round 2", 0, Act("kill", kill(TARGET, "client"), amid_round(2))),
        (
            "a client crashes in round 3",
            1,
            Act("kill", kill(TARGET, "client", signal.SIGSEGV), amid_round(3)),
        ),
        (
            "a client is killed in round 2, with sidecars",
            2,
            Act("kill", kill(OTHER, "client"), amid_round(2)),
        ),
    ),
    _ends(
        "process_stopped",
        "done: stop",
        ("the server is stopped in round 2", 0, Act("stop", stop(SERVER, "server"), amid_round(2))),
        ("a client is stopped in round 2", 1, Act("stop", stop(TARGET, "client"), amid_round(2))),
        ("the server's sidecar is stopped in round 2", 2, Act("stop", stop(SERVER, "proxy"), amid_round(2))),
    ),
    Fault(
        cause="application.deadline_too_short",
        variants=tuple(
            Variant(
                what=f"rounds of {deadline_s:g} s on a way of 160 ms there and back",
                level=level,
                shows="came within",
                networks=("net2",),
                bulk=True,
                deadline_s=deadline_s,
            )
            for deadline_s, level in ((2.5, 0), (2.2, 1), (2.5, 2))
        ),
    ),
    Fault(
        cause="application.too_many_pings",
        variants=tuple(
            Variant(
                what=f"clients ping every {arguments['keepalive_time_ms']} ms while they train for 6 s",
                level=level,
                edit=_grpc("fl-client", "client", **arguments),
                environment=_LONG_TRAINING,
                shows="ended: .*too_many_pings",
                modes=_PERSISTENT,
            )
            for arguments, level in ((_PINGS, 0), (_PINGS | {"keepalive_time_ms": 300}, 1), (_PINGS, 2))
        ),
    ),
    Fault(
        cause="application.message_too_large",
        variants=(
            Variant(
                what="clients take messages of 4 MB at most",
                edit=_grpc("fl-client", "client", max_receive_message_length=4 << 20),
                shows="ended: .*(larger than max|RESOURCE_EXHAUSTED)",
                bulk=True,
                deadline_s=25,
            ),
            Variant(
                what="the server takes messages of 4 MB at most",
                level=1,
                edit=_grpc("fl-server", "server", max_receive_message_length=4 << 20),
                shows="ended: .*(larger than max|RESOURCE_EXHAUSTED)",
                bulk=True,
                deadline_s=25,
            ),
            Variant(
                what="clients take messages of 10 kB at most, with sidecars",
                level=2,
                edit=_grpc("fl-client", "client", max_receive_message_length=10_000),
                shows="ended: .*(larger than max|RESOURCE_EXHAUSTED)",
            ),
        ),
    ),
    Fault(
        cause="application.no_such_name",
        variants=(
            Variant(
                what="clients call fl-sever",
                edit=_client_calls("fl-sever.fl.svc.cluster.local:50051"),
                shows="NXDOMAIN",
            ),
            Variant(
                what="clients call fl-server in another namespace",
                level=1,
                edit=_client_calls("fl-server.federated.svc.cluster.local:50051"),
                shows="NXDOMAIN",
            ),
            Variant(
                what="the name is gone from the name service",
                acts=(Act("names", change_names({"fl-aggregator.fl.svc.cluster.local": [SERVER]})),),
                shows="NXDOMAIN",
            ),
        ),
    ),
    Fault(
        cause="application.wrong_address",
        variants=(
            Variant(
                what="the name leads to an address that no pod has",
                acts=(Act("names", change_names({_HOST: [_NOBODY]})),),
                shows=rf"{_HOST} is {_NOBODY}",
            ),
            Variant(
                what="the name leads out of the pods' network",
                level=1,
                acts=(Act("names", change_names({_HOST: [_ELSEWHERE]})),),
                shows=rf"{_HOST} is {_ELSEWHERE}",
            ),
            Variant(
                what="the name leads to an address that no pod has from round 2 on",
                acts=(Act("names", change_names({_HOST: [_NOBODY]}), amid_round(1)),),
                shows=rf"{_HOST} is {_NOBODY}",
                modes=_RECONNECTING,
            ),
        ),
    ),
    Fault(
        cause="application.idle_connection_dropped",
        variants=(
            Variant(
                what="the server's sidecar closes connections that are silent for 3 s",
                level=2,
                edit=_idle_timeout("fl-server-proxy", 3),
                environment=_LONG_TRAINING,
                shows='"end":"[cs]D"|ended',
                modes=_PERSISTENT,
            ),
            Variant(
                what="the node forgets connections that are silent for 2 s, and takes up none",
                level=1,
                acts=(
                    Act("idle", sysctl(NODE, "net.netfilter.nf_conntrack_tcp_timeout_established", "2")),
                    Act("strict", sysctl(NODE, "net.netfilter.nf_conntrack_tcp_loose", "0")),
                ),
                environment=_LONG_TRAINING,
                shows="policy dropped fl-server -> fl-client",
                modes=_PERSISTENT,
            ),
            Variant(
                what="the clients' sidecars close connections that are silent for 2 s",
                level=3,
                edit=_idle_timeout("fl-client-proxy", 2),
                environment=_LONG_TRAINING,
                shows='"end":"[cs]D"|ended',
                modes=_PERSISTENT,
            ),
        ),
    ),
    _ends(
        "half_open",
        "done: link",
        ("the server's host goes down in round 2", 0, Act("link", link_down(SERVER), amid_round(2))),
        ("a client's host goes down in round 2", 1, Act("link", link_down(TARGET), amid_round(2))),
        (
            "a client's host goes down in round 2, with sidecars",
            2,
            Act("link", link_down(TARGET), amid_round(2)),
        ),
    ),
    Fault(
        cause="application.slow_client",
        variants=(
            Variant(
                what="a client trains for 15 s, and rounds have 8",
                environment={"FL_INJECT_COMPUTE_SLEEP_MS": f"{TARGET}={per_round({2: 15_000.0})}"},
                shows="came within",
                deadline_s=8,
            ),
            Variant(
                what="a client computes for 12 s, and rounds have 7",
                level=1,
                environment={"FL_INJECT_COMPUTE_BUSY_MS": f"{TARGET}={per_round({3: 12_000.0})}"},
                shows="came within",
                deadline_s=7,
            ),
            Variant(
                what="a client trains for 14 s, and rounds have 8, with sidecars",
                level=2,
                environment={"FL_INJECT_COMPUTE_SLEEP_MS": f"{OTHER}={per_round({1: 14_000.0})}"},
                shows="came within",
                deadline_s=8,
            ),
        ),
    ),
    _ends(
        "pod_restarted",
        "done: evict",
        ("a client's pod is evicted in round 2", 0, Act("evict", evict(TARGET), amid_round(2))),
        ("the server's pod is evicted in round 3", 1, Act("evict", evict(SERVER), amid_round(3))),
        (
            "a client's pod is evicted in round 2, with its sidecar",
            2,
            Act("evict", evict(OTHER), amid_round(2)),
        ),
    ),
    Fault(
        cause="application.edge_died",
        variants=(
            Variant(
                what="an edge aggregator is killed in round 2",
                acts=(Act("kill", kill(EDGE, "edge"), amid_round(2)),),
                shows=_EDGE_ENDED,
                clients=4,
                edges=2,
            ),
            Variant(
                what="an edge aggregator crashes in round 3",
                level=1,
                acts=(Act("kill", kill(EDGE, "edge", signal.SIGSEGV), amid_round(3)),),
                shows=_EDGE_ENDED,
                clients=4,
                edges=2,
            ),
            Variant(
                what="an edge aggregator gets no more memory in round 2, and ends, with sidecars",
                level=2,
                acts=(Act("address space", limit_address_space(EDGE, "edge"), amid_round(2)),),
                shows=r"fl-edge-0\.edge said: .*(MemoryError|can't start new thread)",
                clients=4,
                edges=2,
                bulk=True,
                deadline_s=25,
            ),
        ),
    ),
)
