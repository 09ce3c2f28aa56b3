"""docs/evidence.md from the results: text whose every claim is computed, tables, pictures."""

from __future__ import annotations

from . import tables
from .analysis import BAND, at_best, at_matched, band, fronts, variant
from .error import FORMS
from .fronts import INTERVAL, SETUPS, WEAKER_STEPS, Point
from .plan import ECONOMY, ENGINES, EXACT, Plan
from .plots import name_of

Claim = tuple[str, str]  # (better, worse, undecided; the sentence)


def claims_fronts(found: tables.Fronts) -> list[Claim]:
    """On every base: forms against plain guidance at matched IS and at their best FID; paid forms against the free schedule."""
    claims = []
    for (setup, schedule), group in tables.bases(found).items():
        levels, where = band(list(group.values())), f"{setup}, {schedule}"
        rivals = [(f, "off") for f in group if f != "off"] + [(f, "schedule") for f in group if f not in ("off", "schedule") and "schedule" in group]
        for form, rival in rivals:
            names = f"`{form}` less {name_of(rival, setup)}"
            for what, d in (("FID at matched IS", at_matched(group[form], group[rival], levels)), ("best FID", at_best(group[form], group[rival]))):
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
    tail = "; not for " + "; ".join(f"{pair} at w {', '.join(weights)}" for pair, weights in by_pair.items()) if lost else ""
    return verdict, f"{what} in {won} of {len(cases)} cases{f', equal in {len(equal)}' if equal else ''}{tail}"


def claims_mixtures(study: dict) -> list[Claim]:
    """Pooled errors of forms on every pair and weight, nominal and re-tuned, and the terminal distances."""
    claims = []
    pooled = [r for r in study["errors"] if r["sigma"] is None]
    for form in ("row_sum", "scalar", "schedule"):
        for what, key in (("at nominal w", "relative_rms"), ("every form at its best w", "tuned_rms")):
            cases = {(r["pair"], r["weight"]): (r[key], 1.0) for r in pooled if r["form"] == form}
            claims.append(_count(f"mixtures, {what}: `{form}` has a smaller pooled RMS error than CFG", cases))
    ends = {(r["pair"], r["weight"], r["form"]): r for r in study["ends"]}
    for what, key in (("at nominal w", "distance"), ("every form at its best w", "tuned_distance")):
        for form, rival in (("row_sum", "off"), ("schedule", "off"), ("row_sum", "schedule")):
            cases = {(p, w): (ends[p, w, form][key], ends[p, w, rival][key]) for p, w in dict.fromkeys(k[:2] for k in ends)}
            claims.append(_count(f"mixtures, after sampling, {what}: `{form}` ends nearer to the tilted target than {name_of(rival)}", cases))
    return claims


def summary(claims: list[Claim]) -> str:
    """The claims under what holds, what does not, what is mixed, what these samples cannot decide."""
    titles = {
        "better": "Holds",
        "worse": "Does not hold: the other way round",
        "mixed": "Holds in some cases and not in others",
        "undecided": "Not decided by these seeds (the interval contains 0)",
        "not reached": "Not compared (a front does not reach the level)",
    }
    parts = []
    for verdict, title in titles.items():
        mine = [text for v, text in claims if v == verdict]
        if mine and verdict in ("undecided", "not reached"):
            parts.append(f"**{title}**: {len(mine)} comparisons, see the tables below.")
        elif mine:
            parts.append(f"**{title}** ({len(mine)})\n\n" + "\n".join(f"- {text}" for text in mine))
    return "\n\n".join(parts)


def default_claim(results: dict[Point, dict], plan: Plan) -> str:
    """Two sentences: the node's default (finite differences, every 4th call), plain and skipping, against the exact reverse product."""
    claims = []
    for name, changes in (("The node's default", {"refresh": 4}), ("With `skip_below` 0.05 it", {"refresh": 4, "skip_below": 0.05})):
        pairs = [[variant(results, "weak", "row_sum", weight, **way) for way in (changes, EXACT)] for weight in plan.variants]
        moved = [tables.beyond_seeds(mine, exact, plan.images["weak"]) for mine, exact in pairs if mine and exact and len(exact) > 1]
        if moved:
            inside, total = sum(not m for m in moved), len(moved)
            worse = sum(any("worse" in metric for metric in m) for m in moved)
            claims.append(
                f"{name} stays within one standard deviation between seeds in FID, IS and accuracy at {inside} of {total} weights, and is worse at {worse}."
            )
    return " ".join(claims) or "The default was not compared with the exact product in this run."


def controls(study: dict) -> str:
    """The negative controls in a table, with whether REG lost there, as it must."""
    lines = []
    for control in study["controls"]:
        for form in ("row_sum", "schedule"):
            row = control["forms"][form]
            lost = "yes" if row["relative_rms"] > 1 else "NO: this guard does not guard"
            span = f"{min(control['sigmas']):g} to {max(control['sigmas']):g}"
            lines.append([control["pair"], f"{control['weight']:g}", span, form, f"{100 * row['win']:.0f}%", f"{row['relative_rms']:.2f}", lost])
    return tables.markdown(["pair", "w", "sigma", "form", "nearer than CFG", "RMS over CFG's", "worse than CFG"], lines)


