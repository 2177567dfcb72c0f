"""Data sets: the embedded digits, and MNIST or Fashion-MNIST from the user's own files.

`digits` is scikit-learn's bundled set of 1,797 real handwritten digits, 8x8, upscaled
here to the network's 28x28; it needs no file and no network. The other two are read
from IDX files, plain or gzipped, in the data directory itself or where torchvision
keeps them (`MNIST/raw`, `FashionMNIST/raw`). Nothing is ever downloaded.

Images stay bytes; a batch becomes normalised float32 when it is drawn, which costs
microseconds and keeps MNIST at 47 MB, shared by the processes forked from one parent.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fl.errors import ConfigError, DataError

__all__ = ("DATASETS", "Dataset", "Indices", "Labels", "Split", "load", "read_idx")

DATASETS = ("digits", "mnist", "fashion-mnist")
Indices: TypeAlias = npt.NDArray[np.int64]
Labels: TypeAlias = npt.NDArray[np.int64]
Images: TypeAlias = npt.NDArray[np.uint8]

_SIZE = 28
_DIGITS_TEST = 360  # a fifth of 1,797
_TORCHVISION_CLASS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_IDX_UINT8 = 0x08
_CHUNK_BYTES = 1 << 20
_MOST_BYTES = 1 << 30  # of a file; MNIST's largest has 47 MB


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images (n, 28, 28) uint8, labels (n,) 0..9; mean and deviation of the training pixels in 0..1."""

    images: Images
    labels: Labels
    mean: float
    deviation: float

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Indices) -> tuple[npt.NDArray[np.float32], Labels]:
        """Normalised images (k, 1, 28, 28) float32 and labels (k,) of the given samples."""
        pixels = self.images[indices, None].astype(np.float32)
        pixels -= np.float32(255 * self.mean)
        pixels *= np.float32(1 / (255 * self.deviation))
        return pixels, self.labels[indices]


@dataclass(frozen=True, kw_only=True)
class Split:
    """A data set's fixed division; the partition among clients is of `train` only.

    `reader` says what read it: scikit-learn (bundled), torchvision or idx (`read_idx`).
    """

    train: Dataset
    test: Dataset
    reader: str


@lru_cache(maxsize=1)
def load(name: str, data_dir: Path | None = None) -> Split:
    """The named data set; the last one stays in memory, for children forked later.

    :raises ConfigError: unknown name, or a data set of files without a directory.
    :raises DataError: a file is missing or is not what its name says.
    """
    if name == "digits":
        return _digits()
    if name not in _TORCHVISION_CLASS:
        raise ConfigError(f"data set {name!r}: expected one of {', '.join(DATASETS)}")
    if data_dir is None:
        raise ConfigError(f"data set {name} is read from files: name their directory (FL_DATA_DIR)")
    if not data_dir.is_dir():
        raise DataError(f"data directory {data_dir} is not a directory")
    arrays = _through_torchvision(name, data_dir)
    if arrays is not None:
        return _split(*arrays, reader="torchvision")
    return _split(*_through_idx(name, data_dir), reader="idx")


def _split(
    train_images: Images, train_labels: Labels, test_images: Images, test_labels: Labels, *, reader: str
) -> Split:
    mean = float(train_images.mean() / 255)
    deviation = float(train_images.std() / 255)
    if not deviation > 0:
        raise DataError("every training pixel has the same value: this is no data set to train on")
    return Split(
        train=Dataset(images=train_images, labels=train_labels, mean=mean, deviation=deviation),
        test=Dataset(images=test_images, labels=test_labels, mean=mean, deviation=deviation),
        reader=reader,
    )


def _digits() -> Split:
    from sklearn.datasets import load_digits  # 0.8 s, and only for this set

    bundle = load_digits()
    images, labels = _upscale(bundle.images), bundle.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))  # fixed: the split is part of the data set
    test, train = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    return _split(images[train], labels[train], images[test], labels[test], reader="scikit-learn")


def _upscale(images: npt.NDArray[np.float64]) -> Images:
    # Bilinear with pixel centres aligned, from 8x8 grey levels 0..16 to 28x28 levels 0..255.
    source = images.shape[1]
    centres = (np.arange(_SIZE) + 0.5) * source / _SIZE - 0.5
    weights = np.stack([np.interp(centres, np.arange(source), row) for row in np.eye(source)], axis=1)
    rows = np.einsum("ik,nkl->nil", weights, images)
    upscaled: Images = np.rint(np.einsum("nil,jl->nij", rows, weights) * (255 / 16)).astype(np.uint8)
    return upscaled


def _through_torchvision(name: str, data_dir: Path) -> tuple[Images, Labels, Images, Labels] | None:
    # Only for files in torchvision's own layout: elsewhere it would not find them.
    kind = _TORCHVISION_CLASS[name]
    if not (data_dir / kind / "raw").is_dir():
        return None
    try:
        from torchvision import datasets

        train, test = (getattr(datasets, kind)(data_dir, train=t, download=False) for t in (True, False))
    except Exception:
        # Absent, built for another torch (its extension then raises whatever it likes), or it wants
        # files unpacked that are gzipped here: the reader below copes or says what is wrong.
        return None
    return (
        train.data.numpy(),
        train.targets.numpy().astype(np.int64),
        test.data.numpy(),
        test.targets.numpy().astype(np.int64),
    )


def _through_idx(name: str, data_dir: Path) -> tuple[Images, Labels, Images, Labels]:
    folders = (data_dir, data_dir / _TORCHVISION_CLASS[name] / "raw")
    train_images, train_labels = _idx_pair(folders, "train")
    test_images, test_labels = _idx_pair(folders, "t10k")
    return train_images, train_labels, test_images, test_labels


def _idx_pair(folders: tuple[Path, ...], prefix: str) -> tuple[Images, Labels]:
    images_path = _find(folders, f"{prefix}-images-idx3-ubyte")
    labels_path = _find(folders, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != (_SIZE, _SIZE):
        raise DataError(f"{images_path} holds an array {list(images.shape)}, expected [n, {_SIZE}, {_SIZE}]")
    if len(images) == 0:
        raise DataError(f"{images_path} holds no images")
    if labels.shape != (len(images),):
        raise DataError(f"{labels_path} holds {labels.size} labels for {len(images)} images")
    if labels.max() > 9:
        raise DataError(f"{labels_path} holds the label {labels.max()}, expected 0..9")
    return images, labels.astype(np.int64)


def _find(folders: tuple[Path, ...], name: str) -> Path:
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise DataError(f"no {name} or {name}.gz in {' or '.join(map(str, folders))}")


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes (big-endian header: 0, 0, type, dimensions, sizes), plain or .gz.

    :raises DataError: unreadable, not IDX, another element type, or cut short.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            chunks: list[bytes] = []
            while chunk := stream.read(_CHUNK_BYTES):
                chunks.append(chunk)
                if len(chunks) * _CHUNK_BYTES > _MOST_BYTES:  # a small .gz can unpack to anything
                    raise DataError(f"{path} holds more than {_MOST_BYTES >> 20} MiB")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    raw = b"".join(chunks)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _IDX_UINT8 or len(raw) < 4 + 4 * raw[3]:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes (it starts with {raw[:4].hex(' ') or 'nothing'})"
        )
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    offset = 4 + 4 * len(shape)
    if len(raw) - offset != math.prod(shape):
        raise DataError(f"{path} announces {list(shape)} bytes and holds {len(raw) - offset}")
    return np.frombuffer(raw, dtype=np.uint8, offset=offset).reshape(shape)
