"""The manifests say what we mean, for a cluster as for the local runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import program
from ztprobe import paths
from ztprobe.documents.strict_yaml import kustomize_scalar, parse_yaml
from ztprobe.errors import UsageError
from ztprobe.policy import PolicyPod, compile_policies
from ztprobe.runtime.interface import WorkloadOptions
from ztprobe.runtime.local import certificates
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.workload import Workload, plan

LEVELS = range(4)


def overlay(level: int, manifests: Path = paths.MANIFESTS_DIR) -> Path:
    return manifests / "overlays" / f"sec{level}"


def options(level: int, **changes: Any) -> WorkloadOptions:
    chosen = {
        "rounds": 7,
        "clients": 3,
        "seed": 4,
        "distribution": "noniid",
        "dataset": "mnist",
        "data_dir": Path("/data"),
        "reconnect": True,
        "level": level,
    }
    return WorkloadOptions(**(chosen | changes))


def planned(level: int) -> Workload:
    return plan(render(overlay(level)), options(level))


def unordered(value: Any) -> Any:
    """Lists of named things by name: kustomize puts them in an order of its own."""
    if isinstance(value, dict):
        return {key: unordered(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [unordered(item) for item in value]
        return (
            sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
            if all(isinstance(item, dict) for item in items)
            else items
        )
    return value


@pytest.mark.parametrize("level", LEVELS)
def test_rendering_agrees_with_kubectl(level: int) -> None:
    command = [program("kubectl"), "kustomize", str(overlay(level))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert unordered(render(overlay(level))) == unordered(
        [parsed.value for parsed in parse_yaml(done.stdout, kustomize_scalar)]
    )


@pytest.mark.parametrize("level", LEVELS)
def test_levels_differ_in_what_they_are_named_for(level: int) -> None:
    documents = render(overlay(level))
    kinds = {document["kind"] for document in documents}
    assert ("NetworkPolicy" in kinds) is (level in (1, 3))
    assert ("RoleBinding" in kinds) is (level == 3)
    workload = planned(level)
    for pod in workload.pods:
        assert [c.name for c in pod.containers if c.sidecar] == (["proxy"] if level >= 2 else [])
    (namespace,) = (document for document in documents if document["kind"] == "Namespace")
    enforced = namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
    assert enforced == ("restricted" if level == 3 else None)


def test_plain_levels_talk_directly_and_tls_levels_through_the_loopback() -> None:
    for level in LEVELS:
        workload = planned(level)
        server, client = workload.server.application.env, workload.clients[0].application.env
        if level < 2:
            assert server["FL_LISTEN"] == "0.0.0.0:50051"
            assert client["FL_SERVER"] == f"{workload.service.domain_name}:{workload.service.port}"
        else:
            assert server["FL_LISTEN"].startswith("127.0.0.1:")
            assert client["FL_SERVER"].startswith("127.0.0.1:")


def test_the_command_line_reaches_the_containers() -> None:
    workload = planned(0)
    assert [pod.name for pod in workload.clients] == ["fl-client-0", "fl-client-1", "fl-client-2"]
    env = workload.clients[2].application.env
    expected = {
        "POD_NAME": "fl-client-2",
        "JOB_COMPLETION_INDEX": "2",
        "FL_ROUNDS": "7",
        "FL_CLIENTS": "3",
        "FL_SEED": "4",
        "FL_DISTRIBUTION": "noniid",
        "FL_DATASET": "mnist",
        "FL_DATA_DIR": "/data",
        "FL_RECONNECT": "1",
        "OMP_NUM_THREADS": "1",
    }
    assert expected.items() <= env.items()
    assert "JOB_COMPLETION_INDEX" not in workload.server.application.env
    assert workload.server.application.memory_limit_bytes == 4 << 30


@pytest.mark.parametrize("level", LEVELS)
def test_pods_satisfy_pod_security_restricted(level: int) -> None:
    """The standard's list, as far as it applies to Linux pods without host access."""
    templates = [
        d["spec"]["template"]["spec"] for d in render(overlay(level)) if d["kind"] in ("Deployment", "Job")
    ]
    assert len(templates) == 2
    for spec in templates:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all(set(volume) <= {"name", "configMap", "secret"} for volume in spec.get("volumes", []))
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in context
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_the_policies_open_the_workloads_paths_and_no_others() -> None:
    workload = planned(3)
    pods = [
        PolicyPod(name=p.name, namespace=p.namespace, labels=p.labels, address=f"10.0.0.{n}", ports=p.ports)
        for n, p in enumerate(workload.pods, 1)
    ]
    dns = PolicyPod(name="dns", namespace="kube-system", labels={"k8s-app": "kube-dns"}, address="10.0.0.50")
    fake = PolicyPod(name="fake", namespace="fl-2", labels={"k8s-app": "kube-dns"}, address="10.0.0.51")
    rules = compile_policies(workload.policies, [*pods, dns, fake])
    everyone = [*(p.name for p in pods), "dns", "fake"]
    passing = {
        (src, dst, protocol, port)
        for src in everyone
        for dst in everyone
        for protocol in ("TCP", "UDP")
        for port in (53, 80, 15051, 50051, 50052)
        if src != dst and not {src, dst} <= {"dns", "fake"}
        if rules.allows(src, dst, protocol, port).allowed
    }
    clients = [p.name for p in workload.clients]
    assert passing == {(c, "fl-server", "TCP", 50051) for c in clients} | {
        (p.name, "dns", protocol, 53) for p in pods for protocol in ("TCP", "UDP")
    }


