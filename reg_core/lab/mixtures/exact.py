"""How far guidance is from the optimum, per prediction and after sampling, for pairs of Gaussian mixtures.

Every form goes through reg_core.rectify, with the exact Jacobian of the conditional mixture in place of an engine.
Denoised errors are in x0 units; the paper's figures are of eps, alpha / s times as large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rectify import rectify, rectify_by_factor, schedule_factor
from ..sampling import karras_sigmas, sample_euler
from ..space import VE, Space
from .mixtures import levels
from .optimum import Optimum, target_nodes
from .zoo import Pair

FORMS = ("off", "row_sum", "scalar", "product", "schedule")  # off: plain classifier-free guidance


@dataclass(frozen=True)
class Error:
    """A form against plain guidance over the points of one comparison; errors are Euclidean norms per point.

    - `win`: share of points where the form is nearer to the optimum than CFG (a tie is no win).
    - `relative_rms`: root mean square error over CFG's. `mean_ratio`: mean error over CFG's.
    - `rms`: root mean square error, in x0 units unless the comparison said otherwise.
    """

    pair: str
    form: str
    weight: float
    sigma: float  # NaN when the points have several
    win: float
    relative_rms: float
    mean_ratio: float
    rms: float


def difference(pair: Pair, x: Tensor, sigma, form: str, space: Space = VE, data_std: float | None = None) -> tuple[Tensor, Tensor]:
    """(D_c, R v) in x's shape, v = D_c - D_u. `data_std` of `schedule`: cond's own standard deviation unless given."""
    sigma = levels(sigma, x)
    denoised = pair.cond.denoise(x, sigma, space)
    v = denoised - pair.uncond.denoise(x, sigma, space)
    if form == "off":
        return denoised, v
    if form == "schedule":
        factor = schedule_factor(space.s(sigma) / space.alpha(sigma), pair.cond.data_std if data_std is None else data_std)
        return denoised, rectify_by_factor(v, factor).vector
    direction = torch.ones_like(v) if form == "row_sum" else v
    jacobian = pair.cond.jacobian(x, sigma, space)
    product = torch.einsum("bij,bj->bi", jacobian, direction.flatten(1).to(jacobian.dtype)).reshape(v.shape)
    return denoised, rectify(form, v, product).vector


def guided_denoiser(pair: Pair, weight: float, form: str, space: Space = VE, data_std: float | None = None):
    """(x, sigma) -> D_c + w R v with the exact Jacobian, for samplers."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised, rectified = difference(pair, x, sigma, form, space, data_std)
        return denoised + weight * rectified

    return denoise


def compare(
    pair: Pair, weight: float, x: Tensor, sigma, space: Space = VE, forms: Sequence[str] = FORMS, data_std: float | None = None, units: str = "x0"
) -> dict[str, Error]:
    """Errors to the optimum at x [B, ...], sigma a number or [B]: {form: Error}. `units`: "x0" or "eps" (weighs rows by alpha / s)."""
    if units not in ("x0", "eps"):
        raise ValueError(f"units must be x0 or eps, got {units!r}")
    sigma = levels(sigma, x)
    want = Optimum(pair, weight).evaluate(x, sigma, space).shift
    scale = space.alpha(sigma) / space.s(sigma) if units == "eps" else torch.ones_like(sigma)

    def errors(form):
        return (weight * difference(pair, x, sigma, form, space, data_std)[1] - want).flatten(1).norm(dim=1) * scale

    plain = errors("off")
    level = float(sigma[0]) if bool((sigma == sigma[0]).all()) else math.nan
    rows = {}
    for form in forms:
        e = plain if form == "off" else errors(form)
        rms, plain_rms = (float(v.square().mean().sqrt()) for v in (e, plain))
        win = float((e < plain).double().mean())
        rows[form] = Error(pair.name, form, weight, level, win, rms / plain_rms, float(e.mean() / plain.mean()), rms)
    return rows


def sweep(
    pair: Pair, weights: Sequence[float], sigmas: Sequence[float], points: int = 256, space: Space = VE, forms: Sequence[str] = FORMS, seed: int = 0
) -> list[Error]:
    """`compare` over weights and noise levels, at `points` draws of the conditional marginal of each level."""
    rows = []
    for sigma in sigmas:
        x = pair.cond.noisy(points, sigma, space, torch.Generator().manual_seed(seed))
        for weight in weights:
            rows += compare(pair, weight, x, sigma, space, forms).values()
    return rows


