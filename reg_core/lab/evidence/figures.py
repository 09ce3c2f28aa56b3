"""Pictures of the evidence. Each function writes one PNG; colours mean the same form everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import TwoSlopeNorm  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402

from ...drawing import FORM_COLORS, form_color  # noqa: E402
from ...forms import FREE_FORMS  # noqa: E402
from ..fronts.analysis import Front, shown  # noqa: E402
from ..fronts.setups import SETUPS  # noqa: E402
from ..fronts.trials import Trial  # noqa: E402
from ..mixtures.exact import MIXTURE_FORMS, difference  # noqa: E402
from ..mixtures.optimum import Optimum  # noqa: E402
from ..mixtures.zoo import Pair, pair  # noqa: E402
from . import fashion  # noqa: E402
from .tables import name_of  # noqa: E402

COLORS = {form: form_color(form) for form in FORM_COLORS}
matplotlib.rcParams["figure.dpi"] = 100


def _panels(lines: int, columns: int, size: tuple[float, float], **more):
    return plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, **more)


def _save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).save(path)
    plt.close(figure)
    return shrink(path)


def shrink(path: Path) -> Path:
    """The picture in 128 colours and at most 1200 pixels wide: a third of the size, to be kept in git."""
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((1200, 1200))
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


@dataclass(frozen=True, eq=False)
class Area:
    """Where an error map is drawn: points x [G, n], sigma, the shape of their grid, its ends in the plot."""

    x: torch.Tensor
    sigma: torch.Tensor | float
    shape: torch.Size
    extent: tuple[float, float, float, float]
    aspect: str = "auto"


def _ratio_map(axes, p: Pair, weight: float, form: str, area: Area):
    """log2 of the form's error over CFG's: blue where the form is nearer to the optimum, red where CFG is."""
    want = Optimum(p, weight, 1e-3).evaluate(area.x, area.sigma).shift
    moved = (difference(p, area.x, area.sigma, f)[1] for f in ("off", form))
    plain, ours = ((weight * v - want).norm(dim=1).clamp_min(1e-12) for v in moved)
    ratio = (ours / plain).log2().clamp(-4, 4).reshape(area.shape)
    style = {"cmap": "RdBu_r", "norm": TwoSlopeNorm(0, -4, 4), "interpolation": "nearest"}
    return axes.imshow(ratio.numpy(), origin="lower", extent=area.extent, aspect=area.aspect, **style)


def toy(path: Path, weight: float = 1.0, nodes: int = 161) -> Path:
    """The paper's 1-D toy, after its Figure 1: guidance and optimum at three levels, and error maps."""
    p = pair("toy")
    x = torch.linspace(-1, 2, nodes, dtype=torch.float64)[:, None]
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for column, sigma in zip(axes[0], (0.2, 0.5, 1.0), strict=True):
        best, style = Optimum(p, weight).evaluate(x, sigma).shift, {"linewidth": 3, "alpha": 0.6}
        column.plot(x, best, color=COLORS["optimum"], label="optimum", **style)
        for form in ("off", "row_sum", "schedule"):
            style = {"color": COLORS[form], "linestyle": "--" if form == "schedule" else "-"}
            column.plot(x, weight * difference(p, x, sigma, form)[1], label=name_of(form), **style)
        column.set(title=f"sigma {sigma:g}", xlabel="x")
    axes[0, 0].set_ylabel("guidance added to D, x0 units")
    axes[0, 0].legend()
    levels = torch.logspace(-1.3, 1, 60, dtype=torch.float64)
    grid_x, grid_s = torch.meshgrid(x[:, 0], levels, indexing="xy")
    extent = (-1, 2, math.log10(levels[0]), math.log10(levels[-1]))
    area = Area(grid_x.reshape(-1, 1), grid_s.reshape(-1), grid_x.shape, extent)
    for column, (w, name) in zip(axes[1], ((0.5, "toy"), (1.0, "toy"), (1.0, "nested")), strict=True):
        image = _ratio_map(column, pair(name), w, "row_sum", area)
        title = f"row_sum's error over CFG's: {name}, w = {w:g}"
        column.set(title=title, xlabel="x", ylabel="log10 sigma")
        column.title.set_fontsize(10)
    figure.colorbar(image, ax=axes[1], label="log2 (blue: REG nearer)", shrink=0.9)
    return _save(figure, path)


MAPS = (
    ("correlated", 0.5),
    ("correlated_mirror", 0.5),
    ("overlapping", 0.5),
    ("overlapping", 2.0),
    ("moons", 0.5),
)


