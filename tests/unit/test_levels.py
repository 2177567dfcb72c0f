"""What a security level is to have comes from the level, whatever the manifests say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.test_manifests import options
from ztprobe.errors import EnforcementError, UsageError
from ztprobe.paths import MANIFESTS_DIR
from ztprobe.runtime.local.runtime import LocalRuntime


def without(tmp_path: Path, level: int, *names: str, manifests_level: int | None = None) -> Path:
    """Manifests in which the level's overlay leaves components out, or is another level's."""
    manifests = tmp_path / "manifests"
    shutil.copytree(MANIFESTS_DIR, manifests)
    overlays = manifests / "overlays"
    file = overlays / f"sec{level}" / "kustomization.yaml"
    if manifests_level is not None:
        file.write_text((overlays / f"sec{manifests_level}" / "kustomization.yaml").read_text())
    text = file.read_text()
    for name in names:
        assert f"  - ../../components/{name}\n" in text
        text = text.replace(f"  - ../../components/{name}\n", "")
    file.write_text(text)
    return manifests


def runtime(tmp_path: Path, level: int, manifests: Path) -> LocalRuntime:
    return LocalRuntime(options(level), run_id="x", log_dir=tmp_path, offloads=False, manifests_dir=manifests)


@pytest.mark.parametrize(
    ("level", "left_out", "taken_from", "problem"),
    [
        (
            3,
            ("network-policy",),
            None,
            "the manifests are not sec3: it has NetworkPolicies, and they have none",
        ),
        (1, (), 0, "the manifests are not sec1: it has NetworkPolicies, and they have none"),
        (
            3,
            ("mtls",),
            None,
            "sec3: it has a sidecar with a certificate in every pod, and fl-server has none",
        ),
        (
            2,
            (),
            1,
            "not sec2: it has no NetworkPolicy, and they have default-deny, allow-dns, fl-client-to-se",
        ),
        (0, (), 3, "it has no sidecars, and fl-server, fl-client-0 have one"),
    ],
)
def test_a_level_whose_controls_are_not_in_the_manifests_is_an_error(
    tmp_path: Path, level: int, left_out: tuple[str, ...], taken_from: int | None, problem: str
) -> None:
    manifests = without(tmp_path, level, *left_out, manifests_level=taken_from)
    with pytest.raises(EnforcementError) as raised:
        runtime(tmp_path, level, manifests)
    assert problem in str(raised.value)


def test_policies_that_isolate_nobody_are_none(tmp_path: Path) -> None:
    manifests = without(tmp_path, 1)
    policies = manifests / "components/network-policy/policies.yaml"
    policies.write_text(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n"
        "spec: {podSelector: {matchLabels: {app: nobody}}}\n"
    )
    with pytest.raises(EnforcementError, match="no NetworkPolicy isolates fl-server for ingress"):
        runtime(tmp_path, 1, manifests)


def test_every_level_of_ours_is_what_it_says(tmp_path: Path) -> None:
    for level in range(4):
        found = runtime(tmp_path, level, MANIFESTS_DIR)
        assert bool(found.rules.isolated["ingress"]) is (level in (1, 3))


def test_a_key_given_twice_in_an_overlay_is_refused(tmp_path: Path) -> None:
    manifests = without(tmp_path, 1)
    file = manifests / "overlays/sec1/kustomization.yaml"
    file.write_text(file.read_text() + "components: []\n")
    lines = file.read_text().splitlines()
    first, second = (number for number, line in enumerate(lines, 1) if line.startswith("components:"))
    with pytest.raises(UsageError) as raised:
        runtime(tmp_path, 1, manifests)
    assert str(raised.value) == f"{file}:{second}: key 'components' is given twice, on line {first} too"
