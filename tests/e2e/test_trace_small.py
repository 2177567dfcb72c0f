"""The smallest whole job: real pods, model and messages, and so few images that it fits anywhere.

Under tools/test-vm a CPU is emulated in software, and training on a batch of 32 takes seconds there
(19 s were seen); eight images are read from files instead of the built-in set. Every message has its
4.8 MB all the same.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ztprobe.emulation.netem import netem_supported
from ztprobe.paths import REPO_DIR
from ztprobe.probes.btf import Btf

ROUNDS, CLIENTS, IMAGES = 2, 2, 8
ONE_WAY_S = 0.150  # net4


def _idx(path: Path, values: np.ndarray) -> None:
    # The format of the MNIST files: two zeros, unsigned bytes, dimensions, their sizes.
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.mark.long
def test_a_trace_of_eight_images(tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    for part in ("train", "t10k"):
        _idx(tmp_path / f"{part}-images-idx3-ubyte", draws.integers(0, 256, (IMAGES, 28, 28)))
        _idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(IMAGES) % 10)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ztprobe", "trace", "--experiment", "net4-sec0", "--no-baseline"]
    command += ["--rounds", str(ROUNDS), "--clients", str(CLIENTS), "--out", str(out), "--json"]
    command += ["--dataset", "mnist", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO_DIR)
    assert done.returncode == 0, done.stderr
    print(done.stderr)  # how long each step took, for a look at the slow ones

    report = json.loads(done.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert [one["round"] for one in report["rounds"]] == list(range(1, ROUNDS + 1))
    for one in report["rounds"]:
        parts_s = sum(one["components"].values()) + one["residual_s"]
        assert parts_s == pytest.approx(one["duration_s"], abs=1e-6)
    # The model goes one way and the update the other; nothing shapes them but the profile.
    assert report["components"]["propagation"]["median_s"] == pytest.approx(2 * ONE_WAY_S, rel=0.05)
    assert report["emulation"]["measured"]["delay_ms"] == pytest.approx(1000 * ONE_WAY_S, rel=0.01)
    assert set(report["loss"].values()) == {0}
    assert report["coverage"] == 1
    if netem_supported():
        assert report["emulation"]["backend"] == "netem"
    # Other machines have other ways to see what an application reads.
    with Btf() as btf:
        wanted = "sock_recv_length" if btf.has("btf_trace_sock_recv_length") else "kprobe"
    assert wanted in report["hooks"]["app_reads"]
