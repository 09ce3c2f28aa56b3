"""Train the digits networks: `python -m reg_core.demo_models.train`.

Writes digits.safetensors, digits_weak.safetensors and digits_classifier.safetensors. Seeded; under fifteen
minutes on two CPU cores. Needs the extra `lab`."""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from .data import load_split
from .loading import CLASSIFIER, WEIGHTS_DIR, load_digits_classifier, save_weights
from .networks import DigitsClassifier, DigitsNet, DigitsNetConfig, EDMDenoiser, label_rows
from .scores import accuracy, report
from .sheet import save_sheet

BATCH = 128
LABEL_DROPOUT = 0.12
# log-normal sigma, wider and higher than EDM's (-1.2, 1.2): an 8x8 image has
# no redundant pixels to average, so its content is decided at larger sigma.
P_MEAN, P_STD = -0.5, 1.3


@dataclass(frozen=True)
class Recipe:
    """Network size and training length of one denoiser."""

    steps: int
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    batch: int = BATCH
    config: DigitsNetConfig = field(default_factory=DigitsNetConfig)


GOOD = Recipe(steps=2500)
# Autoguidance partner (Karras et al. 2024, arXiv:2406.02507): the same data and
# loss, less capacity and less training.
WEAK = Recipe(steps=500, config=DigitsNetConfig(channels=(16, 24), blocks=1, embed_dim=48))
CLASSIFIER_STEPS = 1500


def edm_loss(model: EDMDenoiser, images: Tensor, rows: Tensor, generator: torch.Generator):
    """Mean weighted denoising loss (Karras et al. 2022, eq. 2 and table 1).

    The weight 1 / c_out^2 makes the loss the raw network's mean squared error.
    """
    log_sigma = torch.randn(len(images), generator=generator) * P_STD + P_MEAN
    sigma = log_sigma.exp()
    noise = torch.randn(images.shape, generator=generator)
    denoised = model(images + sigma.reshape(-1, 1, 1, 1) * noise, sigma, rows)
    weight = 1 / sigma.square() + 1 / model.sigma_data**2
    return (weight * (denoised - images).square().flatten(1).mean(1)).mean()


