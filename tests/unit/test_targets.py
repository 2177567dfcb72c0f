"""TARGETs: their grammar, and the processes that they mean on a made-up /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztprobe.attach.request import make_request
from ztprobe.errors import UsageError
from ztprobe.pods.participants import Participants
from ztprobe.pods.process_table import ProcessTable
from ztprobe.pods.targets import in_cgroup, parse_target

_ID = "ab12" * 16


@pytest.mark.parametrize(
    ("text", "kind", "value", "name"),
    [
        ("pid:4711", "pid", "4711", ""),
        ("cmd:flower-superlink .*--insecure", "cmd", "flower-superlink .*--insecure", ""),
        ("cmd:a:b", "cmd", "a:b", ""),
        ("cgroup:/system.slice/fl.service", "cgroup", "/system.slice/fl.service", "fl"),
        ("cgroup:fl.service", "cgroup", "fl.service", "fl"),
        (f"cgroup:{_ID}", "cgroup", _ID, _ID[:12]),
        ("netns:hospital-a", "netns", "hospital-a", "hospital-a"),
        ("netns:/proc/12/ns/net", "netns", "/proc/12/ns/net", ""),
        ("app=fl-client", "pods", "app=fl-client", ""),
        ("app in (a,b)", "pods", "app in (a,b)", ""),
    ],
)
def test_what_a_target_may_be(text: str, kind: str, value: str, name: str) -> None:
    target = parse_target(text, "client")
    assert (target.kind, target.value, target.own_name, target.text) == (kind, value, name, text)
    assert target.option == f"--client {text}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected pid:N"),
        ("flower-superlink", "expected pid:N"),
        ("pid:", "nothing behind the colon"),
        ("pid:0", "expected a process id from 1"),
        ("pid:-4", "expected a process id"),
        ("pid:4194304", "expected a process id"),
        ("pid:٤", "expected a process id"),
        ("pid:12a", "expected a process id"),
        ("cmd:[", "no regular expression"),
        ("cgroup:/a/../b", "without '..'"),
        ("netns:  ", "nothing behind the colon"),
        ("netns:a\0b", "a NUL"),
        ("container:abc", "expected pid:N"),
        ("app in (a", "expected pid:N"),
    ],
)
def test_what_is_no_target(text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_target(text, "server")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("--server")


@pytest.mark.parametrize(
    ("value", "path", "inside"),
    [
        ("/system.slice/fl.service", "/system.slice/fl.service", True),
        ("/system.slice", "/system.slice/fl.service", True),
        ("/sys/fs/cgroup/system.slice", "/system.slice/fl.service", True),
        ("/system.slice/fl", "/system.slice/fl.service", False),
        ("fl.service", "/system.slice/fl.service", True),
        ("fl", "/system.slice/fl.service", True),
        ("fl", "/system.slice/flower.service", False),
        ("machine.slice/fl.scope", "/a/machine.slice/fl.scope/b", True),
        (_ID[:12], f"/system.slice/docker-{_ID}.scope", True),
        (_ID, f"/kubepods/burstable/pod1/{_ID}", True),
        (_ID[:12], f"/docker/{_ID}/inner", True),
        (_ID[:11], f"/docker/{_ID}", False),
        (_ID[4:16], f"/docker/x{_ID}", False),
    ],
)
def test_which_cgroup_that_is(value: str, path: str, inside: bool) -> None:
    assert in_cgroup(value, ["/", path]) is inside


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return tmp_path


def add_process(
    proc: Path, pid: int, command: str, *, parent: int = 1, session: int = 0, started: int = 0
) -> None:
    directory = proc / str(pid)
    (directory / "ns").mkdir(parents=True)
    fields = ["S", parent, session or pid, session or pid, *[0] * 15, started or pid]
    (directory / "stat").write_text(f"{pid} (a) b) {' '.join(map(str, fields))}\n")
    (directory / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
    (directory / "cgroup").write_text("1:cpu:/\n0::/system.slice/fl.service\n")
    (directory / "ns/net").touch()


def _end(proc: Path, pid: int) -> None:
    for file in ("stat", "cmdline", "cgroup", "ns/net"):
        (proc / str(pid) / file).unlink()
    (proc / str(pid) / "ns").rmdir()
    (proc / str(pid)).rmdir()


def _participants(proc: Path, *targets: str) -> Participants:
    server, *clients = targets
    parsed = [parse_target(server, "server"), *(parse_target(one, "client") for one in clients)]
    return Participants(parsed, ProcessTable(proc))


def _pids(found: Participants) -> dict[str, set[int]]:
    return {one.name: {member.pid for member in one.running} for one in found.all}


def test_what_a_member_starts_belongs_to_it_and_goes_on_to(proc: Path) -> None:
    add_process(proc, 10, "server")
    add_process(proc, 20, "node --id 1")
    add_process(proc, 30, "node --id 2")
    found = _participants(proc, "pid:10", "cmd:^node ")
    found.first_look()
    assert _pids(found) == {"server": {10}, "client-1": {20}, "client-2": {30}}
    add_process(proc, 21, "task", parent=20, session=20)
    add_process(proc, 22, "node --id 1 worker", parent=21, session=20)
    add_process(proc, 99, "somebody else")
    assert found.look() == []
    assert _pids(found) == {"server": {10}, "client-1": {20, 21, 22}, "client-2": {30}}
    _end(proc, 20)  # what it has started stays its own, and what that starts
    add_process(proc, 23, "task", parent=22)
    found.look()
    assert _pids(found)["client-1"] == {21, 22, 23}
    assert {member.pid for member in found.all[1].commands} == {20, 21, 22, 23}
    add_process(proc, 40, "node --id 3")
    assert [one.name for one in found.look()] == ["client-3"]


def test_a_number_that_comes_again_is_another_process(proc: Path) -> None:
    add_process(proc, 10, "server")
    found = _participants(proc, "pid:10")
    found.first_look()
    _end(proc, 10)
    found.look()
    assert not found.server.running
    add_process(proc, 10, "another", started=77)
    found.look()
    assert not found.server.running


def test_the_most_telling_target_has_a_process(proc: Path) -> None:
    add_process(proc, 10, "superlink")
    add_process(proc, 11, "serverapp", parent=10)
    add_process(proc, 12, "helper", parent=11)
    found = _participants(proc, "cgroup:fl.service", "pid:11")
    found.first_look()
    # The helper is in the cgroup itself, and was started by 11 besides: what names it goes before.
    assert _pids(found) == {"fl": {10, 12}, "client-1": {11}}


def test_a_pattern_that_names_several_servers_names_none(proc: Path) -> None:
    add_process(proc, 10, "link --port 1")
    add_process(proc, 20, "link --port 2")
    with pytest.raises(UsageError, match=r"matches 2 processes .*\(10, 20\).*pid:"):
        _participants(proc, "cmd:^link").first_look()


def test_another_traces_command_line_is_no_server(proc: Path) -> None:
    add_process(proc, 10, "python3 /bin/flower-superlink --insecure")
    add_process(proc, 20, "sudo /venv/bin/ztprobe trace --attach --server cmd:flower-superlink")
    add_process(proc, 21, "python3 -m ztprobe trace --attach --server cmd:flower-superlink", parent=20)
    found = _participants(proc, "cmd:flower-superlink")
    found.first_look()
    assert _pids(found) == {"server": {10}}


def test_commands_are_read_again_after_exec(proc: Path) -> None:
    add_process(proc, 20, "launcher")
    table = ProcessTable(proc)
    table.look()
    (proc / "20/cmdline").write_bytes(b"node\0")
    table.look()
    assert table[20].command == "node"


def test_a_zombie_has_ended(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztprobe.pods.process_table._YOUNG_S", 0.0)
    add_process(proc, 10, "link --port 1")
    found = _participants(proc, "cmd:^link")
    found.first_look()
    stat = proc / "10/stat"
    stat.write_text(stat.read_text().replace(") S ", ") Z "))
    found.look()
    assert _pids(found) == {"server": set()}
    assert found.server.ended_ns


def test_a_request_says_what_does_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--attach needs --server"):
        make_request(server=None, clients=(), hubs=(), out=tmp_path)
    with pytest.raises(UsageError, match="pid:1 is named twice"):
        make_request(server="pid:1", clients=("pid:1",), hubs=(), out=tmp_path)
    with pytest.raises(UsageError, match="--framework tensorflow: expected one of auto"):
        make_request(server="pid:1", clients=(), hubs=(), out=tmp_path, framework="tensorflow")
    made = make_request(server="pid:1", clients=(), hubs=("pid:2",), out=tmp_path, events_from="none")
    assert not made.names_clients
    assert made.events_from is None
    assert [target.role for target in made.targets] == ["server", "hub"]
