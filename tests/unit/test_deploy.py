"""What `ztprobe deploy` makes of the manifests, without a cluster."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.unit.test_cluster_manifests import VERSIONS
from ztprobe.paths import REPO_DIR
from ztprobe.runtime.cluster.agent import agent_documents
from ztprobe.runtime.cluster.experiment import experiment_documents
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local.certificates import spiffe_id


def options(level: int, **fl: Any) -> WorkloadOptions:
    return WorkloadOptions(
        rounds=7,
        clients=5,
        seed=4,
        distribution="noniid",
        dataset="digits",
        data_dir=None,
        reconnect=False,
        level=level,
        fl=fl,
    )


def named(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return found


CASES = [(level, fl) for level in range(4) for fl in ({}, {"edges": 2})]


@pytest.mark.parametrize(("level", "fl"), CASES)
def test_a_run_names_no_namespace_but_its_own(level: int, fl: dict[str, Any]) -> None:
    documents = experiment_documents("ab12cd", options(level, **fl))
    text = json.dumps(documents)
    assert re.search(r"\.fl\.svc|/ns/fl/", text) is None
    assert spiffe_id("fl", "fl-client").encode().hex().upper() not in text
    namespaces = {d["metadata"].get("namespace") for d in documents if d["kind"] != "Namespace"}
    assert namespaces == {"fl-ab12cd"}
    assert {s["namespace"] for d in documents for s in d.get("subjects", ())} <= {"fl-ab12cd"}
    for document in documents:
        assert document["metadata"]["labels"]["ztprobe.run"] == "ab12cd"
        if document["kind"] == "Job":
            assert document["spec"]["template"]["metadata"]["labels"]["ztprobe.run"] == "ab12cd"
    for version in VERSIONS:
        for document in documents:
            kubernetes_validate.validate(document, version, strict=True)


def test_the_server_runs_once_and_five_clients_fit_a_small_node() -> None:
    documents = experiment_documents("ab12cd", options(3))
    assert not [d for d in documents if d["kind"] == "Deployment"]
    server, clients = named(documents, "Job", "fl-server"), named(documents, "Job", "fl-client")
    for job, count in ((server, 1), (clients, 5)):
        assert job["spec"]["backoffLimit"] == 0
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
        assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (count, count)
    requested_millicores = 0
    for job in (server, clients):
        pod = job["spec"]["template"]["spec"]
        for container in (*pod["containers"], *pod["initContainers"]):
            cpu = container["resources"]["requests"]["cpu"]
            requested_millicores += int(cpu.removesuffix("m")) * job["spec"]["parallelism"]
    assert requested_millicores <= 900
    order = [d["kind"] for d in documents]
    assert order.index("NetworkPolicy") < order.index("Job")
    assert documents[-1] == clients
    settings = named(documents, "ConfigMap", "fl-workload")["data"]
    assert (settings["FL_ROUNDS"], settings["FL_CLIENTS"], settings["FL_SEED"]) == ("7", "5", "4")


def test_no_probe_of_ours_opens_a_connection() -> None:
    for document in experiment_documents("ab12cd", options(2)):
        pod = document.get("spec", {}).get("template", {}).get("spec", {})
        for container in (*pod.get("containers", ()), *pod.get("initContainers", ())):
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if kind in container:
                    command = container[kind]["exec"]["command"]
                    assert command[0] == "grep"
                    port = int(re.fullmatch(r":([0-9A-F]{4}) 0{8}:0000 0A", command[2])[1], 16)  # type: ignore[index]
                    assert port in (15001, 50051)


def test_the_certificates_are_for_the_run_s_own_names() -> None:
    documents = experiment_documents("ab12cd", options(2))
    config = named(documents, "ConfigMap", "fl-server-proxy")["data"]["haproxy.cfg"]
    identity = spiffe_id("fl-ab12cd", "fl-client").encode()
    der = (bytes([0x86, len(identity)]) + identity).hex().upper()
    assert f"-m sub {der}\n" in config
    authorities = set()
    for name, account, dns in (
        ("fl-server-tls", "fl-server", ["fl-server.fl-ab12cd.svc.cluster.local"]),
        ("fl-client-tls", "fl-client", []),
    ):
        data = named(documents, "Secret", name)["data"]
        certificate = x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"]))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id("fl-ab12cd", account)]
        assert names.get_values_for_type(x509.DNSName) == dns
        authority = x509.load_pem_x509_certificate(base64.b64decode(data["ca.crt"]))
        certificate.verify_directly_issued_by(authority)
        authorities.add(data["ca.crt"])
        assert der in certificate.public_bytes(serialization.Encoding.DER).hex().upper() or dns
    assert len(authorities) == 1
    assert not [d for d in experiment_documents("ab12cd", options(1)) if d["kind"] == "Secret"]


def test_a_namespace_that_is_there_is_neither_made_nor_taken_along() -> None:
    documents = experiment_documents("ab12cd", options(3), namespace="team-a")
    assert not [d for d in documents if d["kind"] == "Namespace"]
    assert {d["metadata"]["namespace"] for d in documents} == {"team-a"}
    documents = agent_documents(namespace="team-a")
    assert not [d for d in documents if d["kind"] == "Namespace"]
    binding = named(documents, "ClusterRoleBinding", "ztprobe-agent")
    assert binding["subjects"][0]["namespace"] == "team-a"


@pytest.mark.parametrize("least_privilege", [True, False])
def test_the_agent_comes_with_both_certificates(least_privilege: bool) -> None:
    documents = agent_documents(least_privilege=least_privilege, image="registry/agent:7")
    for document in documents:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
        assert document["metadata"]["labels"]["ztprobe.run"] == "agent"
    daemon = named(documents, "DaemonSet", "ztprobe-agent")
    assert daemon["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/agent:7"
    agent, collector = (
        named(documents, "Secret", f"ztprobe-{who}-tls")["data"] for who in ("agent", "collector")
    )
    assert agent["ca.crt"] == collector["ca.crt"]
    (caller,) = (a for a in daemon["spec"]["template"]["spec"]["containers"][0]["args"] if "--caller" in a)
    certificate = x509.load_pem_x509_certificate(base64.b64decode(collector["tls.crt"]))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (identity,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert caller == "--caller=" + identity.replace("/ns/ztprobe/", "/ns/$(POD_NAMESPACE)/")
    assert documents[-1] == daemon  # when its Secret is there


def test_render_needs_no_cluster() -> None:
    command = [sys.executable, "-m", "ztprobe", "deploy", "experiment", "net2-sec3", "--render"]
    environment = {"PATH": "/usr/bin:/bin", "KUBECONFIG": "/nonexistent"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO_DIR, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    documents = list(yaml.safe_load_all(done.stdout))
    (run,) = {d["metadata"]["labels"]["ztprobe.run"] for d in documents}
    assert re.fullmatch("[0-9a-f]{6}", run)
    assert {d["kind"] for d in documents} >= {"Namespace", "NetworkPolicy", "Secret", "Job", "Role"}
