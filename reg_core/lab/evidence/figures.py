"""Pictures of the evidence. Each function writes one PNG; colours mean the same form everywhere."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import TwoSlopeNorm  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402

from ..rectify import FREE_FORMS  # noqa: E402
from .analysis import Front, shown  # noqa: E402
from .bets import BETS  # noqa: E402
from .error import FORMS, difference  # noqa: E402
from .fronts import SETUPS, Point  # noqa: E402
from .optimum import Optimum  # noqa: E402
from .zoo import Pair, pair  # noqa: E402

COLOURS = {
    "off": "black",
    "schedule": "tab:orange",
    "calibrated": "tab:brown",
    "row_sum": "tab:blue",
    "scalar": "tab:green",
    "product": "tab:purple",
    "optimum": "tab:red",
}
OTHERS = ("tab:red", "tab:pink", "tab:olive", "tab:cyan", "tab:gray", "navy", "gold")  # of the bets
matplotlib.rcParams["figure.dpi"] = 100


def name_of(form: str, setup: str = "weak") -> str:
    """What a form is called in legends and tables."""
    plain = "autoguidance" if setup.startswith("auto") else "CFG"
    return {"off": plain, "optimum": "optimum"}.get(form, form.removeprefix("bet:"))


def _save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).save(path)
    plt.close(figure)
    return shrink(path)


def shrink(path: Path) -> Path:
    """The picture in 128 colours and at most 1200 pixels wide: a third of the size, for the repository."""
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((1200, 1200))
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _ratio_map(axes, p: Pair, weight: float, form: str, x: torch.Tensor, sigma, extent, shape, ylabel="", aspect="auto"):
    """log2 of the form's error over CFG's on a grid, blue where the form is nearer to the optimum, red where CFG is."""
    want = Optimum(p, weight, 1e-3).evaluate(x, sigma).shift
    plain, ours = ((weight * difference(p, x, sigma, f)[1] - want).norm(dim=1) for f in ("off", form))
    ratio = (ours.clamp_min(1e-12) / plain.clamp_min(1e-12)).log2().clamp(-4, 4).reshape(shape)
    norm = TwoSlopeNorm(0, -4, 4)
    image = axes.imshow(ratio.numpy(), origin="lower", extent=extent, aspect=aspect, cmap="RdBu_r", norm=norm, interpolation="nearest")
    axes.set_ylabel(ylabel)
    return image


def toy(path: Path, weight: float = 1.0, nodes: int = 161) -> Path:
    """The paper's 1-D toy: guidance against the optimum at three levels, and the error map over x and sigma (after its Figure 1)."""
    p = pair("toy")
    x = torch.linspace(-1, 2, nodes, dtype=torch.float64)[:, None]
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for column, sigma in zip(axes[0], (0.2, 0.5, 1.0), strict=True):
        column.plot(x, Optimum(p, weight).evaluate(x, sigma).shift, color=COLOURS["optimum"], linewidth=3, alpha=0.6, label="optimum")
        for form in ("off", "row_sum", "schedule"):
            column.plot(x, weight * difference(p, x, sigma, form)[1], color=COLOURS[form], linestyle="--" if form == "schedule" else "-", label=name_of(form))
        column.set(title=f"sigma {sigma:g}", xlabel="x")
    axes[0, 0].set_ylabel("guidance added to D, x0 units")
    axes[0, 0].legend()
    levels = torch.logspace(-1.3, 1, 60, dtype=torch.float64)
    grid_x, grid_s = torch.meshgrid(x[:, 0], levels, indexing="xy")
    extent = (-1, 2, math.log10(levels[0]), math.log10(levels[-1]))
    for column, (w, name) in zip(axes[1], ((0.5, "toy"), (1.0, "toy"), (1.0, "nested")), strict=True):
        image = _ratio_map(column, pair(name), w, "row_sum", grid_x.reshape(-1, 1), grid_s.reshape(-1), extent, grid_x.shape, "log10 sigma")
        column.set(title=f"row_sum's error over CFG's: {name}, w = {w:g}", xlabel="x")
        column.title.set_fontsize(10)
    figure.colorbar(image, ax=axes[1], label="log2 (blue: REG nearer)", shrink=0.9)
    return _save(figure, path)


MAPS = (("correlated", 0.5), ("correlated_mirror", 0.5), ("overlapping", 0.5), ("overlapping", 2.0), ("moons", 0.5))


