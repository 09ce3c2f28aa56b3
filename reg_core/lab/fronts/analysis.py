"""From trials to statements: fronts, best FID, FID at matched IS, paired differences with their error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .trials import Trial

METRICS = ("fid", "is_", "accuracy", "precision", "recall", "density", "coverage")
BAND = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the way between the inception scores that every front has sampled
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Front:
    """One method over weights [W] rising from 0, `values[metric]` [W, S] by seed."""

    setup: str
    schedule: str
    form: str
    weights: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def seeds(self) -> int:
        return self.values["fid"].shape[1]

    @property
    def best(self) -> int:
        """Index of the weight of least FID, averaged over seeds: one weight for all of them."""
        return int(self.values["fid"].mean(1).argmin())

    def is_at_best(self) -> float:
        return float(self.values["is_"][self.best].mean())

    def reach(self) -> float:
        """Highest inception score of the front that every seed reaches."""
        return float(self.values["is_"].max(0).min())

    def fid_at(self, level: float) -> np.ndarray:
        """FID [S] where the front first crosses IS `level`, nan for seeds that do not reach it.

        FID and IS are monotone cubic (PCHIP) functions of asinh(w / first weight) through the sampled points.
        """
        from scipy.interpolate import PchipInterpolator

        at = np.arcsinh(self.weights / self.weights[1])
        fine = np.linspace(at[0], at[-1], 2001)
        found = []
        for seed in range(self.seeds):
            score, fid = (PchipInterpolator(at, self.values[name][:, seed])(fine) for name in ("is_", "fid"))
            above = np.flatnonzero(score >= level)
            if not len(above):
                found.append(math.nan)
                continue
            i = above[0]
            part = 0.0 if i == 0 else (level - score[i - 1]) / (score[i] - score[i - 1])
            found.append(fid[i] if i == 0 else fid[i - 1] + part * (fid[i] - fid[i - 1]))
        return np.array(found)


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over seeds, with the half width of its 95 % Student interval.

    nan where it is not known."""

    mean: float
    half: float

    @classmethod
    def of(cls, differences: np.ndarray) -> Difference:
        from scipy.stats import t

        values = np.asarray(differences, dtype=float)
        if len(values) < 2 or not np.isfinite(values).all():
            return cls(math.nan, math.nan)
        error = values.std(ddof=1) / math.sqrt(len(values))
        return cls(float(values.mean()), float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * error))

    @property
    def verdict(self) -> str:
        """Of a quantity of which less is better: better, worse, undecided, or "not reached"."""
        if math.isnan(self.mean):
            return "not reached"
        return (
            "better" if self.mean + self.half < 0 else "worse" if self.mean - self.half > 0 else "undecided"
        )

    def __str__(self) -> str:
        return "-" if math.isnan(self.mean) else f"{self.mean:+.3f} ± {self.half:.3f}"


def fronts(results: dict[Trial, dict]) -> dict[tuple[str, str, str], Front]:
    """(setup, schedule, form) -> Front, of the trials with the library's default engine at every call.

    Weights that lack a seed are left out."""
    plain = {t: r for t, r in results.items() if t == Trial(t.setup, t.schedule, t.form, t.weight, t.seed)}
    seeds = sorted({t.seed for t in plain})
    grouped: dict[tuple[str, str, str], dict[float, dict[int, dict]]] = {}
    unguided: dict[str, dict[int, dict]] = {}
    for t, r in plain.items():
        if t.weight == 0:
            unguided.setdefault(t.setup, {})[t.seed] = r
        else:
            grouped.setdefault((t.setup, t.schedule, t.form), {}).setdefault(t.weight, {})[t.seed] = r
    found = {}
    for key, rows in grouped.items():
        rows = {0.0: unguided.get(key[0], {}), **rows}  # every front starts at the unguided model
        weights = sorted(w for w, by_seed in rows.items() if set(by_seed) == set(seeds))
        if len(weights) < 3 or weights[0] != 0:
            continue
        values = {name: np.array([[rows[w][s][name] for s in seeds] for w in weights]) for name in METRICS}
        found[key] = Front(*key, np.array(weights), values)
    return found


def band(group: list[Front]) -> list[float]:
    """Levels of the inception score between the sampled weights of every front of a base.

    From the highest that any of them has at its first weight: to interpolate between that and no guidance is
    a long way. To the lowest that any of them reaches. Empty when nothing is in between."""
    start = max(float(front.values["is_"][1].mean()) for front in group)
    top = min(front.reach() for front in group)
    return [start + share * (top - start) for share in BAND] if top > start else []


def at_matched(a: Front, b: Front, levels: list[float]) -> Difference:
    """FID of `a` minus FID of `b` at equal inception score, averaged over levels, paired by seed."""
    if not levels:
        return Difference(math.nan, math.nan)
    return Difference.of(np.mean([a.fid_at(level) - b.fid_at(level) for level in levels], axis=0))


def at_best(a: Front, b: Front) -> Difference:
    """Best FID of `a` minus best FID of `b`, paired by seed."""
    return Difference.of(a.values["fid"][a.best] - b.values["fid"][b.best])


def shown(results: dict[Trial, dict]) -> dict[tuple[str, str], Trial]:
    """(setup, form) -> the trial whose C(sigma) is shown: seed 0, plain schedule, the middle weight."""
    mine: dict[tuple[str, str], list[Trial]] = {}
    for t, r in results.items():
        if r.get("correction") and t == Trial(t.setup, "constant", t.form, t.weight, 0):
            mine.setdefault((t.setup, t.form), []).append(t)
    return {key: sorted(trials, key=lambda t: t.weight)[len(trials) // 2] for key, trials in mine.items()}


def variant(results: dict[Trial, dict], setup: str, weight: float, **way) -> list[dict] | None:
    """Results by seed of row_sum in one way at the plain schedule, or None while any is missing."""
    seeds = sorted({t.seed for t in results if t.setup == setup})
    trials = [Trial(setup, "constant", "row_sum", weight, seed, **way) for seed in seeds]
    return [results[t] for t in trials] if trials and all(t in results for t in trials) else None
