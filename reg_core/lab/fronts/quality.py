"""Scores of sampled pictures in the feature spaces of classifiers of their data set.

Precision, recall, density and coverage (Naeem et al. 2020) are those of their authors' package prdc. All
scores depend on the number of images: compare rows of one size only."""

from __future__ import annotations

import contextlib
import io
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...demo_models.data import load_digits, load_fashion
from ...demo_models.loading import load_judge
from ...evaluation.metrics import Statistics, frechet, inception_score

NEAREST = 5  # neighbours that make the manifold of prdc, its authors' choice
JUDGES = {"digits": {"fid": "digits"}, "fashion": {"fid": "fashion", "fid_other": "fashion_other"}}
BATCH = 2500


def manifold(features: Tensor, real: Tensor, nearest: int = NEAREST) -> dict[str, float]:
    """precision, recall, density, coverage of features [N, F] against real [M, F]."""
    from prdc import compute_prdc

    if min(len(features), len(real)) <= nearest + 1:
        least = min(len(features), len(real))
        raise ValueError(f"{nearest} nearest neighbours want more images than {least}")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the sizes
        found = compute_prdc(real.double().cpu().numpy(), features.double().cpu().numpy(), nearest)
    return {name: float(value) for name, value in found.items()}


@lru_cache(maxsize=4)
def _judge(name: str, device: str):
    """(classifier, the moments of its features of the real pictures)."""
    judge = load_judge(name, device=device)
    return judge, Statistics.real(judge)


@torch.no_grad()
def _features(classifier, images: Tensor) -> Tensor:
    return torch.cat([classifier.features(part) for part in images.split(BATCH)])


@lru_cache(maxsize=4)
def real_features(data: str, count: int, pictures: str | None, device: str) -> Tensor | None:
    """Features of real pictures to compare `count` sampled ones with, in the first space of a data set.

    All digits. As many pictures of Fashion-MNIST as are sampled, from the folder `pictures`, else None."""
    if data == "digits":
        images = load_digits().images
    elif pictures is not None:
        images = load_fashion("train", Path(pictures)).images[:count]
    else:
        return None
    return _features(_judge(data, device)[0], images.to(device))


@torch.no_grad()
def score(images: Tensor, label: Tensor, data: str = "digits", pictures: str | None = None) -> dict:
    """Of images [N, C, H, W] meant to show `label` [N]; see real_features for `pictures`.

    `fid`, `fid_other` and `is_` have no unit; the others are shares 0..1 (density can exceed 1). Raises
    ValueError for non-finite pixels."""
    finite = torch.isfinite(images).flatten(1).all(1)
    if not bool(finite.all()):
        raise ValueError(f"{int((~finite).sum())} of {len(images)} images have non-finite pixels")
    if data == "fashion":
        images = images.clamp(-1, 1)  # its many pixels of -1 come out as a little more or less
    device, scores = str(images.device), {}
    for metric, name in JUDGES[data].items():
        classifier, real = _judge(name, device)
        features = _features(classifier, images)
        scores[metric] = frechet(Statistics.of(features.cpu()), real)
        if metric == "fid":
            first, logits = features, classifier.head(features)  # eval mode: no dropout in between
    scores["is_"] = inception_score(logits.cpu())
    scores["accuracy"] = (logits.argmax(1) == label).double().mean().item()
    known = real_features(data, len(images), pictures, device)
    return scores if known is None else scores | manifold(first, known)
