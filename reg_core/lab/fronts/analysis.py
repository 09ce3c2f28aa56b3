"""From sampled points to statements: fronts, best FID, FID at matched IS, paired differences with their error over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .fronts import Point

METRICS = ("fid", "is_", "accuracy", "precision", "recall", "density", "coverage")
BAND = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the way between the ISs that every front has sampled weights around
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
        """Highest IS of the front that every seed reaches."""
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
    """Mean of paired differences over seeds, with the half width of its 95 % Student interval. nan where it is not known."""

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
        return "better" if self.mean + self.half < 0 else "worse" if self.mean - self.half > 0 else "undecided"

    def __str__(self) -> str:
        return "-" if math.isnan(self.mean) else f"{self.mean:+.3f} ± {self.half:.3f}"


def fronts(results: dict[Point, dict]) -> dict[tuple[str, str, str], Front]:
    """(setup, schedule, form) -> Front, of the points with the library's own engine at every call. Weights lacking a seed are left out."""
    plain = {p: r for p, r in results.items() if (p.engine, p.refresh, p.skip_below, p.dtype) == ("auto", 1, 0.0, "float32")}
    seeds = sorted({p.seed for p in plain})
    grouped: dict[tuple[str, str, str], dict[float, dict[int, dict]]] = {}
    unguided: dict[str, dict[int, dict]] = {}
    for p, r in plain.items():
        if p.weight == 0:
            unguided.setdefault(p.setup, {})[p.seed] = r
        else:
            grouped.setdefault((p.setup, p.schedule, p.form), {}).setdefault(p.weight, {})[p.seed] = r
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
    """IS levels between the sampled weights of every front of a base.

    From the highest IS that any of them has at its first weight, as what lies between that and no guidance is a long way to interpolate,
    to the lowest that any of them reaches. Empty when nothing is in between.
    """
    start = max(float(front.values["is_"][1].mean()) for front in group)
    top = min(front.reach() for front in group)
    return [start + share * (top - start) for share in BAND] if top > start else []


def at_matched(a: Front, b: Front, levels: list[float]) -> Difference:
    """FID of `a` minus FID of `b` at equal IS, averaged over levels, paired by seed."""
    if not levels:
        return Difference(math.nan, math.nan)
    return Difference.of(np.mean([a.fid_at(level) - b.fid_at(level) for level in levels], axis=0))


def at_best(a: Front, b: Front) -> Difference:
    """Best FID of `a` minus best FID of `b`, paired by seed."""
    return Difference.of(a.values["fid"][a.best] - b.values["fid"][b.best])


def spread(values: np.ndarray) -> Difference:
    """Mean over seeds with the half width of its interval, in the same clothes."""
    return Difference.of(values)


def shown(results: dict[Point, dict]) -> dict[tuple[str, str], Point]:
    """(setup, form) -> the point whose C(sigma) is shown: seed 0, plain schedule, the middle one of its weights."""
    mine: dict[tuple[str, str], list[Point]] = {}
    for p, r in results.items():
        if r.get("correction") and p == Point(p.setup, "constant", p.form, p.weight, 0):
            mine.setdefault((p.setup, p.form), []).append(p)
    return {key: sorted(points, key=lambda p: p.weight)[len(points) // 2] for key, points in mine.items()}


def variant(results: dict[Point, dict], setup: str, form: str, weight: float, **changes) -> list[dict] | None:
    """Results by seed of one variant at the plain schedule, or None while any is missing."""
    seeds = sorted({p.seed for p in results if p.setup == setup})
    points = [Point(setup, "constant", form, weight, seed, **changes) for seed in seeds]
    return [results[p] for p in points] if points and all(p in results for p in points) else None