def ddpm_sigmas(steps: int = 20, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Noise levels sqrt((1 - abar) / abar) [steps], rising, of betas in `steps` even steps (Ho et al. 2020; the REG paper's 1-D toy)."""
    abar = torch.cumprod(1 - torch.linspace(beta_start, beta_end, steps, dtype=torch.float64), 0)
    return ((1 - abar) / abar).sqrt()


# Terminal distribution


def wasserstein_1d(samples: Tensor, points: Tensor, weights: Tensor) -> float:
    """W1 = integral of |F - F_n| between samples [N] and a density on an even grid, `points` [G] of mass `weights` [G].

    F is linear between cell borders and F_n constant between samples, and the integral of that is exact.
    """
    samples = samples.flatten().to(torch.float64).sort().values
    step = points[1] - points[0]
    borders = torch.cat([points - step / 2, points[-1:] + step / 2])
    cdf = torch.cat([torch.zeros(1, dtype=torch.float64), weights.cumsum(0) / weights.sum()])
    edges = torch.cat([samples, borders]).sort().values
    at = torch.searchsorted(borders, edges, right=True).clamp(1, len(borders) - 1)
    part = ((edges - borders[at - 1]) / step).clamp(0, 1)
    f = cdf[at - 1] + part * (cdf[at] - cdf[at - 1])
    steps = torch.searchsorted(samples, edges[:-1], right=True) / len(samples)
    left, right = f[:-1] - steps, f[1:] - steps
    same_sign = left * right >= 0
    crossing = (left**2 + right**2) / (2 * (left.abs() + right.abs()).clamp_min(1e-300))  # two triangles
    return float(((edges[1:] - edges[:-1]) * torch.where(same_sign, (left + right).abs() / 2, crossing)).sum())


def sliced_wasserstein(samples: Tensor, points: Tensor, weights: Tensor, directions: int = 32) -> float:
    """Mean over evenly spaced directions of W1 between samples [N, 2] and weighted points [G, 2], projected."""
    angles = (torch.arange(directions, dtype=torch.float64) + 0.5) * math.pi / directions
    total = 0.0
    for direction in torch.stack([angles.cos(), angles.sin()], 1):
        total += _wasserstein_atoms(samples.to(torch.float64) @ direction, points @ direction, weights)
    return total / directions


def _wasserstein_atoms(a: Tensor, b: Tensor, weights: Tensor) -> float:
    """W1 between even atoms [N] and weighted atoms [G] on the line: integral of |F_a - F_b|, both staircases."""
    value, order = torch.cat([a, b]).sort()
    jump = torch.cat([torch.full_like(a, 1 / len(a)), -weights / weights.sum()])[order]
    return float((jump.cumsum(0)[:-1].abs() * value.diff()).sum())


@dataclass(frozen=True)
class Terminal:
    """Distance of samples to the tilted target q0: W1 in 1-D, sliced W1 in 2-D, in x0 units. `mean`, `std`: of the samples [n]."""

    pair: str
    form: str
    weight: float
    distance: float
    mean: Tensor
    std: Tensor


def starting_points(count: int, dim: int, sigma_max: float, seed: int = 0) -> Tensor:
    """`count` starts sigma_max * noise [count, dim]: evenly spaced quantiles in 1-D (no sampling noise), else a Sobol' sequence's."""
    if dim == 1:
        u = ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    else:
        u = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(count, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    return sigma_max * torch.special.ndtri(u)


def terminal(
    pair: Pair, weight: float, forms: Sequence[str] = (*FORMS, "optimum"), steps: int = 60, sigma_max: float = 20.0, count: int = 1000, tolerance: float = 1e-3
) -> dict[str, Terminal]:
    """Euler samples of each form in VE coordinates against the tilted target. The form "optimum" samples with the golden gradient.

    `tolerance`: of that form's quadrature; steps and samples leave far more.
    """
    optimum = Optimum(pair, weight, tolerance)
    points, weights = target_nodes(optimum)
    sigmas, start = karras_sigmas(steps, 0.002, sigma_max).double(), starting_points(count, pair.dim, sigma_max)
    rows = {}
    for form in forms:
        denoiser = optimum.denoiser() if form == "optimum" else guided_denoiser(pair, weight, form)
        x = sample_euler(denoiser, start, sigmas)
        distance = wasserstein_1d(x, points[:, 0], weights) if pair.dim == 1 else sliced_wasserstein(x, points, weights)
        rows[form] = Terminal(pair.name, form, weight, distance, x.mean(0), x.std(0))
    return rows
