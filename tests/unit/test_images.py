"""The images hold what their programs import, and are described in a way that needs no container engine."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.image_archive.dockerfile import Copy, read
from tools.image_archive.errors import ImageError
from ztprobe import __version__
from ztprobe.paths import MANIFESTS_DIR, REPO_DIR

IMAGES = REPO_DIR / "images"
AGENT = (
    *("ztprobe.cli.entry", "ztprobe.cli.agent", "ztprobe.cli.clean", "ztprobe.cli.rendering.profile"),
    *("ztprobe.agent.remote", "ztprobe.agent.lease_keeper", "ztprobe.agent.service.server"),
    *("ztprobe.agent.service.client", "ztprobe.kubernetes.pod_source", "ztprobe.preflight"),
    *("ztprobe.agent.pod_access_host", "ztprobe.conformance.verification", "kubernetes.client"),
)
FL = ("fl.server", "fl.client", "fl.edge", "fl.privacy.accounting", "sklearn.datasets")


def wanted(image: str) -> set[str]:
    """Distributions that an image's requirements bring, theirs included."""
    lines = (IMAGES / f"{image}-requirements.txt").read_text().splitlines()
    left, found = [line for line in lines if not line.startswith("#")], set()
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        left += [
            re.match(r"[\w.-]+", line)[0]  # type: ignore[index]
            for line in needed
            if "extra ==" not in line
        ]
    return found


@pytest.mark.parametrize(("image", "modules"), [("agent", AGENT), ("fl", FL)])
def test_the_requirements_are_what_is_imported(image: str, modules: tuple[str, ...]) -> None:
    allowed = wanted(image)
    owners = importlib.metadata.packages_distributions()
    # Without what the image lacks: an import that is optional must not be found by chance.
    program = f"""
import importlib, sys
allowed, owners = set({sorted(allowed)!r}), {owners!r}
class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        mine = [o.lower().replace("_", "-").replace(".", "-") for o in owners.get(top, ())]
        if mine and not allowed & set(mine) and "ztprobe" not in mine:
            raise ModuleNotFoundError(f"the image lacks {{top}}", name=top)
sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    importlib.import_module(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=REPO_DIR
    )
    assert done.returncode == 0, done.stderr
    assert "pandas" not in allowed or image == "fl"


def test_the_manifests_name_the_images_that_are_built() -> None:
    text = "".join(path.read_text() for path in MANIFESTS_DIR.rglob("*.yaml"))
    named = set(re.findall(r"image: (ztprobe/\S+)", text))
    assert named == {f"ztprobe/{file.stem}:{__version__}" for file in IMAGES.glob("*.Dockerfile")}
    assert f"tag=${{IMAGE_TAG:-{__version__}}}" in (REPO_DIR / "tools/images").read_text()


def test_the_build_copies_only_what_is_let_in() -> None:
    let_in = {line[1:] for line in (REPO_DIR / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    for file in IMAGES.glob("*.Dockerfile"):
        for line in file.read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line and line != "COPY . .":
                for source in line.split()[1:-1]:
                    assert (REPO_DIR / source).exists(), source
                    assert source.partition("/")[0] in let_in, source
    assert "USER 65532:65532" in (IMAGES / "fl.Dockerfile").read_text()


def test_without_a_builder_it_takes_root(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "env"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    for name, prints in (("id", "1000"), ("docker", "no daemon; exit 1")):
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\necho {prints}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [REPO_DIR / "tools/images"], capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)}
    )
    assert done.returncode == 3
    assert done.stdout == "images: docker is there but does not answer\n"
    message = "images: without docker, podman or buildah an image is made by root: sudo make images\n"
    assert done.stderr == message


@pytest.mark.parametrize("name", ["agent", "fl"])
def test_every_instruction_can_be_carried_out_without_a_container_engine(name: str) -> None:
    *_, last = read(IMAGES / f"{name}.Dockerfile")
    said = last.configuration.as_oci()
    assert said["Env"][0].endswith(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if name == "fl":
        assert (said["User"], said["WorkingDir"]) == ("65532:65532", "/app")
        assert said["Cmd"] == ["python", "-m", "fl.server"]
        copied = [step.action for step in last.steps if isinstance(step.action, Copy)]
        assert [(copy.sources, copy.target, copy.stage) for copy in copied] == [
            (("/opt/fl",), "/opt/fl", "build"),
            (("fl",), "/app/fl", None),
        ]
    else:
        assert "User" not in said
        assert "Entrypoint" not in said
        assert said["Cmd"] == ["ztprobe", "agent", "serve"]


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("FROM python:3.11", ":1: FROM python:3.11: without a container engine an image is made from debian"),
        ("RUN true", ":1: RUN true: comes before FROM"),
        ("FROM debian:bookworm-slim\n\nVOLUME /data", ":3: VOLUME /data: cannot be carried out"),
        (
            "FROM debian:bookworm-slim\nRUN --mount=type=cache true",
            ":2: RUN --mount=type=cache true: options",
        ),
        ("FROM debian:bookworm-slim\nCOPY --chown=1 a b", ":2: COPY --chown=1 a b: --chown cannot"),
        ("FROM debian:bookworm-slim\nCMD [1]", ":2: CMD [1]: expected a list of strings"),
        ("# nothing", ": no FROM"),
    ],
)
def test_other_instructions_are_refused_by_name(tmp_path: Path, text: str, refused: str) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(text)
    with pytest.raises(ImageError, match=re.escape(f"{path}{refused}")):
        read(path)
