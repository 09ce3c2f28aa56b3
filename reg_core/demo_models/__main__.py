"""CFG beside REG on a real, small model: `python -m reg_core.demo_models`.

Samples the digits model from the same noise with plain CFG and with every form of REG at several cfg values.
Writes a labelled sheet of images and a plot of the correction over sigma. Prints accuracy, effective cfg,
model rows and seconds."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..calibration import Calibration
from ..evaluation.metrics import Statistics, frechet
from ..forms import FORMS
from ..guided import Guided, calibrate
from ..sampling import karras_sigmas, sample_heun
from ..settings import ENGINES, Settings
from ..trace import Run
from .data import load_digits
from .loading import DENOISERS, load_digits_classifier, load_digits_model
from .networks import IMAGE_SHAPE, SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, DigitsClassifier, EDMDenoiser
from .scores import accuracy
from .sheet import save_sheet

NAMES = {"off": "CFG"} | {form: f"REG {form}" for form in FORMS if form != "off"}
SHOWN = 20  # images of each run on the sheet
EXPLAINED = (
    "Accuracy: by the digits classifier. Frechet: distance to the real digits in its features, lower is"
    " better, biased by\nthe number of images: compare rows only. REG guides less at equal cfg: compare at"
    " equal effective cfg, and with\nthe free 'schedule'."
)


@dataclass(frozen=True)
class Result:
    """One sampling run: images [B, 1, 8, 8], its cost and its scores.

    `frechet`: distance to the real digits in the classifier's features. It is biased by the number of images:
    compare rows only. `rows`: model rows an image."""

    form: str
    cfg: float
    images: Tensor
    accuracy: float
    frechet: float
    rows: float
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


@dataclass(frozen=True, eq=False)
class Bench:
    """What all runs share: the model, its judge, the noise [B, 1, 8, 8] of unit variance, its labels [B]."""

    model: EDMDenoiser
    classifier: DigitsClassifier
    real: Statistics
    labels: Tensor
    noise: Tensor
    sigmas: Tensor

    @classmethod
    def of(cls, name: str, per_digit: int, steps: int, seed: int) -> Bench:
        """`name`: of the model."""
        classifier, labels = load_digits_classifier(), torch.arange(10).repeat(per_digit)  # 0..9, 0..9, ...
        with torch.no_grad():
            real = Statistics.of(classifier.features(load_digits().images))
        sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
        return cls(load_digits_model(name), classifier, real, labels, _noise(len(labels), seed), sigmas)

    def measure(self, cfg: float, seed: int) -> Calibration:
        """The table of form `calibrated` at one cfg, from four images of each digit and other noise."""
        labels = torch.arange(10).repeat(4)
        guided = Guided(self._cond(labels), self.model, cfg - 1, Settings(form="scalar"))
        noise = SIGMA_MAX * _noise(len(labels), seed + 1000)
        return calibrate(guided, [noise], self.sigmas, model="digits")

    def sample(self, settings: Settings, cfg: float) -> Result:
        """Heun's method from the noise to images of the labels."""
        cond, uncond = Counted(self._cond(self.labels)), Counted(self.model)
        guided = Guided(cond, uncond, cfg - 1, settings)
        begin = time.perf_counter()
        images = sample_heun(guided, SIGMA_MAX * self.noise, self.sigmas)
        seconds, rows = time.perf_counter() - begin, (cond.rows + uncond.rows) / len(images)
        with torch.no_grad():
            score = accuracy(self.classifier, images, self.labels)
            distance = frechet(Statistics.of(self.classifier.features(images)), self.real)
        return Result(settings.form, cfg, images, score, distance, rows, seconds, guided.trace.last)

    def _cond(self, labels: Tensor):
        return lambda x, sigma: self.model(x, sigma, labels)


def _noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(seed))


def sheet(results: list[Result], path: Path) -> None:
    """PNG of the first images: a row of the table per form, a column per cfg, ten digits in each line."""
    labels = [f"{NAMES[r.form]} | cfg {r.cfg:g}" for r in results]
    captions = [
        f"accuracy {100 * r.accuracy:.0f}%, Frechet {r.frechet:.1f}, effective cfg {r.effective_cfg:.1f}"
        for r in results
    ]
    save_sheet(path, [r.images[:SHOWN] for r in results], labels, captions)


