"""Train the demo models: `python -m reg_core.demo_models.train digits` or `... fashion`.

Writes the denoisers and the judges of a data set. Seeded; on a CUDA device where there is one. The digits
take fifteen minutes on two CPU cores, fashion ten minutes on a large GPU. Needs the extra `lab`."""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from .data import DATA_SETS, DIGITS, FASHION, DataSet, Pictures, load_digits, load_pictures
from .loading import JUDGES, WEIGHTS_DIR, load_judge, save_weights
from .networks import Denoiser, DigitsJudge, FashionJudge, Judge, UNet, UNetConfig, label_rows
from .scores import accuracy, moments, report
from .sheet import save_sheet


@dataclass(frozen=True)
class Recipe:
    """Network and training of a denoiser.

    - `p_mean`, `p_std`: of the normal distribution of log sigma.
    - `label_dropout`: share of pictures without their label.
    - `part`: share of the steps after which training ends.
    """

    data: DataSet
    config: UNetConfig
    steps: int
    batch: int
    learning_rate: float
    ema_decay: float
    p_mean: float
    p_std: float
    label_dropout: float
    part: float = 1.0


@dataclass(frozen=True)
class JudgeRecipe:
    """Network and training of a classifier.

    - `shifts`: pixels, one of which moves a picture down, another to the right.
    - `noise`: half of the pictures get noise of a sigma between 0 and this.
    """

    data: DataSet
    network: Callable[[], Judge]
    steps: int
    batch: int
    shifts: tuple[int, ...]
    noise: float
    seed: int = 0


# Log sigma is wider and higher than EDM's (-1.2, 1.2): 8x8 pictures have no redundant pixels to average, so
# their content is decided at larger sigma. The weak models are partners for autoguidance (Karras et al. 2024,
# arXiv:2406.02507): the same data and loss, less capacity and less training.
_digits = partial(UNetConfig, DIGITS.shape, len(DIGITS.names))
_fashion = partial(UNetConfig, FASHION.shape, len(FASHION.names), dense=True)
_GOOD = Recipe(DIGITS, _digits((32, 80), 2, 96), 2500, 128, 2e-3, 0.998, -0.5, 1.3, 0.12)
_LARGE = Recipe(FASHION, _fashion((64, 96, 128), 2, 192), 7546, 1024, 1e-3, 0.999, -0.8, 1.4, 0.1)
RECIPES = {
    "digits": _GOOD,
    "digits_weak": replace(_GOOD, steps=500, config=_digits((16, 24), 1, 48)),
    "fashion": _LARGE,
    "fashion_weak": replace(_LARGE, steps=2500, learning_rate=2e-3, config=_fashion((24, 32, 48), 1, 64)),
    "fashion_early": replace(_LARGE, part=1 / 12),  # large and hardly trained; it does not ship
}
JUDGE_RECIPES = {
    # Digits mostly stay where they are: a pixel is an eighth of the picture.
    "digits_judge": JudgeRecipe(DIGITS, DigitsJudge, 1500, 128, (-1, 0, 0, 0, 1), 0.4),
    "fashion_judge": JudgeRecipe(FASHION, FashionJudge, 2500, 512, (-2, -1, 0, 1, 2), 0.5),
    "fashion_judge_other": JudgeRecipe(
        FASHION, partial(FashionJudge, 32), 2500, 512, (-2, -1, 0, 1, 2), 0.5, seed=1
    ),
}


