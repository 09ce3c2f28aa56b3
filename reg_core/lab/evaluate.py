"""Sampling and scoring used at the end of training.

A deliberately plain reference: deterministic Heun sampler and classifier-free
guidance, independent of the library's own samplers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .networks import IMAGE_SHAPE, NUM_CLASSES, DigitsClassifier, EDMDenoiser

# 27 and 1/75 times sigma_data = 0.75: the start is indistinguishable from pure
# noise and the end is far below the 1/8 grey step of the data. EDM's 80..0.002
# would spend 6 of 18 steps outside that range.
SIGMA_MAX = 20.0
SIGMA_MIN = 0.01
RHO = 7.0


def edm_sigmas(steps: int = 18, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> Tensor:
    """Noise levels [steps + 1] from sigma_max to sigma_min, then 0 (Karras et al. 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (ends[0] + ramp * (ends[1] - ends[0])) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def heun_sample(denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor):
    """Deterministic EDM sampler (Karras et al. 2022, algorithm 1).

    denoise(x [B, ...], sigma [B]) -> D; noise has unit variance. Returns samples like noise.
    """
    sigmas = sigmas.to(noise)
    x = noise * sigmas[0]
    for here, there in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - denoise(x, here.expand(len(x)))) / here
        euler = x + (there - here) * slope
        if there > 0:
            slope_there = (euler - denoise(euler, there.expand(len(x)))) / there
            x = x + (there - here) * (slope + slope_there) / 2
        else:
            x = euler
    return x


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
    return heun_sample(denoise, noise, edm_sigmas(steps))


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