def maps(path: Path, weight: float = 1.0, nodes: int = 41, cases=MAPS) -> Path:
    """Error maps in 2-D of row_sum and scalar, with the density of the noisy class (after the paper's Figure 2)."""
    figure, axes = plt.subplots(2, len(cases), figsize=(2.5 * len(cases) + 0.8, 5.2), layout="constrained", squeeze=False)
    for i, (column, (name, sigma)) in enumerate(zip(axes.T, cases, strict=True)):
        p = pair(name)
        centre, reach = p.cond.mean, 2.5 * (p.cond.cov.diagonal().max() + sigma**2).sqrt()
        ramps = [torch.linspace(float(c - reach), float(c + reach), nodes, dtype=torch.float64) for c in centre]
        grid = torch.meshgrid(*ramps, indexing="xy")
        x = torch.stack([g.reshape(-1) for g in grid], 1)
        extent = (float(ramps[0][0]), float(ramps[0][-1]), float(ramps[1][0]), float(ramps[1][-1]))
        density = p.cond.log_prob_at(x, sigma).exp().reshape(grid[0].shape)
        for ax, form in zip(column, ("row_sum", "scalar"), strict=True):
            image = _ratio_map(ax, p, weight, form, x, sigma, extent, grid[0].shape, form if i == 0 else "", "equal")
            ax.contour(*grid, density, levels=density.max().item() * np.array([0.1, 0.4, 0.8]), colors="black", linewidths=0.6)
            ax.tick_params(labelsize=7)
        column[0].set_title(f"{name}\nsigma {sigma:g}", fontsize=9)
    figure.colorbar(image, ax=axes, label="log2 of error over CFG's (blue: REG nearer)", shrink=0.8)
    figure.suptitle(f"Error maps at w = {weight:g}; contours: where a sampler is", fontsize=11)
    return _save(figure, path)


