"""The pages: the words of page.md, more.md and candidates.md, with tables and verdicts from the results."""

from __future__ import annotations

from pathlib import Path

from ...sampling import karras_sigmas
from ...trace import WINDOW
from ..fronts.analysis import BAND, fronts
from ..fronts.setups import SETUPS, WEAKER_STEPS
from ..fronts.survey import BETS_SURVEY, Fashion, Survey
from ..fronts.trials import INTERVAL, Trial
from ..mixtures.exact import MIXTURE_FORMS
from . import claims, fashion, points, tables
from .published import FASHION_STD, Candidates

DIGITS_STD, FASHION_LEVELS = 0.75, (0.01, 80.0)  # as the models have them; the tests compare
PICTURES = {
    "fronts": "FID against IS for every base and form",
    "corrections": "C(sigma) by form: mean and 5 to 95 % band",
    "toy": "The paper's 1-D toy: guidance and error maps",
    "maps": "Error maps in two dimensions",
    "by_sigma": "Error over sigma",
    "ends": "Wasserstein distance over w",
}


def controls(study: dict) -> str:
    """The negative controls in a table, with whether REG lost there, as it must."""
    lines = []
    for control in study["controls"]:
        for form in ("row_sum", "schedule"):
            row = control["forms"][form]
            lost = "yes" if row["relative_rms"] > 1 else "NO: this guard does not guard"
            span = f"{min(control['sigmas']):g} to {max(control['sigmas']):g}"
            numbers = [f"{100 * row['win']:.0f}%", f"{row['relative_rms']:.2f}", lost]
            lines.append([control["pair"], f"{control['weight']:g}", span, form, *numbers])
    head = ["pair", "w", "sigma", "form", "nearer than CFG", "RMS over CFG's", "worse than CFG"]
    return tables.markdown(head, lines)


def sizes(survey: Survey, results: dict[Trial, dict]) -> str:
    """One paragraph: what was sampled."""
    images = ", ".join(f"{setup} {count}" for setup, count in survey.images.items())
    points, total = len(results), len(survey.trials())
    text = f"{points} of {total} points, {survey.seeds} seeds each, {survey.steps} Heun steps"
    text += f"; images a point: {images}."
    if points < total:
        text += f" **{total - points} points are missing: fronts without them are left out below.**"
    return text


def weight_of(study: dict) -> float:
    """The weight at which mixtures are shown: 1 if there is one."""
    weights = [row["weight"] for row in study["errors"]]
    return 1.0 if 1.0 in weights else weights[0]


def candidates_section(results: dict[Trial, dict], candidates: Candidates) -> str:
    """The forms of ours that lost: what they were, and their tables."""
    found = fronts(results | candidates.results)
    return _words("candidates.md").format(
        forms="\n".join(f"- `{name}`: {about['what']}" for name, about in candidates.forms.items()),
        table=tables.candidates(found, candidates.forms),
        errors=tables.candidate_errors(candidates.mixtures, 1.0),
    )


def bets_section(results: dict[Trial, dict], words: dict[str, str]) -> str:
    """The bets on Fashion-MNIST: what they are, and their table."""
    forms = "\n".join(f"- `{name}`: {text}" for name, text in words.items())
    compared = points.bets(results) if fronts(results) else ""
    return "\n\n".join(filter(None, [forms, points.bet_points(results), compared]))


def check_claim(pairs: dict[Trial, tuple[dict, dict]]) -> str:
    """A sentence: how near this code comes to the study."""
    if not pairs:
        return ""
    apart, link = 100 * points.furthest(pairs), "evidence-more.md#points-of-the-study-sampled-again"
    again = f"Of the study's it sampled {len(pairs)} again, on a CPU"
    return f"{again}: FID differs by {apart:.1f} % at most ([table]({link})). "


def winners_claim(results: dict[Trial, dict], candidates: Candidates) -> str:
    """A line: the candidates that won."""
    won = tables.winners(fronts(results | candidates.results), candidates.forms)
    names = "; ".join(f"`{name}` ({', '.join(where)})" for name, where in won.items()) or "none"
    return f"- Candidate forms of our own that beat both forms of equal cost at matched IS: {names}.\n"


