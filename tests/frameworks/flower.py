"""Unmodified Flower: a SuperLink, SuperNodes, and the app in flower_app/.

    python -m tests.frameworks.flower --clients 3 --rounds 3 --out /tmp/flower

brings a deployment up, runs the app once and ends it; README.md beside this file tells more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.frameworks.networks import KINDS, Place, network
from tests.frameworks.pods import PROXY_ENTRY_PORT, PROXY_PORT, Pods, pods
from tests.frameworks.processes import Processes, environment, environment_of, processes, wait_for_port

__all__ = ("Flower", "Options", "clock_of", "deployment")

APP = Path(__file__).parent / "flower_app"
HTTP_PORT = 8000
GRPC_FLEET_PORT = 9092
SUPERNODE_PORT = 9094


@dataclass(frozen=True)
class Options:
    """What to bring up."""

    version: str = "1.42"
    clients: int = 3
    network: str = "loopback"
    isolation: str = "subprocess"
    profile: str | None = None  # of pods: a network profile's name; None: no pods
    network_policy: bool = False  # of pods
    mutual_tls: bool = False  # of pods
    hub_tells: bool = False  # the SuperLink's log has every request (FLWR_LOG_LEVEL=DEBUG)

    @property
    def fleet_is_grpc(self) -> bool:
        """Until 1.39 SuperNodes spoke gRPC to their SuperLink."""
        return int(self.version.split(".")[1]) < 40

    @property
    def fleet_port(self) -> int:
        """Where SuperNodes reach the SuperLink."""
        return GRPC_FLEET_PORT if self.fleet_is_grpc else HTTP_PORT

    @property
    def has_hosts(self) -> bool:
        """Whether everybody has a network namespace of their own."""
        return self.profile is not None or self.network == "bridged"

    @property
    def listens_at(self) -> str:
        """The SuperLink's address: its proxy is beside it, where it has one."""
        return "0.0.0.0" if self.has_hosts and not self.mutual_tls else "127.0.0.1"


@dataclass(frozen=True)
class Part:
    """One process of the deployment that stays."""

    name: str
    pid: int
    netns: str | None
    address: str
    port: int


