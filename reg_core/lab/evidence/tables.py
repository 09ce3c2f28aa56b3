"""Markdown tables of the evidence. Every number comes from the results."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..fronts.analysis import SHARES, Difference, Front, at_best, at_matched, band
from ..fronts.strength import measured_ratio
from ..fronts.survey import EXACT, ROW_SUM_WAYS, SAMPLED_FORMS
from ..fronts.trials import Trial
from ..mixtures.exact import MIXTURE_FORMS
from ..toys.toy import shown_forms

Fronts = dict[tuple[str, str, str], Front]


def name_of(form: str, setup: str = "weak") -> str:
    """What a form is called in legends and tables."""
    plain = "autoguidance" if setup.startswith("auto") else "CFG"
    return plain if form == "off" else form


def markdown(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table; numbers must come formatted."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bases(found: Fronts) -> dict[tuple[str, str], dict[str, Front]]:
    """(setup, schedule) -> {form: front} of the library's forms, plain guidance first.

    Bases without plain guidance are left out."""
    grouped: dict[tuple[str, str], dict[str, Front]] = {}
    for (setup, schedule, form), front in found.items():
        if form in SAMPLED_FORMS:
            grouped.setdefault((setup, schedule), {})[form] = front
    complete = {base: group for base, group in grouped.items() if "off" in group and len(group) > 1}
    return {base: {f: group[f] for f in SAMPLED_FORMS if f in group} for base, group in complete.items()}


def best_fid(found: Fronts) -> str:
    """Best FID a method and everything else at its weight."""
    rows = []
    for (setup, schedule), group in bases(found).items():
        for form, front in group.items():
            i = front.best
            mean = {m: front.values[m][i].mean() for m in front.values}
            edge = " (last)" if i == len(front.weights) - 1 else ""
            best = _interval(Difference.of(front.values["fid"][i]))
            cells = [setup, schedule, name_of(form, setup), f"{front.weights[i]:g}{edge}", best]
            cells += [f"{mean['is_']:.2f}", f"{100 * mean['accuracy']:.1f}%"]
            cells += [f"{mean[m]:.2f}" for m in SHARES]
            rows.append([*cells, "" if form == "off" else str(at_best(front, group["off"]))])
    head = ["setup", "base schedule", "form", "w", "best FID", "IS", "accuracy", *SHARES]
    return markdown([*head, "best FID less plain's"], rows)


def matched_fid(found: Fronts) -> str:
    """Paired differences of FID at equal IS: at the plain base's best, and over the band."""
    rows = []
    for (setup, schedule), group in bases(found).items():
        levels, own = band(list(group.values())), group["off"].is_at_best()
        for form, front in group.items():
            if form == "off":
                continue
            there = str(at_matched(front, group["off"], [own]))
            cells = [setup, schedule, form, f"{own:.2f}", there]
            cells.append(f"{levels[0]:.2f}-{levels[-1]:.2f}" if levels else "none")
            for rival in ("off", "schedule"):
                compared = rival in group and form != rival
                d = at_matched(front, group[rival], levels) if compared else None
                cells.append("" if d is None else f"{d} {d.verdict}")
            rows.append(cells)
    head = ["setup", "base schedule", "form", "IS of plain's best FID", "FID less plain's there"]
    over = ["FID less plain's over the band", "FID less `schedule`'s over the band"]
    return markdown([*head, "IS band", *over], rows)


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
    measures = ("FID at matched IS", "best FID")
    names = [f"{form} less plain, {what}" for form in ("`row_sum`", "`schedule`") for what in measures]
    return markdown(["setup", "base schedule", *names], rows)


def row_sum_ways(found: Fronts, results: dict[Trial, dict], setup: str = "weak") -> str:
    """row_sum computed in other ways, less the exact product at every call. Gain: its weight at equal IS."""
    rows, exact = [], found.get((setup, "constant", method_of("row_sum", EXACT)))
    for name, way in ROW_SUM_WAYS.items():
        front = found.get((setup, "constant", method_of("row_sum", way)))
        if exact is None or front is None:
            continue
        mine = (setup, "constant", front.method)
        taken = [
            r["rows"] for t, r in results.items() if t.weight and (t.setup, t.schedule, t.method) == mine
        ]
        cells = [name, f"{np.mean(taken):.0f}", f"{front.weights[front.best]:g}"]
        cells.append(_interval(Difference.of(front.values["fid"][front.best])))
        if front is exact:
            rows.append([*cells, "", "", ""])
            continue
        for d in (at_best(front, exact), at_matched(front, exact, band([front, exact]))):
            cells.append(f"{d} {d.verdict}")
        gain = measured_ratio(front, exact)
        rows.append([*cells, "" if gain is None else f"{gain.mean:.2f}"])
    head = ["row_sum", "model rows an image", "w", "best FID", "best FID less exact"]
    return markdown([*head, "FID at matched IS less exact", "gain"], rows)


def method_of(form: str, way: dict) -> str:
    """The method of a form that is computed in a way, see Trial."""
    return Trial("weak", "constant", form, 0.0, 0, **way).method


