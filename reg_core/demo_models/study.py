"""The Fashion-MNIST study: FID over Inception score as guidance gets stronger, from its committed results.

60,000 real pictures, 5,000 samples a point, 12 Heun steps, products by reverse mode.
`small`, `large` and `early` are the models fashion_weak, fashion and fashion_early, each guided by itself
without a label. `auto` is the large model guided by the small one."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from ..drawing import form_color

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "evidence" / "fashion.json"
SETUPS = {
    "small": "small model",
    "early": "large model, hardly trained",
    "large": "large model",
    "auto": "autoguidance: large by small",
}
LOW_SIGMA = 2.0  # form "interval": CFG that guides at these noise levels only
EVERYWHERE, LOW = "0,inf", f"0,{LOW_SIGMA:g}"
# Weights as strong as plain CFG's weight of 1: at equal Inception score, on the weak models.
RATIOS = {
    "fashion": {
        "row_sum": 1.3,
        "product": 1.7,
        "scalar": 2.1,
        "calibrated": 2.2,
        "schedule": 4.3,
        "interval": 3.0,
    },
    "digits": {"row_sum": 2.6, "product": 2.5, "scalar": 2.9, "calibrated": 2.9, "schedule": 2.6},
}
COLORS = {form: form_color(form) for form in ("off", *RATIOS["fashion"])}


def results() -> list[dict]:
    """A row a sampling run: setup, form, data_std, interval, w, seed, fid, fid_other, is_, accuracy.

    Raises FileNotFoundError without a checkout of the repository."""
    packed = json.loads(RESULTS.read_text(encoding="utf-8"))
    return [dict(zip(packed["columns"], row, strict=True)) for row in packed["rows"]]


def fronts(rows: list[dict]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """{setup: {form: [(IS, FID)]}} by weight, means over seeds, at the models' own data_std.

    Form "interval" is CFG that guides at sigma <= LOW_SIGMA only."""
    seen: dict = defaultdict(list)
    for row in rows:
        form = "interval" if row["form"] == "off" and row["interval"] == LOW else row["form"]
        if row["data_std"] == 0.7 and (row["interval"] == EVERYWHERE or form == "interval"):
            seen[row["setup"], form, row["w"]].append((row["is_"], row["fid"]))
    found: dict = defaultdict(lambda: defaultdict(list))
    for (setup, form, _), points in sorted(seen.items()):
        found[setup][form].append(tuple(sum(values) / len(points) for values in zip(*points, strict=True)))
    return {setup: dict(lines) for setup, lines in found.items()}


def draw(path: Path, names: dict[str, str]) -> None:
    """A PNG with a plot a setup, a line a form. `names`: {form: legend}."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = fronts(results())
    figure, plots = plt.subplots(1, len(SETUPS), figsize=(18, 5), layout="constrained")
    for axes, (setup, title) in zip(plots, SETUPS.items(), strict=True):
        for form in COLORS:
            if len(points := found[setup].get(form, [])) > 1:
                plain = form in ("off", "interval")
                style = {"color": COLORS[form], "linewidth": 2.5 if plain else 1.5}
                axes.plot(*zip(*points, strict=True), "o--" if plain else "o-", markersize=4, **style)
        axes.set(title=title, xlabel="Inception score: how clearly a class is shown", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:.2g}")
    plots[0].set_ylabel("FID: distance to real pictures (lower is better)")
    handles = [
        plt.Line2D([], [], color=color, marker="o", label=names[form]) for form, color in COLORS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(
        "Guidance grows along a line. Below CFG's line: nearer to real pictures, as clearly shown"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
