"""Manifests are read as the API server and the kubelet read them, and refused before anything is made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_levels import runtime, without
from tests.unit.test_manifests import options, overlay
from ztprobe.errors import UsageError
from ztprobe.policy import PolicyPod, compile_policies
from ztprobe.runtime.local.dns import resolv_conf
from ztprobe.runtime.local.expansion import expand
from ztprobe.runtime.local.kustomize import render
from ztprobe.runtime.local.workload import Workload, plan

Edit = Callable[[dict[str, Any]], object]


def documents(level: int = 0) -> dict[str, Any]:
    """The rendered manifests by kind and name, to be edited."""
    return {f"{d['kind']} {d['metadata']['name']}": d for d in copy.deepcopy(render(overlay(level)))}


def planned(edit: Edit, level: int = 0) -> Workload:
    found = documents(level)
    edit(found)
    return plan(list(found.values()), options(level))


def pod_spec(found: dict[str, Any], owner: str = "Job fl-client") -> dict[str, Any]:
    spec: dict[str, Any] = found[owner]["spec"]["template"]["spec"]
    return spec


def client(found: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = pod_spec(found)["containers"][0]
    return container


def server(found: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = pod_spec(found, "Deployment fl-server")["containers"][0]
    return container


# -- types, before anything is made -------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (
            lambda d: d["ConfigMap fl-workload"]["data"].update(OMP_NUM_THREADS=1),
            "ConfigMap fl-workload: field `data.OMP_NUM_THREADS` is 1, expected text (a number",
        ),
        (
            lambda d: client(d).update(command="python -m fl.client"),
            "containers[0].command` is 'python -m fl.client', expected a list of texts",
        ),
        (lambda d: client(d).update(args=[1]), "containers[0].args[0]` is 1, expected text"),
        (lambda d: client(d)["env"].append({"name": "A", "value": 5}), "env[2].value` is 5, expected text"),
        (lambda d: client(d)["env"].append({"value": "x"}), "env[2].name` is missing, expected a name"),
        (lambda d: client(d).update(env={"A": "b"}), "containers[0].env` is {'A': 'b'}, expected a list"),
        (lambda d: client(d).update(command=[]), "field `command` is empty"),
        (lambda d: client(d).pop("command"), "field `command` is empty"),
        (lambda d: pod_spec(d).update(containers=None), "field `spec.template.spec.containers` is missing"),
        (lambda d: pod_spec(d).update(containers=["x"]), "containers[0]` is 'x', expected a mapping"),
        (
            lambda d: d["Job fl-client"].update(spec=[]),
            "Job fl-client: field `spec` is [], expected a mapping",
        ),
        (lambda d: d["Job fl-client"]["spec"].pop("template"), "field `spec.template` is missing"),
        (lambda d: d["Job fl-client"]["spec"].pop("completionMode"), "spec.completionMode` is missing"),
        (
            lambda d: d["Job fl-client"]["spec"].update(completionMode="NonIndexed"),
            "spec.completionMode` is 'NonIndexed', expected Indexed",
        ),
        (lambda d: d["Deployment fl-server"]["spec"].update(replicas=0), "spec.replicas` is 0, expected 1"),
        (
            lambda d: d["Deployment fl-server"]["spec"]["template"].pop("metadata"),
            "Deployment fl-server: field `spec.selector` does not match the labels of the template",
        ),
        (
            lambda d: pod_spec(d).update(restartPolicy="Always"),
            "restartPolicy` is 'Always', expected Never or",
        ),
        (
            lambda d: d["Service fl-server"]["spec"]["ports"][0].update(port="50051"),
            "Service fl-server: field `spec.ports[0].port` is '50051', expected a port, 1 to 65535",
        ),
        (lambda d: d["Service fl-server"]["spec"].update(type="NodePort"), "spec.type` is 'NodePort'"),
        (
            lambda d: server(d)["ports"][0].update(containerPort=70000),
            "containerPort` is 70000, expected a port",
        ),
        (
            lambda d: server(d)["resources"]["limits"].update(memory=[1]),
            "limits.memory` is [1], expected a quan",
        ),
        (
            lambda d: pod_spec(d).update(volumes=[{"name": "v", "emptyDir": {}}]),
            "volumes[0].emptyDir` is not sup",
        ),
        (
            lambda d: client(d).update(volumeMounts=[{"name": "v", "mountPath": "/run/x", "subPath": "y"}]),
            "volumeMounts[0].subPath` is not supported",
        ),
        (
            lambda d: client(d).update(volumeMounts=[{"name": "v", "mountPath": "/run/../etc"}]),
            "mounts below /run only",
        ),
    ],
)
def test_a_wrong_type_is_named_before_anything_is_made(edit: Edit, named: str) -> None:
    with pytest.raises(UsageError) as raised:
        planned(edit)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


# -- what the API server fills in ---------------------------------------------------------------


def everywhere_null(found: dict[str, Any]) -> None:
    for pods in (pod_spec(found), pod_spec(found, "Deployment fl-server")):
        pods.update(initContainers=None, volumes=None)
        pods["containers"][0].update(args=None, volumeMounts=None)
        pods["containers"][0]["resources"].update(requests=None)
    found["Service fl-server"]["spec"].update(type=None)
    found["Deployment fl-server"]["spec"].update(replicas=None)
    server(found)["ports"][0].update(protocol=None)


def everywhere_empty(found: dict[str, Any]) -> None:
    for pods in (pod_spec(found), pod_spec(found, "Deployment fl-server")):
        pods.update(initContainers=[], volumes=[])
        pods["containers"][0].update(args=[], volumeMounts=[])
        pods["containers"][0]["resources"].update(requests={})
    found["Service fl-server"]["spec"].update(type="")
    server(found)["ports"][0].update(protocol="")


def everywhere_absent(found: dict[str, Any]) -> None:
    for pods in (pod_spec(found), pod_spec(found, "Deployment fl-server")):
        pods["containers"][0]["resources"].pop("requests")
    found["Deployment fl-server"]["spec"].pop("replicas")
    server(found)["ports"][0].pop("protocol")


@pytest.mark.parametrize("edit", [everywhere_null, everywhere_empty, everywhere_absent])
def test_null_empty_and_absent_are_what_the_api_server_makes_of_them(edit: Edit) -> None:
    assert planned(edit) == planned(lambda _: None)


@pytest.mark.parametrize("value", [None, "", ...])
def test_names_have_defaults(value: Any) -> None:
    def edit(found: dict[str, Any]) -> None:
        for mapping, key in (
            (pod_spec(found, "Deployment fl-server"), "serviceAccountName"),
            (found["Deployment fl-server"]["metadata"], "namespace"),
            (found["Service fl-server"]["metadata"], "namespace"),
        ):
            mapping.pop(key, None) if value is ... else mapping.update({key: value})

    pod = planned(edit).server
    assert (pod.service_account, pod.namespace) == ("default", "default")


def test_a_null_in_a_map_of_texts_is_the_empty_text() -> None:
    workload = planned(lambda d: d["ConfigMap fl-workload"]["data"].update(FL_X=None))
    assert workload.server.application.env["FL_X"] == ""


@pytest.mark.parametrize(
    ("memory", "expected"),
    [("1.5Gi", 3 << 29), ("1e3", 1000), ("128974848000m", 128974848), (4096, 4096), ("2T", 2 * 10**12)],
)
def test_quantities_are_read_as_the_api_reads_them(memory: Any, expected: int) -> None:
    workload = planned(lambda d: client(d)["resources"]["limits"].update(memory=memory))
    assert workload.clients[0].application.memory_limit_bytes == expected


@pytest.mark.parametrize("memory", ["2Gb", "2K", "", "Gi", "1e", "-1", "0"])
def test_other_quantities_are_refused(memory: str) -> None:
    with pytest.raises(UsageError, match="memory limit"):
        planned(lambda d: client(d)["resources"]["limits"].update(memory=memory))


def policy(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": None},
        "spec": spec,
    }


A, B = (
    PolicyPod(name=name, namespace="default", labels={"app": name}, address=address)
    for name, address in (("a", "10.0.0.1"), ("b", "10.0.0.2"))
)


@pytest.mark.parametrize("types", [{"policyTypes": []}, {"policyTypes": None}, {}])
@pytest.mark.parametrize(
    ("egress", "isolated"),
    [({}, False), ({"egress": []}, False), ({"egress": None}, False), ({"egress": [{}]}, True)],
)
def test_policy_types_default_as_the_api_server_has_it(
    types: dict[str, Any], egress: dict[str, Any], isolated: bool
) -> None:
    rules = compile_policies([policy({"podSelector": {}, **types, **egress})], [A, B])
    assert "a" in rules.isolated["ingress"]
    assert ("a" in rules.isolated["egress"]) is isolated


def test_a_null_selector_is_an_absent_one() -> None:
    elsewhere = PolicyPod(name="c", namespace="other", labels={"app": "a"}, address="10.0.0.3")
    peer = {"podSelector": {"matchLabels": {"app": "a"}}, "namespaceSelector": None}
    rules = compile_policies([policy({"podSelector": {}, "ingress": [{"from": [peer]}]})], [A, B, elsewhere])
    assert rules.allows("a", "b", "TCP", 1).allowed
    assert not rules.allows("c", "b", "TCP", 1).allowed
    with pytest.raises(UsageError, match="is empty"):
        compile_policies([policy({"ingress": [{"from": [{"podSelector": None}]}]})], [A])


def test_values_of_a_selector_are_texts() -> None:
    expression = {"key": "app", "operator": "In", "values": [True]}
    with pytest.raises(UsageError, match=r"matchExpressions\[0\]\.values\[0\]` is True, expected text"):
        compile_policies([policy({"podSelector": {"matchExpressions": [expression]}})], [A])


def test_a_word_that_yaml_once_took_for_true_matches_its_label(tmp_path: Path) -> None:
    manifests = without(tmp_path, 1)
    policies = manifests / "components/network-policy/policies.yaml"
    policies.write_text(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n"
        "  podSelector: {matchExpressions: [{key: tls, operator: In, values: [on]}]}\n"
        "  policyTypes: [Ingress, Egress]\n"
    )
    for file in ("server.yaml", "clients.yaml"):
        text = (manifests / "base" / file).read_text()
        labelled = text.replace(
            "    metadata:\n      labels:\n", "    metadata:\n      labels:\n        tls: on\n"
        )
        assert labelled != text
        (manifests / "base" / file).write_text(labelled)
    rules = runtime(tmp_path, 1, manifests).rules
    assert {"fl-server", "fl-client-0"} <= rules.isolated["ingress"].keys()


# -- $(VAR) -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expanded"),
    [  # k8s.io/kubernetes/third_party/forked/golang/expansion/expand_test.go
        ("$(VAR_A)", "A"),
        ("___$(VAR_B)___", "___B___"),
        ("$(VAR_A)$(VAR_B)", "AB"),
        ("$(VAR_DNE)", "$(VAR_DNE)"),
        ("$(VAR_REF)", "$(VAR_A)"),
        ("$$(VAR_A)", "$(VAR_A)"),
        ("$$$(VAR_A)", "$A"),
        ("$$$$(VAR_A)", "$$(VAR_A)"),
        ("$VAR_A", "$VAR_A"),
        ("${VAR_A}", "${VAR_A}"),
        ("$(VAR_A", "$(VAR_A"),
        ("$()", "$()"),
        ("$($(VAR_A))", "$($(VAR_A))"),
        ("foo$", "foo$"),
        ("\\$(VAR_A)", "\\A"),
        ("$(VAR_EMPTY)x", "x"),
        ("--$$$$$$$$$(VAR_A)", "--$$$$A"),
    ],
)
def test_references_expand_as_in_the_kubelet(text: str, expanded: str) -> None:
    known = {"VAR_A": "A", "VAR_B": "B", "VAR_REF": "$(VAR_A)", "VAR_EMPTY": ""}
    assert expand(text, known) == expanded


def test_references_see_what_stands_before_them() -> None:
    def edit(found: dict[str, Any]) -> None:
        client(found)["env"] += [
            {"name": "LATE", "value": "$(AFTER) of $(FL_ROUNDS)"},
            {"name": "AFTER", "value": "$(POD_NAME)"},
            {"name": "KEPT", "value": "$$(POD_NAME)"},
            {"name": "EMPTY"},
        ]
        client(found).update(command=["run", "$(AFTER)"], args=["$(JOB_COMPLETION_INDEX)", "$(NOBODY)"])

    app = planned(edit).clients[1].application
    assert app.command == ("run", "fl-client-1", "1", "$(NOBODY)")
    assert [app.env[name] for name in ("LATE", "AFTER", "KEPT", "EMPTY")] == [
        "$(AFTER) of 7",
        "fl-client-1",
        "$(POD_NAME)",
        "",
    ]


def test_sidecars_get_the_completion_index_too() -> None:
    (proxy,) = (c for c in planned(lambda _: None, 2).clients[1].containers if c.sidecar)
    assert proxy.env["JOB_COMPLETION_INDEX"] == "1"


def test_the_kubelet_writes_resolver_options_beside_its_own() -> None:
    def edit(found: dict[str, Any]) -> None:
        options = [{"name": "use-vc"}, {"name": "timeout", "value": "2"}]
        pod_spec(found)["dnsConfig"] = {"options": options}

    pod = planned(edit).clients[0]
    assert pod.resolver_options == ("use-vc", "timeout:2")
    assert "options ndots:5 use-vc timeout:2\n" in resolv_conf("10.244.0.5", "fl", pod.resolver_options)
    assert "options ndots:5\n" in resolv_conf(
        "10.244.0.5", "fl", planned(lambda _: None).server.resolver_options
    )


def test_a_sidecar_without_a_startup_probe_is_not_waited_for() -> None:
    def edit(found: dict[str, Any]) -> None:
        del pod_spec(found)["initContainers"][0]["startupProbe"]

    workload = planned(edit, level=2)
    assert [c.startup_probe for c in workload.clients[0].containers if c.sidecar] == [False]
    assert [c.startup_probe for c in workload.server.containers if c.sidecar] == [True]
