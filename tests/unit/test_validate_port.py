"""validate takes port and interfaces from the run: its rules, its capture and where it looks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_endpoints import pod
from ztprobe.errors import ZtprobeError
from ztprobe.validate.inject.packets import Blocker, PacketHolder
from ztprobe.validate.observe.capture import Capture
from ztprobe.validate.runner import server_port
from ztprobe.validate.scenarios.catalogue import SCENARIOS, Scenario

SERVER = replace(pod("fl-server", "10.244.0.2"), interface="eth0")
CLIENT = replace(pod("fl-client-1", "10.244.0.4"), interface="net1")
_LISTEN = """
import socket, sys
sockets = [socket.create_server((address, 0)) for address in sys.argv[1:]]
print(*(one.getsockname()[1] for one in sockets), flush=True)
sys.stdin.read()
"""


@contextmanager
def listening(*addresses: str) -> Iterator[tuple[int, list[int]]]:
    command = [sys.executable, "-c", _LISTEN, *addresses]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, [int(port) for port in process.stdout.readline().split()]


def test_the_port_is_the_one_that_other_pods_can_reach() -> None:
    with listening("127.0.0.1", "0.0.0.0") as (pid, ports):
        assert server_port(SERVER, {pid: ("fl-server", "server")}) == ports[1]
        with pytest.raises(ZtprobeError, match="fl-server listens for other pods at none; expected one port"):
            server_port(SERVER, {pid: ("fl-client-0", "client")})


def test_several_ports_are_refused() -> None:
    with listening("0.0.0.0", "0.0.0.0") as (pid, ports):
        first, second = sorted(ports)
        with pytest.raises(ZtprobeError, match=f"at {first}, {second}; expected one port"):
            server_port(SERVER, {pid: ("fl-server", "server")})


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_s_rules_are_for_the_run_s_port(scenario: Scenario) -> None:
    for injector in scenario.make(scenario.by_round).injectors:
        if isinstance(injector, PacketHolder):
            rules = injector.rules({CLIENT.name: CLIENT}, 6000)
        elif isinstance(injector, Blocker):
            rules = [injector.rule("10.244.0.4", 6000)]
        else:
            continue
        for rule in rules:
            assert not any(word in rule for word in ("{", "50051", "eth0"))
            assert ("port 6000" in rule) == ("udp" not in rule)  # which is the name service


def test_the_capture_is_for_the_run_s_port(tmp_path: Path) -> None:
    capture = Capture([SERVER], 6000, {"fl-server": 7000}, tmp_path)
    assert [(tap.interface, tap.filter) for tap in capture._taps] == [
        ("eth0", "tcp port 6000 or udp port 53"),
        ("lo", "tcp port 7000"),
    ]
