"""Data sets and their split among clients."""

from __future__ import annotations

import gzip
import importlib
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl import data
from fl.errors import ConfigError, DataError
from fl.partition import partition


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_files(folder: Path, *, packed: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (40, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, 40, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, 10, dtype=np.uint8),
    }
    for name, array in arrays.items():
        raw = idx(array)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / name).write_bytes(raw)
    return arrays


@pytest.fixture(autouse=True)
def fresh_cache() -> None:
    data.load.cache_clear()


def test_digits_are_real_digits_at_the_network_s_size() -> None:
    from sklearn.datasets import load_digits

    split = data.load("digits")
    assert (len(split.train), len(split.test)) == (1437, 360)
    assert split.train.images.shape == (1437, 28, 28)
    assert set(split.train.labels) == set(split.test.labels) == set(range(10))
    bundle = load_digits()
    # Every label is accounted for, and average grey levels survive the upscaling.
    both = np.concatenate([split.train.labels, split.test.labels])
    assert np.array_equal(np.bincount(both), np.bincount(bundle.target))
    means = np.concatenate([split.train.images, split.test.images]).mean(axis=(1, 2)) / 255 * 16
    assert np.allclose(np.sort(means), np.sort(bundle.images.mean(axis=(1, 2))), atol=0.35)
    again = data._digits()
    assert np.array_equal(again.test.images, split.test.images)


def test_upscaling_agrees_with_torch() -> None:
    small = np.random.default_rng(0).integers(0, 17, (4, 8, 8)).astype(np.float64)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(small)[:, None], size=(28, 28), mode="bilinear", align_corners=False
    )[:, 0].numpy()
    assert np.abs(data._upscale(small) - expected * 255 / 16).max() <= 0.5001


def test_batches_are_normalised_by_the_training_set() -> None:
    train = data.load("digits").train
    pixels, labels = train.batch(np.arange(len(train)))
    assert pixels.shape == (1437, 1, 28, 28)
    assert pixels.dtype == np.float32
    assert labels.dtype == np.int64
    assert abs(float(pixels.mean(dtype=np.float64))) < 1e-4
    assert float(pixels.std(dtype=np.float64)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "."), ("fashion-mnist", "."), ("fashion-mnist", "FashionMNIST/raw")]
)
def test_idx_files_are_read(tmp_path: Path, name: str, folder: str, packed: bool) -> None:
    arrays = write_files(tmp_path / folder, packed=packed)
    split = data.load(name, tmp_path)
    assert np.array_equal(split.train.images, arrays["train-images-idx3-ubyte"])
    assert np.array_equal(split.test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert split.test.mean == split.train.mean == pytest.approx(split.train.images.mean() / 255)


@pytest.fixture
def torchvision() -> Iterator[None]:
    """PyPI's torchvision, built for another torch than the CPU's: its import looks for operators that are in
    its own extension alone. Nothing here uses them, so declaring them is enough to import it."""
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision.datasets")
    yield
    operators._destroy()


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_torchvision_reads_its_own_layout_as_we_do(
    tmp_path: Path, torchvision: None, name: str, kind: str
) -> None:
    write_files(tmp_path / kind / "raw")
    through_torchvision = data.load(name, tmp_path)
    assert through_torchvision.reader == "torchvision"
    write_files(tmp_path / "plain")
    data.load.cache_clear()
    through_idx = data.load(name, tmp_path / "plain")
    assert through_idx.reader == "idx"
    for one, other in zip(
        (through_torchvision.train, through_torchvision.test),
        (through_idx.train, through_idx.test),
        strict=True,
    ):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)


