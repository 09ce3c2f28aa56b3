"""CFG beside REG on a real, small model: `python -m reg_core.demo_models`.

Samples all ten classes from the same noise: plain CFG at a good and at a high cfg, and every form of REG at
the gain that makes it as strong as the high cfg. Prints a table of scores. Writes a labelled sheet of
pictures, a plot of the correction, and the fronts of the committed study."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..calibration import Calibration
from ..evaluation.metrics import Statistics, frechet, inception_score
from ..guided import Guided, calibrate
from ..sampling import karras_sigmas, sample_heun
from ..settings import ENGINES, Settings
from ..trace import Run
from . import study
from .loading import DENOISERS, JUDGES, load_judge, load_model
from .networks import Denoiser, Judge
from .sheet import save_sheet

PLAIN, INTERVAL = "off", "interval"
NAMES = {PLAIN: "CFG", INTERVAL: f"CFG at sigma <= {study.LOW_SIGMA:g} only"}
NAMES |= {form: f"REG {form}" for form in study.COLORS if form not in NAMES}
SHOWN = 4  # pictures of each class and run on the sheet
EXPLAINED = """\
FID: distance to the real pictures, lower is better; one for each judge, a classifier trained apart.
IS: how clearly the classes are shown; it grows with guidance. Accuracy: pictures that show their class.
All depend on the number of pictures: compare rows only. Gain multiplies guidance: it makes a form about as
strong as CFG at the last cfg."""


@dataclass(frozen=True)
class Result:
    """One sampling run: pictures [B, C, H, W] and their scores.

    `fids`: one for each judge. `is_`, `accuracy`: by the first. `rows`: model rows a picture."""

    form: str
    cfg: float
    gain: float
    images: Tensor
    fids: tuple[float, ...]
    is_: float
    accuracy: float
    rows: float
    run: Run

    @property
    def label(self) -> str:
        gain = "" if self.form == PLAIN else f", gain {self.gain:g}"
        return f"{NAMES[self.form]}, cfg {self.cfg:g}{gain}"


class Counted:
    """A denoiser that counts the rows it is asked for."""

    def __init__(self, denoiser):
        self.denoiser, self.rows = denoiser, 0

    def __call__(self, x, sigma):
        self.rows += len(x)
        return self.denoiser(x, sigma)


@dataclass(frozen=True, eq=False)
class Bench:
    """What all runs share: the model, its judges, the noise [B, C, H, W] of unit variance, its labels [B]."""

    name: str
    model: Denoiser
    judges: tuple[Judge, ...]
    real: tuple[Statistics, ...]
    labels: Tensor
    noise: Tensor
    sigmas: Tensor

    @classmethod
    def of(cls, name: str, each: int, steps: int, seed: int) -> Bench:
        """`name`: of the model. `each`: pictures of a class."""
        model, judges = load_model(name), [judge for judge in JUDGES if judge.startswith(data_set(name))]
        labels = torch.arange(model.classes).repeat(each)  # 0..9, 0..9, ...
        sigmas = karras_sigmas(steps, model.sigma_min, model.sigma_max)
        loaded = tuple(map(load_judge, judges))
        real = tuple(map(Statistics.real, loaded))
        return cls(name, model, loaded, real, labels, _noise(model, len(labels), seed), sigmas)

    def measure(self, weight: float, seed: int) -> Calibration:
        """The table of form `calibrated` at one weight, from two pictures of each class and other noise."""
        labels = torch.arange(self.model.classes).repeat(2)
        guided = Guided(self._cond(labels), self.model, weight, Settings(form="scalar"))
        noise = self.model.sigma_max * _noise(self.model, len(labels), seed + 1000)
        return calibrate(guided, [noise], self.sigmas, model=self.name)

    @torch.no_grad()
    def sample(self, form: str, cfg: float, gain: float, engine: str = "auto", seed: int = 0) -> Result:
        """Heun's method from noise to pictures of the labels. `gain`: multiplies the rectified guidance."""
        cond, uncond = Counted(self._cond(self.labels)), Counted(self.model)
        weight, interval = cfg - 1, form == INTERVAL
        settings = Settings(
            form=PLAIN if interval else form,
            engine=engine,
            gain=gain,
            data_std=self.model.sigma_data,
            calibration=self.measure(gain * weight, seed) if form == "calibrated" else None,
        )

        def low(sigma: float) -> float:
            return gain * weight * (sigma <= study.LOW_SIGMA)

        guided = Guided(cond, uncond, low if interval else weight, settings)
        images = sample_heun(guided, self.model.sigma_max * self.noise, self.sigmas).clamp(-1, 1)
        features = [judge.features(images) for judge in self.judges]
        fids = tuple(frechet(Statistics.of(f), real) for f, real in zip(features, self.real, strict=True))
        logits = self.judges[0].head(features[0])
        right = (logits.argmax(1) == self.labels).double().mean().item()
        rows = (cond.rows + uncond.rows) / len(images)
        scores = fids, inception_score(logits), right, rows
        return Result(form, cfg, gain, images, *scores, guided.trace.last)

    def _cond(self, labels: Tensor):
        return lambda x, sigma: self.model(x, sigma, labels)