def by_sigma(rows: list[dict], path: Path, weight: float = 1.0) -> Path:
    """Relative RMS error over sigma, a panel per pair; above 1 REG loses. `rows` of study.errors."""
    names = list(dict.fromkeys(r["pair"] for r in rows))
    columns = min(4, len(names))
    figure, axes = plt.subplots(
        -(-len(names) // columns), columns, figsize=(2.7 * columns, 2.2 * -(-len(names) // columns)), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for ax, name in zip(axes.flat, names, strict=False):
        for form in FORMS[1:]:
            mine = [r for r in rows if (r["pair"], r["form"], r["weight"]) == (name, form, weight) and r["sigma"] is not None]
            style = "--" if form == "schedule" else "-"
            ax.plot([r["sigma"] for r in mine], [r["relative_rms"] for r in mine], style, color=COLOURS[form], label=form, linewidth=1.5)
        ax.axhline(1, color="black", linestyle=":")
        ax.set(xscale="log", yscale="log", title=name, ylim=(0.01, 10))
        ax.tick_params(labelsize=7)
    axes.flat[0].legend(fontsize=7)
    figure.supxlabel("sigma")
    figure.supylabel("RMS error to the optimum over CFG's")
    return _save(figure, path)


def ends(rows: list[dict], path: Path) -> Path:
    """Wasserstein distance to the tilted target over w for the 1-D pairs: solid at nominal weight, dotted re-tuned."""
    names = [n for n in dict.fromkeys(r["pair"] for r in rows) if any(r["form"] == "optimum" for r in rows if r["pair"] == n)]
    figure, axes = plt.subplots(1, len(names), figsize=(3.0 * len(names) + 0.4, 3.2), layout="constrained", squeeze=False)
    for ax, name in zip(axes.flat, names, strict=True):
        for form in ("off", "schedule", "row_sum", "optimum"):  # in 1-D scalar and product are row_sum
            mine = sorted((r for r in rows if (r["pair"], r["form"]) == (name, form)), key=lambda r: r["weight"])
            ax.plot([r["weight"] for r in mine], [r["distance"] for r in mine], "-o", markersize=3, color=COLOURS[form], label=name_of(form))
            if form != "optimum":
                ax.plot([r["weight"] for r in mine], [r["tuned_distance"] for r in mine], ":", color=COLOURS[form])
        ax.set(xscale="log", yscale="log", title=name, xlabel="w")
        ax.set_xticks(sorted({r["weight"] for r in rows}))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    axes.flat[0].set_ylabel("W1 to the tilted target, x0 units")
    axes.flat[0].legend(fontsize=8, title="dotted: re-tuned", title_fontsize=8)
    return _save(figure, path)


def front_panels(found: dict[tuple[str, str, str], Front], path: Path, forms: tuple[str, ...] | None = None) -> Path:
    """FID against IS, a panel per base, a line per form, bars: standard deviation over seeds."""
    bases = list(dict.fromkeys(key[:2] for key in found))
    columns = min(4, len(bases))
    lines = -(-len(bases) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.4 * columns, 3.3 * lines), layout="constrained", squeeze=False)
    for ax in axes.flat[len(bases) :]:
        ax.axis("off")
    for ax, base in zip(axes.flat, bases, strict=False):
        group = [f for key, f in found.items() if key[:2] == base and (key[2] in forms if forms else key[2] in COLOURS)]
        for i, front in enumerate(sorted(group, key=lambda f: f.form != "off")):
            mean, std = ({m: getattr(front.values[m], what)(1) for m in ("fid", "is_")} for what in ("mean", "std"))
            colour = COLOURS.get(front.form, f"C{i}")
            style = "--" if front.form in FREE_FORMS else "-"
            label = name_of(front.form, base[0])
            ax.errorbar(mean["is_"], mean["fid"], std["fid"], std["is_"], color=colour, linestyle=style, label=label, marker=".", elinewidth=0.6, linewidth=1.3)
        _zoom(ax, group)
        ax.set(title=f"{base[0]}, {base[1]}", xlabel="IS (higher is better)", ylabel="FID (lower is better)")
    axes.flat[0].legend(fontsize=7)
    return _save(figure, path)


def _zoom(ax, group: list[Front]) -> None:
    """The part of the picture where somebody would sample: FID up to 2.5 times the least."""
    fid, score = (np.concatenate([f.values[m].mean(1) for f in group]) for m in ("fid", "is_"))
    near = fid <= 2.5 * fid.min()
    ax.set(xlim=(score[near].min() - 0.1, score[near].max() + 0.1), ylim=(0.85 * fid.min(), 2.5 * fid.min()))


def corrections(results: dict[Point, dict], path: Path) -> Path:
    """C(sigma) by form at seed 0 and the plain schedule: mean, and the 5..95 % band over elements or samples."""
    chosen = shown(results)
    setups = [s for s in SETUPS if any(key[0] == s for key in chosen)]
    figure, axes = plt.subplots(1, len(setups), figsize=(3.6 * len(setups), 3.4), layout="constrained", squeeze=False, sharey=True)
    for ax, setup in zip(axes.flat, setups, strict=True):
        for form in COLOURS:
            if (point := chosen.get((setup, form))) is None:
                continue
            sigma, mean, low, high = np.array(results[point]["correction"]).T
            free = form in FREE_FORMS
            ax.plot(sigma, mean, "--" if free else "-", color=COLOURS[form], label=f"{form}, w = {point.weight:g}")
            if not free:
                ax.fill_between(sigma, low, high, color=COLOURS[form], alpha=0.12)
        ax.axhline(1, color="black", linestyle=":")
        ax.set(xscale="log", xlabel="sigma", title=setup)
        ax.legend(fontsize=7)
    axes.flat[0].set(ylabel="factor on the guidance C(sigma)", ylim=(-0.6, 2.2))
    return _save(figure, path)


def bets(found: dict[tuple[str, str, str], Front], path: Path) -> Path:
    """Fronts of the bets beside the forms of equal cost, a panel for free ones and one for those of a model row, per setup."""
    setups = list(dict.fromkeys(key[0] for key in found if key[2].startswith("bet:")))
    figure, axes = plt.subplots(len(setups), 2, figsize=(10, 3.6 * len(setups)), layout="constrained", squeeze=False)
    for line, setup in zip(axes, setups, strict=True):
        for ax, rows in zip(line, (0, 1), strict=True):
            mine = [f"bet:{n}" for n, bet in BETS.items() if bet.rows == rows]
            known = ("off", "schedule", "calibrated") if rows == 0 else ("off", "row_sum", "scalar")
            group = []
            for i, form in enumerate([*known, *mine]):
                if (front := found.get((setup, "constant", form))) is None:
                    continue
                fid, score = (front.values[m].mean(1) for m in ("fid", "is_"))
                group.append(front)
                style = {"color": COLOURS[form], "linewidth": 2} if form in COLOURS else {"color": OTHERS[i - len(known)], "linestyle": "--"}
                ax.plot(score, fid, marker=".", label=name_of(form, setup), **style)
            ax.set(title=f"{setup}: {'no model call' if rows == 0 else 'one model row more'}", xlabel="IS", ylabel="FID")
            _zoom(ax, group)
            ax.legend(fontsize=7)
    return _save(figure, path)
