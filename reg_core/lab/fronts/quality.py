"""Scores of sampled digits in the feature space of the digits classifier.

Frechet distance and inception score are pytorch-ignite's, precision / recall / density / coverage (Naeem et al. 2020) those of its
authors' package prdc; both take features as they are. All depend on the number of images: compare rows of one size only.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from .data import load_digits
from .models import load_digits_classifier

NEAREST = 5  # neighbours that make the manifold of prdc, its authors' choice


@dataclass(frozen=True)
class Scores:
    """`fid` and `is_` without unit; the others are shares 0..1 (density can exceed 1)."""

    fid: float
    is_: float
    accuracy: float
    precision: float
    recall: float
    density: float
    coverage: float


def frechet(features: Tensor, real: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to features [N, F] and [M, F]. Raises ValueError for shapes that do not fit."""
    from ignite.metrics.gan.fid import fid_score  # its class FID wants as many real as generated images

    if features.ndim != 2 or real.ndim != 2 or features.shape[1] != real.shape[1] or min(len(features), len(real)) < 2:
        raise ValueError(f"want features [N, F] and [M, F] of two rows or more, got {tuple(features.shape)} and {tuple(real.shape)}")
    a, b = features.double(), real.double()
    return float(fid_score(a.mean(0), b.mean(0), torch.cov(a.T), torch.cov(b.T)))


def inception_score(logits: Tensor) -> float:
    """exp of the mean KL divergence of p(y | x) from p(y), over all of logits [N, K]: between 1 and K."""
    from ignite.metrics import InceptionScore

    if logits.ndim != 2 or len(logits) < 1:
        raise ValueError(f"want logits [N, K], got {tuple(logits.shape)}")
    metric = InceptionScore(num_features=logits.shape[1])
    metric.update(logits.double().softmax(1))
    return float(metric.compute())


def manifold(features: Tensor, real: Tensor, nearest: int = NEAREST) -> dict[str, float]:
    """precision, recall, density, coverage of features [N, F] against real [M, F]."""
    from prdc import compute_prdc

    if min(len(features), len(real)) <= nearest + 1:
        raise ValueError(f"{nearest} nearest neighbours want more images than {min(len(features), len(real))}")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the sizes
        found = compute_prdc(real.double().numpy(), features.double().numpy(), nearest)
    return {name: float(value) for name, value in found.items()}


@lru_cache(maxsize=1)
def judge() -> tuple[nn.Module, Tensor]:
    """(digits classifier, its features of all real digits [1797, 64])."""
    classifier = load_digits_classifier()
    with torch.no_grad():
        return classifier, classifier.features(load_digits().images)


@torch.no_grad()
def score(images: Tensor, labels: Tensor) -> Scores:
    """Scores of images [N, 1, 8, 8] meant to show `labels` [N]. Raises ValueError for images with non-finite pixels."""
    if not bool(torch.isfinite(images).all()):
        raise ValueError(f"{int((~torch.isfinite(images).flatten(1).all(1)).sum())} of {len(images)} images have non-finite pixels")
    classifier, real = judge()
    features = classifier.features(images)
    logits = classifier.head(features)  # eval mode: no dropout in between
    right = (logits.argmax(1) == labels).double().mean().item()
    return Scores(frechet(features, real), inception_score(logits), right, **manifold(features, real))