def _noise(model: Denoiser, count: int, seed: int) -> Tensor:
    return torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(seed))


def data_set(name: str) -> str:
    return name.split("_")[0]


def sheet(results: list[Result], names: tuple[str, ...], path: Path) -> None:
    """PNG of the first pictures: a row a run, a column a class."""
    cells = [r.images[i :: len(names)][:SHOWN] for r in results for i in range(len(names))]
    save_sheet(path, cells, [f"{r.label} | {name}" for r in results for name in names], across=2)


def plot(results: list[Result], path: Path) -> None:
    """PNG of the correction of every form over sigma: mean, and range over elements or samples."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for result in results:
        rows = sorted(result.run.active, key=lambda r: r.sigma)
        if not rows:
            continue
        sigma, low, mean, high = zip(
            *((r.sigma, r.correction_min, r.correction_mean, r.correction_max) for r in rows), strict=True
        )
        color = study.COLORS[result.form]
        axes.plot(sigma, mean, label=NAMES[result.form], linewidth=2, color=color)
        axes.fill_between(sigma, low, high, color=color, alpha=0.12)
    axes.axhline(1, color="black", linewidth=1, linestyle=":", label="CFG")
    axes.set(xscale="log", xlabel="sigma (noise level), from noise to picture", ylim=(-0.6, 2.0))
    axes.set(ylabel="correction: factor on the guidance")
    axes.invert_xaxis()  # as sampling goes, and as the plots of the nodes
    axes.set_title("What REG multiplies guidance by (line: mean, shade: range)")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(results: list[Result]) -> str:
    """Aligned text, a line a run."""
    judges = [f"FID {i + 1}" for i in range(len(results[0].fids))] if len(results[0].fids) > 1 else ["FID"]
    widths = "{:<24} {:>5} {:>5} " + "{:>7} " * len(judges) + "{:>6} {:>9} {:>12}"
    head = widths.format("guidance", "cfg", "gain", *judges, "IS", "accuracy", "rows/picture")
    lines = [head, "-" * len(head)]
    for r in results:
        fids, share = (f"{fid:.2f}" for fid in r.fids), f"{100 * r.accuracy:.0f}%"
        gain = "" if r.form == PLAIN else f"{r.gain:g}"
        lines.append(
            widths.format(NAMES[r.form], f"{r.cfg:g}", gain, *fids, f"{r.is_:.2f}", share, f"{r.rows:.0f}")
        )
    return "\n".join(lines)


def parse(argv=None) -> argparse.Namespace:
    prog, forms = "python -m reg_core.demo_models", (PLAIN, *study.RATIOS["fashion"])
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", choices=DENOISERS, default="fashion_weak", help="which model (default %(default)s)")
    add("--out", type=Path, default=Path("out/demo"), help="folder to write to (default %(default)s)")
    cfg = "cfg values of plain CFG; the forms are as strong as the last one (default %(default)s)"
    add("--cfg", type=float, nargs="+", default=[1.5, 2.5], help=cfg)
    add("--forms", nargs="+", choices=forms, default=list(forms), help="forms; off is plain CFG")
    engine = "how products with the Jacobian are computed (default %(default)s)"
    add("--engine", choices=ENGINES, default="auto", help=engine)
    add("--each", type=int, default=13, help="pictures of each class and run (default %(default)s)")
    add("--steps", type=int, default=9, help="Heun steps (default %(default)s)")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.each < 1 or args.steps < 2:
        parser.error(f"want --each >= 1 and --steps >= 2, got {args.each} and {args.steps}")
    if args.forms == [INTERVAL] and INTERVAL not in study.RATIOS[data_set(args.model)]:
        parser.error(f"form {INTERVAL} was not measured on {args.model}")
    return args


def main(argv=None) -> list[Result]:
    """Run the demonstration; returns what it printed."""
    args = parse(argv)
    bench, gains = Bench.of(args.model, args.each, args.steps, args.seed), study.RATIOS[data_set(args.model)]
    jobs = [(PLAIN, cfg, 1.0) for cfg in args.cfg if PLAIN in args.forms]
    jobs += [(form, args.cfg[-1], gain) for form, gain in gains.items() if form in args.forms]
    # A run a core: threads inside of so small a network would wait for one another.
    workers, one = (
        min(os.cpu_count() or 1, len(jobs)),
        {"initializer": torch.set_num_threads, "initargs": (1,)},
    )
    with ThreadPoolExecutor(workers, **one) as pool:
        runs = pool.map(lambda job: bench.sample(*job, args.engine, args.seed), jobs)
        results = list(tqdm(runs, total=len(jobs), unit="run"))
    written = [args.out / "sheet.png", args.out / "correction.png"]
    sheet(results, bench.model.names, written[0])
    plot(results, written[1])
    if study.RESULTS.is_file():  # not in an installed package
        written.append(args.out / "fronts.png")
        study.draw(written[2], NAMES)
    print(f"{table(results)}\n\n{EXPLAINED}")
    print(f"{len(bench.labels)} pictures a run, same noise (seed {args.seed}).")
    print(f"Pictures: {', '.join(map(str, written))}")
    return results


if __name__ == "__main__":
    main()