def plot(results: list[Result], cfg: float, path: Path) -> None:
    """PNG of the correction of every form over sigma at one cfg: mean, and range over elements or samples."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for result in results:
        if result.cfg != cfg or result.form == "off":
            continue
        rows = sorted(result.run.active, key=lambda r: r.sigma)
        sigma, low, mean, high = zip(
            *((r.sigma, r.correction_min, r.correction_mean, r.correction_max) for r in rows), strict=True
        )
        (line,) = axes.plot(sigma, mean, label=NAMES[result.form], linewidth=2)
        axes.fill_between(sigma, low, high, color=line.get_color(), alpha=0.12)
    axes.axhline(1, color="black", linewidth=1, linestyle=":", label="CFG")
    axes.set(xscale="log", xlabel="sigma (noise level), from noise to image", ylim=(-0.6, 2.0))
    axes.set(ylabel="correction: factor on the guidance")
    axes.invert_xaxis()  # as sampling goes, and as the plots of the nodes
    axes.set_title(f"What REG multiplies guidance by, cfg {cfg:g} (line: mean, shade: range)")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(results: list[Result]) -> str:
    """Aligned text, a line per run."""
    widths = "{:<14} {:>5} {:>14} {:>9} {:>8} {:>17} {:>8}"
    names = ("guidance", "cfg", "effective cfg", "accuracy", "Frechet", "model rows/image", "seconds")
    head = widths.format(*names)
    lines = [head, "-" * len(head)]
    for r in results:
        share, cost = f"{100 * r.accuracy:.1f}%", (f"{r.rows:.0f}", f"{r.seconds:.2f}")
        numbers = (f"{r.cfg:g}", f"{r.effective_cfg:.2f}", share, f"{r.frechet:.2f}", *cost)
        lines.append(widths.format(NAMES[r.form], *numbers))
    return "\n".join(lines)


def parse(argv=None) -> argparse.Namespace:
    prog, forms = "python -m reg_core.demo_models", ["off", *(f for f in FORMS if f != "off")]
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", choices=DENOISERS, default=DENOISERS[1], help="which digits model (default %(default)s)")
    add("--out", type=Path, default=Path("out/demo"), help="folder to write to (default %(default)s)")
    add("--cfg", type=float, nargs="+", default=[2.0, 4.0, 8.0], help="cfg values (default 2 4 8)")
    add("--forms", nargs="+", choices=FORMS, default=forms, help="forms; off is plain CFG")
    engine = "how products with the Jacobian are computed (default %(default)s)"
    add("--engine", choices=ENGINES, default="auto", help=engine)
    add("--per-digit", type=int, default=20, help="images of each digit and run (default %(default)s)")
    add("--steps", type=int, default=18, help="Heun steps (default %(default)s)")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.per_digit < 1 or args.steps < 2:
        parser.error(f"want --per-digit >= 1 and --steps >= 2, got {args.per_digit} and {args.steps}")
    return args


def main(argv=None) -> list[Result]:
    """Run the demonstration; returns what it printed."""
    args = parse(argv)
    torch.set_num_threads(1)  # so small a network gains little from more, and loses much on a busy machine
    bench, results = Bench.of(args.model, args.per_digit, args.steps, args.seed), []
    jobs = [(form, cfg) for form in args.forms for cfg in args.cfg]
    for form, cfg in (bar := tqdm(jobs, unit="run")):
        bar.set_description(f"{NAMES[form]} at cfg {cfg:g}")
        known = bench.measure(cfg, args.seed) if form == "calibrated" else None
        results.append(bench.sample(Settings(form, args.engine, data_std=SIGMA_DATA, calibration=known), cfg))
    pictures = args.out / "grid.png", args.out / "correction.png"
    sheet(results, pictures[0])
    plot(results, args.cfg[len(args.cfg) // 2], pictures[1])
    print(table(results))
    print(f"\n{EXPLAINED}")
    same = f"{len(bench.labels)} images a run, same noise (seed {args.seed})"
    print(f"{same}. Pictures: {pictures[0]}, {pictures[1]}")
    return results


if __name__ == "__main__":
    main()
