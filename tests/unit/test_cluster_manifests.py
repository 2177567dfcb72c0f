"""What is applied to a cluster: rendered as kubectl does, valid for old and new versions, guarded as said."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.programs import program
from tests.unit.test_manifests import unordered
from ztprobe.documents.strict_yaml import kustomize_scalar, parse_yaml
from ztprobe.paths import MANIFESTS_DIR
from ztprobe.runtime.local.kustomize import render

# Sidecars that are init containers are as old as the first; the others are what is in use and the newest.
VERSIONS = ("1.29", "1.33", "1.37")
AGENTS = ("agent", "agent/least-privilege")
ALL = (
    *AGENTS,
    "mtls-linkerd",
    *(f"overlays/{path.name}" for path in sorted((MANIFESTS_DIR / "overlays").iterdir())),
)


@pytest.mark.parametrize("name", [*AGENTS, "mtls-linkerd"])
def test_rendering_agrees_with_kubectl(name: str) -> None:
    command = [program("kubectl"), "kustomize", str(MANIFESTS_DIR / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parsed = [document.value for document in parse_yaml(done.stdout, kustomize_scalar)]
    assert unordered(render(MANIFESTS_DIR / name)) == unordered(parsed)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ALL)
def test_every_document_is_valid_to_the_last_field(name: str, version: str) -> None:
    for document in render(MANIFESTS_DIR / name):
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_the_dashboard_is_a_config_map_that_grafana_finds() -> None:
    directory = MANIFESTS_DIR / "dashboard"
    command = [program("kubectl"), "kustomize", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (document,) = (document.value for document in parse_yaml(done.stdout, kustomize_scalar))
    for version in VERSIONS:
        assert kubernetes_validate.validate(document, version, strict=True) == version
    assert document["metadata"] == {"name": "ztprobe-dashboard", "labels": {"grafana_dashboard": "1"}}
    assert document["data"] == {"ztprobe-agent.json": (directory / "ztprobe-agent.json").read_text()}


def test_the_validation_sees_a_misspelt_field() -> None:
    (daemon,) = (d for d in render(MANIFESTS_DIR / "agent") if d["kind"] == "DaemonSet")
    daemon["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(daemon, VERSIONS[0], strict=True)


def pod_of(name: str) -> dict[str, Any]:
    (daemon,) = (d for d in render(MANIFESTS_DIR / name) if d["kind"] == "DaemonSet")
    spec: dict[str, Any] = daemon["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("name", AGENTS)
def test_every_node_gets_an_agent_that_can_undo_what_it_did(name: str) -> None:
    spec = pod_of(name)
    (agent,) = spec["containers"]
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["hostPID"] is True
    assert "hostNetwork" not in spec
    assert spec["terminationGracePeriodSeconds"] >= 30
    assert "--end-leases" in agent["args"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= agent.keys()
    assert set(agent["resources"]["requests"]) == {"cpu", "memory"}
    assert set(agent["resources"]["limits"]) == {"memory"}
    on_host = {v["name"]: v["hostPath"]["path"] for v in spec["volumes"] if "hostPath" in v}
    mounted = {mount["name"]: mount["mountPath"] for mount in agent["volumeMounts"]}
    assert {mounted[key]: path for key, path in on_host.items()} == {path: path for path in on_host.values()}
    assert {"/run/ztprobe", "/run/ztprobe-compiled", "/var/lib/ztprobe"} <= set(on_host.values())


# https://kubernetes.io/docs/concepts/security/pod-security-standards/, as far as these pods touch it.
BASELINE_CAPABILITIES = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"),
    *("NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}


def beyond_baseline(spec: dict[str, Any]) -> set[str]:
    """What Pod Security's "baseline" refuses in a pod."""
    found = {key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)}
    if any("hostPath" in volume for volume in spec.get("volumes", ())):
        found.add("hostPath")
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        context = container.get("securityContext", {})
        if context.get("privileged"):
            found.add("privileged")
        added = set(context.get("capabilities", {}).get("add", ()))
        found |= added - BASELINE_CAPABILITIES
        if any("hostPort" in port for port in container.get("ports", ())):
            found.add("hostPort")
        if context.get("seccompProfile", {}).get("type") == "Unconfined":
            found.add("seccompProfile")
    return found


def test_least_privilege_drops_all_and_explains_what_it_adds() -> None:
    (agent,) = pod_of("agent/least-privilege")["containers"]
    context = agent["securityContext"]
    assert context["privileged"] is False
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context["capabilities"]["drop"] == ["ALL"]
    lines = (MANIFESTS_DIR / "agent/least-privilege/capabilities.yaml").read_text().splitlines()
    for capability in context["capabilities"]["add"]:
        (number,) = (i for i, line in enumerate(lines) if line.strip() == f"- {capability}")
        assert lines[number - 1].strip().startswith("# "), capability
    # As documented beside them: the class is "privileged", though the container is not.
    beyond = beyond_baseline(pod_of("agent/least-privilege"))
    assert beyond == {"hostPID", "hostPath", *context["capabilities"]["add"]}
    assert beyond_baseline(pod_of("agent")) == {"hostPID", "hostPath", "privileged"}
    for name in AGENTS:
        (namespace,) = (d for d in render(MANIFESTS_DIR / name) if d["kind"] == "Namespace")
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def test_linkerd_is_said_to_be_untried_and_keeps_the_workload_s_own_policies() -> None:
    documents = render(MANIFESTS_DIR / "mtls-linkerd")
    policies = {d["metadata"]["name"] for d in documents if d["kind"] == "NetworkPolicy"}
    assert policies >= {"default-deny", "allow-dns", "fl-client-to-server", "linkerd-control-plane"}
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            assert document["spec"]["template"]["metadata"]["annotations"]["linkerd.io/inject"] == "enabled"
            assert "initContainers" not in document["spec"]["template"]["spec"]
    for file in (MANIFESTS_DIR / "mtls-linkerd", MANIFESTS_DIR / "components/mtls-linkerd"):
        text = " ".join(Path(file, "kustomization.yaml").read_text().replace("#", "").split())
        assert "never tried on a Linkerd" in text or "Never tried on a Linkerd" in text