def maps(path: Path, weight: float = 1.0, nodes: int = 41, cases=MAPS) -> Path:
    """Error maps in 2-D of row_sum and scalar over the density of the noisy class (the paper's Figure 2)."""
    figure, axes = _panels(2, len(cases), (2.5 * len(cases) + 0.8, 5.2))
    for i, (column, (name, sigma)) in enumerate(zip(axes.T, cases, strict=True)):
        p = pair(name)
        centre, reach = p.cond.mean, 2.5 * (p.cond.cov.diagonal().max() + sigma**2).sqrt()
        ramps = [
            torch.linspace(float(c - reach), float(c + reach), nodes, dtype=torch.float64) for c in centre
        ]
        grid = torch.meshgrid(*ramps, indexing="xy")
        x = torch.stack([g.reshape(-1) for g in grid], 1)
        extent = tuple(float(ramp[i]) for ramp in ramps for i in (0, -1))
        area = Area(x, sigma, grid[0].shape, extent, "equal")
        density = p.cond.log_prob_at(x, sigma).exp().reshape(grid[0].shape)
        for ax, form in zip(column, ("row_sum", "scalar"), strict=True):
            image = _ratio_map(ax, p, weight, form, area)
            contours = density.max().item() * np.array([0.1, 0.4, 0.8])
            ax.contour(*grid, density, levels=contours, colors="black", linewidths=0.6)
            ax.tick_params(labelsize=7)
            ax.set_ylabel(form if i == 0 else "")
        column[0].set_title(f"{name}\nsigma {sigma:g}", fontsize=9)
    figure.colorbar(image, ax=axes, label="log2 of error over CFG's (blue: REG nearer)", shrink=0.8)
    figure.suptitle(f"Error maps at w = {weight:g}; contours: where a sampler is", fontsize=11)
    return _save(figure, path)


def by_sigma(rows: list[dict], path: Path, weight: float = 1.0) -> Path:
    """Relative RMS error over sigma, a panel per pair; above 1 REG loses. `rows` of study.errors."""
    names = list(dict.fromkeys(r["pair"] for r in rows))
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = _panels(lines, columns, (2.7 * columns, 2.2 * lines))
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for ax, name in zip(axes.flat, names, strict=False):
        mine = [r for r in rows if (r["pair"], r["weight"]) == (name, weight) and r["sigma"] is not None]
        for form in MIXTURE_FORMS[1:]:
            points = [(r["sigma"], r["relative_rms"]) for r in mine if r["form"] == form]
            style = {"color": COLORS[form], "linestyle": "--" if form == "schedule" else "-"}
            ax.plot(*zip(*points, strict=True), label=form, linewidth=1.5, **style)
        ax.axhline(1, color="black", linestyle=":")
        ax.set(xscale="log", yscale="log", title=name, ylim=(0.01, 10))
        ax.tick_params(labelsize=7)
    axes.flat[0].legend(fontsize=7)
    figure.supxlabel("sigma")
    figure.supylabel("RMS error to the optimum over CFG's")
    return _save(figure, path)


def ends(rows: list[dict], path: Path) -> Path:
    """Wasserstein distance to the tilted target over w in 1-D: solid at nominal weight, dotted re-tuned."""
    names = list(dict.fromkeys(r["pair"] for r in rows if r["form"] == "optimum"))
    figure, axes = _panels(1, len(names), (3.0 * len(names) + 0.4, 3.2))
    for ax, name in zip(axes.flat, names, strict=True):
        for form in ("off", "schedule", "row_sum", "optimum"):  # in 1-D scalar and product are row_sum
            mine = [r for r in rows if (r["pair"], r["form"]) == (name, form)]
            mine = sorted(mine, key=lambda r: r["weight"])
            weights, colour = [r["weight"] for r in mine], COLORS[form]
            nominal = [r["distance"] for r in mine]
            ax.plot(weights, nominal, "-o", markersize=3, color=colour, label=name_of(form))
            if form != "optimum":
                ax.plot(weights, [r["tuned_distance"] for r in mine], ":", color=colour)
        ax.set(xscale="log", yscale="log", title=name, xlabel="w")
        ax.set_xticks(sorted({r["weight"] for r in rows}))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    axes.flat[0].set_ylabel("W1 to the tilted target, x0 units")
    axes.flat[0].legend(fontsize=8, title="dotted: re-tuned", title_fontsize=8)
    return _save(figure, path)


