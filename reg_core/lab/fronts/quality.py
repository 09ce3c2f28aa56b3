"""Scores of sampled digits in the feature space of the digits classifier.

Precision, recall, density and coverage (Naeem et al. 2020) are those of their authors' package prdc. All
scores depend on the number of images: compare rows of one size only."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from ...demo_models.data import load_digits
from ...demo_models.loading import load_judge
from ...evaluation.metrics import Statistics, frechet, inception_score

NEAREST = 5  # neighbours that make the manifold of prdc, its authors' choice


@dataclass(frozen=True)
class Quality:
    """`fid` and `is_` without unit; the others are shares 0..1 (density can exceed 1)."""

    fid: float
    is_: float
    accuracy: float
    precision: float
    recall: float
    density: float
    coverage: float


def manifold(features: Tensor, real: Tensor, nearest: int = NEAREST) -> dict[str, float]:
    """precision, recall, density, coverage of features [N, F] against real [M, F]."""
    from prdc import compute_prdc

    if min(len(features), len(real)) <= nearest + 1:
        least = min(len(features), len(real))
        raise ValueError(f"{nearest} nearest neighbours want more images than {least}")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the sizes
        found = compute_prdc(real.double().numpy(), features.double().numpy(), nearest)
    return {name: float(value) for name, value in found.items()}


@lru_cache(maxsize=1)
def judge() -> tuple[nn.Module, Tensor]:
    """(digits classifier, its features of all real digits [1797, 64])."""
    classifier = load_judge("digits")
    with torch.no_grad():
        return classifier, classifier.features(load_digits().images)


@torch.no_grad()
def score(images: Tensor, labels: Tensor) -> Quality:
    """Of images [N, 1, 8, 8] meant to show `labels` [N]. Raises ValueError for non-finite pixels."""
    finite = torch.isfinite(images).flatten(1).all(1)
    if not bool(finite.all()):
        raise ValueError(f"{int((~finite).sum())} of {len(images)} images have non-finite pixels")
    classifier, real = judge()
    features = classifier.features(images)
    logits = classifier.head(features)  # eval mode: no dropout in between
    right = (logits.argmax(1) == labels).double().mean().item()
    fid = frechet(Statistics.of(features), Statistics.of(real))
    return Quality(fid, inception_score(logits), right, **manifold(features, real))
