"""Mixtures with a known optimum: how near every form comes, at nominal weight and with the weight re-tuned for each form.

Errors are in x0 units. Pooled over levels, evenly spaced in log sigma, they are weighed by sqrt(V / (V + sigma^2)), V the variance of
the conditional data: a sampler adds the error times d log sigma to x, and the flow of Gaussian data shrinks that by this much on its
way to sigma = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import Tensor
from tqdm import tqdm

from ..sampling import karras_sigmas, sample_euler
from ..space import VE
from .bets import BETS, Call, Prior
from .error import FORMS, difference, guided_denoiser, sliced_wasserstein, starting_points, wasserstein_1d
from .mixtures import Mixture, levels
from .optimum import Optimum, target_nodes
from .zoo import ZOO, Pair, pair

MULTIPLES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)  # of the nominal weight, tried when a terminal distance is re-tuned


@dataclass(frozen=True)
class Amount:
    """How much is computed: points a noise level by dimension (1, 2, more), weights, levels, pairs."""

    points: tuple[int, int, int] = (256, 16, 64)
    weights: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    sigmas: tuple[float, ...] = tuple(float(f"{v:.3g}") for v in torch.logspace(-1, math.log10(20), 9).tolist())
    pairs: tuple[str, ...] = tuple(ZOO)
    terminal: tuple[str, ...] = ("toy", "toy_script", "nested", "multimodal", "isotropic", "correlated", "correlated_mirror", "overlapping")
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


def channels() -> Pair:
    """4-d, the four channels of an imaginary latent: standard deviations 2, 1, 0.5, 0.1 and correlation 0.3; uncond twice as wide."""
    std = torch.tensor([2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    shape = (0.3 + 0.7 * torch.eye(4, dtype=torch.float64)) * std[:, None] * std
    return Pair("channels", Mixture.of([1.0], (0.8 * std)[None], shape[None]), Mixture.of([1.0], torch.zeros(1, 4), 4 * shape[None]))


def named(name: str) -> Pair:
    """A pair of the zoo, or `channels`."""
    return channels() if name == "channels" else pair(name)


@dataclass(frozen=True)
class Row:
    """A form on a pair at target weight w: share of points nearer to the optimum than CFG at w, and relative RMS errors.

    `sigma` None: pooled over the levels, and then `tuned` is the form's best weight, `tuned_rms` its RMS there over that of
    CFG at *its* best weight.
    """

    pair: str
    form: str
    weight: float
    sigma: float | None
    win: float
    relative_rms: float
    tuned: float | None = None
    tuned_rms: float | None = None


@lru_cache(maxsize=2)
def _forms(bets: bool) -> tuple[str, ...]:
    return FORMS + (tuple(f"bet:{name}" for name, bet in BETS.items() if not bet.trajectory) if bets else ())


def shift(p: Pair, x: Tensor, sigma, form: str) -> Tensor:
    """R v at weight 1, of a form of error.FORMS or "bet:NAME" (with exact products), in x's shape."""
    if not form.startswith("bet:"):
        return difference(p, x, sigma, form)[1]
    sigma = levels(sigma, x)
    v = difference(p, x, sigma, "off")[1]
    jacobian = p.cond.jacobian(x, sigma, VE)

    def product(direction: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", jacobian, direction.flatten(1)).reshape(direction.shape)

    return BETS[form[4:]].rectified(Call(v, sigma, product, _priors(p, jacobian)))


def _priors(p: Pair, jacobian: Tensor) -> dict[str, Prior]:
    """Moments of the conditional mixture; 64-d rows are images, for which the spectral basis is the cosine transform."""
    from .fronts import cosine_basis

    basis = cosine_basis() if p.dim == 64 else torch.eye(p.dim, dtype=torch.float64)
    variances, axes = torch.linalg.eigh(p.cond.cov)
    diagonal = torch.einsum("ki,bij,kj->bk", basis, jacobian, basis).mean(0)

    def table(sigma: Tensor) -> Tensor:
        return diagonal.expand(len(sigma), -1)

    return {"spectrum": Prior(basis, (basis @ p.cond.cov @ basis.T).diagonal(), table), "full": Prior(axes.T, variances)}


def errors(p: Pair, amount: Amount, bets: bool = False, seed: int = 0) -> list[Row]:
    """Rows of every form, weight and level, and pooled ones."""
    rows = []
    count = amount.points[min(p.dim, 3) - 1]
    forms = _forms(bets)
    xs = [p.cond.noisy(count, sigma, VE, torch.Generator().manual_seed(seed)) for sigma in amount.sigmas]
    moved = {form: [shift(p, x, sigma, form) for x, sigma in zip(xs, amount.sigmas, strict=True)] for form in forms}
    variance = p.cond.data_std**2
    carried = torch.cat([torch.full((count,), math.sqrt(variance / (variance + sigma**2)), dtype=torch.float64) for sigma in amount.sigmas])
    for weight in amount.weights:
        optimum = Optimum(p, weight, tolerance=1e-3)
        want = [optimum.evaluate(x, sigma).shift for x, sigma in zip(xs, amount.sigmas, strict=True)]
        plain = [(weight * v - w).norm(dim=1) for v, w in zip(moved["off"], want, strict=True)]
        pooled_plain, best_plain = torch.cat(plain), None
        wanted = torch.cat(want)
        for form in forms:
            e = [(weight * v - w).norm(dim=1) for v, w in zip(moved[form], want, strict=True)]
            for sigma, a, b in zip(amount.sigmas, e, plain, strict=True):
                rows.append(Row(p.name, form, weight, sigma, _share(a < b), _rms(a) / _rms(b)))
            v, pooled = torch.cat(moved[form]), torch.cat(e)
            tuned = float((carried[:, None] ** 2 * v * wanted).sum() / (carried[:, None] * v).square().sum())  # least squares
            best = _rms(carried * (tuned * v - wanted).norm(dim=1))
            best_plain = best if form == "off" else best_plain
            relative = _rms(carried * pooled) / _rms(carried * pooled_plain)
            rows.append(Row(p.name, form, weight, None, _share(pooled < pooled_plain), relative, tuned, best / best_plain))
    return rows


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@dataclass(frozen=True)
class End:
    """Wasserstein distance to the tilted target of weight w after sampling: at w, and at the form's best multiple of it."""

    pair: str
    form: str
    weight: float
    distance: float
    tuned: float
    tuned_distance: float


def ends(p: Pair, amount: Amount, weight: float) -> list[End]:
    """Euler samples against the exact target (W1 in 1-D, sliced W1 in 2-D); "optimum" (1-D) is the floor of steps and samples."""
    optimum = Optimum(p, weight, 1e-3)
    points, mass = target_nodes(optimum)
    sigmas, start = karras_sigmas(amount.steps, 0.002, 20.0).double(), starting_points(amount.starts, p.dim, 20.0)

    def distance(denoiser) -> float:
        x = sample_euler(denoiser, start, sigmas)
        return wasserstein_1d(x, points[:, 0], mass) if p.dim == 1 else sliced_wasserstein(x, points, mass)

    rows = []
    for form in FORMS:
        tried = {m: distance(guided_denoiser(p, m * weight, form)) for m in MULTIPLES}
        best = min(tried, key=tried.get)
        rows.append(End(p.name, form, weight, tried[1.0], best * weight, tried[best]))
    if p.dim == 1:
        floor = distance(optimum.denoiser())
        rows.append(End(p.name, "optimum", weight, floor, weight, floor))
    return rows


def control(name: str, weight: float, sigmas: Sequence[float], points: int) -> dict:
    """A negative control: pooled win share and relative RMS of row_sum and schedule at nominal weight over `sigmas`."""
    amount = Amount(points=(points,) * 3, weights=(weight,), sigmas=tuple(sigmas))
    rows = [r for r in errors(pair(name), amount) if r.sigma is None and r.form != "off"]
    return {"pair": name, "weight": weight, "sigmas": list(sigmas), "forms": {r.form: {"win": r.win, "relative_rms": r.relative_rms} for r in rows}}


def study(amount: Amount) -> dict:
    """Everything about mixtures, JSON-able: rows, bets, terminal distances, negative controls."""
    jobs = [*amount.pairs, *(f"{name}, end" for name in amount.terminal)]
    found: dict = {"errors": [], "bets": [], "ends": [], "controls": []}
    with tqdm(total=len(jobs) + 3, desc="mixtures", unit="pair") as bar:
        for name in amount.pairs:
            found["errors"] += [asdict(r) for r in errors(pair(name), amount)]
            bar.update()
        for name in ("channels", "correlated", "correlated_mirror", "digits"):
            small = Amount(points=amount.points, weights=(1.0, 4.0), sigmas=amount.sigmas)
            found["bets"] += [asdict(r) for r in errors(named(name), small, bets=True) if r.sigma is None]
        bar.update()
        for name in amount.terminal:
            weights = amount.weights if pair(name).dim == 1 else amount.weights[1:2]
            found["ends"] += [asdict(r) for w in weights for r in ends(pair(name), amount, w)]
            bar.update()
        found["controls"].append(control("toy", 0.5, (0.7, 1.0, 1.4, 2.0), amount.points[0]))
        bar.update()
        found["controls"].append(control("overlapping", 1.0, (2.0, 5.0, 10.0), amount.points[1]))
        bar.update()
    return found
