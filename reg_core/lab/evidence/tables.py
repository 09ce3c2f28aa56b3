"""Markdown tables of the evidence; every figure comes from the results."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from . import plan
from .analysis import Difference, Front, at_best, at_matched, band, spread, variant
from .bets import BETS
from .error import FORMS
from .fronts import Point
from .plots import name_of

Fronts = dict[tuple[str, str, str], Front]


def markdown(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table; numbers must come formatted."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bases(found: Fronts) -> dict[tuple[str, str], dict[str, Front]]:
    """(setup, schedule) -> {form: front} of the library's forms, plain guidance first; bases without it are left out."""
    grouped: dict[tuple[str, str], dict[str, Front]] = {}
    for (setup, schedule, form), front in found.items():
        if form in plan.FORMS:
            grouped.setdefault((setup, schedule), {})[form] = front
    return {base: {f: group[f] for f in plan.FORMS if f in group} for base, group in grouped.items() if "off" in group and len(group) > 1}


def best_fid(found: Fronts) -> str:
    """Best FID a method and everything else at its weight."""
    rows = []
    for (setup, schedule), group in bases(found).items():
        for form, front in group.items():
            i = front.best
            mean = {m: front.values[m][i].mean() for m in front.values}
            edge = " (last)" if i == len(front.weights) - 1 else ""
            rows.append(
                [setup, schedule, name_of(form, setup), f"{front.weights[i]:g}{edge}", _interval(spread(front.values["fid"][i])), f"{mean['is_']:.2f}"]
                + [f"{100 * mean['accuracy']:.1f}%"]
                + [f"{mean[m]:.2f}" for m in ("precision", "recall", "density", "coverage")]
                + ["" if form == "off" else str(at_best(front, group["off"]))]
            )
    head = ["setup", "base schedule", "form", "w", "best FID", "IS", "accuracy", "precision", "recall", "density", "coverage", "best FID less plain's"]
    return markdown(head, rows)


def matched_fid(found: Fronts) -> str:
    """Paired differences of FID at equal IS: at the plain base's best, and over the band."""
    rows = []
    for (setup, schedule), group in bases(found).items():
        levels, own = band(list(group.values())), group["off"].is_at_best()
        for form, front in group.items():
            if form == "off":
                continue
            to_plain = at_matched(front, group["off"], levels)
            to_schedule = at_matched(front, group["schedule"], levels) if form != "schedule" and "schedule" in group else None
            last = "" if to_schedule is None else f"{to_schedule} {to_schedule.verdict}"
            rows.append([setup, schedule, form, f"{own:.2f}", str(at_matched(front, group["off"], [own]))]
                        + [f"{levels[0]:.2f}-{levels[-1]:.2f}" if levels else "none", f"{to_plain} {to_plain.verdict}", last])  # fmt: skip
    head = ["setup", "base schedule", "form", "IS of plain's best FID", "FID less plain's there", "IS band", "FID less plain's over the band"]
    return markdown([*head, "FID less `schedule`'s over the band"], rows)


def headline(found: Fronts) -> str:
    """row_sum and the free schedule beside each other, less plain guidance, on every base."""
    rows = []
    for (setup, schedule), group in bases(found).items():
        levels, cells = band(list(group.values())), []
        for form in ("row_sum", "schedule"):
            for measure in (lambda a, b, levels=levels: at_matched(a, b, levels), at_best):
                d = measure(group[form], group["off"]) if form in group else None
                cells.append("" if d is None else f"{d} {d.verdict}")
        rows.append([setup, schedule, *cells])
    names = [f"{form} less plain, {what}" for form in ("`row_sum`", "`schedule`") for what in ("FID at matched IS", "best FID")]
    return markdown(["setup", "base schedule", *names], rows)


def variants(results: dict[Point, dict], named: dict[str, dict], mode: plan.Plan, setup: str = "weak") -> str:
    """row_sum computed in other ways against the exact reverse product at every call, per weight: paired differences."""
    images = mode.images[setup]
    rows = []
    for weight in mode.variants:
        exact = variant(results, setup, "row_sum", weight, **plan.EXACT)
        if exact is None:
            continue
        fid, std = (getattr(_column(exact, "fid"), what)() for what in ("mean", "std"))
        std *= (len(exact) / (len(exact) - 1)) ** 0.5 if len(exact) > 1 else np.nan
        rows.append([f"{weight:g}", "**exact reverse, every call**", _rows(exact), f"{fid:.3f}", "", "", "", f"{std:.3f}", ""])
        for name, changes in named.items():
            mine = variant(results, setup, "row_sum", weight, **changes)
            if mine is None or changes == plan.EXACT:
                continue
            change = {m: Difference.of(_column(mine, m) - _column(exact, m)) for m in ("fid", "is_", "accuracy")}
            outside = ", ".join(beyond_seeds(mine, exact, images))
            cells = [str(change["fid"]), str(change["is_"]), f"{100 * change['accuracy'].mean:+.2f}%"]
            rows.append([f"{weight:g}", name, _rows(mine), f"{_column(mine, 'fid').mean():.3f}", *cells, "", outside or "within"])
    head = ["w", "row_sum", "model rows an image", "FID", "FID less exact", "IS less exact", "accuracy less exact", "std of FID between seeds"]
    return markdown([*head, "beside the std between seeds"], rows)