def document(
    survey: Survey,
    results: dict[Trial, dict],
    study: dict,
    toys: list[dict],
    pictures: dict[str, str],
    candidates: Candidates | None = None,
    clothes: dict[Trial, dict] | None = None,
    bets: tuple[dict[Trial, dict], dict[str, str]] = ({}, {}),
    checks: dict[Trial, tuple[dict, dict]] | None = None,
) -> str:
    """docs/evidence-more.md. `clothes`: results on Fashion-MNIST. `bets`, `checks`: see published.

    `pictures`: {name: path relative to the page}; those that were not drawn are left out."""
    found, weight = fronts(results), weight_of(study)
    compared = claims.claims_fronts(found)

    def picture(name: str, text: str) -> str:
        return f"![{text}]({pictures[name]})\n" if name in pictures else ""

    return _words("more.md").format(
        mode=survey.name,
        sizes=sizes(survey, results),
        headline=tables.headline(found),
        summary=claims.summary(compared + claims.claims_mixtures(study)),
        comparisons=len(compared),
        by_chance=f"{0.05 * len(compared):.0f}",
        default=claims.default_claim(found),
        won="" if candidates is None else winners_claim(results, candidates),
        setups="\n".join(f"- `{name}`: {text}" for name, text in SETUPS.items() if name in survey.images),
        weaker_steps=WEAKER_STEPS,
        low=f"{INTERVAL[0] * DIGITS_STD:.3g}",
        high=f"{INTERVAL[1] * DIGITS_STD:.3g}",
        levels=len(BAND),
        best_fid=tables.best_fid(found),
        matched_fid=tables.matched_fid(found),
        row_sum_ways=tables.row_sum_ways(found, results),
        weight=f"{weight:g}",
        mixture_errors=tables.mixture_errors(study["errors"], weight),
        controls=controls(study),
        same_in_1d=", ".join(MIXTURE_FORMS[1:4]),
        end_distances=tables.end_distances(study["ends"]),
        toys=tables.toys(toys) if toys else "Not in this run.",
        pictures_of_toys="".join(picture(f"toy_{t['toy']}", f"Trained toy {t['toy']}") for t in toys),
        every_method=fashion.every_method(fronts(clothes)) if clothes else "Not in this run.",
        checks=points.checks(checks) if checks else "Not sampled yet.",
        bet_seeds=BETS_SURVEY.seeds,
        bets=bets_section(*bets) if bets[0] else "Not sampled yet.",
        candidates="" if candidates is None else candidates_section(results, candidates),
        **{f"picture_{name}": picture(name, text) for name, text in PICTURES.items()},
    )


def main_page(
    survey: Fashion,
    clothes: dict[Trial, dict],
    digits: dict[Trial, dict],
    study: dict,
    curves: dict,
    source: str,
    checks: dict[Trial, tuple[dict, dict]] | None = None,
    bets: dict[Trial, dict] | None = None,
) -> str:
    """docs/evidence.md. `clothes`, `digits`: results of the two data sets. `study`: of mixtures.

    `curves`: see strength.corrections, by setup. `source`: where the points come from. `checks`, `bets`: see
    published."""
    found, spread = (
        fronts(clothes),
        {s: DIGITS_STD if SETUPS[s].data == "digits" else FASHION_STD for s in SETUPS},
    )
    ratios, apart = fashion.ratios(found | fronts(digits), curves, spread)
    sigmas = karras_sigmas(survey.steps, *FASHION_LEVELS).tolist()
    waits = (
        "The study kept no features of the real pictures, so its points have no precision, recall, density "
        "and coverage. "
    )
    real = any("precision" in result for result in clothes.values())
    return _words("page.md").format(
        verdict=claims.verdict(found, survey.images, sigmas),
        negative=claims.negative(study),
        levels=len(BAND),
        bounds=len(
            {key[1] for key in found if key[0] == "fashion_weak" and key[1].startswith(("below", "int"))}
        ),
        data_std=f"{FASHION_STD:g}",
        table=fashion.main_table(found, tuple(survey.images), sigmas),
        low=WINDOW[0],
        high=WINDOW[1],
        ratios=ratios,
        apart=apart,
        source=source,
        checked=check_claim(checks or {}),
        cheaper=points.cheaper(bets) if bets else "Not sampled yet.",
        bound_alone=points.bound_alone(bets) if bets else "",
        bet_images=BETS_SURVEY.images["fashion_weak"],
        bet_seeds=BETS_SURVEY.seeds,
        seeds=survey.seeds,
        missing=fashion.missing(survey, clothes),
        shares="" if real else waits,
    )


def _words(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
