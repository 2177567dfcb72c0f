"""The test cluster's node, as far as it is files and words: names, command lines, what is missing."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tools.kube_cluster.components import KERNEL_DEFAULTS, components, write_configuration
from tools.kube_cluster.credentials import kubeconfig, write_credentials
from tools.kube_cluster.inside import OWN
from tools.kube_cluster.names import hosts
from tools.kube_cluster.places import PROGRAMS, TREE, bin_dir, missing_parts


def service(name: str, address: str) -> dict:
    return {"metadata": {"namespace": "fl", "name": name}, "spec": {"clusterIP": address}}


def endpoints(name: str, *addresses: dict) -> dict:
    subsets = [{"addresses": list(addresses)}] if addresses else None
    return {"metadata": {"namespace": "fl", "name": name}, "subsets": subsets}


def test_a_name_is_the_services_address_or_its_pods() -> None:
    services = [service("hub", "10.96.0.9"), service("fl-server", "None"), service("early", "None")]
    pods = [{"ip": "10.98.0.4"}, {"ip": "10.98.0.5", "hostname": "one"}]
    behind = [endpoints("fl-server", *pods), endpoints("hub", {"ip": "10.98.0.7"}), endpoints("early")]
    assert hosts(services, behind).splitlines() == [
        "10.96.0.9 hub.fl.svc.cluster.local",
        "10.98.0.4 fl-server.fl.svc.cluster.local",
        "10.98.0.5 fl-server.fl.svc.cluster.local",
        "10.98.0.5 one.fl-server.fl.svc.cluster.local",
    ]
    assert hosts([service("other", "None")], []) == ""


def test_everything_the_node_names_is_its_own(tmp_path: Path) -> None:
    """No program is told to read or write anywhere but in the node's directory and the cache."""
    write_configuration(tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "sysctls" not in path.parts]
    said = [path.read_text() for path in written]
    said += [" ".join(one.argv) for one in components(tmp_path).values()]
    named = {path for text in said for path in re.findall(r"(?<![\w:/.])/[\w./-]+", text)}
    own = (str(tmp_path), str(bin_dir()), *(f"{place}/" for place in OWN.values()))
    assert {path for path in named if not path.startswith(own)} == {"/ztprobe-kube"}
    assert len(written) == 4


def test_kubelet_is_to_change_none_of_the_machines_settings(tmp_path: Path) -> None:
    write_configuration(tmp_path)
    assert json.loads((tmp_path / "kubelet.json").read_text())["protectKernelDefaults"] is True
    assert all((tmp_path / "sysctls" / name).read_text().strip().isdigit() for name in KERNEL_DEFAULTS)
    assert all(Path("/proc/sys", name).exists() for name in KERNEL_DEFAULTS)


def test_each_user_has_a_token_of_its_own(tmp_path: Path) -> None:
    write_credentials(tmp_path)
    lines = (tmp_path / "tokens.csv").read_text().splitlines()
    tokens = {line.split(",")[0] for line in lines}
    assert len(tokens) == len(lines) == 5
    admin = json.loads(kubeconfig(tmp_path, "admin").read_text())["users"][0]["user"]["token"]
    assert f'{admin},admin,admin,"system:masters"' in lines
    assert any(line.endswith(",nobody,nobody") for line in lines)


def test_what_is_missing_is_named_with_what_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBE_CACHE", str(tmp_path))
    (tmp_path / "bin").mkdir()
    for name in PROGRAMS[:-1]:
        (tmp_path / "bin" / name).touch(mode=0o755)
    assert missing_parts()[0] == f"{PROGRAMS[-1]} (tools/kube-cluster build)"
    (tmp_path / "bin" / PROGRAMS[-1]).touch(mode=0o755)
    assert all(part.endswith("(make images)") for part in missing_parts())


@pytest.mark.parametrize("words", [[], ["start"], ["build", "kubectl"]])
def test_the_tool_says_what_it_can_do(tmp_path: Path, words: list[str]) -> None:
    done = subprocess.run(
        [TREE / "tools/kube-cluster", *words],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("kube-cluster: ")
    assert done.stderr.count("\n") == 1
