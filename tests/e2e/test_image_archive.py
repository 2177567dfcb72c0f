"""The agent's image without a container engine: made, unpacked, run, and nothing left on the machine.

It installs from the package registries, so it is for a machine that reaches them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from ztprobe.paths import REPO_DIR

pytestmark = pytest.mark.long

NAME = "ztprobe/agent:test"
WORK = Path("/run/ztprobe-images")
MOST_COMPRESSED_BYTES = 250_000_000


def started(target: Path, **options: Any) -> subprocess.Popen[str]:
    """The tool, on its way."""
    subprocess.run([REPO_DIR / "tools/setup-system", "images"], check=True)
    argv = [sys.executable, "-m", "tools.image_archive", "agent", NAME, str(target)]
    return subprocess.Popen(argv, cwd=REPO_DIR, text=True, **options)


def running(word: str) -> list[int]:
    """Processes with this word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word in path.read_text() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def is_working(word: str) -> bool:
    """Whether one of them has its files in place: in memory, where it alone sees them."""
    for pid in running(word):
        with contextlib.suppress(OSError):
            if f" {WORK} " in Path(f"/proc/{pid}/mountinfo").read_text():
                return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_by_one_that_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    word = str(tmp_path / "agent.oci.tar")
    process = started(Path(word), stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not is_working(word):
        assert time.monotonic() < end, "it has not begun"
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    status = process.wait(30)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    while running(word):
        assert time.monotonic() < end, "processes are left"
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []
    assert str(WORK) not in Path("/proc/self/mountinfo").read_text()
    if number == signal.SIGKILL:
        assert list(WORK.iterdir()) == []  # the place itself, which the next one takes
        WORK.rmdir()
    assert not WORK.exists()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The image, and what was said last while it was made."""
    target = tmp_path_factory.mktemp("image") / "agent.oci.tar"
    process = started(target, stdout=subprocess.PIPE)
    told, _ = process.communicate(timeout=900)
    assert process.returncode == 0, told
    assert not WORK.exists()
    assert [path.name for path in target.parent.iterdir()] == ["agent.oci.tar"]
    return target, told.splitlines()[-1]


@pytest.fixture(scope="module")
def unpacked(archive: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the archive, each blob held against its digest."""
    place = tmp_path_factory.mktemp("layout")
    with tarfile.open(archive[0]) as file:
        file.extractall(place, filter="data")
    for blob in (place / "blobs/sha256").iterdir():
        with blob.open("rb") as content:
            assert hashlib.file_digest(content, "sha256").hexdigest() == blob.name
    return place


def blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    """What a descriptor means, and as long as it says."""
    path = layout / "blobs" / descriptor["digest"].replace(":", "/")
    assert path.stat().st_size == descriptor["size"]
    return path


def image(layout: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and the configuration."""
    (described,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert described["annotations"]["io.containerd.image.name"] == f"docker.io/{NAME}"
    manifest = json.loads(blob(layout, described).read_text())
    return manifest, json.loads(blob(layout, manifest["config"]).read_text())


def test_it_is_what_the_dockerfile_says_and_small(archive: tuple[Path, str], unpacked: Path) -> None:
    manifest, configuration = image(unpacked)
    # By other means than the tool's: the last stage's lines, which are one instruction each.
    stage = (REPO_DIR / "images/agent.Dockerfile").read_text().rpartition("FROM ")[2]
    said = dict(re.findall(r"^(ENV|ENTRYPOINT|CMD|USER|WORKDIR) (.*)$", stage, re.MULTILINE))
    assert set(said) == {"ENV", "ENTRYPOINT", "CMD"}
    assert configuration["config"]["Cmd"] == json.loads(said["CMD"])
    assert configuration["config"].get("Entrypoint", []) == json.loads(said["ENTRYPOINT"])
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert configuration["config"]["Env"] == said["ENV"].replace("$PATH", path).split()
    assert configuration["config"].get("User", "") == ""
    compressed_bytes = manifest["config"]["size"] + sum(layer["size"] for layer in manifest["layers"])
    assert compressed_bytes <= MOST_COMPRESSED_BYTES
    assert re.search(rf": {NAME}, [\d.]+ MB, sha256:[0-9a-f]{{64}}$", archive[1])


def test_its_programs_run_and_nothing_of_this_machine_is_in_it(unpacked: Path, tmp_path: Path) -> None:
    manifest, configuration = image(unpacked)
    (layer,) = manifest["layers"]
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["tar", "-C", root, "-xzf", blob(unpacked, layer)], check=True)
    plain = subprocess.run(["gzip", "-dc", blob(unpacked, layer)], check=True, stdout=subprocess.PIPE).stdout
    assert configuration["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    kept = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("OPENBLAS")]
    inside = ["env", "-i", *kept, *configuration["config"]["Env"], "/usr/sbin/chroot", str(root)]
    for argv in (
        [*configuration["config"]["Cmd"][:2], "--help"],
        ["python3", "-c", "import bcc, numpy, pyarrow, ztprobe; bcc.BPF"],
        ["ip", "-V"],
    ):
        done = subprocess.run([*inside, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (root / "etc/resolv.conf").read_bytes() == b""
    for name in ("etc/pip.conf", "etc/hostname", "src", "root/.cache", "run/machine"):
        assert not (root / name).exists(), name
    assert not list((root / "var/cache/apt/archives").glob("*.deb"))
    # Debian's own modules come compiled, and by content: their files' times are not this machine's.
    assert not list((root / "opt").rglob("__pycache__"))


def test_it_is_the_same_again(archive: tuple[Path, str], tmp_path: Path) -> None:
    again = tmp_path / "agent.oci.tar"
    assert started(again, stdout=subprocess.DEVNULL).wait(900) == 0
    with archive[0].open("rb") as first, again.open("rb") as second:
        digests = [hashlib.file_digest(file, "sha256").hexdigest() for file in (first, second)]
    assert digests[0] == digests[1]
