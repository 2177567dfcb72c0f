"""Runs that were attached to, told by participants: made-up tables of a namespace that several share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.evidence.participants import MIRRORED, by_participant
from ztprobe.attach.foreign_traffic import without_foreign
from ztprobe.attach.owner_log import OwnedEnd
from ztprobe.attach.owners import owners_table
from ztprobe.events.owners import OWNERS
from ztprobe.events.tables import TABLES, empty_tables
from ztprobe.kernelnet.sockets import TcpSocket
from ztprobe.rundir.store import Run

# The server listens at a port above the client's, so that "local", the lower port, is the client's end.
_SERVER, _CLIENT, _HOST = 50051, 40000, 4026531840


def _rows(name: str, *rows: dict[str, Any]) -> pd.DataFrame:
    blank = {"integer": 0, "text": "", "bytes": b""}
    columns = (OWNERS if name == "owners" else TABLES[name]).columns
    whole = [{one.name: blank[one.kind] for one in columns} | row for row in rows]
    return pd.DataFrame(whole, columns=[one.name for one in columns])


def _connection(number: int, local: int, remote: int, **more: Any) -> dict[str, Any]:
    ends = {"local": "127.0.0.1", "local_port": local, "remote": "127.0.0.1", "remote_port": remote}
    return {
        "connection": number,
        "pod": "host",
        "netns": _HOST,
        "ts_ns": 10,
        "family": "ipv4",
        **ends,
        **more,
    }


def _owner(participant: str, local: int, remote: int, **more: Any) -> dict[str, Any]:
    ends = {"local": "127.0.0.1", "local_port": local}
    there = {"remote": "127.0.0.1" if remote else "", "remote_port": remote}
    return {"participant": participant, "pod": "host", "netns": _HOST, **ends, **there, **more}


def _run(**tables: pd.DataFrame) -> Run:
    participants = [
        {"name": name, "role": role, "target": "", "netns_inode": _HOST, "pod": "host", "processes": []}
        for name, role in (("server", "server"), ("client-1", "client"), ("client-2", "client"))
    ]
    host = {"name": "host", "address": "192.0.2.1", "addresses": ["192.0.2.1", "127.0.0.1"], "labels": {}}
    meta = {"pods": [host], "attachment": {"participants": participants}}
    return Run(path=Path("run"), meta=meta, rounds=[], events=empty_tables() | tables)


def _shared(**tables: pd.DataFrame) -> Run:
    return by_participant(
        _run(
            owners=_rows(
                "owners",
                _owner("server", _SERVER, 0),
                _owner("client-1", _CLIENT, _SERVER, first_seen_ns=11),
                _owner("client-2", _CLIENT + 1, _SERVER, first_seen_ns=11),
            ),
            connections=_rows(
                "connections",
                _connection(1, _CLIENT, _SERVER),
                _connection(2, _SERVER, _CLIENT),
                _connection(3, _CLIENT + 1, _SERVER),
            ),
            **tables,
        )
    )


def test_a_run_of_our_own_stays_as_it_is() -> None:
    run = Run(path=Path("run"), meta={"pods": []}, rounds=[], events=empty_tables())
    assert by_participant(run) is run


def test_what_two_say_over_a_loopback_is_sent_by_one_and_received_by_the_other() -> None:
    sent_up = {"connection": 1, "pod": "host", "hook": "lo", "direction": "tx", "bytes": 9000, "first_ns": 20}
    told = _shared(bursts=_rows("bursts", sent_up, sent_up | {"direction": "rx", "first_ns": 30}))
    bursts = told.events["bursts"][["pod", "hook", "direction", "connection", "first_ns"]]
    assert sorted(bursts.itertuples(index=False, name=None)) == [
        ("client-1", "eth", "rx", 1, 30),
        ("client-1", "eth", "tx", 1, 20),
        ("server", "eth", "rx", 1 + MIRRORED, 20),
        ("server", "eth", "tx", 1 + MIRRORED, 30),
    ]
    connections = told.events["connections"].set_index("connection")
    assert connections.loc[1, ["pod", "local", "remote"]].tolist() == ["client-1", "client-1", "server"]
    mirrored = connections.loc[1 + MIRRORED]
    assert mirrored[["pod", "local", "local_port", "remote", "remote_port"]].tolist() == [
        *("server", "server", _SERVER, "client-1", _CLIENT)
    ]


def test_the_sockets_own_calls_stay_with_whose_they_are() -> None:
    read = {"connection": 2, "pod": "host", "hook": "sock", "direction": "rx", "process": "host/server"}
    told = _shared(bursts=_rows("bursts", read))
    (burst,) = told.events["bursts"].itertuples(index=False)
    assert (burst.pod, burst.hook, burst.process, burst.connection) == ("server", "sock", "server/server", 2)


def test_a_reader_that_does_not_read_holds_its_sender_back() -> None:
    sent = {"connection": 1, "pod": "host", "hook": "lo", "direction": "rx", "first_ns": 20, "last_ns": 90}
    shut = {"connection": 1, "pod": "host", "hook": "lo", "direction": "rx", "since_ns": 30, "ts_ns": 70}
    told = _shared(bursts=_rows("bursts", sent), blocked_readers=_rows("blocked_readers", shut))
    by_pod = told.events["bursts"].set_index("pod")
    assert by_pod.loc["server", ["direction", "rwnd_ns"]].tolist() == ["tx", 40]
    assert by_pod.loc["client-1", ["direction", "rwnd_ns"]].tolist() == ["rx", 0]
    assert told.events["blocked_readers"]["pod"].tolist() == ["server"]


def test_who_serves_whom_is_what_was_spoken() -> None:
    told = _shared()
    assert told.meta["topology"]["rounds_of"] == "server"
    assert told.meta["topology"]["serves"] == {"server": ["client-1", "client-2"]}
    assert {one["name"]: one["address"] for one in told.meta["pods"]} == {
        name: name for name in ("server", "client-1", "client-2")
    }
    (endpoint,) = told.meta["topology"]["endpoints"]
    assert (endpoint["pod"], endpoint["port"]) == ("server", _SERVER)


def test_the_same_ends_later_may_be_somebody_elses() -> None:
    run = _run(
        owners=_rows(
            "owners",
            _owner("server", _SERVER, 0),
            _owner("client-1", _CLIENT, _SERVER, first_seen_ns=100),
            _owner("client-2", _CLIENT, _SERVER, first_seen_ns=9000),
        ),
        connections=_rows(
            "connections",
            _connection(1, _CLIENT, _SERVER, ts_ns=90, opened_ns=90),
            _connection(2, _CLIENT, _SERVER, ts_ns=8990, opened_ns=8990),
        ),
    )
    pods = by_participant(run).events["connections"].set_index("connection")["pod"]
    assert (pods[1], pods[2]) == ("client-1", "client-2")


def _end(participant: str, local: int, remote: int, **more: Any) -> OwnedEnd:
    there = ("127.0.0.1", remote) if remote else ("", 0)
    socket = TcpSocket(
        local="127.0.0.1", local_port=local, remote=there[0], remote_port=there[1], inode=local
    )
    values: dict[str, Any] = {
        "first_seen_ns": 5,
        "last_seen_ns": 50,
        "found": "while_running",
        "older": False,
    }
    return OwnedEnd(netns=_HOST, socket=socket, pid=7, participant=participant, **values | more)


def test_ends_that_no_look_met_are_told_by_the_threads_that_used_them() -> None:
    tables = empty_tables() | {
        "connections": _rows("connections", _connection(3, _CLIENT + 1, _SERVER, opened_ns=9)),
        "bursts": _rows(
            "bursts",
            {"connection": 3, "pod": "host", "hook": "sock", "tgid": 70, "first_ns": 20, "last_ns": 30},
            {"connection": 3, "pod": "host", "hook": "sock", "tgid": 99, "first_ns": 21, "last_ns": 31},
        ),
    }
    owners = owners_table([_end("server", _SERVER, 0)], tables, {_HOST: "host"}, {70: "client-2"})
    assert list(owners.columns) == [column.name for column in OWNERS.columns]
    last = owners.iloc[-1]
    assert (last["participant"], last["found"], last["older"], last["pid"]) == ("client-2", "event", 0, 70)
    assert (last["first_seen_ns"], last["last_seen_ns"], last["local_port"]) == (20, 30, _CLIENT + 1)


def test_an_older_connection_whose_ends_come_again_is_two() -> None:
    again = _rows("connections", _connection(3, _CLIENT, _SERVER, opened_ns=40))
    older = _end("client-1", _CLIENT, _SERVER, older=True, found="at_attachment", last_seen_ns=30)
    tables = empty_tables() | {"connections": again}
    assert owners_table([older], tables, {_HOST: "host"}, {})["older"].tolist() == [1]


def test_what_others_do_in_the_machines_namespace_is_not_kept() -> None:
    owners = _rows("owners", _owner("server", _SERVER, 0), _owner("client-1", _CLIENT, _SERVER))
    drop = {"pod": "node", "source": "127.0.0.1", "target": "127.0.0.1", "source_port": 1, "target_port": 2}
    tables = empty_tables() | {
        "connections": _rows(
            "connections",
            _connection(1, _CLIENT, _SERVER),
            _connection(2, 5000, 6000),
            _connection(3, 22, 23),
        ),
        "bursts": _rows("bursts", *({"connection": n, "pod": "host"} for n in (1, 2, 3))),
        "drops": _rows("drops", drop, drop | {"target_port": _SERVER}),
        "dns": _rows("dns", {"pod": "host"}, {"pod": "client-2"}),
        "state_changes": _rows(
            "state_changes", {"pod": "host", "process": "host/client-1"}, {"pod": "host", "process": ""}
        ),
    }
    kept = without_foreign(tables, owners, frozenset({"host"}))
    assert kept["connections"]["connection"].tolist() == [1]
    assert kept["bursts"]["connection"].tolist() == [1]
    assert kept["drops"]["target_port"].tolist() == [_SERVER]
    assert kept["dns"]["pod"].tolist() == ["client-2"]
    assert kept["state_changes"]["process"].tolist() == ["host/client-1"]
    assert without_foreign(tables, owners, frozenset())["connections"]["connection"].tolist() == [1, 2, 3]
