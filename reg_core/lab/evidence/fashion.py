"""Tables of Fashion-MNIST for docs/evidence.md. Every number comes from the results."""

from __future__ import annotations

import math

from ..fronts.analysis import SHARES, Difference, Front, at_matched, band
from ..fronts.setups import SETUPS
from ..fronts.strength import estimated_ratio, measured_ratio
from ..fronts.survey import EXACT, FASHION_WAYS, PRODUCTS, Fashion
from ..fronts.trials import SCHEDULES, Trial
from .tables import Fronts, markdown, method_of

NAMES = {
    "fashion_weak": "small model",
    "fashion_good": "large model",
    "fashion_early": "large, briefly trained",
    "fashion_auto": "large by small: autoguidance",
}
GUIDED_FORMS = tuple(form for form in FASHION_WAYS if form != "off")
INTERVAL_ROW = "interval"


def first_way(form: str) -> str:
    """The method that stands for a form: the exact product, where it is a product."""
    return method_of(form, FASHION_WAYS[form][0])


def of_setup(found: Fronts, setup: str) -> dict[str, Front]:
    """{"off": .., "interval": .., form: ..}: a front for each form under the plain schedule, CFG first.

    "interval" is CFG in the interval with the least FID, which is chosen on the same pictures."""
    group = {}
    if (setup, "constant", "off") in found:
        group["off"] = found[setup, "constant", "off"]
    bounded = [
        found[setup, name, "off"]
        for name in SCHEDULES
        if name.startswith(("below", "interval")) and (setup, name, "off") in found
    ]
    if bounded:
        group[INTERVAL_ROW] = min(bounded, key=lambda front: front.values["fid"][front.best].mean())
    for form in GUIDED_FORMS:
        front = found.get((setup, "constant", first_way(form)))
        if front is not None:
            group[form] = front
    return group


def name_of_schedule(name: str) -> str:
    """In words, as it is written in tables."""
    if name.startswith("below_"):
        return f"sigma <= {name.removeprefix('below_')}"
    return "sigma 0.39 to 4.1" if name == "interval" else name


def name_of_row(row: str, setup: str, front: Front | None = None) -> str:
    plain = "autoguidance" if SETUPS[setup].reference else "CFG"
    if row == "off":
        return plain
    if row != INTERVAL_ROW:
        return f"`{row}`"
    return f"{plain} in an interval" if front is None else f"{plain}, {name_of_schedule(front.schedule)} only"


def guided_share(schedule: str, sigmas: list[float]) -> float:
    """Share of the calls of Heun's method that a base schedule guides. `sigmas`: levels, closing 0."""
    levels = [sigmas[0], *(s for s in sigmas[1:-1] for _ in range(2))]
    if not schedule.startswith("below_"):
        return 1.0
    return sum(s <= float(schedule.removeprefix("below_")) for s in levels) / len(levels)


def cost(row: str, front: Front, sigmas: list[float]) -> str:
    """Model rows relative to CFG's two a call, in words."""
    if row == INTERVAL_ROW:
        return f"{(1 + guided_share(front.schedule, sigmas)) / 2:.2f}"
    return "1 + backward" if row in PRODUCTS else "1"


def best(front: Front) -> Difference:
    return Difference.of(front.values["fid"][front.best])


def interval(d: Difference, sign: str = "") -> str:
    """Mean and half width; a mean alone from one seed."""
    text = f"{d.mean:{sign}.2f}"
    return text if math.isnan(d.half) else f"{text} ± {d.half:.2f}"


def main_table(found: Fronts, setups: tuple[str, ...], sigmas: list[float]) -> str:
    """Best FID, FID at matched IS less that of CFG and of CFG in its interval, and the cost."""
    rows = []
    for setup in setups:
        group = of_setup(found, setup)
        if "off" not in group:
            continue
        levels = band(list(group.values()))
        for row in ("off", INTERVAL_ROW, *GUIDED_FORMS):
            head = [NAMES[setup], name_of_row(row, setup, group.get(row))]
            if row not in group:
                if row == INTERVAL_ROW:
                    rows.append([*head, "not sampled", *[""] * 7])
                continue
            front, i = group[row], group[row].best
            other = front.values["fid_other"][i].mean()
            cells = [cost(row, front, sigmas), f"{front.weights[i]:g}", interval(best(front)), f"{other:.2f}"]
            cells += [f"{front.values['is_'][i].mean():.2f}", str(len(front.seeds))]
            for rival in ("off", INTERVAL_ROW):
                if row == rival or rival not in group:
                    cells.append("")
                else:
                    d = at_matched(front, group[rival], levels)
                    cells.append("not reached" if math.isnan(d.mean) else f"{interval(d, '+')}{sure(d)}")
            rows.append([*head, *cells])
    head = ["model", "guidance", "cost", "w", "best FID", "in the other space", "IS", "seeds"]
    return markdown([*head, "at equal IS less CFG", "at equal IS less CFG in an interval"], rows)