def cosine_rate(step: int, steps: int) -> float:
    """Linear warm-up over the first 5 percent, then cosine to zero; factor in 0..1."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train_denoiser(
    recipe: Recipe, seed: int, title: str, loss_repeats: int = 10
) -> tuple[EDMDenoiser, float]:
    """Train on the training part; returns the averaged model and its conditional test loss.

    The loss is averaged over loss_repeats noise draws per test image.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    data, held_out = load_split("train"), load_split("test")
    model = EDMDenoiser(DigitsNet(recipe.config)).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    bar = tqdm(range(recipe.steps), desc=title, mininterval=2.0)
    for step in bar:
        index = torch.randint(len(data.images), (recipe.batch,), generator=generator)
        keep = torch.rand(recipe.batch, 1, generator=generator) >= LABEL_DROPOUT
        rows = label_rows(data.labels[index], recipe.batch, torch.float32, torch.device("cpu")) * keep
        _set_rate(optimizer, recipe.learning_rate * cosine_rate(step, recipe.steps))
        loss = edm_loss(model, data.images[index], rows, generator)
        _update(optimizer, model, loss)
        # The cap lets the average forget the start early in training.
        decay = min(recipe.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    generator.manual_seed(seed + 2)
    with torch.no_grad():
        rows = label_rows(held_out.labels, len(held_out.labels), torch.float32, loss.device)
        losses = [edm_loss(average, held_out.images, rows, generator) for _ in range(loss_repeats)]
    return average, torch.stack(losses).mean().item()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by at most one pixel; add noise of sigma 0..0.4 to half of them."""
    padded = functional.pad(images, (1, 1, 1, 1), value=-1.0)
    batch = len(images)
    # Mostly unshifted: a one-pixel shift is an eighth of the image.
    choice = torch.tensor([0, 1, 1, 1, 2])
    offset = choice[torch.randint(5, (2, batch), generator=generator)]
    span = torch.arange(8)
    rows = (offset[0][:, None] + span)[:, :, None]
    cols = (offset[1][:, None] + span)[:, None, :]
    shifted = padded[torch.arange(batch)[:, None, None], 0, rows, cols][:, None]
    sigma = torch.rand(batch, 1, 1, 1, generator=generator) * 0.8 - 0.4
    return shifted + sigma.clamp(min=0) * torch.randn(images.shape, generator=generator)


def train_classifier(steps: int, seed: int) -> tuple[DigitsClassifier, float]:
    """Train on the training part; returns the classifier and its test accuracy."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    data, held_out = load_split("train"), load_split("test")
    model = DigitsClassifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    for step in tqdm(range(steps), desc="classifier", mininterval=2.0):
        index = torch.randint(len(data.images), (BATCH,), generator=generator)
        _set_rate(optimizer, 2e-3 * cosine_rate(step, steps))
        logits = model(augment(data.images[index], generator))
        loss = functional.cross_entropy(logits, data.labels[index], label_smoothing=0.02)
        _update(optimizer, model, loss)
    return model.eval(), accuracy(model, held_out.images, held_out.labels)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _update(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def main(argv: list[str] | None = None) -> None:
    """Command line entry; prints the scores of each model after training it."""
    parser = argparse.ArgumentParser(prog="python -m reg_core.demo_models.train", description=__doc__)
    add = parser.add_argument
    add("--steps", type=int, help="steps of the good model; the other two scale in proportion")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="output folder (default: the packaged weights)")
    add("--which", choices=("all", "digits", "weak", "classifier"), default="all")
    add("--quick", action="store_true", help="smoke run: few steps, needs --out")
    add("--grid", type=Path, help="folder for PNG sheets of samples")
    args = parser.parse_args(argv)
    if args.quick and args.out is None:
        parser.error("--quick needs --out, so that it cannot replace the packaged weights")
    if args.steps is not None and args.steps < 1:
        parser.error("--steps must be at least 1")
    out = args.out or WEIGHTS_DIR
    part = (args.steps or (16 if args.quick else GOOD.steps)) / GOOD.steps
    start = time.perf_counter()
    if args.which in ("all", "classifier"):
        _make_classifier(out, max(1, round(CLASSIFIER_STEPS * part)), args.seed)
    wanted = {"all": ("digits", "digits_weak"), "digits": ("digits",), "weak": ("digits_weak",)}
    for name in wanted.get(args.which, ()):
        recipe = GOOD if name == "digits" else WEAK
        recipe = replace(recipe, steps=max(1, round(recipe.steps * part)))
        shown = _make_denoiser(out, name, recipe, args.seed, args.quick)
        if args.grid:
            save_sheet(args.grid / f"{name}.png", list(shown.values()), list(shown))
    print(f"total {(time.perf_counter() - start) / 60:.1f} min")


def _make_classifier(out: Path, steps: int, seed: int) -> None:
    classifier, score = train_classifier(steps, seed)
    notes = {"seed": seed, "steps": steps, "test_accuracy": f"{score:.4f}"}
    save_weights(out / f"{CLASSIFIER}.safetensors", classifier, **notes)
    print(f"{CLASSIFIER}: {_size(classifier)}, test accuracy {score:.4f}")


def _make_denoiser(out: Path, name: str, recipe: Recipe, seed: int, quick: bool) -> dict[str, Tensor]:
    """Trains, saves and scores a denoiser; returns samples by the name of their run."""
    recipe = replace(recipe, batch=16) if quick else recipe
    begin = time.perf_counter()
    model, loss = train_denoiser(recipe, seed, name, 1 if quick else 10)
    minutes = (time.perf_counter() - begin) / 60
    newest = out if (out / f"{CLASSIFIER}.safetensors").is_file() else None
    classifier = load_digits_classifier(weights_dir=newest)
    scores, shown = report(model, classifier, 20 if quick else 1000, 2 if quick else 18, seed)
    scores = {"test loss": loss, **scores}
    rounded = json.dumps({key: round(value, 4) for key, value in scores.items()})
    notes = {"seed": seed, "steps": recipe.steps, "batch": recipe.batch, "scores": rounded}
    save_weights(out / f"{name}.safetensors", model, **notes)
    print(f"{name}: {_size(model)}, {recipe.steps} steps in {minutes:.1f} min")
    for key, value in scores.items():
        print(f"  {key}: {value:.4f}")
    return shown


def _size(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


if __name__ == "__main__":
    main()
