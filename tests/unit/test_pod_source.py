"""What is asked of a cluster's API and what is made of its answers.

The server here is a stand-in for the API alone: it gives answers written down beforehand.
tests/kernel/test_cluster.py has the real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
import yaml

from ztprobe.errors import EnforcementError, PreflightError, UsageError
from ztprobe.kubernetes import pod_source
from ztprobe.kubernetes.api import configured
from ztprobe.kubernetes.pod_source import Cluster
from ztprobe.paths import MANIFESTS_DIR
from ztprobe.pods.cgroup import PodNamespaces
from ztprobe.pods.selectors import parse_selector

EVERYTHING = parse_selector("")


class Answers:
    """What to say to each kind of list, and what was asked."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.services: list[dict[str, Any]] = []
        self.status = 200
        self.body: str | None = None
        self.asked: list[tuple[str, dict[str, list[str]]]] = []

    def answer(self, path: str) -> tuple[int, str]:
        parts = urlparse(path)
        query = parse_qs(parts.query)
        self.asked.append((parts.path, query))
        if self.body is not None:
            return self.status, self.body
        items = self.pods if parts.path.endswith("/pods") else self.services
        page, metadata = int(query.get("continue", ["0"])[0]), {}
        if page + 1 < len(items):  # pages of one
            metadata = {"continue": str(page + 1)}
        return self.status, json.dumps({"metadata": metadata, "items": items[page : page + 1]})


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    answers = Answers()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answers.answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.delenv("NODE_NAME", raising=False)
        monkeypatch.setattr(pod_source, "find_namespaces", lambda: PodNamespaces(pods={}, others=()))
        try:
            yield answers
        finally:
            server.shutdown()
            thread.join()


def pod(name: str, *, node: str = "node-b", phase: str = "Running", **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "metadata": {"name": name, "namespace": "fl", "uid": f"uid-{name}", "labels": {"app": "fl-client"}},
        "spec": {"nodeName": node},
        "status": {"phase": phase, "podIP": "fd00::7", "podIPs": [{"ip": "fd00::7"}, {"ip": "10.0.0.7"}]},
    }
    for path, value in changes.items():
        part, _, key = path.partition("_")
        made[part][key] = value
    return made


def test_every_page_is_read_and_the_selector_is_the_servers(api: Answers) -> None:
    api.pods = [pod("a"), pod("b"), pod("c", phase="Failed")]
    found = Cluster("node-a").pods(parse_selector("app in (fl-client),!x"), "fl")
    assert [str(p) for p in found.elsewhere] == ["fl/a", "fl/b"]
    assert {p.address for p in found.elsewhere} == {"10.0.0.7"}
    assert not any(p.is_here for p in found.elsewhere)
    assert [query.get("continue") for _, query in api.asked] == [None, ["1"], ["2"]]
    assert {query["labelSelector"][0] for _, query in api.asked} == {"app in (fl-client),!x"}
    assert {path for path, _ in api.asked} == {"/api/v1/namespaces/fl/pods"}


@pytest.mark.parametrize(
    ("pods", "kind", "message"),
    [
        ([], UsageError, "--selector '' matches no pod in namespace fl; nothing runs there"),
        ([pod("a"), pod("b")], UsageError, "fl/a is on node node-b, and this is node node-a"),
        ([pod("a", node="node-a")], PreflightError, "fl/a: no pod's processes can be seen from here"),
        ([pod("a", node="node-a", spec_hostNetwork=True)], EnforcementError, "fl/a uses its node's own net"),
        ([pod("a", status_podIPs=[{"ip": "fd00::7"}])], EnforcementError, "fl/a has no IPv4 address"),
        ([pod("a", phase="Pending")], EnforcementError, "fl/a is Pending: wait until it runs"),
        ([pod("a", metadata_deletionTimestamp="2026-01-01T00:00:00Z")], EnforcementError, "fl/a is ending"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    api: Answers, pods: list[dict[str, Any]], kind: type[Exception], message: str
) -> None:
    api.pods = pods
    with pytest.raises(kind) as raised:
        Cluster("node-a").pods_here(EVERYTHING, "fl")
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, json.dumps({"message": "Unauthorized"}), "does not know us (401, Unauthorized)"),
        (
            403,
            json.dumps({"message": "pods is forbidden"}),
            "pods is forbidden; missing: the verb list on pods",
        ),
        (500, "oops", "failed to list pods in namespace fl (500)"),
        (200, "<html>", "answers, but not as a Kubernetes API does"),
    ],
)
def test_a_refusal_is_one_line(api: Answers, status: int, body: str, message: str) -> None:
    api.status, api.body = status, body
    with pytest.raises(PreflightError) as raised:
        Cluster("node-a").pods(EVERYTHING, "fl")
    assert message in str(raised.value)


