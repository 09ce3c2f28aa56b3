"""Statements about the results, each with its verdict, computed from the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..fronts.analysis import at_best, at_matched, band
from ..fronts.setups import SETUPS
from ..fronts.strength import measured_ratio
from ..fronts.survey import EXACT, NODE, NODE_SKIPPING
from . import fashion, tables
from .tables import name_of

Claim = tuple[str, str]  # (better, worse, undecided; the sentence)


def claims_fronts(found: tables.Fronts) -> list[Claim]:
    """On every base: forms against plain guidance, and all others against the free schedule.

    At matched inception score, and at their best FID."""
    claims = []
    for (setup, schedule), group in tables.bases(found).items():
        levels, where = band(list(group.values())), f"{setup}, {schedule}"
        rivals = [(form, "off") for form in group if form != "off"]
        if "schedule" in group:
            rivals += [(form, "schedule") for form in group if form not in ("off", "schedule")]
        for form, rival in rivals:
            names, ours, theirs = f"`{form}` less {name_of(rival, setup)}", group[form], group[rival]
            matched, best = at_matched(ours, theirs, levels), at_best(ours, theirs)
            for what, d in (("FID at matched IS", matched), ("best FID", best)):
                claims.append((d.verdict, f"{where}: {names}, {what} {d}"))
    return claims


def _count(what: str, cases: dict[tuple[str, float], tuple[float, float]]) -> Claim:
    """`cases`: (pair, w) -> (our error, the rival's). Within a thousandth they are called equal."""
    equal = [case for case, (ours, rival) in cases.items() if abs(ours - rival) <= 1e-3 * rival]
    lost = [case for case, (ours, rival) in cases.items() if ours > rival and case not in equal]
    won = len(cases) - len(equal) - len(lost)
    verdict = "better" if not lost else "worse" if not won else "mixed"
    by_pair: dict[str, list[str]] = {}
    for pair, weight in lost:
        by_pair.setdefault(pair, []).append(f"{weight:g}")
    text = f"{what} in {won} of {len(cases)} cases" + (f", equal in {len(equal)}" if equal else "")
    if lost:
        places = (f"{pair} at w {', '.join(weights)}" for pair, weights in by_pair.items())
        text += ". Not for: " + "; ".join(places)
    return verdict, text


def claims_mixtures(study: dict) -> list[Claim]:
    """Pooled errors of forms on every pair and weight, nominal and re-tuned, and the terminal distances."""
    claims = []
    pooled = [r for r in study["errors"] if r["sigma"] is None]
    for form in ("row_sum", "scalar", "schedule"):
        for what, key in (("at nominal w", "relative_rms"), ("every form at its best w", "tuned_rms")):
            cases = {(r["pair"], r["weight"]): (r[key], 1.0) for r in pooled if r["form"] == form}
            better = f"`{form}` has a smaller pooled RMS error than CFG"
            claims.append(_count(f"mixtures, {what}: {better}", cases))
    ends = {(r["pair"], r["weight"], r["form"]): r for r in study["ends"]}
    for what, key in (("at nominal w", "distance"), ("every form at its best w", "tuned_distance")):
        for form, rival in (("row_sum", "off"), ("schedule", "off"), ("row_sum", "schedule")):
            places = dict.fromkeys(k[:2] for k in ends)
            cases = {(p, w): (ends[p, w, form][key], ends[p, w, rival][key]) for p, w in places}
            nearer = f"`{form}` ends nearer to the tilted target than {name_of(rival)}"
            claims.append(_count(f"mixtures, after sampling, {what}: {nearer}", cases))
    return claims


def summary(claims: list[Claim]) -> str:
    """The claims under what holds, what does not, what is mixed, what these samples cannot decide."""
    titles = {
        "better": "Holds",
        "worse": "Does not hold: the other way round",
        "mixed": "Holds in some cases and not in others",
        "one seed": "Only one seed",
        "undecided": "Not decided by these seeds (the interval contains 0)",
        "not reached": "Not compared (a front does not reach the level)",
    }
    parts = []
    for verdict, title in titles.items():
        mine = [text for v, text in claims if v == verdict]
        if mine and verdict in ("one seed", "undecided", "not reached"):
            parts.append(f"**{title}**: {len(mine)} comparisons, see the tables below.")
        elif mine:
            parts.append(f"**{title}** ({len(mine)})\n\n" + "\n".join(f"- {text}" for text in mine))
    return "\n\n".join(parts)


def default_claim(found: tables.Fronts, setup: str = "weak") -> str:
    """The node's default, plain and skipping, less the exact product at every call."""
    exact, texts = found.get((setup, "constant", tables.method_of("row_sum", EXACT))), []
    for name, way in (("The node's default", NODE), ("With `skip_below` 0.05", NODE_SKIPPING)):
        front = found.get((setup, "constant", tables.method_of("row_sum", way)))
        if exact is None or front is None:
            continue
        matched, best = at_matched(front, exact, band([front, exact])), at_best(front, exact)
        text = f"{name}, less the exact product at every call: FID at matched IS {matched} {matched.verdict}"
        texts.append(f"{text}, best FID {best} {best.verdict}.")
    return " ".join(texts) or "The default was not compared with the exact product in this run."


def verdict(found: tables.Fronts, setups: Iterable[str], sigmas: list[float]) -> str:
    """Three statements: what to use first, what it costs, when not. The numbers choose the form."""
    groups = {setup: group for setup in setups if "off" in (group := fashion.of_setup(found, setup))}
    plain = [setup for setup in groups if SETUPS[setup].reference is None]
    if not plain:
        return "Nothing was compared with CFG in this run."
    least = {s: min(fashion.GUIDED_FORMS, key=lambda f, s=s: _best(groups[s].get(f))) for s in plain}
    form, first = least[plain[0]], groups[plain[0]]
    others = plain[1:]
    leads = [s for s in others if least[s] == form and _best(groups[s][form]) < _best(groups[s]["off"])]
    ours, theirs = (fashion.interval(fashion.best(first[row])) for row in (form, "off"))
    use = f"**Use `{form}` first**: its best FID is {ours} where CFG has {theirs} (small model)."
    use += " No form has a smaller one there"
    if others:
        one = " (one seed each)" if all(len(groups[s][form].seeds) == 1 for s in leads) else ""
        use += f", nor on {len(leads)} of {len(others)} other models{one}"
    use += "."
    free = (
        "a product with the Jacobian a call"
        if form in fashion.PRODUCTS
        else "no more model evaluations than CFG"
    )
    costs = f"**It costs** {free}"
    if (ratio := measured_ratio(first[form], first["off"])) is not None:
        costs += f", and wants about {ratio.mean:.1f} times CFG's weight"
    if (bounded := first.get(fashion.INTERVAL_ROW)) is not None:
        saved = 100 * (1 - fashion.guided_share(bounded.schedule, sigmas)) / 2
        apart = at_matched(first[form], bounded, band(list(first.values())))
        told = {"undecided": "is not surely better or worse", "better": "is worse", "worse": "is better"}.get(
            apart.verdict, "was not compared"
        )
        name = fashion.name_of_schedule(bounded.schedule)
        costs += f". CFG that guides at {name} saves {saved:.0f} % of them and {told} at equal IS ({apart})"
    not_for = ["where classes overlap strongly: there CFG is nearer to the optimum"]
    for setup, group in groups.items():
        if setup not in plain and form in group:
            apart = at_matched(group[form], group["off"], band(list(group.values())))
            seeds = "one seed" if len(group[form].seeds) == 1 else f"{len(group[form].seeds)} seeds"
            helped = "helps" if apart.verdict == "better" else "does not surely help"
            not_for.append(f"Nor for autoguidance, which it {helped} (FID at equal IS {apart}, {seeds})")
    return "\n".join(f"- {text}" for text in (use, costs + ".", "**Not** " + ". ".join(not_for) + "."))


def _best(front) -> float:
    return math.inf if front is None else float(front.values["fid"][front.best].mean())


def negative(study: dict) -> str:
    """One line on where REG loses, with whether it did, as it must."""
    control = next(c for c in study["controls"] if c["pair"] == "overlapping")
    rms = {form: control["forms"][form]["relative_rms"] for form in ("row_sum", "schedule")}
    worse = "REG is worse than CFG" if min(rms.values()) > 1 else "REG should be worse than CFG and is not"
    span = f"sigma {min(control['sigmas']):g} to {max(control['sigmas']):g}"
    errors = " and ".join(f"{value:.1f} times CFG's (`{form}`)" for form, value in rms.items())
    link = "evidence-more.md#where-reg-loses-negative-controls"
    where = f"on two strongly overlapping classes, {span}"
    return f"Negative control: {worse} {where}. Its error is {errors}: [where REG loses]({link})."
