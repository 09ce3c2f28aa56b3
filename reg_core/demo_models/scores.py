"""Sampling and scoring used at the end of training.

Plain classifier-free guidance under the library's Heun sampler, and the scores of what comes out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..sampling import karras_sigmas, sample_heun
from .networks import IMAGE_SHAPE, NUM_CLASSES, DigitsClassifier, EDMDenoiser

# 27 and 1/75 times sigma_data = 0.75: the start is indistinguishable from pure
# noise and the end is far below the 1/8 grey step of the data. EDM's 80..0.002
# would spend 6 of 18 steps outside that range.
SIGMA_MAX = 20.0
SIGMA_MIN = 0.01


def cfg_denoiser(model: EDMDenoiser, label: Tensor, w: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Classifier-free guidance D = cond + w (cond - uncond); w = 0 is unguided."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        cond = model(x, sigma, label)
        if w == 0:
            return cond
        return cond + w * (cond - model(x, sigma))

    return denoise


@torch.no_grad()
def sample_digits(model: EDMDenoiser, label: Tensor | None, count: int, w: float, steps: int, seed: int) -> Tensor:
    """count images [count, 1, 8, 8]; label is [count] integers, or None for unconditional."""
    noise = torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(seed))
    denoise = model if label is None else cfg_denoiser(model, label, w)
    return sample_heun(denoise, SIGMA_MAX * noise, karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX))


@torch.no_grad()
def accuracy(classifier: DigitsClassifier, images: Tensor, labels: Tensor) -> float:
    """Share of images whose predicted class is the label, 0..1."""
    return (classifier(images).argmax(1) == labels).double().mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to features [N, F] and [M, F]."""
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    # tr sqrt(A B) is the sum of the square roots of the eigenvalues of A B.
    roots = np.sqrt(np.linalg.eigvals((cov_a @ cov_b).numpy()).astype(complex)).real.sum()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    return float(mean + cov_a.trace() + cov_b.trace() - 2 * roots)


def nearest_distance(images: Tensor, reference: Tensor) -> float:
    """Median over images of the L2 distance to the nearest reference image."""
    return torch.cdist(images.flatten(1), reference.flatten(1)).min(1).values.median().item()


@torch.no_grad()
def report(
    model: EDMDenoiser,
    classifier: DigitsClassifier,
    train: Tensor,
    test: Tensor,
    count: int = 1000,
    steps: int = 18,
    seed: int = 0,
    ws: tuple[float, ...] = (0.0, 1.0, 2.0),
) -> tuple[dict[str, float], Tensor]:
    """Scores of samples, and the first hundred samples of each guidance weight.

    Keys: "w=..: accuracy / frechet / nearest" (to all data / to the training part),
    "uncond: smallest class share / frechet", "test: nearest". The samples are
    [len(ws) + 1, min(count, 100), 1, 8, 8], the last entry unconditional.
    """
    label = torch.arange(count) % NUM_CLASSES
    real = classifier.features(torch.cat([train, test]))
    scores = {"test: nearest": nearest_distance(test, train)}
    grids = []
    for w in (*ws, None):
        images = sample_digits(model, None if w is None else label, count, w or 0.0, steps, seed)
        grids.append(images[:100])
        name = "uncond" if w is None else f"w={w:g}"
        if w is None:
            shares = classifier(images).argmax(1).bincount(minlength=NUM_CLASSES) / count
            scores["uncond: smallest class share"] = shares.min().item()
        else:
            scores[f"{name}: accuracy"] = accuracy(classifier, images, label)
        scores[f"{name}: frechet"] = frechet_distance(classifier.features(images), real)
        scores[f"{name}: nearest"] = nearest_distance(images, train)
    return scores, torch.stack(grids)
