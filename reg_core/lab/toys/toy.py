"""REG against plain guidance on trained toys, step by step: the protocol of the paper's Table 1.

Trains a small conditional and unconditional network on a pair of the zoo. Takes grad log E_t of the *trained*
conditional chain by Monte Carlo on a grid of x_t, and asks at every step which guidance is nearer: CFG or a
form of REG. Points that the Monte Carlo error leaves undecided are counted apart: see measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..mixtures.zoo import ZOO, pair
from .checkpoint import load_toy, save_toy
from .measure import WEIGHTS, measure, toy_grid
from .networks import NetShape
from .training import ToyRecipe, train_toy

# Every 1-D and 2-D pair goes by its name in the zoo, too.
TOYS = {"1d": "toy", "1d_script": "toy_script", "2d": "overlapping", "2d_moons": "moons"}
QUICK = ToyRecipe(steps=800, batch=256)


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

    - `quick`: seconds of training, a coarse grid, every third step and fewer draws. Else minutes on one core.
    - `checkpoint`: the prefix of networks to load instead, see checkpoint.py.
    - `keep`: a prefix under which to save the trained ones (1-D).

    The dict is that of measure.measure, with `toy` and `quick`. Raises ValueError for an unknown toy."""
    if checkpoint is not None:
        toy = load_toy(checkpoint)
    else:
        made = pair(_pair_name(name))
        if made.dim > 2:
            raise ValueError(f"a toy is 1-D or 2-D, {name} has dimension {made.dim}")
        recipe = replace(QUICK if quick else ToyRecipe(), shape=NetShape(made.dim))
        toy = train_toy(made, recipe, seed=seed, progress=progress)
        if keep is not None:
            save_toy(toy, keep)
    sides = {1: 61, 2: 9} if quick else {1: 300, 2: 17}
    steps = list(range(len(toy.sigmas)))[:: 3 if quick else 1]
    grid, draws = toy_grid(toy, sides[toy.pair.dim]), 96 if quick else 256
    result = measure(toy, grid, steps, draws, weights, seed, progress)
    return {"toy": name if checkpoint is None else "checkpoint", "quick": quick} | result


def _pair_name(name: str) -> str:
    if name not in TOYS and name not in ZOO:
        known = f"{', '.join(TOYS)} or a 1-D or 2-D pair of the zoo ({', '.join(ZOO)})"
        raise ValueError(f"toy must be one of {known}, got {name!r}")
    return TOYS.get(name, name)


def describe(result: dict) -> str:
    """The table over all steps, as text."""
    fits = {name: f"{share:.2%}" for name, share in result["explained"].items()}
    shares = f"cond explains {fits['cond']} of the exact eps, uncond {fits['uncond']}"
    widths = "{:>5} {:9} {:>7} {:>8} {:>13} {:>8} {:>10} {:>8}"
    head = ("w", "form", "win", "decided", "win of those", "trusted", "error/CFG", "rms/CFG")
    lines = [f"{result['pair']} ({result['origin']}): {shares}", widths.format(*head)]
    for row in result["weights"]:
        for form in shown_forms(result):
            o = row["forms"][form]["overall"]
            sure = "-" if o["win_decided"] is None else f"{o['win_decided']:.1%}"
            rms = "-" if o["relative_rms"] is None else f"{o['relative_rms']:.3f}"
            parts = [f"{o['win']:.1%}", f"{o['decided']:.1%}", sure, f"{o['trusted']:.1%}"]
            parts += [f"{o['error_ratio']:.3f}", rms]
            lines.append(widths.format(f"{row['weight']:g}", form, *parts))
    return "\n".join(lines)


def shown_forms(result: dict) -> list[str]:
    """Forms with a row: not CFG, which the others are compared with.

    In 1-D `scalar` and `product` are `row_sum`."""
    hidden = ("off", "scalar", "product") if result["dim"] == 1 else ("off",)
    return [form for form in result["weights"][0]["forms"] if form not in hidden]