def beyond_seeds(mine: list[dict], exact: list[dict], images: int) -> list[str]:
    """["FID worse", ...]: the metrics whose mean moved by more than their standard deviation between the seeds of `exact`.

    Accuracy is a share of `images`: its deviation is at least the counting error of that.
    """
    found = []
    for metric, name, better in (("fid", "FID", -1), ("is_", "IS", 1), ("accuracy", "accuracy", 1)):
        moved = (_column(mine, metric) - _column(exact, metric)).mean()
        std = _column(exact, metric).std(ddof=1) if len(exact) > 1 else np.nan
        if metric == "accuracy":
            p = _column(exact, metric).mean()
            std = max(std, (p * (1 - p) / images) ** 0.5)
        if not abs(moved) <= std:
            found.append(f"{name} {'better' if moved * better > 0 else 'worse'}")
    return found


def bets(found: Fronts) -> str:
    """Every bet against the forms of equal cost."""
    rows = []
    for (setup, schedule, form), front in found.items():
        if not form.startswith("bet:") or (setup, schedule, "off") not in found:
            continue
        bet = BETS[form[4:]]
        rivals = {f: found[setup, schedule, f] for f in (*bet.equal, "off") if (setup, schedule, f) in found}
        levels = band([front, *rivals.values()])
        against = {f: at_matched(front, rival, levels) for f, rival in rivals.items()}
        i = front.best
        cells = "; ".join(f"{name_of(f, setup)} {d} {d.verdict}" for f, d in against.items())
        rows.append([setup, form[4:], f"{bet.rows}", f"{front.weights[i]:g}", _interval(spread(front.values["fid"][i])), cells])
    return markdown(["setup", "bet", "extra rows a call", "w of best FID", "best FID", "FID at matched IS less that of"], rows)


def winners(found: Fronts) -> dict[str, list[str]]:
    """Bets that beat every form of equal cost at matched IS, with the setups in which they do."""
    won: dict[str, list[str]] = {}
    for (setup, schedule, form), front in found.items():
        if not form.startswith("bet:"):
            continue
        rivals = [found[setup, schedule, f] for f in BETS[form[4:]].equal if (setup, schedule, f) in found]
        if rivals and all(at_matched(front, rival, band([front, *rivals])).verdict == "better" for rival in rivals):
            won.setdefault(form[4:], []).append(setup)
    return won


def mixture_errors(rows: list[dict], weight: float) -> str:
    """Per pair, pooled over noise levels: win share and relative RMS at nominal weight, relative RMS with every weight re-tuned."""
    forms = FORMS[1:]
    lines = []
    for pair in dict.fromkeys(r["pair"] for r in rows):
        mine = {r["form"]: r for r in rows if r["pair"] == pair and r["weight"] == weight and r["sigma"] is None}
        cells = [f"{100 * mine[f]['win']:.0f}% / {mine[f]['relative_rms']:.2f} / {mine[f]['tuned_rms']:.2f} (w {mine[f]['tuned']:.2g})" for f in forms]
        lines.append([pair, f"{mine['off']['tuned']:.2g}", *cells])
    return markdown(["pair", "CFG's best w", *(f"{f}: win / RMS / RMS re-tuned" for f in forms)], lines)


def bet_errors(rows: list[dict], weight: float) -> str:
    """Bets and forms on mixtures with exact products: relative RMS nominal and re-tuned."""
    forms = list(dict.fromkeys(r["form"] for r in rows if r["form"] != "off"))
    pairs = list(dict.fromkeys(r["pair"] for r in rows))
    by = {(r["pair"], r["form"]): r for r in rows if r["weight"] == weight}
    lines = [[name_of(f), *(f"{by[p, f]['relative_rms']:.2f} / {by[p, f]['tuned_rms']:.2f}" for p in pairs)] for f in forms]
    return markdown(["form", *pairs], lines)


def end_distances(rows: list[dict]) -> str:
    """Terminal Wasserstein distance at nominal and re-tuned weight."""
    lines = []
    for pair, weight in dict.fromkeys((r["pair"], r["weight"]) for r in rows):
        mine = {r["form"]: r for r in rows if (r["pair"], r["weight"]) == (pair, weight)}
        cells = [f"{mine[f]['distance']:.3f} / {mine[f]['tuned_distance']:.3f} (w {mine[f]['tuned']:g})" for f in FORMS]
        lines.append([pair, f"{weight:g}", *cells, f"{mine['optimum']['distance']:.3f}" if "optimum" in mine else ""])
    return markdown(["pair", "w", *(name_of(f) for f in FORMS), "optimum"], lines)


def toys(found: list[dict]) -> str:
    """Trained toys: over all steps and points, per weight and form."""
    lines = []
    for toy in found:
        for row in toy["weights"]:
            for form, table in row["forms"].items():
                if form != "off" and (toy["dim"] > 1 or form in ("row_sum", "schedule")):
                    o = table["overall"]
                    decided = "-" if o["win_decided"] is None else f"{100 * o['win_decided']:.0f}%"
                    rms = "-" if o["relative_rms"] is None else f"{o['relative_rms']:.2f}"
                    lines.append([toy["toy"], f"{row['weight']:g}", form, f"{100 * o['win']:.0f}%", decided, f"{100 * o['decided']:.0f}%"]
                                 + [f"{o['error_ratio']:.2f}", rms])  # fmt: skip
    return markdown(["toy", "w", "form", "nearer than CFG", "of decided points", "decided", "mean error over CFG's", "RMS over CFG's"], lines)


def _column(results: list[dict], metric: str) -> np.ndarray:
    return np.array([r[metric] for r in results])


def _rows(results: list[dict]) -> str:
    return f"{np.mean(_column(results, 'rows')):.0f}"


def _interval(d: Difference) -> str:
    return f"{d.mean:.3f} ± {d.half:.3f}"