def test_a_selector_that_the_server_refuses_is_the_users(api: Answers) -> None:
    api.status, api.body = 400, json.dumps({"message": "unable to parse requirement"})
    with pytest.raises(UsageError, match="selector 'a': unable to parse requirement"):
        Cluster("node-a").pods(parse_selector("a"), "fl")


def test_services_in_front_of_peers_are_peers(api: Answers) -> None:
    api.pods = [pod("a")]
    api.services = [
        {"metadata": {"name": name}, "spec": {"clusterIP": address, "selector": selector}}
        for name, address, selector in (
            ("front", "10.96.0.9", {"app": "fl-client"}),
            ("headless", "None", {"app": "fl-client"}),
            ("six", "fd00::9", {"app": "fl-client"}),
            ("other", "10.96.0.8", {"app": "x"}),
            ("external", "10.96.0.7", None),
        )
    ]
    found = Cluster("node-a").peers(EVERYTHING, "fl")
    assert [(p.name, p.address) for p in found.elsewhere] == [
        ("a", "10.0.0.7"),
        ("service/front", "10.96.0.9"),
    ]


def test_nothing_to_log_in_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert configured()
    with pytest.raises(PreflightError, match=f"no access to a Kubernetes cluster: {tmp_path}/none: "):
        Cluster()
    (tmp_path / "none").write_text("{half: [")
    with pytest.raises(PreflightError, match=f"no access to a Kubernetes cluster: {tmp_path}/none: "):
        Cluster()
    monkeypatch.delenv("KUBECONFIG")
    assert not configured()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert configured()
    with pytest.raises(PreflightError, match="no access to a Kubernetes cluster: "):
        Cluster()


def test_the_role_grants_reading_of_what_is_asked_for_alone() -> None:
    component = MANIFESTS_DIR / "components" / "node-access"
    (resource,) = yaml.safe_load((component / "kustomization.yaml").read_text())["resources"]
    role = yaml.safe_load((component / resource).read_text())
    assert {(*rule["apiGroups"], *rule["resources"]) for rule in role["rules"]} == {
        ("", "pods"),
        ("", "services"),
    }
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"get", "list"}


def test_a_process_is_named_by_its_container_s_id(api: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pod("a", node="node-a")
    one["status"]["containerStatuses"] = [{"name": "client", "containerID": "containerd://c1"}]
    api.pods = [one]
    here = replace(Cluster("node-b").pods(EVERYTHING, "fl").elsewhere[0], netns_inode=7)
    running = [(70, "a", "c1"), (71, "a", "pause")]
    monkeypatch.setattr(pod_source, "find_processes", lambda uids: running if uids == {"uid-a": "a"} else [])
    cluster = Cluster("node-a")
    assert cluster.processes([here]) == {70: ("a", "client")}
    asked = len(api.asked)
    assert cluster.processes([here]) == {70: ("a", "client")}
    assert len(api.asked) == asked  # the pause container is no reason to ask every time


def test_a_container_s_log_is_that_of_its_latest_start(
    api: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.pods = [pod("a")]
    (found,) = Cluster("node-a").pods(EVERYTHING, "fl").elsewhere
    monkeypatch.setattr(pod_source, "LOGS", tmp_path)
    directory = tmp_path / "fl_a_uid-a" / "client"
    directory.mkdir(parents=True)
    for name in ("0.log", "10.log", "9.log", "10.log.20260101.gz"):
        (directory / name).touch()
    assert Cluster("node-a").log(found, "client") == directory / "10.log"