def sizes(plan: Plan, results: dict[Point, dict]) -> str:
    """One paragraph: what was sampled."""
    images = ", ".join(f"{setup} {count}" for setup, count in plan.images.items())
    points, total = len(results), len(plan.points())
    missing = "" if points == total else f" **{total - points} points of the plan are missing: fronts without them are left out below.**"
    return f"{points} of {total} points, {plan.seeds} seeds each, {plan.steps} Heun steps; images a point: {images}.{missing}"


def document(plan: Plan, results: dict[Point, dict], study: dict, toys: list[dict], pictures: dict[str, str]) -> str:
    """The page. `pictures`: {name: path relative to the page}; those that were not drawn are left out."""
    found = fronts(results)
    compared = claims_fronts(found)
    weight = 1.0 if any(r["weight"] == 1.0 for r in study["errors"]) else study["errors"][0]["weight"]
    setups = "\n".join(f"- `{name}`: {text}" for name, text in SETUPS.items() if name in plan.images)
    won = tables.winners(found)
    bets = "; ".join(f"`{name}` ({', '.join(where)})" for name, where in won.items()) or "none"

    def picture(name: str, text: str) -> str:
        return f"![{text}]({pictures[name]})\n" if name in pictures else ""

    engines = " or ".join(f"`{name}`" for name in ENGINES)
    return f"""# Evidence

Generated by `nox -s lab` in {plan.name} mode: every figure and every verdict on this page is computed from the files in `docs/evidence/`.
{sizes(plan, results)} Two CPU cores are enough. A verdict needs a 95 % interval (Student's t over the seeds) on one side of 0; the same noise goes
through every method, so that differences are taken in pairs. `schedule` is free and is in every table: what it also does is no merit of a
product with the Jacobian. Nothing is concluded from equal w alone: REG guides less at equal w. Names of setups, forms and pairs are explained below.

## What holds and what does not

The paper's form and the free schedule on the digits models, less plain guidance (below 0: better):

{tables.headline(found)}

{summary(compared + claims_mixtures(study))}

- Of the {len(compared)} comparisons of fronts about {0.05 * len(compared):.0f} would be called better or worse by chance alone.

- {default_claim(results, plan)}
- Bets of our own that beat both forms of equal cost at matched IS: {bets}.

## Quality against weight on the digits models

{setups}

The weaker reference is trained on the spot for {WEAKER_STEPS} steps. FID and precision, recall, density, coverage live in the feature space of a
classifier of the digits, IS and accuracy are from its probabilities. All are biased by the number of images: compare rows of one setup only.
Base schedules: constant; linear 0 to 2 and cosine 0 to 1 over the steps; interval {INTERVAL.low:.3g} <= sigma <= {INTERVAL.high:.3g}.

{picture("fronts", "FID against IS for every base and form")}
### Best FID

Each method at its own best weight, found on these seeds ("last": the largest weight tried).

{tables.best_fid(found)}

### FID at matched IS

Fronts are monotone cubics through the weights. Band: IS levels that every form of the base has sampled weights around, the mean over
{len(BAND)} of them. "-": not reached. Negative is better. The intervals hold the chance of the noise, not what interpolation between weights gets wrong.

{tables.matched_fid(found)}

### The correction by form

{picture("corrections", "C(sigma) by form: mean and 5 to 95 % band")}
## Engines, refresh and skipping

`row_sum` computed as {engines}.

{tables.variants(results, ENGINES, plan)}

{default_claim(results, plan)}

{tables.variants(results, ECONOMY, plan)}

## Mixtures whose optimum is known

Errors to `D_c + (s^2/alpha) grad log E_t` with exact denoisers and Jacobians. Cells: share of points nearer than CFG and RMS error over CFG's, both at
the nominal w = {weight:g}; RMS error over CFG's when each form *and* CFG take the weight that suits them best (in brackets).

{tables.mixture_errors(study["errors"], weight)}

{picture("toy", "The paper's 1-D toy: guidance and error maps")}
{picture("maps", "Error maps in two dimensions")}
{picture("by_sigma", "Error over sigma")}
### Where REG loses: negative controls

{controls(study)}

### After sampling

Wasserstein distance of Euler samples to the tilted target of weight w: at that w / at the form's best multiple of it (in brackets). In 1-D
{", ".join(FORMS[1:4])} coincide; `optimum` samples with the golden gradient and is the floor of steps and samples.

{picture("ends", "Wasserstein distance over w")}
{tables.end_distances(study["ends"])}

## Trained toys

Small networks trained on the toy, against the golden gradient of the *trained* chain by Monte Carlo (the paper's Table 1). Nominal w.
A point is decided where the difference exceeds the Monte Carlo error.

{tables.toys(toys) if toys else "Not in this run."}

{"".join(picture(f"toy_{t['toy']}", f"Trained toy {t['toy']}") for t in toys)}
## Bets

Forms of our own (`reg_core/lab/bets.py`), by the same protocol against the forms of equal cost. They stay in the laboratory unless they win.

{picture("bets", "Fronts of the bets")}
{tables.bets(found)}

On mixtures with exact products, at w = 1: RMS error over CFG's at nominal w / with all weights re-tuned. `channels` is a four-channel latent, in
which the spectral basis is the channels themselves (so `table_spectrum` is `calibrated` per channel).

{tables.bet_errors(study["bets"], 1.0)}
"""
