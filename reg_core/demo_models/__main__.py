"""CFG beside REG on a real, small model: `python -m reg_core.lab.demo`.

Samples the digits model from the same noise with plain CFG and with every form of REG at several cfg values, writes a
labelled grid of images and a plot of the correction over sigma, and prints accuracy, effective cfg, model rows, seconds.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..calibration import Calibration
from ..guided import Guided, calibrate
from ..rectify import ENGINES, FORMS, Settings
from ..sampling import karras_sigmas, sample_heun
from ..trace import Run
from .data import load_digits
from .evaluate import SIGMA_MAX, SIGMA_MIN, accuracy, frechet_distance
from .models import DENOISERS, load_digits_classifier, load_digits_model
from .networks import IMAGE_SHAPE, SIGMA_DATA

NAMES = {"off": "CFG"} | {form: f"REG {form}" for form in FORMS if form != "off"}


@dataclass(frozen=True)
class Result:
    """One sampling run: images [B, 1, 8, 8], what it cost and what the classifier says."""

    form: str
    cfg: float
    images: Tensor
    accuracy: float
    frechet: float  # to the real digits, in the classifier's features; biased by the sample's size, so compare rows only
    rows: float  # model rows per image
    seconds: float
    run: Run

    @property
    def effective_cfg(self) -> float:
        return self.cfg if self.form == "off" else self.run.effective_cfg


class Counted:
    """A denoiser that counts the rows it is asked for."""

    def __init__(self, denoiser):
        self.denoiser, self.rows = denoiser, 0

    def __call__(self, x, sigma):
        self.rows += len(x)
        return self.denoiser(x, sigma)


def measure(model, cfg: float, steps: int, seed: int) -> Calibration:
    """The table of form `calibrated` at one cfg, from four images of each digit and a noise of their own."""
    labels = torch.arange(10).repeat(4)
    noise = SIGMA_MAX * torch.randn(len(labels), *IMAGE_SHAPE, generator=torch.Generator().manual_seed(seed + 1000))
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    return calibrate(lambda x, sigma: model(x, sigma, labels), model, [noise], sigmas, cfg - 1, "scalar", model="digits")


def sample(model, classifier, real, form: str, cfg: float, labels: Tensor, noise: Tensor, steps: int, engine: str = "auto", table=None) -> Result:
    """Heun steps from `noise` [B, 1, 8, 8] (unit variance) to images of `labels` [B] with guidance of strength `cfg`.

    `real` [N, 64]: the classifier's features of the real digits. `table`: the Calibration of form `calibrated`.
    """
    cond, uncond = Counted(lambda x, sigma: model(x, sigma, labels)), Counted(lambda x, sigma: model(x, sigma))
    guided = Guided(cond, uncond, cfg - 1, Settings(form=form, engine=engine, data_std=SIGMA_DATA, calibration=table))
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    begin = time.perf_counter()
    images = sample_heun(guided, SIGMA_MAX * noise, sigmas)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        score, distance = accuracy(classifier, images, labels), frechet_distance(classifier.features(images), real)
    return Result(form, cfg, images, score, distance, (cond.rows + uncond.rows) / len(noise), seconds, guided.trace.last)


def grid(results: list[Result], lines: int = 2, scale: int = 4):
    """A PIL image: a row of the table per form, a column per cfg, ten digits in each line."""
    from PIL import Image, ImageDraw, ImageFont

    forms, cfgs = list(dict.fromkeys(r.form for r in results)), list(dict.fromkeys(r.cfg for r in results))
    cell, gap, left, top = 8 * scale, 2, 150, 30
    width, height = 10 * (cell + gap), lines * (cell + gap)
    page = Image.new("RGB", (left + len(cfgs) * (width + 14), top + len(forms) * (height + 24)), "white")
    draw, font, small = ImageDraw.Draw(page), ImageFont.load_default(15), ImageFont.load_default(12)
    for column, cfg in enumerate(cfgs):
        draw.text((left + column * (width + 14), 6), f"cfg {cfg:g}", fill="black", font=font)
    for result in results:
        x0 = left + cfgs.index(result.cfg) * (width + 14)
        y0 = top + forms.index(result.form) * (height + 24)
        draw.text((8, y0 + height // 2 - 8), NAMES[result.form], fill="black", font=font)
        pixels = ((result.images[: 10 * lines, 0] + 1) * 127.5).clamp(0, 255).byte()
        for i, image in enumerate(pixels.numpy()):
            picture = Image.fromarray(image).resize((cell, cell), Image.Resampling.NEAREST)
            page.paste(picture, (x0 + i % 10 * (cell + gap), y0 + i // 10 * (cell + gap)))
        text = f"accuracy {100 * result.accuracy:.0f}%   Frechet {result.frechet:.1f}   effective cfg {result.effective_cfg:.1f}"
        draw.text((x0, y0 + height + 2), text, fill="#555555", font=small)
    return page


def plot(results: list[Result], cfg: float, path: Path) -> None:
    """The correction of every form over sigma at one cfg: mean, and the range over elements or samples."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for result in results:
        if result.cfg != cfg or result.form == "off":
            continue
        rows = sorted(result.run.active, key=lambda r: r.sigma)
        sigma = [r.sigma for r in rows]
        (line,) = axes.plot(sigma, [r.correction_mean for r in rows], label=NAMES[result.form], linewidth=2)
        axes.fill_between(sigma, [r.correction_min for r in rows], [r.correction_max for r in rows], color=line.get_color(), alpha=0.12)
    axes.axhline(1, color="black", linewidth=1, linestyle=":", label="CFG")
    axes.set(xscale="log", xlabel="sigma (noise level), from noise to image", ylabel="correction: factor on the guidance", ylim=(-0.6, 2.0))
    axes.invert_xaxis()  # as sampling goes, and as the plots of the nodes
    axes.set_title(f"What REG multiplies guidance by, cfg {cfg:g} (line: mean, shade: range)")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(results: list[Result]) -> str:
    """Aligned text, a line per run."""
    head = f"{'guidance':<14} {'cfg':>5} {'effective cfg':>14} {'accuracy':>9} {'Frechet':>8} {'model rows/image':>17} {'seconds':>8}"
    lines = [head, "-" * len(head)]
    for r in results:
        line = f"{NAMES[r.form]:<14} {r.cfg:>5g} {r.effective_cfg:>14.2f} {100 * r.accuracy:>8.1f}% {r.frechet:>8.2f} {r.rows:>17.0f} {r.seconds:>8.2f}"
        lines.append(line)
    return "\n".join(lines)


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m reg_core.lab.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=DENOISERS, default=DENOISERS[1], help="which digits model (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write to (default %(default)s)")
    parser.add_argument("--cfg", type=float, nargs="+", default=[2.0, 4.0, 8.0], help="cfg values (default 2 4 8)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["off", *(f for f in FORMS if f != "off")], help="forms; off is plain CFG")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="how Jacobian products are computed (default %(default)s)")
    parser.add_argument("--per-digit", type=int, default=20, help="images of each digit and run (default %(default)s)")
    parser.add_argument("--steps", type=int, default=18, help="Heun steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.per_digit < 1 or args.steps < 2:
        parser.error(f"want --per-digit >= 1 and --steps >= 2, got {args.per_digit} and {args.steps}")
    return args


def main(argv=None) -> list[Result]:
    """Run the demonstration; returns what it printed."""
    args = parse(argv)
    torch.set_num_threads(1)  # so small a network gains little from more, and loses much on a busy machine
    model, classifier = load_digits_model(args.model), load_digits_classifier()
    with torch.no_grad():
        real = classifier.features(load_digits().images)
    labels = torch.arange(10).repeat(args.per_digit)  # 0..9, 0..9, ...: a line of the grid shows every digit
    noise = torch.randn(len(labels), *IMAGE_SHAPE, generator=torch.Generator().manual_seed(args.seed))
    jobs = [(form, cfg) for form in args.forms for cfg in args.cfg]
    results = []
    for form, cfg in (bar := tqdm(jobs, unit="run")):
        bar.set_description(f"{NAMES[form]} at cfg {cfg:g}")
        table_of_c = measure(model, cfg, args.steps, args.seed) if form == "calibrated" else None
        results.append(sample(model, classifier, real, form, cfg, labels, noise, args.steps, args.engine, table_of_c))
    args.out.mkdir(parents=True, exist_ok=True)
    grid(results).save(args.out / "grid.png")
    middle = args.cfg[len(args.cfg) // 2]
    plot(results, middle, args.out / "correction.png")
    print(table(results))
    print("\nAccuracy: by the digits classifier. Frechet: distance to the real digits in its features, lower is better, biased by")
    print("the number of images: compare rows only. REG guides less at equal cfg: compare at equal effective cfg, and with")
    print("the free 'schedule'.")
    print(f"{len(labels)} images a run, same noise (seed {args.seed}). Pictures: {args.out / 'grid.png'}, {args.out / 'correction.png'}")
    return results


if __name__ == "__main__":
    main()
