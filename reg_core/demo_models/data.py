"""The pictures that the demo models are trained on, as tensors.

digits: scikit-learn's 1797 handwritten digits (UCI optical recognition of handwritten digits, test part),
values 0..16, with a fixed stratified split. fashion: Zalando's Fashion-MNIST, 60,000 pictures to train on and
10,000 to test, values 0..255."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import one_of

TEST_FRACTION = 0.2
SPLIT_SEED = 0
DOWNLOADS = Path("out/data")
FASHION_FILES = {"train": "train", "test": "t10k"}
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


@dataclass(frozen=True)
class DataSet:
    """What the models of a data set share.

    - `shape`: channels, height and width. `names`: one for each class.
    - `sigma_data`: standard deviation of the training pictures' values.
    - `sigma_max`, `sigma_min`: the noise levels to sample between.
    """

    name: str
    shape: tuple[int, int, int]
    names: tuple[str, ...]
    sigma_data: float
    sigma_max: float
    sigma_min: float


# 27 and 1/75 times sigma_data: the start is indistinguishable from pure noise, and the end is far below the
# 1/8 grey step of the data. EDM's 80..0.002 would spend 6 of 18 steps outside that range.
DIGITS = DataSet("digits", (1, 8, 8), tuple("0123456789"), 0.75, 20.0, 0.01)
FASHION = DataSet("fashion", (1, 28, 28), CLOTHES, 0.7, 80.0, 0.01)
DATA_SETS = {data.name: data for data in (DIGITS, FASHION)}


class Pictures(NamedTuple):
    """images [N, C, H, W] float32 in [-1, 1], labels [N] int64."""

    images: Tensor
    labels: Tensor


def load_pictures(data: DataSet, part: str, folder: Path | None = None) -> Pictures:
    """The "train" or "test" part. `folder`: of fashion's idx files. Raises ValueError for another part."""
    one_of("part", part, FASHION_FILES)
    return load_fashion(part, folder) if data == FASHION else load_split(part)


@lru_cache(maxsize=1)
def load_digits() -> Pictures:
    """All 1797 digits in the original order.

    Cached: treat the tensors as read-only. Raises ImportError without scikit-learn.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    raw = sklearn_digits()
    images = torch.from_numpy(raw.images.astype(np.float32) / 8 - 1)
    labels = torch.from_numpy(raw.target.astype(np.int64))
    return Pictures(images.reshape(-1, *DIGITS.shape), labels)


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted (train, test) indices; each class gives the same share to the test part."""
    rng = np.random.default_rng(SPLIT_SEED)
    test = []
    for digit in range(len(DIGITS.names)):
        members = rng.permutation(np.flatnonzero(labels == digit))
        test.append(members[: round(TEST_FRACTION * len(members))])
    test = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), test), test


def load_split(part: str) -> Pictures:
    """Digits: the "train" (1438 images) or "test" (359 images) part."""
    digits = load_digits()
    train, test = split_indices(digits.labels.numpy())
    index = torch.from_numpy(train if part == "train" else test)
    return Pictures(digits.images[index], digits.labels[index])


def load_fashion(part: str, folder: Path | None = None) -> Pictures:
    """Fashion-MNIST from the four idx files in `folder`, or by torchvision, which downloads them once.

    Raises FileNotFoundError where neither works, ValueError for files that are damaged."""
    stem, names = FASHION_FILES[part], ("images-idx3-ubyte", "labels-idx1-ubyte")
    folder = folder or _downloaded()
    images, labels = (read_idx(_found(folder, f"{stem}-{name}")) for name in names)
    if images.shape[1:] != FASHION.shape[1:] or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder}: want pictures of 28x28 with a label each, got {images.shape}, {labels.shape}"
        )
    values = torch.from_numpy(images.astype(np.float32)).div(127.5).sub(1)
    return Pictures(values.reshape(-1, *FASHION.shape), torch.from_numpy(labels.astype(np.int64)))


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file, gzipped or not. Raises ValueError for another file or one cut short."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        raw = file.read()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} is not an idx file of bytes")
    sizes = [int(size) for size in np.frombuffer(raw, ">u4", raw[3], 4)]
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if len(values) != np.prod(sizes):
        raise ValueError(f"{path} says {sizes}, but holds {len(values)} values")
    return values.reshape(sizes)


def _found(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"no {name} or {name}.gz in {folder}. {_WAYS}")


def _downloaded() -> Path:
    try:
        from torchvision.datasets import FashionMNIST

        return Path(FashionMNIST(DOWNLOADS, download=True).raw_folder)
    except Exception as error:  # no torchvision, no network, a file that is another
        raise FileNotFoundError(f"Fashion-MNIST cannot be downloaded: {error}. {_WAYS}") from error


_WAYS = (
    "Install torchvision, which downloads it, or name the folder with the four idx files with --data"
    " (Debian's package dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist)."
)
