"""`ztprobe policy`: what is printed, exit codes, and what is refused in one line."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from ztprobe.cli import main

DATA = Path(__file__).parents[1] / "data"
OBJECTS = """
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}
- {apiVersion: v1, kind: Namespace, metadata: {name: fl, labels: {team: ml}}}
- apiVersion: v1
  kind: Pod
  metadata: {name: server, namespace: fl, labels: {app: server, pod-template-hash: abc}}
  spec: {containers: [{name: s, ports: [{name: grpc, containerPort: 50051}]}]}
  status: {podIP: 10.0.0.1}
- apiVersion: v1
  kind: Pod
  metadata: {name: client-0, namespace: fl, labels: {app: client}}
  status: {podIP: 10.0.0.2}
- apiVersion: v1
  kind: Pod
  metadata: {name: client-1, namespace: fl, labels: {app: client}}
  status: {podIP: 10.0.0.3}
- {apiVersion: v1, kind: Service, metadata: {name: server, namespace: fl}, spec: {clusterIP: 10.96.0.9}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {password: hunter2}}
"""
POLICIES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: fl}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-server, namespace: fl}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: grpc}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-clients, namespace: fl}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 50051}]}]
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "objects.yaml").write_text(OBJECTS)
    (tmp_path / "policies.yaml").write_text(POLICIES)
    return ["-f", str(tmp_path / "objects.yaml"), "-f", str(tmp_path / "policies.yaml")]


def explain(files: list[str], target: str, port: str, *more: str) -> int:
    words = ["--from", "fl/client-0", "--to", target, "--port", port]
    return main(["policy", "explain", *files, *words, *more])


def test_allowed_names_the_rules(files, capsys) -> None:
    assert explain(files, "fl/server", "50051/TCP") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fl/client-0 -> fl/server 50051/TCP: allowed"
    assert "  allowed by NetworkPolicy fl/to-server spec.egress[0]" in lines
    assert "  allowed by NetworkPolicy fl/from-clients spec.ingress[0]" in lines


def test_denied_prints_what_is_missing_and_that_helps(files, capsys, tmp_path) -> None:
    assert explain(files, "fl/server", "8080/tcp") == 3
    text = capsys.readouterr().out
    rules = text[text.index("---\n") :]
    assert [one["spec"]["policyTypes"] for one in yaml.safe_load_all(rules)] == [["Egress"], ["Ingress"]]
    assert "pod-template-hash" not in rules
    (tmp_path / "more.yaml").write_text(rules)
    assert explain([*files, "-f", str(tmp_path / "more.yaml")], "fl/server", "8080/TCP") == 0


def test_undecidable_names_the_fact(files, capsys) -> None:
    assert explain(files, "10.96.0.9", "50051/TCP") == 4
    assert (
        "not known: which pod the proxy chooses for the address of Service fl/server"
        in capsys.readouterr().out
    )


def test_an_address_is_its_pods(files, capsys) -> None:
    assert explain(files, "10.0.0.1", "50051/TCP", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == {"pod": "fl/server", "address": "10.0.0.1"}
    assert found["verdict"] == "allowed"
    assert found["ingress"]["allowed_by"] == [
        {
            "action": "Accept",
            "field": "spec.ingress[0]",
            "name": "",
            "policy": "NetworkPolicy fl/from-clients",
            "rule": 0,
            "tier": "NetworkPolicy",
        }
    ]


def test_no_policy_is_not_applicable(files, capsys) -> None:
    assert explain(files[:2], "fl/server", "1/UDP") == 0
    assert capsys.readouterr().out.splitlines()[0] == "fl/client-0 -> fl/server 1/UDP: not applicable"


def test_objects_come_from_standard_input_too(files, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((OBJECTS + "---" + POLICIES).encode())))
    assert explain(["-f", "-"], "fl/server", "50051/TCP") == 0


def test_what_a_plugin_may_do_otherwise_is_said(files, capsys, tmp_path) -> None:
    block = {
        "podSelector": {},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
    }
    metadata = {"name": "block", "namespace": "fl"}
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": block,
    }
    (tmp_path / "block.json").write_text(json.dumps(document, indent="\t"))
    assert explain([*files[:2], "-f", str(tmp_path / "block.json")], "fl/server", "8080") == 0
    out = capsys.readouterr().out
    assert "may differ with Cilium: ipBlock and networks do not match the addresses of pods" in out
    assert "https://github.com/cilium/cilium/issues/9209" in out


def test_matrix_takes_replicas_together(files, capsys, tmp_path) -> None:
    assert main(["policy", "matrix", *files]) == 0
    out = capsys.readouterr().out
    assert "to fl/server\n  50051/TCP  allowed: fl/client-* (2); denied: outside\n" in out
    page = tmp_path / "reach.html"
    assert main(["policy", "matrix", *files, "--html", str(page)]) == 0
    assert 'title="fl/client-* (2) -&gt; fl/server 50051/TCP: allowed"' in page.read_text()
    capsys.readouterr()
    assert main(["policy", "matrix", *files, "--json"]) == 0
    verdicts = json.loads(capsys.readouterr().out)["verdicts"]
    assert {
        "source": "outside",
        "target": "fl/server",
        "port": 50051,
        "protocol": "TCP",
        "verdict": "denied",
    } in (verdicts)


def policy(name: str, spec: str) -> str:
    return (
        f"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
        f"metadata: {{name: {name}, namespace: fl}}\nspec: {spec}\n"
    )


PEER = "podSelector: {matchLabels: {app: client}}"
MISTAKES = {
    "{podSelector: {matchLabels: {app: clinet}}}": "nothing: no pod in namespace fl has app in (clinet)",
    "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}": "that means nothing",
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {t: x}}}]}]}": "namespace has t",
    "{podSelector: {}, ingress: [{ports: [{port: grcp}]}]}": "names the port 'grcp', which no pod",
    "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}": "UDP only",
    "{podSelector: {}, policyTypes: [Ingress], egress: [{}]}": "policyTypes leaves Egress out",
    "{podSelector: {matchLabels: {k: host}}}": "does not apply to fl/host: a host-network pod",
    "{podSelector: {matchLabels: {k: meshed}}, ingress: [{ports: [{port: 80}]}]}": "allows 4143/TCP",
}
MORE_PODS = """---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: fl, labels: {k: host}}
spec: {hostNetwork: true}
---
apiVersion: v1
kind: Pod
metadata: {name: meshed, namespace: fl, labels: {k: meshed}}
spec:
  containers:
  - {name: linkerd-proxy, ports: [{containerPort: 4143}]}
  - {name: a, ports: [{containerPort: 80}]}