def test_the_server_admits_exactly_the_clients_identity() -> None:
    (config,) = (
        d["data"]["haproxy.cfg"] for d in render(overlay(2)) if d["metadata"]["name"] == "fl-server-proxy"
    )
    client = planned(2).clients[0]
    identity = certificates.spiffe_id(client.namespace, client.service_account)
    # A URI name in DER: context tag 6, length, text.
    name = bytes([0x86, len(identity)]) + identity.encode()
    assert f"acl from_client ssl_c_der,hex -m sub {name.hex().upper()}\n" in config
    assert f"str({identity}) if from_client" in config


@pytest.mark.parametrize("role", ["fl-server-proxy", "fl-client-proxy"])
def test_proxies_use_one_thread_and_never_resume(role: str) -> None:
    (config,) = (d["data"]["haproxy.cfg"] for d in render(overlay(3)) if d["metadata"]["name"] == role)
    for setting in ("nbthread 1\n", "tune.ssl.cachesize 0\n", "no-tls-tickets", "ssl-min-ver TLSv1.3"):
        assert setting in config
    assert "mode tcp\n" in config
    assert "splice" not in config
    assert ("no-ssl-reuse" in config) is (role == "fl-client-proxy")


def base(tmp_path: Path, **files: str) -> Path:
    """A kustomization with one ConfigMap, and the files given."""
    defaults = {
        "kustomization.yaml": "kind: Kustomization\nresources: [config.yaml]\n",
        "config.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '1', b: '2'}\n",
    }
    for name, text in (defaults | {key.replace("__", "."): text for key, text in files.items()}).items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"kustomization__yaml": "kind: Kustomization\nimages: []\n"}, "field `images` is not supported"),
        ({"kustomization__yaml": "kind: Kustomization\nresources: [x.yaml]\n"}, "x.yaml does not exist"),
        (
            {"kustomization__yaml": "kind: Kustomization\nresources: x.yaml\n"},
            "field `resources` is 'x.yaml'",
        ),
        ({"kustomization__yaml": "kind: Kustomisation\n"}, "kind is 'Kustomisation'"),
        ({"config__yaml": "kind: [\n"}, "config.yaml:2: is not YAML"),
        ({"config__yaml": "kind: ConfigMap\n"}, "config.yaml: field `apiVersion` is None"),
        ({"config__yaml": "- 1\n"}, "config.yaml: a document is list"),
        (
            {"kustomization__yaml": "kind: Kustomization\npatches: [{target: {kind: Job}, patch: '[]'}]\n"},
            "field `patches[0]` is not supported",
        ),
        (
            {
                "kustomization__yaml": "kind: Kustomization\npatches: [{path: p.yaml}]\n",
                "p__yaml": "apiVersion: v1\nkind: Job\nmetadata: {name: j}\n",
            },
            "p.yaml: patches Job j, which no resource defines",
        ),
    ],
)
def test_what_the_renderer_does_not_know_is_named(tmp_path: Path, files: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError) as raised:
        render(base(tmp_path, **files))
    assert named in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_patches_merge_by_key_and_null_removes(tmp_path: Path) -> None:
    directory = base(
        tmp_path,
        kustomization__yaml=(
            "kind: Kustomization\nnamespace: n\nresources: [config.yaml]\npatches: [{path: p.yaml}]\n"
        ),
        p__yaml="apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: null, c: '3'}\n",
    )
    (document,) = render(directory)
    assert document["data"] == {"b": "2", "c": "3"}
    assert document["metadata"] == {"name": "c", "namespace": "n"}


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        (
            "server.yaml",
            "clusterIP: None",
            "clusterIP: 10.0.0.1",
            "Service fl-server: field `spec.clusterIP` is '10.0.0.1', expected `clusterIP: None`",
        ),
        (
            "server.yaml",
            "enableServiceLinks: false",
            "hostNetwork: true",
            "field `spec.template.spec.hostNetwork` is not supported",
        ),
        ("clients.yaml", "memory: 2Gi", "memory: 2Gb", "memory limit '2Gb'"),
        ("clients.yaml", "fieldPath: metadata.name", "fieldPath: spec.nodeName", "takes 'spec.nodeName'"),
        (
            "clients.yaml",
            "image: ",
            "livenessProbe: {}\n          image: ",
            "[0].livenessProbe` is not",
        ),
        ("workload.yaml", "kind: ConfigMap", "kind: StatefulSet", "StatefulSet fl-workload"),
    ],
)
def test_what_the_runtime_cannot_do_is_named(
    tmp_path: Path, file: str, old: str, new: str, named: str
) -> None:
    manifests = tmp_path / "manifests"
    shutil.copytree(paths.MANIFESTS_DIR, manifests)
    changed = manifests / "base" / file
    assert old in changed.read_text()
    changed.write_text(changed.read_text().replace(old, new))
    with pytest.raises(UsageError) as raised:
        plan(render(overlay(0, manifests)), options(0))
    assert named in str(raised.value)


def test_every_file_is_used() -> None:
    """A file that no kustomization names would be dead, and look alive."""
    for directory in {file.parent for file in paths.MANIFESTS_DIR.rglob("kustomization.yaml")}:
        head = yaml.safe_load((directory / "kustomization.yaml").read_text())
        named = {*head.get("resources", []), *(patch["path"] for patch in head.get("patches", []))}
        assert {f.name for f in directory.glob("*.yaml")} - {"kustomization.yaml"} == {
            name for name in named if name.endswith(".yaml")
        }
