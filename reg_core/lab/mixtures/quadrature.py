"""E_q[x0 | x] - E[x0 | x] and log E_t as integrals over x0, by the trapezoid rule (1-D and 2-D).

For such integrands its error falls like exp(-2 pi^2 width^2 / spacing^2). Nodes lie around D_c = E[x0 | x]
along the axes of Cov(x0 | x)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...space import Space
from .mixture import Seen

if TYPE_CHECKING:
    from .optimum import Optimum

REACH = 9.0  # standard deviations of an enclosing Gaussian that the integral covers
FLOOR = 40.0  # nats below the highest node where the integrand is dropped (4e-18)
# Per axis, first try and last try; odd, so that every second node is a rule too.
NODES = {1: (129, 4097), 2: (49, 385)}
ROUNDING = 1e-14  # of the largest number that goes into a sum
CHUNK = 2_000_000  # numbers in one temporary


@dataclass(frozen=True)
class Rows:
    """Points x [B, n], their alpha and s [B, 1, 1], D_c [B, n], and the axes of the nodes [B, n, n]."""

    x: Tensor
    alpha: Tensor
    s: Tensor
    denoised: Tensor
    axes: Tensor

    def __getitem__(self, rows) -> Rows:
        return Rows(*(getattr(self, field.name)[rows] for field in fields(self)))


def integrate(optimum: Optimum, x: Tensor, sigma: Tensor, space: Space, denoised: Tensor):
    """Shift [B, n], log of the integral of p(x | x0) p(x0 | y) R_0 [B], and the shift's error [B].

    Rows whose error is above the optimum's tolerance get twice the nodes. Raises ValueError above 2-D."""
    nodes, most = nodes_of(optimum)
    variances, axes = torch.linalg.eigh(optimum.pair.cond.posterior(x, sigma, space).cov)
    scale = variances.sum(1).clamp_min(0).sqrt()
    alpha, s = (v[:, None, None] for v in (space.alpha(sigma), space.s(sigma)))
    rows = Rows(x, alpha, s, denoised, axes)
    low, high = _shrunk(optimum, rows, _box(optimum, rows, Seen(optimum.envelope, x, sigma, space)), nodes)
    shift, log_mass, error = _sums(optimum, rows, (low, high), nodes)
    while nodes < most and bool((todo := error > optimum.tolerance * scale).any()):
        nodes = 2 * nodes - 1
        new = _sums(optimum, rows[todo], (low[todo], high[todo]), nodes)
        shift[todo], log_mass[todo], error[todo] = new
    return shift, log_mass, error


def nodes_of(optimum: Optimum) -> tuple[int, int]:
    """NODES of the pair's dimension. Raises ValueError above 2-D."""
    n = optimum.pair.dim
    if n not in NODES:
        raise ValueError(f"{optimum.pair.name}: quadrature works in 1-D and 2-D, got dimension {n}")
    return NODES[n]


