"""`ztprobe trace --attach`: deployments that run already, in namespaces of their own or on one loopback."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.e2e.command import Outcome, Trace, run
from tests.e2e.deployments import Federation, deployed, federation, places
from tests.e2e.fl_processes import Start
from tests.kernel.tcx import attached
from ztprobe.kernelnet.clsact import has_clsact
from ztprobe.kernelnet.netlink import netlink
from ztprobe.paths import STATE_DIR
from ztprobe.preflight.bpf import TCX_EGRESS, TCX_INGRESS
from ztprobe.rundir.store import Run, load_run


def _trace(out: Path, *arguments: str) -> tuple[dict[str, Any], Run]:
    outcome = run("trace", "--attach", "--out", out, "--json", *arguments)
    assert outcome.status == 0, outcome.stderr
    return json.loads(outcome.stdout), load_run(out)


def _of(running: Federation, *more: str) -> tuple[str, ...]:
    return ("--server", f"pid:{running.server.pid}", "--events-from", str(running.log), *more)


def _programs(netns: Path, *devices: str) -> list[int]:
    """Ids of tcx links, and of devices that have a clsact qdisc."""
    found = []
    for device in devices:
        for kind in (TCX_INGRESS, TCX_EGRESS):
            found += attached(netns, device, kind)
        with netlink(netns) as ipr:
            (index,) = ipr.link_lookup(ifname=device)
            found += [-index] if has_clsact(ipr, index) else []
    return found


def _started(out: Path, running: Federation, *more: str) -> Trace:
    trace = Trace.start(out, "--attach", *_of(running, *more))
    trace.until(lambda trace: trace.said("probes"))
    return trace


def _assert_gone(trace: Trace) -> None:
    """No process of a trace, nothing of it in the state directory; it makes no namespaces and cgroups."""
    assert trace.descendants
    assert trace.journals
    give_up = time.monotonic() + 10
    while any(_lives(*one) for one in trace.descendants) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not [one for one in trace.descendants if _lives(*one)]
    assert not [name for name in trace.journals if (STATE_DIR / name).exists()]
    for journal in trace.journals.values():
        assert journal["namespaces"] == journal["cgroups"] == journal["settings"] == []


def _lives(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _names(run_: Run) -> set[str]:
    return {one["name"] for one in run_.meta["attachment"]["participants"]}


def _ports(run_: Run) -> set[int]:
    connections = run_.events["connections"]
    return {*connections["local_port"].tolist(), *connections["remote_port"].tolist()}


@contextlib.contextmanager
def _strangers() -> Iterator[int]:
    """Others who speak on the same loopback all the while; the port."""
    end = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        caller = socket.create_connection(("127.0.0.1", port))
        other, _ = listener.accept()

        def speak() -> None:
            while not end.wait(0.01):
                caller.sendall(bytes(50_000))

        def hear() -> None:
            while other.recv(1 << 16):
                pass

        threads = [threading.Thread(target=one) for one in (speak, hear)]
        for thread in threads:
            thread.start()
        try:
            yield port
        finally:
            end.set()
            threads[0].join()
            caller.close()
            threads[1].join()
            other.close()


def test_grpc_in_namespaces_of_its_own(start: Start, tmp_path: Path) -> None:
    with places(3) as where:
        made = deployed(start, clients=2, rounds=20, where=where)
        made.server.until("round_end", 1)
        report, saved = _trace(
            tmp_path / "run",
            *("--server", f"pid:{made.server.pid}", "--events-from", str(made.server.out), "--rounds", "3"),
        )
        server_netns = where[0][0]
        assert server_netns is not None
        assert saved.meta["pods"][0]["interfaces"] == ["net0"]
        assert _programs(server_netns, "net0", "lo") == []
    numbers = [one["round"] for one in report["rounds"]]
    assert len(numbers) >= 3
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert report["residual"]["median_share"] <= 0.05
    assert report["attachment"]["rounds_from"]["source"] == "events"
    roles = {one["name"]: one["role"] for one in report["attachment"]["participants"]}
    assert roles == {"server": "server", "client-1": "client", "client-2": "client"}
    pods = {one["name"]: one["pod"] for one in report["attachment"]["participants"]}
    assert pods == {name: name for name in roles}
    # Both clients' connections were there before: nobody saw how they came about.
    unseen = {one["name"]: one["set_up_not_seen"] for one in report["attachment"]["participants"]}
    assert unseen == {"server": 2, "client-1": 1, "client-2": 1}
    assert {one["critical_client"] for one in report["rounds"]} <= {"client-1", "client-2"}
    truth = [event for event in made.server.events if event["event"] in ("round_start", "round_end")]
    kept = [event for event in saved.rounds if event["event"] in ("round_start", "round_end")]
    assert all(event in truth for event in kept)


def test_grpc_on_one_loopback_beside_others(start: Start, tmp_path: Path) -> None:
    made = deployed(start, clients=2, rounds=20)
    made.server.until("round_end", 1)
    clients = [f"pid:{client.pid}" for client in made.clients]
    with _strangers() as port:
        report, saved = _trace(
            tmp_path / "run",
            *("--server", f"pid:{made.server.pid}", "--client", clients[0], "--client", clients[1]),
            *("--events-from", str(made.server.out), "--rounds", "3"),
        )
    assert report["residual"]["median_share"] <= 0.05
    assert report["components"]["compute"]["median_s"] > 0.05 * report["duration"]["median_s"]
    assert _names(saved) == {"server", "client-1", "client-2"}
    assert [pod["name"] for pod in saved.meta["pods"]] == ["host"]
    assert port not in _ports(saved)
    assert made.port in _ports(saved)
    owners = saved.events["owners"]
    spoken = owners[owners["remote_port"] != 0]
    assert set(spoken["participant"]) == _names(saved)
    assert set(spoken["older"]) == {1}
    assert {*spoken["local_port"], *spoken["remote_port"]} >= {made.port}


def test_ctrl_c_keeps_what_there_is_and_detaching_leaves_nothing(tmp_path: Path) -> None:
    with places(3) as where, federation(tmp_path / "it", where=where) as running:
        server_netns = where[0][0]
        assert server_netns is not None
        programs = _programs(server_netns, "net0", "lo")
        trace = _started(tmp_path / "run", running)
        assert _programs(server_netns, "net0", "lo") != programs
        trace.until(lambda trace: trace.said("round 3 of"))
        outcome = trace.interrupt(signal.SIGINT)
        assert outcome.status == 0, outcome.stderr
        assert "attached to" in outcome.stdout
        saved = load_run(tmp_path / "run")
        attachment = saved.meta["attachment"]
        assert attachment["participants"][0]["name"] == "server"
        # What watching costs is told of the time in which it watched, without the analysis of what was seen.
        until_ns = saved.events["machine"]["to_ns"].max() - attachment["detached_ns"]
        assert 0 <= until_ns < 50_000_000
        assert _programs(server_netns, "net0", "lo") == programs
        assert running.server.poll() is None
        _assert_gone(trace)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it", "run"]


def test_sigkill_leaves_nothing_that_clean_does_not_take_away(tmp_path: Path) -> None:
    with places(3) as where, federation(tmp_path / "it", where=where) as running:
        server_netns = where[0][0]
        assert server_netns is not None
        trace = _started(tmp_path / "run", running)
        trace.until(lambda trace: trace.said("round 1 of"))
        trace.interrupt(signal.SIGKILL)
        assert len(list(tmp_path.iterdir())) == 2, "the killed trace left nothing to clean"
        give_up = time.monotonic() + 10
        while _programs(server_netns, "net0", "lo") and time.monotonic() < give_up:
            time.sleep(0.1)  # the agent sees that nobody is there any more
        assert _programs(server_netns, "net0", "lo") == []
        assert run("clean").status == 0
        assert [path.name for path in tmp_path.iterdir()] == ["it"]
        assert running.server.poll() is None
        _assert_gone(trace)


def test_two_at_once_are_kept_apart(tmp_path: Path) -> None:
    with federation(tmp_path / "a") as one, federation(tmp_path / "b", clients=3) as other:
        traces = [
            _started(tmp_path / f"run-{name}", running, "--rounds", "3")
            for name, running in (("a", one), ("b", other))
        ]
        for trace in traces:
            outcome = trace.wait()
            assert outcome.status == 0, outcome.stderr
        first, second = (load_run(trace.out) for trace in traces)
    assert len(_names(first)) == 3
    assert len(_names(second)) == 4
    assert one.port in _ports(first) - _ports(second)
    assert other.port in _ports(second) - _ports(first)
    mine = {pid for one in first.meta["attachment"]["participants"] for pid in _pids(one)}
    theirs = {pid for one in second.meta["attachment"]["participants"] for pid in _pids(one)}
    assert not mine & theirs


def _pids(participant: dict[str, Any]) -> list[int]:
    return [process["pid"] for process in participant["processes"]]


def test_clients_come_and_go_and_the_servers_end_ends_it(tmp_path: Path) -> None:
    with federation(tmp_path / "it") as running:
        trace = _started(tmp_path / "run", running)
        late = running.add_client()
        trace.until(lambda trace: trace.said("client-3 has come"))
        first = running.clients[0]
        first.kill()
        first.wait()
        count = sum(line.startswith("round ") for line in trace.lines)
        trace.until(lambda trace: sum(line.startswith("round ") for line in trace.lines) > count + 2)
        running.server.kill()
        running.server.wait()
        outcome = trace.wait()
    assert outcome.status == 0, outcome.stderr
    assert any("the server has ended" in line for line in trace.lines)
    saved = load_run(tmp_path / "run")
    assert _names(saved) == {"server", "client-1", "client-2", "client-3"}
    by_pid = {pid: one["name"] for one in saved.meta["attachment"]["participants"] for pid in _pids(one)}
    assert by_pid[late.pid] == "client-3"
    owners = saved.events["owners"]
    came = owners[(owners["participant"] == "client-3") & (owners["remote_port"] == running.port)]
    assert came["older"].tolist() == [0]  # its SYN was seen


def test_a_namespace_that_is_taken_down_is_no_failure(tmp_path: Path) -> None:
    with places(3) as where, federation(tmp_path / "it", where=where) as running:
        trace = _started(tmp_path / "run", running)
        netns, _ = where[1]
        with netlink(netns) as ipr:
            (index,) = ipr.link_lookup(ifname="net0")
            ipr.link("del", index=index)
        trace.until(lambda trace: trace.said("net0 of client-1 is gone"))
        running.clients[0].kill()
        running.clients[0].wait()
        trace.until(lambda trace: not Path(f"/proc/{running.clients[0].pid}").exists())
        outcome = trace.interrupt(signal.SIGINT)
    assert outcome.status == 0 or "no round was seen" in outcome.stderr, outcome.stderr
    assert {pod["name"] for pod in load_run(tmp_path / "run").meta["pods"]} == {
        "server",
        "client-1",
        "client-2",
    }


def test_what_a_launcher_forks_belongs_to_it(tmp_path: Path) -> None:
    with federation(tmp_path / "it") as running:
        launcher = running.clients[1].pid
        _, saved = _trace(
            tmp_path / "run",
            *_of(running, "--client", f"pid:{running.clients[0].pid}", "--client", f"pid:{launcher}"),
            *("--rounds", "2"),
        )
    (one,) = (one for one in saved.meta["attachment"]["participants"] if one["target"] == f"pid:{launcher}")
    assert len(_pids(one)) == 2
    owners = saved.events["owners"]
    assert set(owners.loc[owners["participant"] == one["name"], "pid"]) == set(_pids(one)) - {launcher}


def test_the_list_shows_it(tmp_path: Path) -> None:
    with federation(tmp_path / "it") as running:
        give_up = time.monotonic() + 20
        found: list[dict[str, Any]] = []
        while not found and time.monotonic() < give_up:
            listed = run("attach", "--list", "--json")
            assert listed.status == 0, listed.stderr
            found = [one for one in json.loads(listed.stdout) if one["port"] == running.port]
        (one,) = found
    assert one["target"] == f"pid:{running.server.pid}"
    assert one["framework"] == "generic"
    assert one["peers"] == ["127.0.0.1"]
    assert one["connections"] == 2
    assert min(one["sent_bytes"], one["received_bytes"]) >= 300_000


def test_no_round_is_one_line_with_what_was_seen_instead(tmp_path: Path) -> None:
    with federation(tmp_path / "it", pause_s=1000) as running:
        outcome = run(
            *("trace", "--attach", "--quiet", "--out", tmp_path / "run"), *_of(running, "--for", "1s")
        )
    assert outcome.status == 6
    assert len(outcome.stderr.splitlines()) == 1
    for words in ("no round was seen in", "2 connections of 3 participants", "--events-from"):
        assert words in outcome.stderr
    assert load_run(tmp_path / "run").rounds == []


def _refused(out: Path, *arguments: str) -> Outcome:
    return run("trace", "--attach", "--quiet", "--out", out, *arguments)


def test_bad_input_is_one_line_and_makes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        none = ("--server", "pid:4194303")
        _refused(out, *none).assert_refused(2, "--server pid:4194303: no such process")
        silent = ("--server", f"pid:{idle.pid}")
        _refused(out, *silent).assert_refused(2, "nothing of it listens on a TCP port", "attach --list")
        pattern = ("--server", "cmd:no-such-command-[0-9]{9}")
        _refused(out, *pattern).assert_refused(2, "no process has such a command line")
        netns = ("--server", "netns:no-such-namespace")
        _refused(out, *netns).assert_refused(2, "no such network namespace")
        log = (*silent, "--events-from", str(tmp_path / "nowhere"))
        _refused(out, *log).assert_refused(2, "nowhere: cannot be read: No such file or directory")
        _refused(out).assert_refused(2, "--attach needs --server")
        run("trace", "--server", "pid:1").assert_refused(2, "--server: needs --attach")
    finally:
        idle.kill()
        idle.wait()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [b"{not json}\n", b"INFO: something else\n"])
def test_a_log_without_rounds_is_told_early(tmp_path: Path, line: bytes) -> None:
    log = tmp_path / "foreign.log"
    log.write_bytes(b"")
    with federation(tmp_path / "it") as running:
        trace = Trace.start(
            tmp_path / "run",
            *("--attach", "--server", f"pid:{running.server.pid}", "--events-from", str(log)),
        )
        trace.until(lambda trace: trace.said("probes"))
        with log.open("ab") as stream:
            stream.write(line * 300)
        outcome = trace.wait()
    assert outcome.status == 2
    assert f"--events-from {log}: none of its" in outcome.stderr.splitlines()[-1]