def edm_loss(model: Denoiser, images: Tensor, rows: Tensor, recipe: Recipe, generator: torch.Generator):
    """Mean weighted denoising loss (Karras et al. 2022, eq. 2 and table 1).

    The weight 1 / c_out^2 makes the loss the raw network's mean squared error.
    """
    normal = partial(torch.randn, generator=generator, device=images.device)
    sigma = (normal(len(images)) * recipe.p_std + recipe.p_mean).exp()
    noise = normal(images.shape)
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
    recipe: Recipe, train: Pictures, test: Pictures, seed: int, title: str, loss_repeats: int = 10
) -> tuple[Denoiser, float]:
    """Train on the pictures' device; returns the averaged model and its conditional test loss.

    The loss is averaged over loss_repeats noise draws per test picture.
    """
    torch.manual_seed(seed)
    data, device = recipe.data, train.images.device
    generator = torch.Generator(device).manual_seed(seed + 1)
    model = Denoiser(UNet(recipe.config), data.names, data.sigma_data, data.sigma_max, data.sigma_min)
    model = model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    bar = tqdm(range(math.ceil(recipe.steps * recipe.part)), desc=title, mininterval=2.0)
    for step in bar:
        index = torch.randint(len(train.images), (recipe.batch,), generator=generator, device=device)
        keep = torch.rand(recipe.batch, 1, generator=generator, device=device) >= recipe.label_dropout
        rows = _rows(train.labels[index], data) * keep
        loss = edm_loss(model, train.images[index], rows, recipe, generator)
        _update(optimizer, model, loss, recipe.learning_rate * cosine_rate(step, recipe.steps))
        # The cap lets the average forget the start early in training.
        decay = min(recipe.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    generator.manual_seed(seed + 2)
    total = 0.0
    for images, labels in zip(test.images.split(1000), test.labels.split(1000), strict=True):
        for _ in range(loss_repeats):
            with torch.no_grad():
                part = edm_loss(average, images, _rows(labels, data), recipe, generator)
            total += part.item() * len(images)
    return average, total / (loss_repeats * len(test.images))


def augment(images: Tensor, recipe: JudgeRecipe, generator: torch.Generator) -> Tensor:
    """Shift each picture [N, 1, H, W]; add noise to half of them."""
    (batch, _, height, width), device = images.shape, images.device
    most = max(map(abs, recipe.shifts))
    padded = functional.pad(images, (most,) * 4, value=-1.0)
    choice = torch.tensor(recipe.shifts, device=device) + most
    which = torch.randint(len(choice), (2, batch), generator=generator, device=device)
    rows = choice[which[0]][:, None] + torch.arange(height, device=device)
    columns = choice[which[1]][:, None] + torch.arange(width, device=device)
    every = torch.arange(batch, device=device)[:, None, None]
    shifted = padded[every, 0, rows[:, :, None], columns[:, None, :]][:, None]
    sigma = (torch.rand(batch, 1, 1, 1, generator=generator, device=device) * 2 - 1) * recipe.noise
    noise = torch.randn(images.shape, generator=generator, device=device)
    return shifted + sigma.clamp(min=0) * noise


def train_judge(
    recipe: JudgeRecipe, train: Pictures, test: Pictures, seed: int, title: str
) -> tuple[Judge, float]:
    """Train on the pictures' device; returns the classifier and its test accuracy."""
    torch.manual_seed(seed + recipe.seed)
    device = train.images.device
    generator = torch.Generator(device).manual_seed(seed + recipe.seed + 1)
    model = recipe.network().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    for step in tqdm(range(recipe.steps), desc=title, mininterval=2.0):
        index = torch.randint(len(train.images), (recipe.batch,), generator=generator, device=device)
        logits = model(augment(train.images[index], recipe, generator))
        loss = functional.cross_entropy(logits, train.labels[index], label_smoothing=0.02)
        _update(optimizer, model, loss, 2e-3 * cosine_rate(step, recipe.steps))
    model.eval().requires_grad_(False)
    return model, accuracy(model, test.images, test.labels)


def _rows(labels: Tensor, data: DataSet) -> Tensor:
    return label_rows(labels, len(labels), len(data.names), torch.float32, labels.device)


def _update(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m reg_core.demo_models.train", description=__doc__)
    add = parser.add_argument
    add("data_set", choices=DATA_SETS)
    add("--only", nargs="+", choices=(*JUDGE_RECIPES, *RECIPES), help="train these alone (default: all)")
    add("--data", type=Path, help="folder with the four idx files of fashion (default: torchvision)")
    add("--steps", type=int, help="steps of the good model; the others scale in proportion")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="output folder (default: the packaged weights)")
    add("--quick", action="store_true", help="smoke run: few steps, needs --out")
    add("--grid", type=Path, help="folder for PNG sheets of samples")
    args = parser.parse_args(argv)
    if args.quick and args.out is None:
        parser.error("--quick needs --out, so that it cannot replace the packaged weights")
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    for name in args.only or ():
        if name.split("_")[0] != args.data_set:
            parser.error(f"{name} is not trained on {args.data_set}")
    if args.data and args.data_set != "fashion":
        parser.error("--data is for fashion; the digits come with scikit-learn")
    return args


def main(argv: list[str] | None = None) -> None:
    """Command line entry; prints the scores of each model after training it."""
    args = parse(argv)
    start, data = time.perf_counter(), DATA_SETS[args.data_set]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    try:
        loaded = [load_pictures(data, part, args.data) for part in ("train", "test")]
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    pictures = [Pictures(*(values.to(device) for values in part)) for part in loaded]
    steps = RECIPES[data.name].steps
    scale = (args.steps or (16 if args.quick else steps)) / steps
    for name, recipe in (JUDGE_RECIPES | RECIPES).items():
        if recipe.data != data or (args.only and name not in args.only):
            continue
        recipe = replace(recipe, steps=max(1, round(recipe.steps * scale)))
        recipe = replace(recipe, batch=16) if args.quick else recipe
        make = _make_judge if name in JUDGE_RECIPES else _make_denoiser
        make(name, recipe, pictures, args)
    print(f"total {(time.perf_counter() - start) / 60:.1f} min")


def _make_judge(name: str, recipe: JudgeRecipe, pictures: list[Pictures], args: argparse.Namespace) -> None:
    judge, score = train_judge(recipe, *pictures, args.seed, name)
    images = pictures[0].images if recipe.data == FASHION else load_digits().images.to(pictures[0].images)
    real = moments(judge, images)
    judge.real_mean.copy_(real.mean), judge.real_cov.copy_(real.cov), judge.real_count.fill_(real.count)
    notes = {"seed": args.seed + recipe.seed, "steps": recipe.steps, "test_accuracy": f"{score:.4f}"}
    _save(name, recipe, judge, args, notes)
    print(f"{name}: {_size(judge)}, test accuracy {score:.4f}")


def _make_denoiser(name: str, recipe: Recipe, pictures: list[Pictures], args: argparse.Namespace) -> None:
    begin = time.perf_counter()
    model, loss = train_denoiser(recipe, *pictures, args.seed, name, 1 if args.quick else 10)
    minutes = (time.perf_counter() - begin) / 60
    judge = JUDGES[recipe.data.name]
    newest = args.out if args.out and (args.out / f"{judge}.safetensors").is_file() else None
    judge = load_judge(recipe.data.name, device=pictures[0].images.device, weights_dir=newest)
    count, steps = (20, 2) if args.quick else (1000, 18)
    scores, shown = report(model, judge, *pictures, count, steps, args.seed)
    scores = {"test loss": loss, **scores}
    rounded = json.dumps({key: round(value, 4) for key, value in scores.items()})
    notes = {"seed": args.seed, "steps": math.ceil(recipe.steps * recipe.part), "batch": recipe.batch}
    _save(name, recipe, model, args, {**notes, "scores": rounded})
    print(f"{name}: {_size(model)}, {notes['steps']} steps in {minutes:.1f} min")
    for key, value in scores.items():
        print(f"  {key}: {value:.4f}")
    if args.grid:
        save_sheet(args.grid / f"{name}.png", list(shown.values()), list(shown))


def _save(name: str, recipe: Recipe | JudgeRecipe, model: nn.Module, args, notes: dict) -> None:
    dtype = torch.float16 if recipe.data == FASHION else torch.float32
    save_weights((args.out or WEIGHTS_DIR) / f"{name}.safetensors", model, dtype, **notes)


def _size(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


if __name__ == "__main__":
    main()
