"""The workload's options: what is read back, and what is refused before anything starts."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner

from fl.config import ClientConfig, EdgeConfig, ServerConfig
from fl.errors import ConfigError
from fl.options import FlOptions, OptionError, read_options
from ztprobe.cli.fl_options import checked_fl_options, fl_options
from ztprobe.errors import UsageError
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local.workload import settings_of

SIZE = 1_199_882


def test_nothing_given_is_the_published_workload() -> None:
    options = read_options({})
    assert options == FlOptions() == read_options({"FL_OPTIONS": ""})
    assert options.given() == {}
    assert (options.algorithm, options.compression, options.aggregation) == ("fedavg", "none", "mean")


def test_effective_names_the_values_that_are_used_and_no_others() -> None:
    options = FlOptions(algorithm="fedadam", server_lr=0.1)
    assert options.given() == {"algorithm": "fedadam", "server_lr": 0.1}
    effective = options.effective()
    assert (effective["server_lr"], effective["server_tau"]) == (0.1, 1e-3)
    assert "top_k" not in effective and "prox_mu" not in effective


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"algorithm": "sgd"}, "'sgd', expected one of fedavg, fedprox"),
        ({"compression": "top-k", "top_k": 0}, "0, expected a whole number from 1 on"),
        ({"compression": "top-k", "top_k": 1.5}, "1.5, expected a whole number"),
        ({"compression": "top-k", "top_k": True}, "True, expected a whole number"),
        ({"top_k": 5}, "5 changes nothing without compression top-k"),
        ({"algorithm": "fedadam", "server_lr": 0}, "0, expected a number"),
        ({"algorithm": "fedyogi", "server_tau": float("nan")}, "nan, expected a number"),
        ({"algorithm": "fedprox", "prox_mu": "1"}, "'1', expected a number"),
        ({"algorithm": "fedavg", "prox_mu": 1}, "without algorithm fedprox"),
        ({"inspect": 1}, "1, expected true or false"),
        ({"edges": 0}, "0, expected a whole number from 1 on"),
        ({"edges": 2, "aggregation": "median"}, "another option needs single updates"),
        ({"edges": 2, "attack": "scale"}, "another option needs single updates"),
        ({"edges": 2, "secure_aggregation": "masks"}, "another option needs single updates"),
        ({"secure_threshold": 3}, "3 changes nothing without secure_aggregation masks"),
        ({"secure_aggregation": "masks", "secure_threshold": 1}, "1, expected a whole number from 2 on"),
        ({"secure_aggregation": "masks", "compression": "int8"}, "compression int8 works on single updates"),
        ({"secure_aggregation": "masks", "aggregation": "krum"}, "aggregation krum works on single updates"),
        ({"secure_aggregation": "masks", "inspect": True}, "inspect works on single updates"),
    ],
)
def test_a_bad_value_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as caught:
        FlOptions(**values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "clients", "says"),
    [
        ({"compression": "top-k", "top_k": SIZE + 1}, 5, "1199883 is above the model's 1199882 values"),
        ({"attack": "scale", "attackers": 5}, 5, "5 of 5 clients leave nobody honest"),
        ({"aggregation": "trimmed-mean", "byzantine": 2}, 4, "at each end of 4 clients leaves none"),
        ({"aggregation": "krum"}, 4, "Krum needs 2f + 3 = 5 clients, there are 4"),
        ({"edges": 6}, 5, "6 are above the 5 clients"),
        ({"secure_aggregation": "masks", "secure_threshold": 6}, 5, "6 is above the 5 clients"),
        ({"secure_aggregation": "masks"}, 1, "one client has nobody to hide among"),
    ],
)
def test_what_does_not_fit_the_run_is_one_line_on_both_sides(
    values: dict[str, Any], clients: int, says: str
) -> None:
    with pytest.raises(OptionError, match=r"^FL_OPTIONS: \w+: ") as caught:
        FlOptions(**values).check(clients=clients, parameters=SIZE)
    assert says in str(caught.value)
    with pytest.raises(UsageError, match=r"^--fl-[a-z-]+: ") as refused:
        checked_fl_options({f"fl_{name}": value for name, value in values.items()}, clients=clients)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "FL_OPTIONS is not JSON"),
        ("[1]", "'[1]' is no object"),
        ('{"topk": 3}', "unknown topk; known are algorithm"),
        ('{"compression": "zip"}', "FL_OPTIONS: compression: 'zip', expected one of none"),
    ],
)
def test_a_bad_environment_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_env({"FL_OPTIONS": text})
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_run_is_held_against_the_options_in_the_pod_too() -> None:
    env = {"FL_CLIENTS": "4", "FL_OPTIONS": '{"aggregation": "krum"}'}
    identity = {"POD_NAME": "c", "JOB_COMPLETION_INDEX": "0", "FL_SERVER": "s:1"}
    for config in (ServerConfig, ClientConfig):
        with pytest.raises(ConfigError, match="Krum needs"):
            config.from_env(env | identity)


def test_from_the_command_line_to_the_pod() -> None:
    seen: dict[str, Any] = {}

    @click.command()
    @fl_options
    def command(**values: Any) -> None:
        seen.update(checked_fl_options(values, clients=5))

    words = "--fl-compression top-k --fl-top-k 50 --fl-inspect --fl-client synthetic"
    done = CliRunner().invoke(command, words.split())
    assert done.exit_code == 0, done.output
    assert seen == {"compression": "top-k", "top_k": 50, "inspect": True, "client": "synthetic"}
    options = WorkloadOptions(
        rounds=1,
        clients=5,
        seed=0,
        distribution="iid",
        dataset="digits",
        data_dir=None,
        reconnect=False,
        level=0,
        fl=seen,
    )
    environment = settings_of(options)
    assert json.loads(environment["FL_OPTIONS"]) == seen
    assert ServerConfig.from_env(environment).options == FlOptions(**seen)


def test_every_option_has_help() -> None:
    @click.command()
    @fl_options
    def command(**_: Any) -> None: ...

    for parameter in command.params:
        assert isinstance(parameter, click.Option)
        assert parameter.help


def test_clients_are_shared_out_among_edges() -> None:
    env = {"FL_CLIENTS": "5", "POD_NAME": "c", "FL_SERVER": "fl-edge-{edge}.fl-edge:50051"}
    two = env | {"FL_OPTIONS": '{"edges": 2}'}
    clients = [ClientConfig.from_env(two | {"JOB_COMPLETION_INDEX": str(i)}) for i in range(5)]
    assert [client.peer for client in clients] == [f"fl-edge-{i}.fl-edge:50051" for i in (0, 0, 0, 1, 1)]
    edges = [EdgeConfig.from_env(two | {"JOB_COMPLETION_INDEX": str(i)}) for i in range(2)]
    assert [edge.own_clients for edge in edges] == [3, 2]
    server = ServerConfig.from_env(two)
    assert (server.participants, server.min_clients) == (2, 2)
    assert ServerConfig.from_env(env).participants == 5
    with pytest.raises(ConfigError, match="JOB_COMPLETION_INDEX=2: expected below the number of edges=2"):
        EdgeConfig.from_env(two | {"JOB_COMPLETION_INDEX": "2"})
