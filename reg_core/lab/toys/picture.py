"""A trained toy as a picture."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ...drawing import form_color
from .measure import SURE
from .toy import shown_forms


def plot_toy(result: dict, path: str | Path) -> None:
    """PNG: guidance at four steps above; wins by step and by weight, and errors, below.

    1-D: curves with two standard errors of the golden one. 2-D: |error| of CFG less that of row_sum."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1)
    colours = {form: form_color(form) for form in result["weights"][0]["forms"]}
    axes, grid = top.subplots(1, len(result["curves"]), squeeze=False)[0], torch.tensor(result["grid"])
    for axis, curve in zip(axes, result["curves"], strict=True):
        axis.set_title(f"step {curve['step']}, w = {curve['weight']:g}")
        _guidance(figure, axis, grid, curve, colours)
    if result["dim"] == 1:
        axis.legend(fontsize=8)
    _over_steps(bottom.subplots(1, 3), result, colours)
    figure.suptitle(f"{result['pair']}, {result['origin']}: nominal w, {result['draws']} draws a point")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _guidance(figure, axis, grid, curve: dict, colours: dict) -> None:
    value = {k: torch.tensor(v) for k, v in curve.items() if isinstance(v, list)}
    if grid.shape[1] == 1:
        x, best, doubt = grid[:, 0], value["golden"], SURE * value["standard_error"]
        axis.fill_between(x, best - doubt, best + doubt, color="0.8", label=f"golden ± {SURE:g} s.e.")
        for form in ("off", "row_sum", "schedule"):
            axis.plot(x, value[form], color=colours[form], label=_name(form))
        axis.set_xlabel("$x_t$")
        return
    gain = value["off"] - value["row_sum"]
    most = float(gain.abs().quantile(0.98))
    dots = axis.scatter(*grid.T, c=gain, cmap="RdBu", vmin=-most, vmax=most, marker="s", s=40)
    figure.colorbar(dots, ax=axis, label="|error| of CFG - row_sum")


def _over_steps(axes, result: dict, colours: dict) -> None:
    left, middle, right = axes
    steps, rows = result["steps"], result["weights"]
    table = next((row for row in rows if row["weight"] == result["curves"][0]["weight"]), rows[0])
    shown = shown_forms(result)
    for form, row in table["forms"].items():
        style = {"color": colours[form], "label": _name(form)}
        if form in shown:
            left.plot(steps, row["win"], **style)
            decided = [math.nan if v is None else v for v in row["win_decided"]]
            left.plot(steps, decided, ":", color=colours[form])
            by_weight = [r["forms"][form]["overall"]["win"] for r in rows]
            middle.plot([r["weight"] for r in rows], by_weight, "o-", **style)
        if form == "off" or form in shown:
            right.semilogy(steps, row["error"], **style)
    doubt = {"color": "0.6", "label": "standard error of golden"}
    right.semilogy(steps, table["standard_error"], "--", **doubt)
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


def _name(form: str) -> str:
    return "CFG" if form == "off" else form
