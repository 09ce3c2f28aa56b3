"""Wasserstein distances from samples to a distribution on a grid, in x0 units."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wasserstein_1d(samples: Tensor, points: Tensor, weights: Tensor) -> float:
    """W1 = integral of |F - F_n| between samples [N] and a density, of mass `weights` [G] at even `points`.

    F is linear between cell borders and F_n constant between samples, and the integral of that is exact."""
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
    height = torch.where(same_sign, (left + right).abs() / 2, crossing)
    return float(((edges[1:] - edges[:-1]) * height).sum())


def sliced_wasserstein(samples: Tensor, points: Tensor, weights: Tensor, directions: int = 32) -> float:
    """Mean over even directions of W1 between projected samples [N, 2] and weighted points [G, 2]."""
    angles = (torch.arange(directions, dtype=torch.float64) + 0.5) * math.pi / directions
    total = 0.0
    for direction in torch.stack([angles.cos(), angles.sin()], 1):
        total += _wasserstein_atoms(samples.to(torch.float64) @ direction, points @ direction, weights)
    return total / directions


def _wasserstein_atoms(a: Tensor, b: Tensor, weights: Tensor) -> float:
    """W1 between even atoms [N] and weighted atoms [G] on the line: integral of |F_a - F_b|, both steps."""
    value, order = torch.cat([a, b]).sort()
    jump = torch.cat([torch.full_like(a, 1 / len(a)), -weights / weights.sum()])[order]
    return float((jump.cumsum(0)[:-1].abs() * value.diff()).sum())


def starting_points(count: int, dim: int, sigma_max: float) -> Tensor:
    """`count` starts sigma_max * noise [count, dim] without the chance of draws.

    Evenly spaced quantiles in 1-D, else a Sobol' sequence's."""
    if dim == 1:
        u = ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    else:
        sequence = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0)
        u = sequence.draw(count, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    return sigma_max * torch.special.ndtri(u)
