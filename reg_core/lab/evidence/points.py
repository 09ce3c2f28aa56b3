"""Tables of single points on Fashion-MNIST: what is tried, and what was sampled again."""

from __future__ import annotations

import math

import numpy as np

from ..fronts.analysis import SHARES, Difference, at_matched, band, fronts
from ..fronts.trials import Trial
from .fashion import best, interval, name_of_point, sure, words_of
from .tables import markdown

# (schedule, method) at every call, and with fewer model rows than CFG.
CHEAPER = (
    (("constant", "off"), ("below_2", "off")),
    (("constant", "schedule"), ("constant", "schedule, skip_below 0.02")),
    (("constant", "row_sum, refresh 8"), ("below_2", "row_sum, refresh 8, skip_below 0.1")),
)
CHECKED = {"fid": 3, "fid_other": 3, "is_": 3, "accuracy": 4}  # scores, with their decimals


def checks(pairs: dict[Trial, tuple[dict, dict]]) -> str:
    """Scores of the study's points, the study's / this code's, and how far the FID of both is apart."""
    rows = []
    for t, (theirs, ours) in pairs.items():
        name = name_of_point(t.schedule, t.method) if t.weight else "no guidance"
        cells = [f"{theirs[m]:.{n}f} / {ours[m]:.{n}f}" for m, n in CHECKED.items()]
        rows.append([name, f"{t.weight:g}", *cells, f"{100 * furthest({t: (theirs, ours)}):.1f} %"])
    return markdown(["method", "w", "FID", "in the other space", "IS", "accuracy", "FID differs by"], rows)


def furthest(pairs: dict[Trial, tuple[dict, dict]]) -> float:
    """The largest relative difference of an FID between the study and this code."""
    return max(abs(ours["fid"] / theirs["fid"] - 1) for theirs, ours in pairs.values())


def bets(results: dict[Trial, dict]) -> str:
    """Each bet against `schedule` and the tuned CFG interval, and its model rows over CFG's."""
    found, rows = fronts(results), []
    plain = {t.weight: r["rows"] for t, r in results.items() if (t.schedule, t.method) == ("constant", "off")}
    rivals = {
        key[1:]: f for key, f in found.items() if key[1:] in (("constant", "schedule"), ("below_2", "off"))
    }
    for (_, schedule, method), front in found.items():
        taken = [
            r["rows"]
            for t, r in results.items()
            if (t.schedule, t.method, t.weight) == (schedule, method, front.weights[front.best])
        ]
        cost = sum(taken) / len(taken) / max(plain.values())
        cells = [
            name_of_point(schedule, method),
            f"{cost:.2f}",
            f"{front.weights[front.best]:g}",
            interval(best(front)),
        ]
        for key, rival in rivals.items():
            d = at_matched(front, rival, band([front, rival])) if key != (schedule, method) else None
            cells.append(
                "" if d is None else "not reached" if math.isnan(d.mean) else interval(d, "+") + sure(d)
            )
        rows.append(cells)
    against = [
        f"at equal IS less {words_of(m)}{'' if s == 'constant' else ' at sigma <= 2'}" for s, m in rivals
    ]
    return markdown(["method", "cost", "w", "best FID", *against], rows)


def _points(results: dict[Trial, dict]) -> dict[tuple[str, str, float], dict[int, dict]]:
    """{(schedule, method, weight): {seed: result}}."""
    points: dict[tuple[str, str, float], dict[int, dict]] = {}
    for t, r in results.items():
        points.setdefault((t.schedule, t.method, t.weight), {})[t.seed] = r
    return points


def _best_point(points: dict, schedule: str, method: str) -> tuple[str, str, float] | None:
    """The key of the weight of least FID of a method, None where it was not sampled."""
    mine = [key for key in points if key[:2] == (schedule, method)]
    return min(mine, key=lambda key: _mean(points[key], "fid"), default=None)


def _less(ours: dict[int, dict], theirs: dict[int, dict]) -> Difference:
    """FID less another's, in pairs of seeds."""
    seeds = sorted(ours.keys() & theirs.keys())
    return Difference.of(np.array([ours[seed]["fid"] - theirs[seed]["fid"] for seed in seeds]))


def _cost(points: dict, by_seed: dict[int, dict]) -> str:
    """Model rows over CFG's, empty where CFG was not sampled."""
    of_cfg = [_mean(plain, "rows") for key, plain in points.items() if key[:2] == ("constant", "off")]
    return f"{_mean(by_seed, 'rows') / max(of_cfg):.2f}" if of_cfg else ""


def bet_points(results: dict[Trial, dict]) -> str:
    """Every point of the bets: cost, scores, and FID less that of `schedule` at its best weight, in pairs."""
    points = _points(results)
    rival, rows = points.get(_best_point(points, "constant", "schedule"), {}), []
    for (schedule, method, weight), by_seed in points.items():
        less = _less(by_seed, rival)
        scores = [f"{_mean(by_seed, score):.2f}" for score in ("is_", "fid")]
        against = "" if by_seed is rival or not less.seeds else interval(less, "+") + sure(less)
        cells = [name_of_point(schedule, method), _cost(points, by_seed), f"{weight:g}"]
        rows.append([*cells, *scores, *_shares(by_seed), against])
    return markdown(["method", "cost", "w", "IS", "FID", *SHARES, "FID less `schedule` at its best w"], rows)


def cheaper(results: dict[Trial, dict]) -> str:
    """Forms at fewer model rows than CFG, less the same form at every call; each at its best weight."""
    points, rows = _points(results), []
    for alone, fewer in CHEAPER:
        first, second = _best_point(points, *alone), _best_point(points, *fewer)
        if not first or not second:
            continue
        for key in (first, second):
            mine = points[key]
            cells = [_cost(points, mine), f"{key[2]:g}"]
            cells += [f"{_mean(mine, score):.2f}" for score in ("is_", "fid")] + _shares(mine)
            less = _less(mine, points[first])
            cells.append("" if key == first else interval(less, "+") + sure(less))
            rows.append([name_of_point(*key[:2]), *cells])
    return markdown(["guidance", "cost", "w", "IS", "FID", *SHARES, "FID less the line above"], rows)


def bound_alone(results: dict[Trial, dict]) -> str:
    """A sentence: row_sum less CFG below the same bound of sigma, each at its best weight."""
    points = _points(results)
    plain, ours = (_best_point(points, *fewer) for _, fewer in (CHEAPER[0], CHEAPER[-1]))
    if not plain or not ours:
        return ""
    less = _less(points[ours], points[plain])
    text = f"Below the same bound of sigma, FID of `row_sum` less CFG: {interval(less, '+')}{sure(less)}."
    shown = " Nothing shows that `row_sum` adds to the bound."
    return text + (shown if less.verdict == "undecided" else "")


def _shares(by_seed: dict[int, dict]) -> list[str]:
    """Precision, recall, density and coverage, empty where the real pictures were not there."""
    known = all(name in r for r in by_seed.values() for name in SHARES)
    return [f"{_mean(by_seed, name):.2f}" if known else "" for name in SHARES]


def _mean(by_seed: dict[int, dict], name: str) -> float:
    return sum(r[name] for r in by_seed.values()) / len(by_seed)
