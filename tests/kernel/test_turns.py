"""Turns and process starts, as only traces of deployments that ran already see them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.e2e.deployments import switch_ipv6_on
from tests.kernel.pods import TestPod
from tests.kernel.watching import Watched, with_ports
from ztprobe.kernelnet.netns import entered

ASKED, ANSWERED, POLLS = 60, 3_000_000, 5


def take(connection: socket.socket, count: int) -> None:
    """Read so many bytes."""
    while count:
        got = len(connection.recv(count))
        assert got
        count -= got


@pytest.mark.parametrize("address", ["127.0.0.1", "10.99.0.1", "::1"])
def test_requests_and_answers_follow_each_other_as_they_were_spoken(
    pods: tuple[TestPod, TestPod], address: str
) -> None:
    """Polls of 60 bytes with answers of 60, and at last one that is answered with a message."""
    server, other = pods
    client = other if address.startswith("10.") else server
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family == socket.AF_INET6:
        switch_ipv6_on(server.netns, "lo")
    watched = Watched(pods, attached=True)
    try:
        with entered(server.netns):
            listener = socket.create_server((address, 0), family=family)
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for _ in range(POLLS):
                    take(connection, ASKED)
                    connection.sendall(b"n" * ASKED)
                take(connection, ASKED)
                connection.sendall(b"m" * ANSWERED)

        thread = threading.Thread(target=serve)
        thread.start()
        with entered(client.netns):
            caller = socket.socket(family)
        asked_ns = []
        with listener, caller:
            caller.connect((address, port))
            for _ in range(POLLS):
                asked_ns.append(time.monotonic_ns())
                caller.sendall(b"q" * ASKED)
                take(caller, ASKED)
                time.sleep(0.02)
            asked_ns.append(time.monotonic_ns())
            caller.sendall(b"q" * ASKED)
            take(caller, ANSWERED)
            thread.join()
        tables = watched.stop()
    finally:
        watched.close()
    assert not any(watched.loss.values()), watched.loss
    turns = with_ports(tables, "turns")
    turns = turns.assign(bytes=turns["end_seq"] - turns["first_seq"])
    hook = "lo" if client is server else "eth"
    at_server = turns[(turns["hook"] == hook) & (turns["pod"] == server.name)]
    sizes = at_server["bytes"].tolist()
    assert sizes == [ASKED, ASKED] * POLLS + [ASKED, ANSWERED]
    requests = at_server["first_ns"].tolist()[::2]
    assert all(0 <= seen - asked < 20_000_000 for seen, asked in zip(requests, asked_ns, strict=True))
    # The application's own reads and writes, by process: the same turns at each end.
    for end in ("local_port", "remote_port"):
        own = turns[(turns["hook"] == "sock") & (turns[end] == port)]
        # A read that finds the connection's end behind the last byte has read that, too.
        assert own["bytes"].tolist() == pytest.approx(sizes, abs=1)
        assert set(own["tgid"]) == {os.getpid()}


def test_what_a_traced_process_starts_is_seen_and_traced(pods: tuple[TestPod, TestPod]) -> None:
    """A child that starts a grandchild: nobody names the two, and both are known."""
    watched = Watched(pods, attached=True)
    try:
        program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'pass'])"
        before_ns = time.monotonic_ns()
        child = subprocess.Popen([sys.executable, "-c", program])
        child.wait()
        after_ns = time.monotonic_ns()
        starts = watched.stop()["process_starts"]
    finally:
        watched.close()
    mine = starts[(starts["tgid"] == child.pid)]
    assert set(mine["parent"]) == {os.getpid()}
    assert "exec" in set(mine["how"])
    assert mine[mine["how"] == "exec"]["command"].str.startswith("python").all()
    grandchildren = starts[starts["parent"] == child.pid]
    assert {"fork", "exec"} == set(grandchildren["how"])
    assert starts["ts_ns"].between(before_ns, after_ns).all()
    # What it loads of Python's library, until the program itself begins.
    loads = watched.tables["module_loads"]
    mine = loads[loads["tgid"] == child.pid]
    assert mine["opens"].sum() > 10
    assert mine["first_ns"].min() >= starts[starts["tgid"] == child.pid]["ts_ns"].min()
    assert mine["last_ns"].max() <= after_ns


def test_runs_of_deployments_of_our_own_have_neither(watched: Watched, pods: tuple[TestPod, TestPod]) -> None:
    """Nor do they pay for it."""
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    tables = watched.stop()
    assert tables["turns"].empty
    assert tables["process_starts"].empty
    assert "process_starts" not in watched.hooks