"""


@pytest.mark.parametrize("spec", MISTAKES)
def test_check_finds_a_mistake(spec: str, capsys, tmp_path) -> None:
    (tmp_path / "all.yaml").write_text(OBJECTS + (MORE_PODS if "k:" in spec else "") + policy("mine", spec))
    assert main(["policy", "check", "-f", str(tmp_path / "all.yaml")]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert MISTAKES[spec] in lines[0]


def test_check_finds_none_where_there_is_none(files, capsys) -> None:
    assert main(["policy", "check", *files]) == 0
    assert capsys.readouterr().out == "no mistake in 3 policies\n"


NETWORK_POLICY = str(DATA.parents[1] / "manifests/components/network-policy/policies.yaml")


@pytest.mark.parametrize("run", ["net2-sec3", "net2-sec3-reconnect"])
def test_simulate_lets_the_runs_own_policies_pass(run: str, capsys) -> None:
    words = ["policy", "simulate", "-n", "fl", "-f", NETWORK_POLICY, str(DATA / run), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(one["verdict"] == "allowed" for one in found if one["answered"])
    # What its proof of enforcement knocked on stays shut.
    shut = {(one["target"], one["port"]) for one in found if one["verdict"] == "denied"}
    assert ("fl/fl-server", 50052) in shut


def test_simulate_counts_what_would_be_denied(capsys, tmp_path) -> None:
    text = Path(NETWORK_POLICY).read_text().replace("k8s-app: kube-dns", "k8s-app: coredns")
    (tmp_path / "proposed.yaml").write_text(text)
    words = ["policy", "simulate", "-n", "fl", "-f", str(tmp_path / "proposed.yaml"), str(DATA / "net2-sec3")]
    assert main(words) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "denied: fl/fl-client-0 -> kube-system/kube-dns 53/UDP, 2 times" in lines
    assert lines[-1] == "7 of 11 connections would pass under 4 policies"


def test_simulate_says_what_a_run_does_not_know(capsys, tmp_path) -> None:
    text = Path(NETWORK_POLICY).read_text().replace("port: 50051", "port: grpc")
    (tmp_path / "proposed.yaml").write_text(text)
    words = ["policy", "simulate", "-n", "fl", "-f", str(tmp_path / "proposed.yaml"), str(DATA / "net2-sec3")]
    assert main(words) == 4
    assert "  not known: the names of fl/fl-server's container ports" in capsys.readouterr().out


def test_a_run_that_is_none_is_not_undecidable(capsys, tmp_path) -> None:
    assert main(["policy", "simulate", "-n", "fl", "-f", NETWORK_POLICY, str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err == f"ztprobe: {tmp_path / 'absent'}: does not exist\n"


REFUSED = {
    "just words": "expected a Kubernetes object, found text",
    "root:x:0:0:root:/root:/bin/sh": "expected a Kubernetes object, found text",
    "password: hunter2": "found no apiVersion and kind",
    "a: [1": "1.yaml:2: is not YAML: did not find expected ',' or ']'",
    "apiVersion: v1\nkind: Pod\nmetadata: {name: a, name: b}": "1.yaml:3: key 'name' is given twice",
    '{"apiVersion": "v1",\t"kind": "Pod",\t"kind": "Pod"}': "1.yaml:1: key 'kind' is given twice",
    "apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: p}": (
        "NetworkPolicy p: is networking.k8s.io/v1beta1 NetworkPolicy, expected networking.k8s.io/v1"
    ),
    "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}": "is cilium.io/v2 Cilium",
    "apiVersion: policy.networking.k8s.io/v1alpha3\nkind: Tier\nmetadata: {name: p}": "v1alpha3 Tier,",
    "apiVersion: v1\nkind: Pod\nmetadata: {}": "1.yaml:3: Pod: field `metadata.name` is nothing",
    "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    version: 1.0": (
        "1.yaml:6: Pod default/a: field `metadata.labels.version` is 1.0, expected text (in quotes)"
    ),
    "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}": (
        "1.yaml:5: Pod default/a is there already"
    ),
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  ingres: []": (
        "1.yaml:5: NetworkPolicy default/p: field `spec.ingres` is not supported"
    ),
    "[" * 60 + "]" * 60: "1.yaml:1: is nested more than 50 deep",
    "a: &a [1, 2]\nb: &b [*a, *a]\nc: [" + "*b, " * 3 + "*b]": "found no apiVersion and kind",
    "a: &a [*a]": "1.yaml:1: an alias that stands for nothing before it, or for itself",
    "": "expected Kubernetes objects, found none",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_wrong_is_one_line(text: str, capsys, tmp_path) -> None:
    path = tmp_path / "1.yaml"
    path.write_text(text)
    assert main(["policy", "matrix", "-n", "default", "-f", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert REFUSED[text] in err
    assert "hunter2" not in err
    assert "/root" not in err


def test_aliases_without_end_are_refused(capsys, tmp_path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    assert main(["policy", "check", "-f", str(tmp_path / "bomb.yaml")]) == 2
    assert "bomb.yaml:7: holds more than 5000000 values (aliases expanded)" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[", "- ", '{"a":'])
def test_nesting_without_end_is_refused(text: str, capsys, tmp_path) -> None:
    (tmp_path / "deep.yaml").write_text(text * 300_000)
    assert main(["policy", "check", "-f", str(tmp_path / "deep.yaml")]) == 2
    assert "deep.yaml:1: is nested more than 50 deep" in capsys.readouterr().err


def test_only_files_are_read(capsys, tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, problem in (
        (tmp_path / "fifo", "is a FIFO, expected a regular file"),
        (Path("/dev/zero"), "is a device, expected a regular file"),
        (tmp_path, "is a directory, expected a regular file"),
    ):
        assert main(["policy", "check", "-f", str(path)]) == 2
        assert problem in capsys.readouterr().err
    assert main(["policy", "check", "-f", str(tmp_path / "absent")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert main(["policy", "check", "-f", str(tmp_path / "binary")]) == 2
    assert "UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--to", "fl/nobody", "--port", "1"], "fl/nobody: no such pod among the objects given"),
        (["--to", "server", "--port", "1"], "expected NAMESPACE/POD or an IP address"),
        (["--to", "fl/server", "--port", "0"], "is not a port"),
        (["--to", "fl/server", "--port", "1/ICMP"], "of no known protocol"),
        (["--to", "fd00::1", "--port", "1"], "addresses of different families only"),
    ],
)
def test_a_wrong_question_is_one_line(files, capsys, words: list[str], problem: str) -> None:
    assert main(["policy", "explain", *files, "--from", "fl/client-0", *words]) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert err.count("\n") == 1


def test_objects_without_a_namespace_are_pointed_out(files, capsys, tmp_path) -> None:
    (tmp_path / "p.yaml").write_text(POLICIES.replace(", namespace: fl", ""))
    words = [*files[:2], "-f", str(tmp_path / "p.yaml")]
    assert explain(words, "fl/server", "8080") == 0
    assert "3 objects name no namespace, taken to be in `default`" in capsys.readouterr().err
    assert explain([*words, "-n", "fl"], "fl/server", "8080") == 3
    assert capsys.readouterr().err == ""
