"""CI cannot turn green by testing nothing: the rule in tests/conftest.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SKIPPING = "import pytest\ndef test_it():\n    pytest.skip('no netem (CONFIG_NET_SCH_NETEM)')\n"
SKIPPING_MODULE = "import pytest\npytest.skip('no netem (CONFIG_NET_SCH_NETEM)', allow_module_level=True)\n"
OPTIONAL = "import pytest\n@pytest.mark.optional\ndef test_it():\n    pytest.skip('no netem')\n"
TREE = {
    "kernel/test_plain.py": SKIPPING,
    "kernel/test_module.py": SKIPPING_MODULE,
    "kernel/test_optional.py": OPTIONAL,
    "e2e/test_plain.py": SKIPPING,
    "unit/test_plain.py": SKIPPING,
}


@pytest.mark.parametrize(
    ("require", "refused"),
    [
        ("0", set()),
        (
            "1",
            {
                "FAILED tests/kernel/test_plain.py::test_it",
                "ERROR tests/kernel/test_module.py",
                "FAILED tests/e2e/test_plain.py::test_it",
            },
        ),
    ],
)
def test_who_may_skip(tmp_path: Path, require: str, refused: set[str]) -> None:
    """Whatever is not refused is skipped, and nothing passes."""
    for name, text in TREE.items():
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).write_text(text)
    shutil.copy(CONFTEST, tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = optional\n")
    command = "-m pytest -q -rfE -p no:cacheprovider --import-mode=importlib --continue-on-collection-errors"
    ended = subprocess.run(
        [sys.executable, *command.split(), "tests"],
        cwd=tmp_path,
        env={"ZTPROBE_REQUIRE_KERNEL": require},
        capture_output=True,
        text=True,
        check=False,
    )
    *_, closing = ended.stdout.splitlines()
    shown = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    assert {line.split(" - ")[0] for line in shown} == refused
    skipped = f"{len(TREE) - len(refused)} skipped"
    assert closing.startswith(f"2 failed, {skipped}, 1 error in" if refused else f"{skipped} in")


@pytest.mark.parametrize("built", [True, False])
def test_cluster_tests_run_where_the_api_server_is_built(tmp_path: Path, built: bool) -> None:
    """Elsewhere they are left out, and the last lines say so."""
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "programs.py"):
        shutil.copy(CONFTEST.parent / name, tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cluster\n")
    (tmp_path / "tests/__init__.py").touch()
    test = "import pytest\n@pytest.mark.cluster\ndef test_it():\n    pass\ndef test_other():\n    pass\n"
    (tmp_path / "tests/test_it.py").write_text(test)
    (tmp_path / "bin").mkdir()
    if built:
        for name in ("kube-apiserver", "etcd"):
            (tmp_path / "bin" / name).touch(mode=0o755)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={"KUBE_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    *_, closing = ended.stdout.splitlines()
    assert ("2 passed in" if built else "1 passed, 1 deselected in") in closing
    assert ("1 tests with a real API server did not run: make test-cluster" in ended.stdout) is not built