def _box(optimum, rows: Rows, seen: Seen):
    """(low, high) [B, n] around D_c along the axes, outside of which q0(x0) p(x | x0) is nothing.

    Up to a factor q0 is at most the largest of K functions N_k^(1+w) / u_j^w, for any choice of j to each k:
    Gaussians of the envelope. To each k the one with the least mass at this x."""
    k = len(optimum.pair.cond.means)
    first = torch.arange(k) * (seen.log_joint.shape[1] // k)
    least = seen.log_joint.reshape(len(rows.x), k, -1).argmin(2) + first  # [B, K]
    row = torch.arange(len(rows.x))[:, None]
    centre = (seen.means[row, least] - rows.denoised[:, None]) @ rows.axes  # [B, K, n]
    turned = rows.axes.mT[:, None] @ optimum.envelope.axes[least]
    std = (turned.square() * seen.variances[row, least][:, :, None]).sum(3).sqrt()
    return (centre - REACH * std).amin(1), (centre + REACH * std).amax(1)


def _shrunk(optimum, rows: Rows, box, nodes: int):
    """The box cut down to the nodes within FLOOR of the highest, until that gains no more than a fifth."""
    low, high = box
    for _ in range(4):
        grid = _ramps(low, high, nodes)  # [B, nodes, n]
        new_low, new_high = low.clone(), high.clone()
        for part, offsets in _chunks(optimum, grid):
            f = _log_integrand(optimum, rows[part], offsets)
            keep = f > f.amax(1, keepdim=True) - FLOOR
            keep = keep.reshape(-1, *[nodes] * grid.shape[2])
            for i in range(grid.shape[2]):
                there = keep if keep.ndim == 2 else keep.any(2 - i)
                first = (there.int().argmax(1) - 1).clamp_min(0)
                last = (nodes - there.flip(1).int().argmax(1)).clamp_max(nodes - 1)
                new_low[part, i] = grid[part, :, i].gather(1, first[:, None])[:, 0]
                new_high[part, i] = grid[part, :, i].gather(1, last[:, None])[:, 0]
        gain = ((new_high - new_low) / (high - low)).min()
        low, high = new_low, new_high
        if gain > 0.8:
            break
    return low, high


def _sums(optimum, rows: Rows, box, nodes: int):
    """Shift, log integral and error, from all the nodes and from every second one."""
    grid, n = _ramps(*box, nodes), rows.x.shape[1]
    shift, log_mass, error = (torch.zeros_like(v) for v in (rows.x, rows.x[:, 0], rows.x[:, 0]))
    every_second = torch.zeros([nodes] * n, dtype=torch.bool)
    every_second[(slice(None, None, 2),) * n] = True
    every_second = every_second.reshape(-1)
    for part, offsets in _chunks(optimum, grid):
        f = _log_integrand(optimum, rows[part], offsets)
        top = f.amax(1, keepdim=True)
        mass = (f - top).exp()
        fine = torch.einsum("bg,bgn->bn", mass, offsets) / mass.sum(1, keepdim=True)
        half, half_offsets = mass[:, every_second], offsets[:, every_second]
        coarse = torch.einsum("bg,bgn->bn", half, half_offsets) / half.sum(1, keepdim=True)
        shift[part] = (rows.axes[part] @ fine[..., None])[..., 0]
        largest = rows.x[part].norm(dim=1) + offsets.abs().amax((1, 2))
        error[part] = (fine - coarse).norm(dim=1) + ROUNDING * largest
        cell = (grid[part, 1] - grid[part, 0]).log().sum(1)
        log_mass[part] = top[:, 0] + mass.sum(1).log() + cell
    return shift, log_mass, error


def _log_integrand(optimum, rows: Rows, offsets: Tensor) -> Tensor:
    """log p(x | x0) + log p(x0 | y) + log R_0 [B, G] at x0 = D_c + axes offsets, offsets [B, G, n]."""
    moved = offsets @ rows.axes.mT
    residual = (rows.x - rows.alpha[:, 0] * rows.denoised)[:, None] - rows.alpha * moved
    constant = rows.x.shape[1] * (rows.s[:, :, 0].log() + 0.5 * math.log(2 * math.pi))
    likelihood = -0.5 * (residual / rows.s).square().sum(2) - constant
    return likelihood + optimum.log_target(rows.denoised[:, None] + moved)


def _chunks(optimum, grid: Tensor):
    """(slice of rows, offsets [b, nodes^n, n]) in pieces that keep temporaries small."""
    b, nodes, n = grid.shape
    components = len(optimum.pair.cond.means) + len(optimum.pair.uncond.means)
    size = max(1, CHUNK // (nodes**n * n * components))
    for i in range(0, b, size):
        g = grid[i : i + size]
        if n == 1:
            yield slice(i, i + size), g
        else:
            first, second = g[:, :, None, 0].expand(-1, -1, nodes), g[:, None, :, 1].expand(-1, nodes, -1)
            yield slice(i, i + size), torch.stack([first, second], -1).flatten(1, 2)


def _ramps(low: Tensor, high: Tensor, nodes: int) -> Tensor:
    """`nodes` evenly spaced values along every axis: [B, n] -> [B, nodes, n]."""
    share = torch.linspace(0, 1, nodes, dtype=torch.float64)[:, None]
    return low[:, None] + (high - low)[:, None] * share
