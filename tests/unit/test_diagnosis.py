"""What a diagnosis says of saved runs: healthy ones, and copies in which something went wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from analysis.causes.case import case_of
from analysis.causes.classes import CAUSES
from analysis.causes.diagnosis import diagnose_run
from analysis.causes.diagnosis_text import diagnosis_lines, why_words
from analysis.causes.findings import Cause, Moment, Remedial, Trouble, cause_of
from analysis.causes.policy_mistakes import mistake_of
from analysis.causes.ranking import EFFECTS, LEAST, ranked
from analysis.causes.troubles import troubles_of
from analysis.recorded import recorded_pods
from analysis.report.figures import draw_figures
from analysis.report.html import render_page
from analysis.report.text_report import print_report
from tests.schemas import problems
from tests.unit.recorded_run import recorded
from ztprobe.cli.entry import main
from ztprobe.policy.explanation import Explainer
from ztprobe.policy.manifests import read_documents
from ztprobe.policy.objects import read_objects
from ztprobe.policy.simulation import merged
from ztprobe.rundir.store import Run, load_run

DATA = Path(__file__).parents[1] / "data"
POLICIES = Path(__file__).parents[2] / "manifests/components/network-policy/policies.yaml"
HEALTHY = ("net2-sec3", "net2-sec3/baseline", "net2-sec3-reconnect", "net5-sec0", "attached-hub")
NS = 1_000_000_000


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_have_no_cause(name: str) -> None:
    found = diagnose_run(load_run(DATA / name))
    assert (found["troubles"], found["causes"], found["failed"]) == ([], [], None)
    assert list(diagnosis_lines(found)) == [
        "No cause: no round failed, stalled or was clearly slower than its peers."
    ]


@pytest.mark.parametrize(
    ("name", "cause", "pods", "words"),
    [
        ("policy-wrong-port", "policy.wrong_port", ("fl-client-0", "fl-client-1"), "allows 50052/TCP"),
        ("tls-expired-certificate", "tls.expired_certificate", ("fl-server",), "it was valid until 2026-"),
        ("resources-oom-kill", "resources.oom_kill", ("fl-client-1",), "its limit of 30 MiB"),
    ],
)
def test_runs_that_failed_have_the_cause_that_was_put_into_them(
    name: str, cause: str, pods: tuple[str, ...], words: str
) -> None:
    found = diagnose_run(load_run(DATA / "failed" / name))
    first, *others = found["causes"]
    assert (first["id"], set(first["pods"])) == (cause, set(pods))
    assert words in first["summary"]
    assert first["confidence"] > 0.9 > 2 * max((one["confidence"] for one in others), default=0)
    times = [one["time_unix_s"] for one in first["timeline"]]
    assert times == sorted(times)
    assert first["cost"]["seconds"]
    assert found["failed"]["reason"]


def test_the_missing_rule_lets_the_connection_pass() -> None:
    run = load_run(DATA / "failed" / "policy-wrong-port")
    found = diagnose_run(run)["causes"][0]
    rule = list(yaml.safe_load_all(found["remedy"]["yaml"]))
    recorded_documents = run.meta["enforcement"]["details"]["objects"]
    text = yaml.safe_dump_all([*recorded_documents, *rule])
    explainer = Explainer(merged(read_objects(list(read_documents(text, "objects"))), recorded_pods(run)))
    assert explainer.explain("fl/fl-client-0", "fl/fl-server", "TCP", 50051).verdict == "allowed"


def test_no_policy_is_blamed_where_none_selects_an_end() -> None:
    run = load_run(DATA / "failed" / "policy-wrong-port")
    details = {**run.meta["enforcement"]["details"], "objects": []}
    meta = {**run.meta, "enforcement": {**run.meta["enforcement"], "details": details}}
    found = diagnose_run(dataclasses.replace(run, meta=meta))
    assert ids(found)[0] == "policy.filter_without_policy"
    assert "NetworkPolicy" not in json.dumps(found)


def broken(run: Run, **meta: Any) -> Run:
    """A copy that failed in its last round, when half of it was over."""
    starts = [e for e in run.rounds if e["event"] == "round_start"]
    at_ns = starts[-1]["time_monotonic_ns"] + NS // 10
    rounds = [e for e in run.rounds if e["time_monotonic_ns"] <= at_ns]
    failed = {"reason": "fl-server/server was killed by SIGKILL: it left no message", "at_ns": at_ns}
    return dataclasses.replace(run, rounds=rounds, meta={**run.meta, "failed": failed, **meta})


def ids(found: dict[str, Any]) -> list[str]:
    return [one["id"] for one in found["causes"]]


def test_a_killed_server_is_the_cause_of_a_round_that_did_not_end() -> None:
    run = broken(recorded())
    at_ns = run.meta["failed"]["at_ns"]
    exits = [{"process": "fl-server/server", "status": -9, "at_ns": at_ns}]
    found = diagnose_run(broken(recorded(), exits=exits))
    assert ids(found) == ["application.server_died"]
    assert found["troubles"][0]["words"] == "round 8 did not end"
    (cause,) = found["causes"]
    assert cause["summary"] == "fl-server/server was killed by SIGKILL"
    assert cause["cost"]["rounds"] == [8]
    assert list(cause["cost"]["seconds"]) == ["residual"]


def test_of_a_process_out_of_memory_the_kernels_word_goes_first() -> None:
    at_ns = broken(recorded()).meta["failed"]["at_ns"]
    exits = [{"process": "fl-client-1/client", "status": -9, "at_ns": at_ns}]
    limit = {"memory_limit_bytes": 64 << 20}
    counters = [
        {"at_ns": at_ns - NS, "pods": {}, "containers": {"fl-client-1/client": {"oom_kills": 0, **limit}}},
        {"at_ns": at_ns + NS, "pods": {}, "containers": {"fl-client-1/client": {"oom_kills": 1, **limit}}},
    ]
    found = diagnose_run(broken(recorded(), exits=exits, pod_counters=counters))
    assert ids(found) == ["resources.oom_kill", "application.client_died"]
    assert "64 MiB" in found["causes"][0]["summary"]
    assert found["causes"][0]["confidence"] > 0.9 > 2 * found["causes"][1]["confidence"] - LEAST


def test_counters_of_a_healthy_run_are_no_cause() -> None:
    run = recorded()
    at_ns = run.rounds[-1]["time_monotonic_ns"]
    counters = [
        {"at_ns": at_ns - n * NS, "pods": {"fl-server": {"listen_overflows": 9 - n}}, "containers": {}}
        for n in (2, 1)
    ]
    assert ids(diagnose_run(dataclasses.replace(run, meta={**run.meta, "pod_counters": counters}))) == []


def test_a_process_that_says_why_it_ended_is_no_certain_cause() -> None:
    at_ns = broken(recorded()).meta["failed"]["at_ns"]
    exits = [{"process": "fl-server/server", "status": 1, "at_ns": at_ns}]
    found = diagnose_run(broken(recorded(), exits=exits))
    assert ids(found) == ["application.server_died"]
    assert found["causes"][0]["confidence"] < 0.5


def test_nothing_seen_is_said() -> None:
    found = diagnose_run(broken(recorded()))
    assert found["causes"] == []
    assert found["said"].startswith("No cause found: round 8 did not end")
    assert "it left no message" in found["said"]


def test_a_round_is_slow_among_its_peers() -> None:
    run = recorded()
    late_ns = 60 * NS
    cut_ns = next(e for e in run.rounds if e["event"] == "round_end" and e["round"] == 8)["time_monotonic_ns"]
    rounds = [
        {**e, "time_monotonic_ns": e["time_monotonic_ns"] + late_ns * (e["time_monotonic_ns"] >= cut_ns)}
        for e in run.rounds
    ]
    samples = [dict(one) for one in run.meta["clock_samples"]]
    samples[-1]["time_monotonic_ns"] += late_ns
    slow = dataclasses.replace(run, rounds=rounds, meta={**run.meta, "clock_samples": samples})
    (trouble,) = troubles_of(case_of(slow))
    assert (trouble.kind, trouble.rounds) == ("slow", (8,))


def test_a_failed_run_is_refused_by_everything_but_a_diagnosis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(DATA / "net5-sec0", path)
    meta = json.loads((path / "run.json").read_text())
    at_ns = meta["clock_samples"][-1]["time_monotonic_ns"]
    meta["failed"] = {"reason": "the server died", "at_ns": at_ns}
    (path / "run.json").write_text(json.dumps(meta))
    export = ("export", str(path), "--format", "csv", "--out", str(tmp_path / "out"))
    for words in (("report", str(path)), export):
        assert main(words) == 4
        said = capsys.readouterr().err
        assert (
            said == f"ztprobe: {path}: the run failed (the server died); `ztprobe diagnose {path}` says why\n"
        )
    assert main(["diagnose", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"]["reason"] == "the server died"
    assert main(["diagnose", str(path)]) == 0
    assert "the run failed" in capsys.readouterr().out


# how causes are held against each other


def trouble(**said: Any) -> Trouble:
    given = {"kind": "unfinished", "rounds": (3,), "from_ns": 100 * NS, "to_ns": 200 * NS, "pods": ()}
    return Trouble(**{**given, "words": "round 3 did not end", **said})


def cause(identifier: str, *at_s: float, strength: float = 0.9, pods: tuple[str, ...] = ()) -> Cause:
    return cause_of(
        identifier,
        summary=identifier,
        strength=strength,
        moments=tuple(Moment(ts_ns=round(s * NS), pod="p", event=f"e{s}", shows="") for s in at_s),
        remedial=Remedial(words=""),
        pods=pods,
    )


def order(*causes: Cause, troubles: tuple[Trouble, ...] = (trouble(),)) -> list[str]:
    return [one.of.id for one, _ in ranked(causes, troubles)]


def test_what_acts_in_no_trouble_is_no_cause() -> None:
    assert order(cause("policy.wrong_port", 20)) == []
    assert order(cause("policy.wrong_port", 95)) == ["policy.wrong_port"]  # it led to it
    assert order(cause("policy.wrong_port", 150), troubles=()) == []


def test_what_another_brings_about_comes_behind_it() -> None:
    died = cause("application.server_died", 150.5, strength=0.96)
    refused = cause("application.nothing_listens", 151, strength=0.9)
    assert order(refused, died) == ["application.server_died", "application.nothing_listens"]
    (_, sure), (_, effect) = ranked([refused, died], [trouble()])
    assert sure > 0.9
    assert effect < 0.5
    # Refusals that began long before are no consequence.
    before = cause("application.nothing_listens", 105, strength=0.9)
    found = {one.of.id: sure for one, sure in ranked([before, died], [trouble()])}
    assert found["application.nothing_listens"] == 0.9


def test_of_equally_certain_causes_the_first_one_leads() -> None:
    late, early = cause("tls.unknown_ca", 150), cause("resources.conntrack_full", 120)
    assert order(late, early) == ["resources.conntrack_full", "tls.unknown_ca"]


def test_alike_causes_are_one_with_all_pods_and_evidence() -> None:
    both = [cause("tls.sidecar_down", s, pods=(pod,)) for s, pod in ((150, "a"), (120, "b"))]
    ((found, _),) = ranked(both, [trouble()])
    assert set(found.pods) == {"a", "b"}
    assert [m.ts_ns // NS for m in found.moments] == [120, 150]


def test_effects_are_causes() -> None:
    assert set(EFFECTS) | {one for effects in EFFECTS.values() for one in effects} <= set(CAUSES)


def test_what_is_said_of_a_run_that_went_through() -> None:
    assert why_words({}) == ""
    assert "no round suffered" in why_words({"troubles": [], "causes": [], "dropped_by_filter": 3})
    slow = {"kind": "slow", "words": "round 3 took long"}
    assert why_words({"troubles": [slow], "causes": []}) == ""
    assert why_words({"troubles": [slow, {**slow, "kind": "missing"}], "causes": []}).startswith(
        "Why: round 3"
    )


# which mistake a policy makes

_PODS = [
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "grpc", "containerPort": 50051}]}]},
        "status": {"podIP": address},
    }
    for name, namespace, labels, address in (
        ("fl-server", "fl", {"app": "fl-server"}, "10.0.0.1"),
        ("fl-client-0", "fl", {"app": "fl-client"}, "10.0.0.2"),
        ("kube-dns", "kube-system", {"k8s-app": "kube-dns"}, "10.0.0.3"),
    )
]
_NAMESPACES = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ("fl", "kube-system")
]


def _edited(name: str, *path: Any, value: Any) -> list[dict[str, Any]]:
    documents = [one for one in yaml.safe_load_all(POLICIES.read_text()) if one]
    for one in documents:
        one["metadata"].setdefault("namespace", "fl")
    if value is None:
        return [one for one in documents if one["metadata"]["name"] != name]
    at = next(one for one in documents if one["metadata"]["name"] == name)["spec"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return documents


_CLIENTS, _SERVERS = "fl-client-to-server", "fl-server-from-clients"
_PORTS = ("egress", 0, "ports")
_TCP = {"protocol": "TCP"}


@pytest.mark.parametrize(
    ("expected", "name", "path", "value"),
    [
        ("port_denied_egress", _CLIENTS, (), None),
        ("default_deny", _SERVERS, (), None),
        ("wrong_port", _CLIENTS, _PORTS, [{**_TCP, "port": 50052}]),
        ("wrong_port_range", _CLIENTS, _PORTS, [{**_TCP, "port": 50000, "endPort": 50050}]),
        ("wrong_port_name", _CLIENTS, _PORTS, [{**_TCP, "port": "grcp"}]),
        ("wrong_label", _SERVERS, ("podSelector", "matchLabels", "app"), "fl-sever"),
        (
            "wrong_label",
            _SERVERS,
            ("ingress", 0, "from"),
            [{"podSelector": {"matchLabels": {"app": "client"}}}],
        ),
        (
            "wrong_namespace",
            _SERVERS,
            ("ingress", 0, "from", 0, "namespaceSelector"),
            {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        ),
        (
            "ip_block_except",
            _SERVERS,
            ("ingress", 0, "from"),
            [{"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.2/32"]}}],
        ),
        ("sidecar_port_blocked", _SERVERS, ("ingress", 0, "ports"), [{**_TCP, "port": 15051}]),
    ],
)
def test_the_mistake_in_a_policy_is_told(expected: str, name: str, path: tuple[Any, ...], value: Any) -> None:
    items = [*_NAMESPACES, *_PODS, *_edited(name, *path, value=value)]
    objects = read_objects(list(read_documents(yaml.safe_dump_all(items), "objects")))
    explainer = Explainer(objects)
    explained = explainer.explain("fl/fl-client-0", "fl/fl-server", "TCP", 50051)
    assert explained.verdict == "denied"
    case: Any = SimpleNamespace(
        policies=SimpleNamespace(at=lambda ts_ns: explainer),
        sidecars={"fl-server": "proxy"},
        listeners={("fl-server", 50051): "proxy", ("fl-server", 15051): "server"},
    )
    assert mistake_of(case, explained, 0).identifier == f"policy.{expected}"


def test_the_report_holds_causes_as_its_schema_says_and_shows_them() -> None:
    at_ns = broken(recorded()).meta["failed"]["at_ns"]
    exits = [{"process": "fl-server/server", "status": -9, "at_ns": at_ns}]
    found = diagnose_run(broken(recorded(), exits=exits))
    report = json.loads((DATA / "net2-sec3" / "report.json").read_text())
    report |= {name: found[name] for name in ("troubles", "causes", "dropped_by_filter")}
    assert problems("report", report) == []
    page = render_page(report, draw_figures(report))
    assert '<h2 id="why">Why</h2>' in page
    assert "fl-server/server was killed by SIGKILL" in page
    printed = io.StringIO()
    print_report(report, printed)
    last = " ".join(printed.getvalue().splitlines()[-3:])
    assert "Why: fl-server/server was killed by SIGKILL (certain)." in last
