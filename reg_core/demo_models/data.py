"""scikit-learn's 8x8 handwritten digits as tensors, with a fixed stratified split.

1797 images (UCI optical recognition of handwritten digits, test part), values 0..16, mapped to x/8 - 1 in
[-1, 1]."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import shortened
from .networks import IMAGE_SHAPE, NUM_CLASSES

TEST_FRACTION = 0.2
SPLIT_SEED = 0


class DigitsSplit(NamedTuple):
    """images [N, 1, 8, 8] float32 in [-1, 1], labels [N] int64 in 0..9."""

    images: Tensor
    labels: Tensor


@lru_cache(maxsize=1)
def load_digits() -> DigitsSplit:
    """All 1797 digits in the original order.

    Cached: treat the tensors as read-only. Raises ImportError without scikit-learn.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    raw = sklearn_digits()
    images = torch.from_numpy(raw.images.astype(np.float32) / 8 - 1)
    labels = torch.from_numpy(raw.target.astype(np.int64))
    return DigitsSplit(images.reshape(-1, *IMAGE_SHAPE), labels)


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted (train, test) indices; each class gives the same share to the test part."""
    rng = np.random.default_rng(SPLIT_SEED)
    test = []
    for digit in range(NUM_CLASSES):
        members = rng.permutation(np.flatnonzero(labels == digit))
        test.append(members[: round(TEST_FRACTION * len(members))])
    test = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), test), test


def load_split(part: str) -> DigitsSplit:
    """The "train" (1438 images) or "test" (359 images) part; ValueError otherwise."""
    if part not in ("train", "test"):
        raise ValueError(f"part must be 'train' or 'test', got {shortened(part)}")
    digits = load_digits()
    train, test = split_indices(digits.labels.numpy())
    index = torch.from_numpy(train if part == "train" else test)
    return DigitsSplit(digits.images[index], digits.labels[index])