def test_a_torchvision_that_does_not_import_is_done_without(tmp_path: Path) -> None:
    """As PyPI's beside a torch for the CPU."""
    (tmp_path / "broken/torchvision").mkdir(parents=True)
    (tmp_path / "broken/torchvision/__init__.py").write_text("raise RuntimeError('no such operator')")
    write_files(tmp_path / "MNIST/raw")
    code = (
        "import sys, pathlib, fl.data as d; s = d.load('mnist', pathlib.Path(sys.argv[1])); print(s.reader)"
    )
    path = os.pathsep.join([str(tmp_path / "broken"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "idx\n"


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train-images-idx3-ubyte or .*\.gz in .*MNIST/raw"):
        data.load("mnist", tmp_path)
    with pytest.raises(DataError, match="is not a directory"):
        data.load("mnist", tmp_path / "absent")
    with pytest.raises(ConfigError, match="FL_DATA_DIR"):
        data.load("mnist")
    with pytest.raises(ConfigError, match="digits, mnist, fashion-mnist"):
        data.load("cifar")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("train-images-idx3-ubyte", b"<html>404", "not an IDX file of unsigned bytes"),
        ("train-images-idx3-ubyte", b"", "starts with nothing"),
        ("train-images-idx3-ubyte", idx(np.zeros((40, 28, 28), np.uint8))[:-1], "announces"),
        ("train-images-idx3-ubyte", idx(np.zeros((40, 8, 8), np.uint8)), r"expected \[n, 28, 28\]"),
        (
            "train-images-idx3-ubyte",
            idx(np.zeros((0, 28, 28), np.uint8)),
            "images-idx3-ubyte holds no images",
        ),
        ("train-labels-idx1-ubyte", idx(np.zeros(39, np.uint8)), "holds 39 labels for 40 images"),
        ("t10k-labels-idx1-ubyte", idx(np.full(10, 11, np.uint8)), "label 11"),
        ("train-images-idx3-ubyte", idx(np.zeros((40, 28, 28), np.uint8)), "same value"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes, says: str) -> None:
    write_files(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, packed=True)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"cannot read .*train-labels"):
        data.load("mnist", tmp_path)


def test_a_damaged_deflate_stream_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    packed = bytearray(gzip.compress(bytes(range(250)) * 40))
    for place in range(10, len(packed) - 8):
        changed = packed.copy()
        changed[place] ^= 0x55
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"labels\.gz"):
            data.read_idx(path)


@settings(deadline=None)
@given(
    samples=st.integers(1, 300),
    clients=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    distribution=st.sampled_from(("iid", "noniid")),
)
def test_partitions_lose_nothing_and_leave_nobody_out(
    samples: int, clients: int, seed: int, distribution: str
) -> None:
    labels = np.random.default_rng(samples).integers(0, 10, samples)
    if clients > samples:
        with pytest.raises(ConfigError, match="cannot share"):
            partition(labels, clients=clients, seed=seed, distribution=distribution)
        return
    parts = partition(labels, clients=clients, seed=seed, distribution=distribution)
    assert len(parts) == clients
    assert all(len(part) > 0 for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(samples))


@pytest.mark.parametrize("distribution", ["iid", "noniid"])
def test_partitions_depend_on_the_seed_and_on_nothing_else(distribution: str) -> None:
    labels = data.load("digits").train.labels

    def split(seed: int) -> list[list[int]]:
        parts = partition(labels, clients=5, seed=seed, distribution=distribution)
        return [part.tolist() for part in parts]

    np.random.seed(1)
    first = split(0)
    np.random.seed(2)
    assert split(0) == first
    assert all(split(seed) != first for seed in (1, 2, 3, 4))


def test_noniid_is_skewed_and_iid_is_not() -> None:
    labels = data.load("digits").train.labels

    def largest_class_share(distribution: str) -> float:
        shares = []
        for seed in range(5):
            for part in partition(labels, clients=5, seed=seed, distribution=distribution):
                shares.append(np.bincount(labels[part]).max() / len(part))
        return float(np.mean(shares))

    assert largest_class_share("iid") < 0.17
    assert largest_class_share("noniid") > 0.25


def test_unknown_distribution() -> None:
    with pytest.raises(ConfigError, match="expected one of iid, noniid"):
        partition(np.zeros(10, dtype=np.int64), clients=2, seed=0, distribution="zipf")
