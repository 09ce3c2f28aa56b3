"""Samples of the digits, and how good they are: what the training prints at its end."""

from __future__ import annotations

import torch
from torch import Tensor

from ..evaluation.metrics import Statistics, frechet
from ..guided import Guided
from ..sampling import karras_sigmas, sample_heun
from ..settings import Settings
from .data import load_split
from .networks import IMAGE_SHAPE, NUM_CLASSES, SIGMA_MAX, SIGMA_MIN, DigitsClassifier, EDMDenoiser

WEIGHTS = (0.0, 1.0, 2.0)  # of plain guidance, w = cfg - 1


@torch.no_grad()
def sample_digits(
    model: EDMDenoiser, label: Tensor | None, count: int, weight: float, steps: int, seed: int
) -> Tensor:
    """Heun samples [count, 1, 8, 8] with plain guidance. `label`: integers [count]; None: unconditional."""
    noise = torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(seed))
    cond = model if label is None else lambda x, sigma: model(x, sigma, label)
    guided = Guided(cond, model, weight, Settings(form="off"))
    return sample_heun(guided, SIGMA_MAX * noise, karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX))


@torch.no_grad()
def accuracy(classifier: DigitsClassifier, images: Tensor, labels: Tensor) -> float:
    """Share of images whose predicted class is the label, 0..1."""
    return (classifier(images).argmax(1) == labels).double().mean().item()


def nearest_distance(images: Tensor, reference: Tensor) -> float:
    """Median over images of the L2 distance to the nearest reference image."""
    return torch.cdist(images.flatten(1), reference.flatten(1)).min(1).values.median().item()


@torch.no_grad()
def report(
    model: EDMDenoiser, classifier: DigitsClassifier, count: int = 1000, steps: int = 18, seed: int = 0
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Scores of samples, and the first hundred samples, by the name of the run.

    Scores: "w=..: accuracy / frechet / nearest" (to all data / to the training part), "uncond: smallest class
    share / frechet / nearest", "test: nearest"."""
    label = torch.arange(count) % NUM_CLASSES
    train, test = load_split("train").images, load_split("test").images
    real = Statistics.of(classifier.features(torch.cat([train, test])))
    scores, shown = {"test: nearest": nearest_distance(test, train)}, {}
    for weight in (*WEIGHTS, None):
        name = "uncond" if weight is None else f"w={weight:g}"
        images = sample_digits(model, None if weight is None else label, count, weight or 0.0, steps, seed)
        shown[name] = images[:100]
        if weight is None:
            shares = classifier(images).argmax(1).bincount(minlength=NUM_CLASSES) / count
            scores["uncond: smallest class share"] = shares.min().item()
        else:
            scores[f"{name}: accuracy"] = accuracy(classifier, images, label)
        scores[f"{name}: frechet"] = frechet(Statistics.of(classifier.features(images)), real)
        scores[f"{name}: nearest"] = nearest_distance(images, train)
    return scores, shown
