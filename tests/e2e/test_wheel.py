"""A wheel of the tree, installed where there is no tree, does all that a clone does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import Outcome
from ztprobe.paths import REPO_DIR

LEFT_OUT = {".git", ".venv", "runs", "tests", "bench", "build", "__pycache__"}
NEEDED = (
    "ztprobe/data/ebpf/events.h",
    "ztprobe/data/ebpf/include/include/linux/types.h",
    "ztprobe/data/manifests/overlays/sec3/kustomization.yaml",
    "ztprobe/data/netprofiles/schema.json",
    "ztprobe/data/netprofiles/net7.csv",
    "fl/server.py",
)


def pip(*arguments: str | Path) -> None:
    """Nothing is downloaded."""
    options = ["--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", *options, *map(str, arguments), "--no-deps", "--no-index"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="module")
def wheel(here: Path) -> Path:
    """Built from a copy: a build leaves files in its tree."""
    shutil.copytree(
        REPO_DIR,
        here / "tree",
        ignore=lambda _, names: {n for n in names if n in LEFT_OUT or n.startswith(".")},
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "--wheel-dir",
            str(here),
            str(here / "tree"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(here / "tree")
    (found,) = here.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def program(here: Path, wheel: Path) -> Iterator[Path]:
    """``ztprobe`` in an environment of its own, which borrows the dependencies of ours and not our tree."""
    base = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    subprocess.run(
        [str(base), "-m", "venv", "--system-site-packages", "--without-pip", here / "env"], check=True
    )
    python = here / "env" / "bin" / "python"
    library = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig as s; print(s.get_path('purelib'))"], text=True
        ).strip()
    )
    # A path alone: the .pth files in there, which lead to the tree, are not read.
    (library / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--python",
            python,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--ignore-installed",
            str(wheel),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return here / "env" / "bin" / "ztprobe"


def run(program: Path, *arguments: str | Path) -> Outcome:
    """From a directory outside the tree, without what would lead to it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    place = program.parents[2] / "place"
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        [program, *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=180
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_everything_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        requires = packed.read(metadata).decode()
    assert [name for name in NEEDED if name not in names] == []
    # Templates, schemas, studies: setuptools takes of these only what pyproject.toml names.
    beside_code = {
        str(path.relative_to(REPO_DIR))
        for package in ("ztprobe", "fl", "analysis")
        for path in (REPO_DIR / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert "analysis/report/report.schema.json" in beside_code
    assert beside_code - names == set()
    tree = {
        f"ztprobe/data/{path.relative_to(REPO_DIR)}"
        for name in ("ebpf", "manifests", "netprofiles")
        for path in (REPO_DIR / name).rglob("*")
        if path.is_file()
    }
    assert {name for name in names if name.startswith("ztprobe/data/")} == tree
    for module in ("torch", "scikit-learn"):
        assert all(
            "extra ==" in line
            for line in requires.splitlines()
            if line.startswith(f"Requires-Dist: {module}")
        )


def test_profiles_and_the_machine_are_known(program: Path) -> None:
    python = program.with_name("python")
    where = subprocess.check_output(
        [python, "-c", "import ztprobe; print(ztprobe.__file__)"], text=True, cwd="/"
    )
    assert Path(where).is_relative_to(program.parents[1])
    listed = run(program, "profile", "list", "--json")
    assert {"net0", "net2", "net7"} <= {one["name"] for one in json.loads(listed.stdout)}
    assert run(program, "profile", "show", "net7").status == 0
    doctor = run(program, "doctor", "--json")
    assert json.loads(doctor.stdout)["problems"] == []


def test_a_saved_run_is_reported(program: Path) -> None:
    out = program.parents[2] / "report"
    outcome = run(program, "report", REPO_DIR / "tests" / "data" / "net2-sec3", "--out", out)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert (out / "report.html").stat().st_size > 10_000


def test_a_deployment_is_traced(program: Path) -> None:
    out = program.parents[2] / "run"
    arguments = ["--experiment", "net1-sec3", "--rounds", "2", "--clients", "2", "--no-baseline"]
    outcome = run(program, "trace", *arguments, "--json", "--out", out)
    assert outcome.status == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert [one["round"] for one in report["rounds"]] == [1, 2]
    assert report["coverage"] == 1
    assert (out / "report.html").exists()


def test_an_incomplete_installation_says_so(program: Path) -> None:
    python = program.with_name("python")
    place = "import ztprobe, pathlib; print(pathlib.Path(ztprobe.__file__).parent / 'data')"
    data = Path(subprocess.check_output([python, "-c", place], text=True, cwd="/").strip())
    data.rename(data.with_name("away"))
    try:
        for arguments in (["profile", "list"], ["trace", "--experiment", "net0-sec0"]):
            outcome = run(program, *arguments)
            assert outcome.status == 3
            assert "this installation is incomplete" in outcome.stderr
        doctor = run(program, "doctor", "--json")
        assert doctor.status == 3
        assert "incomplete" in json.loads(doctor.stdout)["problems"][0]
    finally:
        data.with_name("away").rename(data)
