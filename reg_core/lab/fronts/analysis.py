"""From trials to statements: fronts, best FID, FID at matched IS, paired differences with their error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .setups import SETUPS
from .trials import Trial

SHARES = ("precision", "recall", "density", "coverage")  # of the neighbours of real pictures
METRICS = ("fid", "fid_other", "is_", "accuracy", *SHARES)
BAND = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the way between the inception scores that every front has sampled
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Front:
    """One method over weights [W] rising from 0, `values[metric]` [W, S] by seed.

    `method`: see Trial. `seeds`: names of the noise; methods are compared in pairs of equal ones."""

    setup: str
    schedule: str
    method: str
    weights: np.ndarray
    values: dict[str, np.ndarray]
    seeds: tuple = ()

    def __post_init__(self):
        if not self.seeds:
            object.__setattr__(self, "seeds", tuple(range(self.values["fid"].shape[1])))

    @property
    def form(self) -> str:
        return self.method.split(",")[0]

    @property
    def best(self) -> int:
        """Index of the weight of least FID, averaged over seeds: one weight for all of them."""
        return int(self.values["fid"].mean(1).argmin())

    def is_at_best(self) -> float:
        return float(self.values["is_"][self.best].mean())

    def reach(self) -> float:
        """Highest inception score of the front that every seed reaches."""
        return float(self.values["is_"].max(0).min())

    def crossing(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """(weight [S], FID [S]) where the front first crosses IS `level`; nan for seeds that do not reach it.

        FID and IS are monotone cubic (PCHIP) functions of asinh(w / first weight) through the sampled points.
        """
        from scipy.interpolate import PchipInterpolator

        at = np.arcsinh(self.weights / self.weights[1])
        fine = np.linspace(at[0], at[-1], 2001)
        found = []
        for seed in range(len(self.seeds)):
            score, fid = (PchipInterpolator(at, self.values[name][:, seed])(fine) for name in ("is_", "fid"))
            above = np.flatnonzero(score >= level)
            if not len(above):
                found.append((math.nan, math.nan))
                continue
            i = above[0]
            part = 0.0 if i == 0 else (level - score[i - 1]) / (score[i] - score[i - 1])
            here = [v[i] if i == 0 else v[i - 1] + part * (v[i] - v[i - 1]) for v in (fine, fid)]
            found.append((self.weights[1] * np.sinh(here[0]), here[1]))
        weight, fid = np.array(found).T
        return weight, fid

    def fid_at(self, level: float) -> np.ndarray:
        """FID [S] at IS `level`, see crossing."""
        return self.crossing(level)[1]


def paired(a: Front, b: Front, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """`ours` [S of a] less `theirs` [S of b] at the seeds of both."""
    both = [seed for seed in a.seeds if seed in b.seeds]
    return np.array([ours[a.seeds.index(seed)] - theirs[b.seeds.index(seed)] for seed in both])


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over `seeds`, with the half width of its 95 % Student interval.

    nan where it is not known; one seed has a mean and no interval."""

    mean: float
    half: float
    seeds: int = 0

    @classmethod
    def of(cls, differences: np.ndarray) -> Difference:
        from scipy.stats import t

        values = np.asarray(differences, dtype=float)
        count = len(values)
        if not count or not np.isfinite(values).all():
            return cls(math.nan, math.nan, count)
        if count == 1:
            return cls(float(values[0]), math.nan, 1)
        error = values.std(ddof=1) / math.sqrt(count)
        return cls(float(values.mean()), float(t.ppf(0.5 + CONFIDENCE / 2, count - 1) * error), count)

    @property
    def verdict(self) -> str:
        """Of a quantity of which less is better: better, worse, undecided, "one seed" or "not reached"."""
        if math.isnan(self.mean):
            return "not reached"
        if math.isnan(self.half):
            return "one seed"
        return (
            "better" if self.mean + self.half < 0 else "worse" if self.mean - self.half > 0 else "undecided"
        )

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:+.3f}" + ("" if math.isnan(self.half) else f" ± {self.half:.3f}")


def fronts(results: dict[Trial, dict]) -> dict[tuple[str, str, str], Front]:
    """(setup, schedule, method) -> Front.

    Every front begins at the unguided model: that of the setup, or of one with the same model. Weights that
    lack a seed of the front are left out, and fronts of less than two weights."""
    grouped: dict[tuple[str, str, str], dict[float, dict[int, dict]]] = {}
    unguided: dict[str, dict[int, dict]] = {}
    for t, r in results.items():
        if t.weight == 0:
            unguided.setdefault(t.setup, {})[t.seed] = r
        else:
            front = grouped.setdefault((t.setup, t.schedule, t.method), {})
            front.setdefault(t.weight, {})[t.seed] = r
    found = {}
    for key, rows in grouped.items():
        alike = [s for s in unguided if SETUPS[s].main == SETUPS[key[0]].main]
        begin = unguided.get(key[0]) or (unguided[alike[0]] if alike else {})
        seeds = sorted({seed for by_seed in rows.values() for seed in by_seed})
        rows = {0.0: begin, **rows}
        weights = sorted(w for w, by_seed in rows.items() if set(seeds) <= set(by_seed))
        if len(weights) < 3 or weights[0] != 0:
            continue
        picked = [[rows[w][s] for s in seeds] for w in weights]
        names = [m for m in METRICS if all(r.get(m) is not None for line in picked for r in line)]
        values = {name: np.array([[r[name] for r in line] for line in picked]) for name in names}
        found[key] = Front(*key, np.array(weights), values, tuple(seeds))
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
    return Difference.of(np.mean([paired(a, b, a.fid_at(v), b.fid_at(v)) for v in levels], axis=0))


def at_best(a: Front, b: Front) -> Difference:
    """Best FID of `a` minus best FID of `b`, paired by seed."""
    return Difference.of(paired(a, b, a.values["fid"][a.best], b.values["fid"][b.best]))


def shown(results: dict[Trial, dict]) -> dict[tuple[str, str], Trial]:
    """(setup, form) -> the trial whose C(sigma) is shown: seed 0, plain schedule, the middle weight."""
    mine: dict[tuple[str, str], list[Trial]] = {}
    for t, r in results.items():
        if r.get("correction") and t == Trial(t.setup, "constant", t.form, t.weight, 0):
            mine.setdefault((t.setup, t.form), []).append(t)
    return {key: sorted(trials, key=lambda t: t.weight)[len(trials) // 2] for key, trials in mine.items()}
