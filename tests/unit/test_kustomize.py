"""Rendering is what `kubectl kustomize` does, over a corpus; what it loses in silence is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.programs import program
from tests.unit.kustomize_corpus import PATCHES, REFUSED, TREES, patched, written
from ztprobe.documents.strict_yaml import kustomize_scalar, parse_yaml
from ztprobe.errors import UsageError
from ztprobe.runtime.local.kustomize import render

CASES = {name: patched(name) for name in PATCHES} | TREES


def kubectl(overlay: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("kubectl"), "kustomize", overlay], capture_output=True, text=True, check=False
    )


def by_name(documents: list[Any]) -> list[Any]:
    """In an order of their own; within a document every order counts but that of ports."""
    return sorted(
        map(ports_sorted, documents),
        key=lambda d: (d["kind"], d["metadata"]["name"], d["metadata"].get("namespace", "")),
    )


def ports_sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(item) if key == "ports" else ports_sorted(item) for key, item in value.items()}
    return [ports_sorted(item) for item in value] if isinstance(value, list) else value


def _sorted(ports: list[Any]) -> list[Any]:
    return sorted(ports, key=lambda port: sorted(map(str, port.items())))


@pytest.mark.parametrize("name", CASES)
def test_we_render_as_kubectl_does(tmp_path: Path, name: str) -> None:
    overlay = written(CASES[name], tmp_path)
    ours = render(overlay)
    theirs = kubectl(overlay)
    assert theirs.returncode == 0, theirs.stderr
    assert by_name(ours) == by_name([parsed.value for parsed in parse_yaml(theirs.stdout, kustomize_scalar)])


@pytest.mark.parametrize("name", REFUSED)
def test_we_refuse_what_kubectl_refuses(tmp_path: Path, name: str) -> None:
    overlay = written(REFUSED[name], tmp_path)
    with pytest.raises(UsageError) as raised:
        render(overlay)
    assert "\n" not in str(raised.value)
    assert kubectl(overlay).returncode != 0


POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n"


@pytest.mark.parametrize(
    ("base", "patch", "problem"),
    [
        (
            "[{containerPort: 53, protocol: TCP}, {containerPort: 53, protocol: UDP}]",
            "[{containerPort: 53, name: x}]",
            "field `spec.containers.ports` has the containerPort 53 with `protocol` and without",
        ),
        ("[{containerPort: 53}]", "[{containerPort: 53, protocol: UDP}]", "drop the patch in silence"),
        ("[{containerPort: 53}]", "[{name: x}]", "has an entry without `containerPort`"),
        (
            "[{containerPort: 53}, {containerPort: 53, name: x}]",
            "[]",
            "has two entries with containerPort 53, protocol None",
        ),
        (
            "[{containerPort: 53}]",
            "[{containerPort: 53, $patch: replace}]",
            "`$patch: 'replace'` of an entry",
        ),
        ("[{containerPort: 53}]", "{a: 1}", "of another kind in the patch"),
    ],
)
def test_what_kustomize_would_lose_in_silence_is_refused(
    tmp_path: Path, base: str, patch: str, problem: str
) -> None:
    files = patched("ports without protocol") | {
        "o/r.yaml": f"{POD}  - {{name: c, ports: {base}}}\n",
        "o/p.yaml": f"{POD}  - {{name: c, ports: {patch}}}\n",
    }
    overlay = written(files, tmp_path)
    with pytest.raises(UsageError) as raised:
        render(overlay)
    assert problem in str(raised.value)
    assert "p.yaml: Pod p: field `spec.containers.ports`" in str(raised.value)


@pytest.mark.parametrize(
    ("file", "text", "place"),
    [
        (
            "o/kustomization.yaml",
            "kind: Kustomization\nresources: [r.yaml]\nresources: []\n",
            "kustomization.yaml:3",
        ),
        ("o/r.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  a: 1\n  a: 2\n", "r.yaml:6"),
    ],
)
def test_a_key_given_twice_is_refused_with_file_line_and_key(
    tmp_path: Path, file: str, text: str, place: str
) -> None:
    overlay = written(patched("ports without protocol") | {file: text}, tmp_path)
    with pytest.raises(UsageError, match=rf"{place}: key '\w+' is given twice, on line \d too"):
        render(overlay)


def test_kustomizations_that_include_each_other_end(tmp_path: Path) -> None:
    overlay = written({"o/kustomization.yaml": "kind: Kustomization\nresources: [../o]\n"}, tmp_path)
    with pytest.raises(UsageError, match="includes itself"):
        render(overlay)
