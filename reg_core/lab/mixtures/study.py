"""How near every form comes to the optimum of mixtures, at nominal weight and with each form's best weight.

Errors are in x0 units. Pooled over levels, evenly spaced in log sigma, they are weighed by
sqrt(V / (V + sigma^2)), V the variance of the conditional data. A sampler adds the error times d log sigma to
x, and the flow of Gaussian data shrinks that by this much on its way to sigma = 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ...sampling import karras_sigmas, sample_euler
from ...space import VE
from .distances import sliced_wasserstein, starting_points, wasserstein_1d
from .exact import MIXTURE_FORMS, difference, guided_denoiser
from .optimum import Optimum, target_nodes
from .zoo import ZOO, Pair, pair

MULTIPLES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)  # of the nominal weight, to find the best one


@dataclass(frozen=True)
class Amount:
    """How much is computed: points a noise level by dimension (1, 2, more), weights, levels, pairs."""

    points: tuple[int, int, int] = (256, 16, 64)
    weights: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    sigmas: tuple[float, ...] = tuple(
        float(f"{v:.3g}") for v in torch.logspace(-1, math.log10(20), 9).tolist()
    )
    pairs: tuple[str, ...] = tuple(ZOO)
    terminal: tuple[str, ...] = tuple(list(ZOO)[:8])  # those in 1-D and 2-D that are not data sets
    starts: int = 600
    steps: int = 60


FULL = Amount()
QUICK = Amount(
    points=(64, 8, 16),
    weights=(0.5, 1.0, 4.0),
    sigmas=(0.2, 0.7, 2.0, 7.0),
    pairs=("toy", "nested", "correlated", "correlated_mirror", "overlapping", "digits"),
    terminal=("toy", "nested", "correlated"),
    starts=200,
    steps=30,
)


@dataclass(frozen=True)
class FormError:
    """A form on a pair at target weight w, compared with CFG at w.

    `win`: share of points where it is nearer to the optimum. `relative_rms`: its RMS error over CFG's.
    `sigma` None: pooled over the levels. Then `tuned` is the form's best weight, and `tuned_rms` its RMS
    error there over that of CFG at the weight that is best for CFG."""

    pair: str
    form: str
    weight: float
    sigma: float | None
    win: float
    relative_rms: float
    tuned: float | None = None
    tuned_rms: float | None = None


def errors(p: Pair, amount: Amount, seed: int = 0) -> list[FormError]:
    """Rows of every form, weight and level, and pooled ones."""
    rows, levels = [], amount.sigmas
    count = amount.points[min(p.dim, 3) - 1]
    xs = [p.cond.noisy(count, sigma, VE, torch.Generator().manual_seed(seed)) for sigma in levels]
    at = list(zip(xs, levels, strict=True))
    moved = {form: [difference(p, x, sigma, form)[1] for x, sigma in at] for form in MIXTURE_FORMS}
    variance = p.cond.data_std**2
    share = [math.sqrt(variance / (variance + sigma**2)) for sigma in levels]
    carried = torch.tensor(share, dtype=torch.float64).repeat_interleave(count)
    for weight in amount.weights:
        optimum = Optimum(p, weight, tolerance=1e-3)
        want = [optimum.evaluate(x, sigma).shift for x, sigma in at]
        plain, best_plain = _norms(weight, moved["off"], want), None
        wanted = torch.cat(want)
        for form in MIXTURE_FORMS:
            ours = _norms(weight, moved[form], want)
            for sigma, a, b in zip(levels, ours, plain, strict=True):
                rows.append(FormError(p.name, form, weight, sigma, _mean(a < b), _rms(a) / _rms(b)))
            v, pooled, pooled_plain = torch.cat(moved[form]), torch.cat(ours), torch.cat(plain)
            weighed = carried[:, None] * v
            # Least squares.
            tuned = float((carried[:, None] * weighed * wanted).sum() / weighed.square().sum())
            best = _rms(carried * (tuned * v - wanted).norm(dim=1))
            best_plain = best if form == "off" else best_plain
            relative = _rms(carried * pooled) / _rms(carried * pooled_plain)
            scores = _mean(pooled < pooled_plain), relative, tuned, best / best_plain
            rows.append(FormError(p.name, form, weight, None, *scores))
    return rows


def _norms(weight: float, moved: list[Tensor], want: list[Tensor]) -> list[Tensor]:
    return [(weight * v - w).norm(dim=1) for v, w in zip(moved, want, strict=True)]


def _mean(flags: Tensor) -> float:
    return float(flags.double().mean())


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@dataclass(frozen=True)
class End:
    """Wasserstein distance after sampling to the tilted target of weight w: at w and at the best multiple."""

    pair: str
    form: str
    weight: float
    distance: float
    tuned: float
    tuned_distance: float


def end_distance(denoiser, target, steps: int, starts: int, sigma_max: float = 20.0) -> float:
    """Distance of Euler samples to `target` (see target_nodes): W1 in 1-D, sliced W1 in 2-D."""
    points, mass = target
    sigmas = karras_sigmas(steps, 0.002, sigma_max).double()
    x = sample_euler(denoiser, starting_points(starts, points.shape[1], sigma_max), sigmas)
    if points.shape[1] == 1:
        return wasserstein_1d(x, points[:, 0], mass)
    return sliced_wasserstein(x, points, mass)


def ends(p: Pair, amount: Amount, weight: float) -> list[End]:
    """A row a form. In 1-D also "optimum", which is the floor of steps and samples."""
    optimum = Optimum(p, weight, 1e-3)
    target, size = target_nodes(optimum), (amount.steps, amount.starts)
    rows = []
    for form in MIXTURE_FORMS:
        tried = {m: end_distance(guided_denoiser(p, m * weight, form), target, *size) for m in MULTIPLES}
        best = min(tried, key=tried.get)
        rows.append(End(p.name, form, weight, tried[1.0], best * weight, tried[best]))
    if p.dim == 1:
        floor = end_distance(optimum.denoiser(), target, *size)
        rows.append(End(p.name, "optimum", weight, floor, weight, floor))
    return rows


def control(name: str, weight: float, sigmas: Sequence[float], points: int) -> dict:
    """A negative control: pooled win share and relative RMS of every form at nominal weight over `sigmas`."""
    amount = Amount(points=(points,) * 3, weights=(weight,), sigmas=tuple(sigmas))
    rows = [r for r in errors(pair(name), amount) if r.sigma is None and r.form != "off"]
    forms = {r.form: {"win": r.win, "relative_rms": r.relative_rms} for r in rows}
    return {"pair": name, "weight": weight, "sigmas": list(sigmas), "forms": forms}


def study(amount: Amount) -> dict:
    """Everything about mixtures, JSON-able: errors, terminal distances, negative controls."""
    found: dict = {"errors": [], "ends": [], "controls": []}
    with tqdm(total=len(amount.pairs) + len(amount.terminal) + 2, desc="mixtures", unit="pair") as bar:
        for name in amount.pairs:
            found["errors"] += [asdict(r) for r in errors(pair(name), amount)]
            bar.update()
        for name in amount.terminal:
            weights = amount.weights if pair(name).dim == 1 else amount.weights[1:2]
            found["ends"] += [asdict(r) for w in weights for r in ends(pair(name), amount, w)]
            bar.update()
        for name, weight, sigmas, i in (
            ("toy", 0.5, (0.7, 1.0, 1.4, 2.0), 0),
            ("overlapping", 1.0, (2.0, 5.0, 10.0), 1),
        ):
            found["controls"].append(control(name, weight, sigmas, amount.points[i]))
            bar.update()
    return found