def sure(d: Difference) -> str:
    return f", {d.verdict}" if d.verdict in ("better", "worse", "undecided") else ""


def every_method(found: Fronts) -> str:
    """Best FID of every method that was sampled, whatever its schedule and the way it was computed."""
    rows = []
    for (setup, schedule, method), front in found.items():
        if setup not in NAMES:
            continue
        i = front.best
        edge = " (last)" if i == len(front.weights) - 1 else ""
        name = name_of_row("off", setup) if method == "off" else words_of(method)
        cells = [NAMES[setup], name_of_schedule(schedule), name, f"{front.weights[i]:g}{edge}"]
        cells += [interval(best(front)), f"{front.values['fid_other'][i].mean():.2f}"]
        cells += [f"{front.values['is_'][i].mean():.2f}", str(len(front.seeds))]
        cells += [f"{front.values[m][i].mean():.2f}" if m in front.values else "" for m in SHARES]
        rows.append(cells)
    head = ["model", "base schedule", "method", "w", "best FID", "in the other space", "IS", "seeds"]
    return markdown([*head, *SHARES], rows)


def name_of_point(schedule: str, method: str) -> str:
    """A method under a base schedule, as it is written in tables."""
    return words_of(method) + ("" if schedule == "constant" else f", {name_of_schedule(schedule)} only")


def words_of(method: str) -> str:
    """A method as it is written in tables."""
    form, *ways = method.split(", ")
    if form == "off":
        return "CFG"
    if "engine reverse" in ways:
        ways.remove("engine reverse")
    elif form in PRODUCTS:
        ways.insert(0, "finite differences")
    return ", ".join([f"`{form}`", *(way.replace("_", " ") for way in ways)])


def kinds(survey: Fashion) -> dict[str, list[Trial]]:
    """The survey's trials by what they are for, each once."""
    made: dict[str, list[Trial]] = {"forms": [], "intervals": [], "other schedules": [], "ways": []}
    for t in survey.trials():
        first = FASHION_WAYS[t.form][0]
        way = {"engine": t.engine} if t.form in PRODUCTS else {}
        plain = t == Trial(t.setup, t.schedule, t.form, t.weight, t.seed, **first)
        if not plain or (way and way != EXACT):
            kind = "ways"
        elif t.schedule == "constant":
            kind = "forms"
        else:
            kind = (
                "intervals"
                if t.form == "off" and t.schedule not in ("linear", "cosine")
                else "other schedules"
            )
        made[kind].append(t)
    return made


def missing(survey: Fashion, results: dict[Trial, dict]) -> str:
    """Sampled of planned points, a line a setup."""
    heads = {
        "forms": "forms, plain schedule",
        "intervals": "CFG in intervals",
        "other schedules": "other schedules",
        "ways": "finite differences, refresh, skipping, data_std",
    }
    made, rows = kinds(survey), []
    for setup in survey.images:
        cells = [NAMES[setup]]
        for kind in heads:
            mine = [t for t in made[kind] if t.setup == setup]
            cells.append(f"{sum(t in results for t in mine)} of {len(mine)}" if mine else "")
        rows.append(cells)
    return markdown(["model", *heads.values()], rows)


def ratios(found: Fronts, curves: dict, spread: dict[str, float]) -> tuple[str, str]:
    """Weight over CFG's at equal IS, measured / estimated, a row a form; and how far they are apart.

    `curves`: {setup: {form: {"sigma", "c"}}}; `spread`: data_std by setup."""
    pairs: dict[str, dict[str, tuple[float, float]]] = {}
    for setup, forms in curves.items():
        plain = found.get((setup, "constant", "off"))
        for form, curve in forms.items() if plain else ():
            method = first_way(form) if SETUPS[setup].data == "fashion" else form
            front = found.get((setup, "constant", method))
            ratio = None if front is None else measured_ratio(front, plain)
            if ratio is not None:
                estimate = estimated_ratio(curve["sigma"], curve["c"], spread[setup])
                pairs.setdefault(setup, {})[form] = ratio.mean, estimate
    rows = []
    for form in GUIDED_FORMS:
        cells = [pairs[setup].get(form) for setup in pairs]
        rows.append([f"`{form}`", *("" if c is None else f"{c[0]:.1f} / {c[1]:.1f}" for c in cells)])
    table = markdown(["form", *(NAMES.get(s, f"digits, `{s}`") for s in pairs)], rows)
    off = [estimate / ratio for forms in pairs.values() for ratio, estimate in forms.values()]
    if not off:
        return table, "Nothing was measured in this run."
    near = sum(1 / 1.3 <= share <= 1.3 for share in off)
    apart = f"The estimate is {min(off):.2f} to {max(off):.2f} times what was measured"
    return table, f"{apart}; {near} of {len(off)} are right within 30 %."
