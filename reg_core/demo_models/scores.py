"""Samples of a demo model, and how good they are: what the training prints at its end."""

from __future__ import annotations

import torch
from torch import Tensor

from ..evaluation.metrics import Statistics, frechet
from ..guided import Guided
from ..sampling import karras_sigmas, sample_heun
from ..settings import Settings
from .data import Pictures
from .networks import Denoiser, Judge

WEIGHTS = (0.0, 1.0, 2.0)  # of plain guidance, w = cfg - 1


@torch.no_grad()
def sample(model: Denoiser, label: Tensor | None, count: int, weight: float, steps: int, seed: int) -> Tensor:
    """Heun samples [count, C, H, W] with plain guidance. `label`: integers [count]; None: unconditional."""
    noise = torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(seed))
    noise = noise.to(next(model.parameters()).device)
    cond = model if label is None else lambda x, sigma: model(x, sigma, label)
    guided = Guided(cond, model, weight, Settings(form="off"))
    sigmas = karras_sigmas(steps, model.sigma_min, model.sigma_max)
    return sample_heun(guided, model.sigma_max * noise, sigmas)


@torch.no_grad()
def accuracy(judge: Judge, images: Tensor, labels: Tensor) -> float:
    """Share of images whose predicted class is the label, 0..1."""
    return (judge(images).argmax(1) == labels).double().mean().item()


@torch.no_grad()
def moments(judge: Judge, images: Tensor, batch: int = 500) -> Statistics:
    """Of the judge's features of images [N, C, H, W]."""
    return Statistics.of(torch.cat([judge.features(part) for part in images.split(batch)]).cpu())


def nearest_distance(images: Tensor, reference: Tensor) -> float:
    """Median over images of the L2 distance to the nearest reference image."""
    return torch.cdist(images.flatten(1), reference.flatten(1)).min(1).values.median().item()


@torch.no_grad()
def report(
    model: Denoiser,
    judge: Judge,
    train: Pictures,
    test: Pictures,
    count: int = 1000,
    steps: int = 18,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Scores of samples, and the first hundred samples, by the name of the run.

    Scores: "w=..: accuracy / frechet / nearest" (to the judge's real pictures / to the training part),
    "uncond: smallest class share / frechet / nearest", "test: nearest"."""
    label = torch.arange(count, device=train.labels.device) % model.classes
    real = Statistics.real(judge)
    scores, shown = {"test: nearest": nearest_distance(test.images[:count], train.images)}, {}
    for weight in (*WEIGHTS, None):
        name = "uncond" if weight is None else f"w={weight:g}"
        images = sample(model, None if weight is None else label, count, weight or 0.0, steps, seed)
        shown[name] = images[:100].cpu()
        if weight is None:
            shares = judge(images).argmax(1).bincount(minlength=model.classes) / count
            scores["uncond: smallest class share"] = shares.min().item()
        else:
            scores[f"{name}: accuracy"] = accuracy(judge, images, label)
        scores[f"{name}: frechet"] = frechet(moments(judge, images), real)
        scores[f"{name}: nearest"] = nearest_distance(images, train.images)
    return scores, shown