def candidates(found: Fronts, forms: dict[str, dict]) -> str:
    """Every candidate against the forms of equal cost. `forms`: see published.Candidates."""
    rows = []
    for (setup, schedule, form), front in found.items():
        if form not in forms or (setup, schedule, "off") not in found:
            continue
        extra = forms[form]["extra rows a call"]
        rivals = _rivals(found, setup, schedule, (*_of_equal_cost(extra), "off"))
        levels = band([front, *rivals.values()])
        against = {f: at_matched(front, rival, levels) for f, rival in rivals.items()}
        cells = "; ".join(f"{name_of(f, setup)} {d} {d.verdict}" for f, d in against.items())
        i = front.best
        best = _interval(Difference.of(front.values["fid"][i]))
        rows.append([setup, form, f"{extra}", f"{front.weights[i]:g}", best, cells])
    head = ["setup", "candidate", "extra rows a call", "w of best FID", "best FID"]
    return markdown([*head, "FID at matched IS less that of"], rows)


def winners(found: Fronts, forms: dict[str, dict]) -> dict[str, list[str]]:
    """Candidates that beat every form of equal cost at matched IS, with the setups in which they do."""
    won: dict[str, list[str]] = {}
    for (setup, schedule, form), front in found.items():
        if form not in forms:
            continue
        equal = _of_equal_cost(forms[form]["extra rows a call"])
        rivals = list(_rivals(found, setup, schedule, equal).values())
        differences = [at_matched(front, rival, band([front, *rivals])) for rival in rivals]
        if rivals and all(d.verdict == "better" for d in differences):
            won.setdefault(form, []).append(setup)
    return won


def _of_equal_cost(extra_rows: int) -> tuple[str, ...]:
    return ("row_sum", "scalar") if extra_rows else ("schedule", "calibrated")


def _rivals(found: Fronts, setup: str, schedule: str, forms: Iterable[str]) -> dict[str, Front]:
    return {form: found[setup, schedule, form] for form in forms if (setup, schedule, form) in found}


def mixture_errors(rows: list[dict], weight: float) -> str:
    """Per pair, pooled over levels: win share and relative RMS at nominal weight, and RMS re-tuned."""
    forms = MIXTURE_FORMS[1:]
    lines = []
    for pair in dict.fromkeys(r["pair"] for r in rows):
        pooled = (r for r in rows if (r["pair"], r["weight"], r["sigma"]) == (pair, weight, None))
        mine, cells = {r["form"]: r for r in pooled}, []
        for r in (mine[f] for f in forms):
            nominal = f"{100 * r['win']:.0f}% / {r['relative_rms']:.2f}"
            cells.append(f"{nominal} / {r['tuned_rms']:.2f} (w {r['tuned']:.2g})")
        lines.append([pair, f"{mine['off']['tuned']:.2g}", *cells])
    return markdown(["pair", "CFG's best w", *(f"{f}: win / RMS / RMS re-tuned" for f in forms)], lines)


def candidate_errors(rows: list[dict], weight: float) -> str:
    """Candidates and forms on mixtures with exact products: relative RMS nominal and re-tuned."""
    forms = list(dict.fromkeys(r["form"] for r in rows if r["form"] != "off"))
    pairs = list(dict.fromkeys(r["pair"] for r in rows))
    by = {(r["pair"], r["form"]): r for r in rows if r["weight"] == weight}
    cells = {
        f: [f"{by[p, f]['relative_rms']:.2f} / {by[p, f]['tuned_rms']:.2f}" for p in pairs] for f in forms
    }
    return markdown(["form", *pairs], [[name_of(f), *cells[f]] for f in forms])


def end_distances(rows: list[dict]) -> str:
    """Terminal Wasserstein distance at nominal and re-tuned weight."""
    lines = []
    for pair, weight in dict.fromkeys((r["pair"], r["weight"]) for r in rows):
        mine = {r["form"]: r for r in rows if (r["pair"], r["weight"]) == (pair, weight)}
        cells = [pair, f"{weight:g}"]
        for r in (mine[f] for f in MIXTURE_FORMS):
            cells.append(f"{r['distance']:.3f} / {r['tuned_distance']:.3f} (w {r['tuned']:g})")
        lines.append([*cells, f"{mine['optimum']['distance']:.3f}" if "optimum" in mine else ""])
    return markdown(["pair", "w", *(name_of(f) for f in MIXTURE_FORMS), "optimum"], lines)


def toys(found: list[dict]) -> str:
    """Trained toys: over all steps and points, per weight and form."""
    lines = []
    for toy in found:
        for row in toy["weights"]:
            for form in shown_forms(toy):
                o = row["forms"][form]["overall"]
                sure = "-" if o["win_decided"] is None else f"{100 * o['win_decided']:.0f}%"
                rms = "-" if o["relative_rms"] is None else f"{o['relative_rms']:.2f}"
                cells = [toy["toy"], f"{row['weight']:g}", form, f"{100 * o['win']:.0f}%", sure]
                lines.append([*cells, f"{100 * o['decided']:.0f}%", f"{o['error_ratio']:.2f}", rms])
    head = ["toy", "w", "form", "nearer than CFG", "of decided points", "decided"]
    return markdown([*head, "mean error over CFG's", "RMS over CFG's"], lines)


def _interval(d: Difference) -> str:
    return f"{d.mean:.3f} ± {d.half:.3f}"
