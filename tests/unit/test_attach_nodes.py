"""Deployments on several nodes, seen by their agents: pods, tables and accounts put together."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from analysis.ledger.ledger import build_ledger
from tests.unit.recorded_run import recorded
from tests.unit.test_cluster_labels import CLIENT, SERVER, Answers
from ztprobe.agent.interface import Account
from ztprobe.agent.service.node_session import NodeSession
from ztprobe.attach.nodes.pods import DeployedPods
from ztprobe.attach.nodes.request import NodesRequest, pod_targets
from ztprobe.cli.entry import ztprobe
from ztprobe.errors import PreflightError, UsageError
from ztprobe.events.kinds import NODE
from ztprobe.experiment.nodes import tables
from ztprobe.experiment.nodes.accounts import account_of
from ztprobe.kubernetes import repeated
from ztprobe.kubernetes.api import Api
from ztprobe.rundir.clock import Clock, ClockSample

THIRD = "5ba2b8a8-21c2-4c52-9fd0-4d1e3c0c4b13"


def request(api: Any, server: str = "app=fl-server", *clients: str) -> NodesRequest:
    targets = pod_targets(server, clients)
    return NodesRequest(
        api=cast(Api, api), namespace="fl", server=targets[0], clients=targets[1], agents=(), tls=None
    )


class Api2(Answers):
    """One whose pods have the namespace that lists are of."""

    def __init__(self) -> None:
        super().__init__()
        for one in self.pods:
            one["metadata"]["namespace"] = "fl"


def test_clients_are_who_is_named_or_who_is_connected() -> None:
    api = Api2()
    named = DeployedPods(request(api, "app=fl-server", "app=fl-client"))
    assert [one.name for one in named.all] == ["fl-server-x", "fl-client-0", "fl-client-1"]
    assert [one.uid for one in named.all] == [SERVER, CLIENT, THIRD]
    assert named.server_container == "server"
    seen = DeployedPods(request(api))
    assert [one.name for one in seen.all] == ["fl-server-x"]
    seen.take_peers(["10.0.9.3", "10.0.0.1", "192.0.2.1"])  # itself, and nobody's
    assert [(one.name, one.node) for one in seen.all][1:] == [("fl-client-1", "node-b")]


def test_a_server_that_is_gone_is_over_and_an_api_that_is_away_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api2()
    pods = DeployedPods(request(api))
    asked = repeated.Repeated(pods._asked, every_s=0)
    asked._ask()
    assert not pods.server_is_over
    api.is_away = True
    asked._ask()
    asked._ask()
    (note,) = pods.fresh_notes()
    assert "the pods known so far are watched" in note
    api.is_away = False
    api.pods[0]["status"]["phase"] = "Succeeded"
    asked._ask()
    assert pods.server_is_over
    assert [*pods.fresh_notes()] == ["the Kubernetes API answers again"]


@pytest.mark.parametrize(
    ("server", "clients", "said"),
    [
        ("app=x", (), "--server app=x: matches no pod in namespace fl"),
        ("app=fl-client", (), "means 2 pods (fl-client-0, fl-client-1), expected the server's one"),
        ("app=fl-server", ("app=x",), "--client app=x: matches no pod in namespace fl"),
        ("pid:7", (), "--server pid:7: through agents only labels of pods name somebody"),
    ],
)
def test_labels_that_mean_nobody_are_one_line(server: str, clients: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        DeployedPods(request(Api2(), server, *clients))
    assert said in str(raised.value)


def node(name: str, pods: list[str], *, ahead_ns: int = 0, account: Account | None = None) -> NodeSession:
    """One whose monotonic clock is ahead; wall clocks agree."""
    samples = [
        {"time_monotonic_ns": at_ns + ahead_ns, "time_unix_ns": at_ns + 10**18}
        for at_ns in (10**9, 10**12, 10**15)
    ]
    found = SimpleNamespace(
        name=name,
        pods=dict.fromkeys(pods),
        clock_samples=samples,
        clock=Clock(ClockSample(**sample) for sample in samples),
        account=account,
        facts=None,
    )
    return cast(NodeSession, found)


def test_the_ledger_of_two_kernels_tables_is_that_of_one_kernels() -> None:
    run = recorded()
    clients = [one["name"] for one in run.meta["pods"] if one["name"].startswith("fl-client")]
    server, other = node("a", []), node("b", clients)
    clocks = other.clock, server.clock
    events, moved = dict(run.events), set()
    for name, table in run.events.items():
        if "pod" not in table or name not in tables.TABLES:
            continue
        theirs = table["pod"].isin(clients)
        told = tables._told(name, table[theirs], other, 1, clocks)
        events[name] = tables._whole(name, [table[~theirs], told])
        events[name].attrs = table.attrs
        moved |= {column for column in told if not told[column].equals(table.loc[told.index, column])}
        # Nobody's stays nobody's.
        for column in moved & set(told):
            assert (told[column] == 0).equals(table.loc[theirs, column] == 0), (name, column)
    assert {"connection", "from_connection", "to_connection", "tid", "tgid"} <= moved
    found, truth = build_ledger(dataclasses.replace(run, events=events)), build_ledger(run)
    assert [one.components_ns for one in found.rounds] == [one.components_ns for one in truth.rounds]
    assert [one.residual_ns for one in found.rounds] == [one.residual_ns for one in truth.rounds]


def test_what_no_pod_of_a_node_saw_is_told_by_the_servers_clock() -> None:
    table = recorded().events["connections"].head(3).assign(pod=["fl-client-0", NODE, ""], ts_ns=5 * 10**12)
    other, server = node("b", ["fl-client-0"], ahead_ns=3 * 10**9), node("a", ["fl-server"])
    told = tables._told("connections", table, other, 1, (other.clock, server.clock))
    assert told["ts_ns"].tolist() == [5 * 10**12, 5 * 10**12 - 3 * 10**9, 5 * 10**12 - 3 * 10**9]


def test_accounts_of_nodes_are_one() -> None:
    probe = {"signal": "bursts", "hook": "tcx", "program": "p", "run_count": 3, "run_time_ns": 50}
    loss = {"ring_buffer_full": 1, "unknown_pod": 0}
    entry = {"from_ns": 4 * 10**9, "to_ns": 5 * 10**9, "channel": "ring_buffer_full", "count": 1}
    told = {
        "hooks": {"bursts": "tcx"},
        "probes": [probe],
        "loss": loss,
        "events_seen": 99,
        "drop_reasons": {"6": "NETFILTER_DROP"},
    }
    first = node("a", ["s"], account=Account(**told))  # type: ignore[arg-type]
    later = {"loss_log": [entry], "drop_reasons": {"7": "NETFILTER_DROP"}, "observed": {"c": {}}}
    second = node("b", ["c"], ahead_ns=3 * 10**9, account=Account(**told | later))  # type: ignore[arg-type]
    found = account_of([first, second])
    assert found.probes == [{**probe, "run_count": 6, "run_time_ns": 100}]
    assert (found.loss["ring_buffer_full"], found.events_seen) == (2, 198)
    assert found.coverage == pytest.approx(198 / 200)
    (lost,) = found.loss_log
    assert (lost["from_ns"], lost["to_ns"]) == (10**9, 2 * 10**9)
    assert found.drop_reasons == {"6": "NETFILTER_DROP"}  # the server's kernel's
    assert found.observed == {"c": {}}
    died = node("b", ["c"], account=Account(coverage=0.0))
    assert account_of([first, died]).coverage == 0.0


AGENTS = ("--agent", "10.0.0.1:7443")
EXPERIMENT = ("--runtime", "kubernetes", "--experiment", "net0-sec0")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trace", "--experiment", "net0-sec0", *AGENTS), "--agent: needs --runtime kubernetes"),
        (("trace", *EXPERIMENT, *AGENTS, "--node", "a"), "--node says which node this is"),
        (("trace", *EXPERIMENT, *AGENTS, "--repeat", "2"), "--repeat: is for runs on this machine"),
        (("trace", *EXPERIMENT, "--agents-in", "x"), "--agents-in: is about agents"),
        (("trace", "--attach", "--server", "app=a", *AGENTS), "add --runtime kubernetes"),
        (("trace", "--attach", "--runtime", "kubernetes", *AGENTS), "--server is missing"),
        (
            ("trace", "--attach", "--runtime", "kubernetes", "--server", "pid:1", *AGENTS),
            "through agents only labels of pods name somebody",
        ),
        (
            ("trace", "--attach", "--runtime", "kubernetes", "--server", "a=b", "--hub", "c=d", *AGENTS),
            "--hub: is for a trace on the node itself",
        ),
        (
            ("trace", "--attach", "--runtime", "kubernetes", "--server", "a=b", "--agents-in", "x"),
            "--agents-in: is about agents",
        ),
        (("diagnose", *AGENTS), "go with --live"),
        (("diagnose", "--live", *AGENTS, "-f", "x.yaml"), "go with --live, and with no RUN, --run or -f"),
        (("diagnose", "--live", "--server", "a=b"), "--server: is about a cluster's pods"),
        (("diagnose", "--live", "--agents-in", "x"), "--agents-in: is about a cluster's pods"),
        (("diagnose", "--live", *AGENTS, "--server", "pid:1"), "only labels of pods name somebody"),
    ],
)
def test_what_does_not_go_together_is_one_line(words: tuple[str, ...], said: str) -> None:
    outcome = CliRunner().invoke(ztprobe, words)
    assert isinstance(outcome.exception, UsageError | PreflightError), outcome.exception
    assert said in str(outcome.exception)