@dataclass
class Flower:
    """A deployment that is up. ``clock`` holds what the app wrote down, for the test only."""

    options: Options
    directory: Path
    superlink: Part
    supernodes: list[Part]
    started: Processes
    environment: dict[str, str]
    place: Place
    pods: Pods | None = None

    @property
    def targets(self) -> list[str]:
        """How `ztprobe trace --attach` is told of it."""
        # Neither a proxy nor what starts tasks from outside is anybody's child.
        if self.options.mutual_tls or (self.options.has_hosts and self.options.isolation == "process"):
            netns = [Path(part.netns or "").name for part in (self.superlink, *self.supernodes)]
            roles = ["--server", *["--client"] * len(self.supernodes)]
            return [word for role, name in zip(roles, netns, strict=True) for word in (role, f"netns:{name}")]
        found = ["--server", f"pid:{self.superlink.pid}"]
        if self.executor_pid is not None:  # the ServerApp is no child of the SuperLink's
            found = ["--server", f"pid:{self.executor_pid}", "--hub", f"pid:{self.superlink.pid}"]
        return found + [word for node in self.supernodes for word in ("--client", f"pid:{node.pid}")]

    @property
    def executor_pid(self) -> int | None:
        """What starts the ServerApp where that is not the SuperLink itself (isolation ``process``)."""
        process = self.started.started.get("superlink-exec")
        return process.pid if process is not None else None

    @property
    def clock_directory(self) -> Path:
        """Where the app notes its own clock."""
        return self.directory / "clock"

    @property
    def run_log(self) -> Path:
        """What `flwr run --stream` printed: the ServerApp's lines, pushed in batches."""
        return self.directory / "logs" / "run.log"

    def start_run(self, *, buffered: bool = False, **config: int | float) -> subprocess.Popen[bytes]:
        """Start the app (`flwr run`), with the run configuration's values by name (``_`` for ``-``).

        :param buffered: as it is without PYTHONUNBUFFERED: what is no terminal gets its lines at the end.
        """
        settings: dict[str, Any] = {
            "clock-directory": f'"{self.clock_directory}"',
            "min-clients": len(self.supernodes),
            **{name.replace("_", "-"): value for name, value in config.items()},
        }
        told = [word for name, value in settings.items() for word in ("--run-config", f"{name}={value}")]
        command = self.place.command(
            "flwr", "run", str(self.directory / "published-cnn"), "test", "--stream", *told
        )
        env = self.environment if buffered else {**self.environment, "PYTHONUNBUFFERED": "1"}
        self.started.start("run", command, env, cwd=self.directory)
        return self.started.started.pop("run")

    def run(self, timeout_s: float, **config: int | float) -> None:
        """Run the app to its end.

        :raises RuntimeError: it failed, with the end of its log.
        """
        process = self.start_run(**config)
        try:
            self.wait(process, timeout_s)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=10)

    def wait(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        """Wait for a run to end.

        :raises RuntimeError: it failed or takes longer.
        """
        deadline = time.monotonic() + timeout_s
        while process.poll() is None:
            self.started.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the run takes longer than {timeout_s:.0f} s: {self.started.tail('run')}")
            time.sleep(0.2)
        if "job_end" not in {line["event"] for line in clock_of(self.clock_directory)}:
            raise RuntimeError(f"the run did not finish: {self.started.tail('run')}")

    def description(self) -> dict[str, Any]:
        """As JSON, for whoever attaches to it."""
        return {
            "options": asdict(self.options),
            "superlink": asdict(self.superlink),
            "supernodes": [asdict(node) for node in self.supernodes],
            "clock_directory": str(self.clock_directory),
            "run_log": str(self.run_log),
        }


def clock_of(directory: Path) -> list[dict[str, Any]]:
    """What the app noted, in time order."""
    lines = [line for file in directory.glob("clock-*.jsonl") for line in file.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines), key=lambda line: line["time_monotonic_ns"])


@contextlib.contextmanager
def deployment(directory: Path, options: Options = Options()) -> Iterator[Flower]:
    """A SuperLink with its SuperNodes, all connected; gone with the context.

    :raises FileNotFoundError: Flower is not installed (make setup-frameworks).
    :raises RuntimeError, TimeoutError: it does not come up.
    """
    venv = environment(f"flwr-{options.version}")
    (directory / "clock").mkdir(parents=True, exist_ok=True)
    home = directory / "flwr-home"
    home.mkdir(exist_ok=True)
    shutil.copytree(APP, directory / "published-cnn", dirs_exist_ok=True)
    env = environment_of(
        venv,
        FLWR_HOME=str(home),
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_TELEMETRY_ENABLED="0",
        OMP_NUM_THREADS="1",
    )
    with contextlib.ExitStack() as stack:
        made: Pods | None = None
        if options.profile is not None:
            made = stack.enter_context(pods(options.clients, options.profile, directory))
            server, *clients = made.places
        else:
            server, clients = stack.enter_context(network(options.network, options.clients))
        started = stack.enter_context(processes(directory / "logs"))
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "test"\n\n[superlink.test]\ninsecure = true\n'
            f'address = "127.0.0.1:{HTTP_PORT}"\n'
        )
        superlink = _start_superlink(started, server, options, env)
        if made is not None:
            _secure(made, started, options)
        nodes = [
            _start_supernode(started, superlink, i, place, options, env) for i, place in enumerate(clients)
        ]
        for node in nodes:
            wait_for_port(node.pid, node.port, 60)
            started.check()
        flower = Flower(options, directory, superlink, nodes, started, env, server, made)
        (directory / "deployment.json").write_text(json.dumps(flower.description(), indent=1) + "\n")
        yield flower


def _secure(made: Pods, started: Processes, options: Options) -> None:
    if options.network_policy:
        made.enforce(PROXY_PORT if options.mutual_tls else options.fleet_port)
    if options.mutual_tls:
        made.start_sidecars(started, options.fleet_port)