def front_panels(found: dict[tuple[str, str, str], Front], path: Path) -> Path:
    """FID against IS, a panel per base, a line per form, bars: standard deviation over seeds."""
    bases = list(dict.fromkeys(key[:2] for key in found))
    columns = min(4, len(bases))
    lines = -(-len(bases) // columns)
    figure, axes = _panels(lines, columns, (3.4 * columns, 3.3 * lines))
    for ax in axes.flat[len(bases) :]:
        ax.axis("off")
    for ax, base in zip(axes.flat, bases, strict=False):
        group = [f for key, f in found.items() if key[:2] == base and key[2] in COLORS]
        for front in sorted(group, key=lambda f: f.form != "off"):
            (score, fid), (score_std, fid_std) = (
                [getattr(front.values[m], what)(1) for m in ("is_", "fid")] for what in ("mean", "std")
            )
            style = {"color": COLORS[front.form], "linestyle": "--" if front.form in FREE_FORMS else "-"}
            style |= {"marker": ".", "elinewidth": 0.6, "linewidth": 1.3}
            ax.errorbar(score, fid, fid_std, score_std, label=name_of(front.form, base[0]), **style)
        _zoom(ax, group)
        ax.set(title=f"{base[0]}, {base[1]}", xlabel="IS (strength of guidance)")
        ax.set_ylabel("FID (lower is better)")
    axes.flat[0].legend(fontsize=7)
    return _save(figure, path)


def fashion_panels(found: dict[tuple[str, str, str], Front], path: Path) -> Path:
    """FID over IS on Fashion-MNIST, a panel a model, a colour a form; bars: standard deviation over seeds."""
    groups = {s: g for s in fashion.NAMES if "off" in (g := fashion.of_setup(found, s))}
    figure, axes = _panels(1, len(groups), (3.4 * len(groups), 3.8))
    for ax, (setup, group) in zip(axes.flat, groups.items(), strict=True):
        for row, front in group.items():
            score, fid = (front.values[m] for m in ("is_", "fid"))
            style = {"color": COLORS[row], "linestyle": "--" if row in FREE_FORMS else "-", "marker": "."}
            style |= {"linewidth": 1.3, "elinewidth": 0.6}
            label = {"off": "CFG or autoguidance", fashion.INTERVAL_ROW: "CFG in an interval"}.get(row, row)
            ax.errorbar(score.mean(1), fid.mean(1), fid.std(1), score.std(1), label=label, **style)
        seeds = max(len(front.seeds) for front in group.values())
        title = f"{fashion.NAMES[setup]}, {seeds} seed{'s' if seeds > 1 else ''}"
        _zoom(ax, list(group.values()), 4.0)
        ax.set(title=title, xlabel="IS (strength of guidance)", yscale="log")
        ax.title.set_fontsize(10)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.tick_params(labelsize=7, which="both")
    axes.flat[0].set_ylabel("FID (lower is better)")
    lines, names = axes.flat[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), fontsize=8)
    return _save(figure, path)


def _zoom(ax, group: list[Front], top: float = 2.5) -> None:
    """The part of the picture where somebody would sample: FID up to `top` times the least."""
    fid, score = (np.concatenate([f.values[m].mean(1) for f in group]) for m in ("fid", "is_"))
    near = fid <= top * fid.min()
    ax.set(xlim=(score[near].min() - 0.1, score[near].max() + 0.1), ylim=(0.85 * fid.min(), top * fid.min()))


def corrections(results: dict[Trial, dict], path: Path) -> Path:
    """C(sigma) by form at seed 0 and the plain schedule: mean, and 5..95 % band over elements or samples."""
    chosen = shown(results)
    setups = [s for s in SETUPS if any(key[0] == s for key in chosen)]
    figure, axes = _panels(1, len(setups), (3.6 * len(setups), 3.4), sharey=True)
    for ax, setup in zip(axes.flat, setups, strict=True):
        for form in COLORS:
            if (trial := chosen.get((setup, form))) is None:
                continue
            sigma, mean, low, high = np.array(results[trial]["correction"]).T
            style = {"color": COLORS[form], "linestyle": "--" if form in FREE_FORMS else "-"}
            ax.plot(sigma, mean, label=f"{form}, w = {trial.weight:g}", **style)
            if form not in FREE_FORMS:
                ax.fill_between(sigma, low, high, color=COLORS[form], alpha=0.12)
        ax.axhline(1, color="black", linestyle=":")
        ax.set(xscale="log", xlabel="sigma", title=setup)
        ax.legend(fontsize=7)
    axes.flat[0].set(ylabel="factor on the guidance C(sigma)", ylim=(-0.6, 2.2))
    return _save(figure, path)
