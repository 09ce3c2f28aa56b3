"""REG against plain guidance on trained toys, step by step: the protocol of the paper's Table 1, with error bars.

    python -m reg_core.lab.toys --toy 1d --out out/toys

Trains a small conditional and unconditional network on a pair of the zoo, takes grad log E_t of the *trained* conditional chain
by Monte Carlo on a grid of x_t, and asks at every step which guidance is nearer: CFG or a form of REG.
Points that the Monte Carlo error leaves undecided are counted apart: see toy_measure.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch

from .error import FORMS
from .toy_checkpoint import load_toy, save_toy
from .toy_measure import SURE, WEIGHTS, measure, toy_grid
from .toy_networks import NetShape, Recipe, train_toy
from .zoo import ZOO, pair

TOYS = {"1d": "toy", "1d_script": "toy_script", "2d": "overlapping", "2d_moons": "moons"}  # every 1-D and 2-D pair goes by its own name, too
COLOURS = {form: f"C{i}" for i, form in enumerate(FORMS)}
QUICK = Recipe(steps=800, batch=256)


def evaluate_toy(
    name: str = "1d",
    quick: bool = False,
    seed: int = 0,
    weights=WEIGHTS,
    checkpoint: str | Path | None = None,
    keep: str | Path | None = None,
    progress: bool = False,
) -> dict:
    """Train the toy `name` and measure it: a dict for json.dump, the same for the same seed.

    `quick`: seconds of training, a coarse grid, every third step and fewer draws; else minutes on one core. `checkpoint`: the prefix of
    networks to load instead, see toy_checkpoint. `keep`: a prefix under which to save the trained ones (1-D). What is in the dict:
    see toy_measure.measure; `toy` and `quick` come on top.

    Raises ValueError for an unknown toy.
    """
    if checkpoint is not None:
        toy = load_toy(checkpoint)
    else:
        made = pair(_pair_name(name))
        if made.dim > 2:
            raise ValueError(f"a toy is 1-D or 2-D, {name} has dimension {made.dim}")
        toy = train_toy(made, replace(QUICK if quick else Recipe(), shape=NetShape(made.dim)), seed=seed, progress=progress)
        if keep is not None:
            save_toy(toy, keep)
    grid = toy_grid(toy, (61 if toy.pair.dim == 1 else 9) if quick else (300 if toy.pair.dim == 1 else 17))
    steps = list(range(len(toy.sigmas)))[:: 3 if quick else 1]
    result = measure(toy, grid, steps, draws=96 if quick else 256, weights=weights, seed=seed, progress=progress)
    return {"toy": name if checkpoint is None else "checkpoint", "quick": quick} | result


def _pair_name(name: str) -> str:
    if name not in TOYS and name not in ZOO:
        raise ValueError(f"toy must be one of {', '.join(TOYS)} or a 1-D or 2-D pair of the zoo ({', '.join(ZOO)}), got {name!r}")
    return TOYS.get(name, name)


def plot_toy(result: dict, path: str | Path) -> None:
    """PNG: guidance at four steps (1-D: curves with the golden one's two standard errors; 2-D: |error| of CFG less row_sum's), wins by step, errors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1)
    grid = torch.tensor(result["grid"])
    for axis, curve in zip(top.subplots(1, len(result["curves"]), squeeze=False)[0], result["curves"], strict=True):
        value = {k: torch.tensor(v) for k, v in curve.items() if isinstance(v, list)}
        axis.set_title(f"step {curve['step']}, w = {curve['weight']:g}")
        if result["dim"] == 1:
            x, best, doubt = grid[:, 0], value["golden"], SURE * value["standard_error"]
            axis.fill_between(x, best - doubt, best + doubt, color="0.8", label=f"golden ± {SURE:g} s.e.")
            for form in ("off", "row_sum", "schedule"):
                axis.plot(x, value[form], color=COLOURS[form], label="CFG" if form == "off" else form)
            axis.set_xlabel("$x_t$")
        else:
            gain = value["off"] - value["row_sum"]
            most = float(gain.abs().quantile(0.98))
            dots = axis.scatter(*grid.T, c=gain, cmap="RdBu", vmin=-most, vmax=most, marker="s", s=40)
            figure.colorbar(dots, ax=axis, label="|error| of CFG - row_sum")
    if result["dim"] == 1:
        axis.legend(fontsize=8)
    hidden = _hidden(result)
    left, middle, right = bottom.subplots(1, 3)
    table = next((row for row in result["weights"] if row["weight"] == result["curves"][0]["weight"]), result["weights"][0])
    for form, row in table["forms"].items():
        label = "CFG" if form == "off" else form
        if form not in hidden:
            left.plot(result["steps"], row["win"], color=COLOURS[form], label=label)
            left.plot(result["steps"], [math.nan if v is None else v for v in row["win_decided"]], ":", color=COLOURS[form])
            by_weight = [r["forms"][form]["overall"]["win"] for r in result["weights"]]
            middle.plot([r["weight"] for r in result["weights"]], by_weight, "o-", color=COLOURS[form], label=label)
        if form == "off" or form not in hidden:
            right.semilogy(result["steps"], row["error"], color=COLOURS[form], label=label)
    right.semilogy(result["steps"], table["standard_error"], "--", color="0.6", label="standard error of golden")
    for axis, title, label in (
        (left, "nearer to golden than CFG (dotted: of decided points)", "step"),
        (middle, "the same over all steps", "w"),
        (right, "mean error in eps", "step"),
    ):
        axis.set(title=title, xlabel=label)
        axis.legend(fontsize=8)
    left.set_ylim(0, 1)
    middle.set_ylim(0, 1)
    middle.set_xscale("log", base=2)
    figure.suptitle(f"{result['pair']}, {result['origin']}: nominal w, {result['draws']} draws a point")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def describe(result: dict) -> str:
    """The table over all steps, as text."""
    fits = result["explained"]
    lines = [f"{result['pair']} ({result['origin']}): cond explains {fits['cond']:.2%} of the exact eps, uncond {fits['uncond']:.2%}"]
    hidden = _hidden(result)
    lines.append(f"{'w':>5} {'form':9} {'win':>7} {'decided':>8} {'win of those':>13} {'trusted':>8} {'error/CFG':>10} {'rms/CFG':>8}")
    for row in result["weights"]:
        for form, table in row["forms"].items():
            if form not in hidden:
                o = table["overall"]
                sure, rms = ("-" if v is None else f"{v:{f}}" for v, f in ((o["win_decided"], ".1%"), (o["relative_rms"], ".3f")))
                lines.append(
                    f"{row['weight']:5g} {form:9} {o['win']:7.1%} {o['decided']:8.1%} {sure:>13} {o['trusted']:8.1%} {o['error_ratio']:10.3f} {rms:>8}"
                )
    return "\n".join(lines)


def _hidden(result: dict) -> list[str]:
    """Forms with no row of their own: CFG is what the others are compared with, and in 1-D `scalar` and `product` are `row_sum`."""
    return ["off", "scalar", "product"] if result["dim"] == 1 else ["off"]


def main(argv: list[str] | None = None) -> None:
    """Command line entry; writes NAME.json and NAME.png and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m reg_core.lab.toys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", default="1d", help=f"{', '.join(TOYS)} or a 1-D or 2-D pair of the zoo (default: %(default)s)")
    parser.add_argument("--checkpoint", help="evaluate PREFIX_cond.pth, PREFIX_uncond.pth, PREFIX.pkl in the released layout instead of training")
    parser.add_argument("--keep", help="save the trained 1-D networks in that layout under this prefix")
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS, help="w = cfg - 1 (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks this small gain nothing from more, and lose much on busy cores
    try:
        result = evaluate_toy(args.toy, args.quick, args.seed, args.weights, args.checkpoint, args.keep, progress=True)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{result['toy']}.json").write_text(json.dumps(result, allow_nan=False))
    plot_toy(result, args.out / f"{result['toy']}.png")
    print(describe(result))


if __name__ == "__main__":
    main()