def _start_superlink(started: Processes, place: Place, options: Options, env: dict[str, str]) -> Part:
    host = options.listens_at
    if options.hub_tells:
        env = {**env, "FLWR_LOG_LEVEL": "DEBUG"}
    command = ["flower-superlink", "--insecure", "--host", host, "--port", str(HTTP_PORT)]
    command += ["--disable-runtime-dependency-installation", "--isolation", options.isolation]
    if options.fleet_is_grpc:
        command += ["--fleet-api-address", f"{host}:{GRPC_FLEET_PORT}"]
    pid = started.start("superlink", place.command(*command), env)
    for port in {HTTP_PORT, options.fleet_port}:
        wait_for_port(pid, port, 60)
    if options.isolation == "process":
        _start_superexec(started, "superlink-exec", place, HTTP_PORT, env)
    return Part("superlink", pid, _name(place), place.address, options.fleet_port)


def _start_supernode(
    started: Processes, superlink: Part, i: int, place: Place, options: Options, env: dict[str, str]
) -> Part:
    port = SUPERNODE_PORT if options.has_hosts else SUPERNODE_PORT + i
    name = f"supernode-{i}"
    reached_at = f"{superlink.address}:{superlink.port}"
    if options.mutual_tls:
        reached_at = f"127.0.0.1:{PROXY_ENTRY_PORT}"
    command = ["flower-supernode", "--insecure", "--superlink", reached_at]
    command += ["--node-config", f"partition-id={i} num-partitions={options.clients}"]
    command += ["--port", str(port), "--isolation", options.isolation]
    pid = started.start(name, place.command(*command), env)
    if options.isolation == "process":
        wait_for_port(pid, port, 60)
        _start_superexec(started, f"{name}-exec", place, port, env)
    return Part(name, pid, _name(place), place.address, port)


def _start_superexec(started: Processes, name: str, place: Place, port: int, env: dict[str, str]) -> None:
    command = place.command("flower-superexec", "--insecure", "--runtime-api-address", f"127.0.0.1:{port}")
    started.start(name, command, env)


def _name(place: Place) -> str | None:
    return str(place.netns) if place.netns is not None else None


def main() -> None:
    """Bring a deployment up, run the app, and print where everything is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", default="1.42", help="of Flower: 1.42 (HTTP) or 1.38 (gRPC)")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", choices=KINDS, default="loopback")
    parser.add_argument("--profile", metavar="NAME", help="pods under this network profile, such as net2")
    parser.add_argument("--network-policy", action="store_true", help="... with NetworkPolicies in force")
    parser.add_argument("--mutual-tls", action="store_true", help="... with a proxy in each")
    parser.add_argument("--isolation", choices=("subprocess", "process"), default="subprocess")
    parser.add_argument("--fraction-evaluate", type=float, default=1.0, help="0: clients do not evaluate")
    parser.add_argument("--examples", type=int, default=320, help="images of each client")
    parser.add_argument("--idle-before", type=float, default=0, metavar="SECONDS", help="... before the run")
    parser.add_argument("--idle-after", type=float, default=0, metavar="SECONDS", help="... and behind it")
    parser.add_argument("--timeout", type=float, default=900, metavar="SECONDS", help="for the run")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIRECTORY", help="logs, clocks, deployment.json"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as with Ctrl-C, nothing is left behind
    options = Options(
        args.version,
        args.clients,
        args.network,
        args.isolation,
        args.profile,
        args.network_policy,
        args.mutual_tls,
    )
    with deployment(args.out.resolve(), options) as flower:
        print(json.dumps(flower.description()), flush=True)
        time.sleep(args.idle_before)
        print("running", flush=True)
        config = {"num_server_rounds": args.rounds, "examples": args.examples}
        flower.run(args.timeout, fraction_evaluate=args.fraction_evaluate, **config)
        print("finished", flush=True)
        time.sleep(args.idle_after)


if __name__ == "__main__":
    main()
