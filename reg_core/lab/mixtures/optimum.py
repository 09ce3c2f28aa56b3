"""The guidance that REG approximates, for Gaussian mixtures: D_c + (s^2/alpha) grad_x log E_t (REG, Theorem 3.1).

E_t(x, y) = E[R_0(x0, y) | x, y] with R_0 = (p(x0 | y) / p(x0))^w. Weighting the posterior p(x0 | x, y) by R_0 and
normalising gives the posterior of the tilted target q0 = p(x0 | y) R_0 / Z, so

    grad_x log E_t = (alpha / s^2) (D_q - D_c),    optimum = D_c + (s^2/alpha) grad_x log E_t = D_q = E_q[x0 | x]:

the optimum is the exact denoiser of the tilted target. Written so, it is finite where alpha = 0. A single Gaussian for
cond and for uncond makes q0 a Gaussian (any dimension). Otherwise E_q[x0 | x] - D_c is a ratio of two integrals over
x0, by the trapezoid rule, whose error falls like exp(-2 pi^2 width^2 / spacing^2) for such integrands (1-D and 2-D).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..space import VE, Space
from .mixtures import Mixture, Seen, levels
from .zoo import Pair

REACH = 9.0  # standard deviations of an enclosing Gaussian that the integral covers
FLOOR = 40.0  # nats below the highest node where the integrand is dropped (4e-18)
NODES = {1: (129, 4097), 2: (49, 385)}  # per axis: first try, last try; odd, so that every second node is a rule too
ROUNDING = 1e-14  # of the largest number that goes into a sum
CHUNK = 2_000_000  # numbers in one temporary


@dataclass(frozen=True)
class Estimate:
    """The optimum at x, in x0 units, in x's shape (rows [B]).

    - `shift`: D_q - D_c = (s^2/alpha) grad_x log E_t, what the optimal guidance adds to D_c. `denoised`: D_q.
    - `gradient`: grad_x log E_t. `log_reward` [B]: log E_t itself.
    - `error` [B]: estimate of |shift - exact|, a generous one: what leaving out every second node changes, plus rounding. 0 in
      closed form. Doubling the nodes squares such an error, so the value itself is far better.
    """

    shift: Tensor
    denoised: Tensor
    gradient: Tensor
    log_reward: Tensor
    error: Tensor


@dataclass(frozen=True)
class Optimum:
    """The optimally guided denoiser of a pair at weight w = cfg - 1 (constant over noise levels).

    `tolerance`: the quadrature refines until its error is below this share of the posterior's standard deviation.
    Raises ValueError when q0 = p(x0|y)^(1+w) / p(x0)^w is no distribution: uncond narrower than cond, roughly.
    """

    pair: Pair
    weight: float
    tolerance: float = 1e-6
    envelope: Mixture = field(init=False, repr=False)  # K * J Gaussians, see _envelope

    def __post_init__(self):
        object.__setattr__(self, "envelope", _envelope(self.pair.cond, self.pair.uncond, self.weight))

    @property
    def closed(self) -> bool:
        """True when cond and uncond are single Gaussians: no quadrature."""
        return len(self.envelope.means) == 1

    def target(self) -> Mixture:
        """q0 as a mixture, in closed form only. Raises ValueError otherwise."""
        if not self.closed:
            raise ValueError(f"{self.pair.name}: the tilted target is no Gaussian mixture, use log_target")
        q = self.envelope
        return Mixture(torch.zeros_like(q.log_weights), q.means, q.variances, q.axes)

    def log_target(self, x0: Tensor) -> Tensor:
        """log p(x0|y) + log R_0 = log q0 + log Z of clean points [..., n] -> [...]."""
        p = self.pair.cond.log_prob(x0)
        return p + self.weight * (p - self.pair.uncond.log_prob(x0))

    def evaluate(self, x: Tensor, sigma, space: Space = VE) -> Estimate:
        """The optimum at x [B, ...] and sigma (a number or [B]), all in float64. Raises ValueError above 2-D if not in closed form."""
        cond, flat = self.pair.cond, x.flatten(1).to(torch.float64)
        sigma = levels(sigma, flat)
        alpha, s = space.alpha(sigma)[:, None], space.s(sigma)[:, None]
        denoised = cond.denoise(flat, sigma, space)
        if self.closed:
            shift = self.envelope.denoise(flat, sigma, space) - denoised
            log_reward = self.envelope.log_prob_at(flat, sigma, space) - cond.log_prob_at(flat, sigma, space)
            gradient = self.envelope.score(flat, sigma, space) - cond.score(flat, sigma, space)
            error = torch.zeros_like(log_reward)
        else:
            # At s = 0 the posterior is a point: log E_t = log R_0(x0), and only its gradient is left to compute.
            done = s[:, 0] == 0
            shift, log_reward, error = torch.zeros_like(flat), torch.zeros_like(s[:, 0]), torch.zeros_like(s[:, 0])
            gradient = torch.zeros_like(flat)
            if bool(done.any()):
                p, q = cond, self.pair.uncond
                clean, zero = flat[done] / alpha[done], sigma[done]
                log_reward[done] = self.weight * (p.log_prob(clean) - q.log_prob(clean))
                gradient[done] = self.weight / alpha[done] * (p.score(clean, zero) - q.score(clean, zero))
            rows = ~done
            if bool(rows.any()):
                shift[rows], log_reward[rows], error[rows] = self._integrate(flat[rows], sigma[rows], space, denoised[rows])
                gradient[rows] = (alpha / s**2 * shift)[rows]
        return Estimate(*(v.reshape(x.shape) for v in (shift, denoised + shift, gradient)), log_reward, error)

    def denoiser(self, space: Space = VE) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, sigma) -> D_q, for samplers."""
        return lambda x, sigma: self.evaluate(x, sigma, space).denoised.to(x.dtype)

    # Quadrature

    def _integrate(self, x, sigma, space, denoised):
        """Shift [B, n], log E_t [B] and error [B] by the trapezoid rule, with twice the nodes for rows not yet good enough."""
        n = self.pair.dim
        if n not in NODES:
            raise ValueError(f"{self.pair.name}: quadrature works in 1-D and 2-D, got dimension {n}")
        nodes, most = NODES[n]
        posterior = self.pair.cond.posterior(x, sigma, space)
        width, axes = torch.linalg.eigh(posterior.cov)
        scale = width.sum(1).clamp_min(0).sqrt()
        box = self._shrunk(x, sigma, space, denoised, axes, self._box(x, sigma, space, denoised, axes), nodes)
        shift, log_mass, error = self._sums(x, sigma, space, denoised, axes, box, nodes)
        while nodes < most and bool((rows := error > self.tolerance * scale).any()):
            nodes = 2 * nodes - 1
            new = self._sums(x[rows], sigma[rows], space, denoised[rows], axes[rows], [v[rows] for v in box], nodes)
            shift[rows], log_mass[rows], error[rows] = new
        return shift, log_mass - self.pair.cond.log_prob_at(x, sigma, space), error

    def _box(self, x, sigma, space, denoised, axes):
        """(low, high) [B, n] around D_c along `axes`, outside of which q0(x0) p(x | x0) is nothing.

        Up to a factor q0 is at most the largest of K functions N_k^(1+w) / u_j^w, for any choice of j to each k:
        Gaussians of the envelope. To each k the one with the least mass at this x.
        """
        seen = Seen(self.envelope, x, sigma, space)
        k = len(self.pair.cond.means)
        least = seen.log_joint.reshape(len(x), k, -1).argmin(2) + torch.arange(k) * (seen.log_joint.shape[1] // k)  # [B, K]
        row = torch.arange(len(x))[:, None]
        centre = (seen.means[row, least] - denoised[:, None]) @ axes  # [B, K, n]
        turned = axes.mT[:, None] @ self.envelope.axes[least]
        std = (turned.square() * seen.variances[row, least][:, :, None]).sum(3).sqrt()
        return (centre - REACH * std).amin(1), (centre + REACH * std).amax(1)

    def _shrunk(self, x, sigma, space, denoised, axes, box, nodes):
        """The box cut down to the nodes within FLOOR of the highest, until that gains no more than a fifth."""
        low, high = box
        for _ in range(4):
            grid = _ramps(low, high, nodes)  # [B, nodes, n]
            new_low, new_high = low.clone(), high.clone()
            for rows, offsets in self._chunks(grid):
                f = self._log_integrand(x[rows], sigma[rows], space, denoised[rows], axes[rows], offsets)
                keep = f > f.amax(1, keepdim=True) - FLOOR
                keep = keep.reshape(-1, *[nodes] * grid.shape[2])
                for i in range(grid.shape[2]):
                    there = keep if keep.ndim == 2 else keep.any(2 - i)
                    first = (there.int().argmax(1) - 1).clamp_min(0)
                    last = (nodes - there.flip(1).int().argmax(1)).clamp_max(nodes - 1)
                    new_low[rows, i] = grid[rows, :, i].gather(1, first[:, None])[:, 0]
                    new_high[rows, i] = grid[rows, :, i].gather(1, last[:, None])[:, 0]
            gain = ((new_high - new_low) / (high - low)).min()
            low, high = new_low, new_high
            if gain > 0.8:
                break
        return low, high

    def _sums(self, x, sigma, space, denoised, axes, box, nodes):
        """Shift, log integral of p(x|x0) p(x0|y) R_0 and error, from all the nodes and from every second one."""
        grid = _ramps(*box, nodes)
        shift, log_mass, error = torch.zeros_like(x), torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        n = x.shape[1]
        every_second = torch.zeros([nodes] * n, dtype=torch.bool)
        every_second[(slice(None, None, 2),) * n] = True
        every_second = every_second.reshape(-1)
        for rows, offsets in self._chunks(grid):
            f = self._log_integrand(x[rows], sigma[rows], space, denoised[rows], axes[rows], offsets)
            top = f.amax(1, keepdim=True)
            mass = (f - top).exp()
            fine = torch.einsum("bg,bgn->bn", mass, offsets) / mass.sum(1, keepdim=True)
            mass_2, offsets_2 = mass[:, every_second], offsets[:, every_second]
            coarse = torch.einsum("bg,bgn->bn", mass_2, offsets_2) / mass_2.sum(1, keepdim=True)
            shift[rows] = (axes[rows] @ fine[..., None])[..., 0]
            error[rows] = (fine - coarse).norm(dim=1) + ROUNDING * (x[rows].norm(dim=1) + offsets.abs().amax((1, 2)))
            cell = (grid[rows, 1] - grid[rows, 0]).log().sum(1)
            log_mass[rows] = top[:, 0] + mass.sum(1).log() + cell
        return shift, log_mass, error

    def _log_integrand(self, x, sigma, space, denoised, axes, offsets):
        """log p(x | x0) + log p(x0 | y) + log R_0 at x0 = D_c + axes offsets: [B, G] for offsets [B, G, n]."""
        alpha, s = space.alpha(sigma)[:, None, None], space.s(sigma)[:, None, None]
        moved = offsets @ axes.mT
        residual = (x - alpha[:, 0] * denoised)[:, None] - alpha * moved
        likelihood = -0.5 * (residual / s).square().sum(2) - x.shape[1] * (s[:, :, 0].log() + 0.5 * math.log(2 * math.pi))
        return likelihood + self.log_target(denoised[:, None] + moved)

    def _chunks(self, grid: Tensor):
        """(slice of rows, offsets [b, nodes^n, n]) in pieces that keep temporaries small."""
        b, nodes, n = grid.shape
        components = len(self.pair.cond.means) + len(self.pair.uncond.means)
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
    return low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, nodes, dtype=torch.float64)[:, None]


def _envelope(cond: Mixture, uncond: Mixture, weight: float) -> Mixture:
    """(pi_k N_k)^(1+w) / (rho_j U_j)^w for every k and j as an unnormalised Gaussian: precision (1+w)/C_k - w/U_j.

    Pairs whose precision is not positive definite get infinite mass; every k needs one that is, else ValueError.
    """

    def natural(m: Mixture):  # precision, precision times mean, log of weight * density at 0
        precision = (m.axes / m.variances[:, None, :]) @ m.axes.mT
        linear = (precision @ m.means[..., None])[..., 0]
        log_at_0 = m.log_weights - 0.5 * ((linear * m.means).sum(1) + m.variances.log().sum(1) + m.dim * math.log(2 * math.pi))
        return precision, linear, log_at_0

    (p, h, c), (pu, hu, cu) = natural(cond), natural(uncond)
    precision = ((1 + weight) * p[:, None] - weight * pu[None]).flatten(0, 1)  # [K J, n, n]
    linear = ((1 + weight) * h[:, None] - weight * hu[None]).flatten(0, 1)
    log_at_0 = ((1 + weight) * c[:, None] - weight * cu[None]).flatten()
    values, axes = torch.linalg.eigh(precision)
    proper = values[:, 0] > 1e-9 * values[:, -1]
    if not bool(proper.reshape(len(p), -1).any(1).all()):
        raise ValueError(f"cond^(1+w) / uncond^w cannot be normalised at w={weight}: uncond has to be at least as wide as cond")
    values = torch.where(proper[:, None], values, 1)
    means = torch.where(proper[:, None], (axes @ ((axes.mT @ linear[..., None]) / values[..., None]))[..., 0], 0)
    log_mass = log_at_0 + 0.5 * ((linear * means).sum(1) - values.log().sum(1) + cond.dim * math.log(2 * math.pi))
    return Mixture(torch.where(proper, log_mass, math.inf), means, 1 / values, axes)


def target_nodes(optimum: Optimum, nodes: int | None = None) -> tuple[Tensor, Tensor]:
    """The tilted target on a regular grid over all its mass: points [G, n] and weights [G] that sum to 1 (1-D and 2-D)."""
    n = optimum.pair.dim
    if n not in NODES:
        raise ValueError(f"{optimum.pair.name}: a grid works in 1-D and 2-D, got dimension {n}")
    nodes = nodes or {1: 20001, 2: 257}[n]
    k = len(optimum.pair.cond.means)
    q = optimum.envelope
    least = q.log_weights.reshape(k, -1).argmin(1) + torch.arange(k) * (len(q.means) // k)
    std = q.covs[least].diagonal(dim1=1, dim2=2).sqrt()
    low, high = (q.means[least] - REACH * std).amin(0), (q.means[least] + REACH * std).amax(0)
    for _ in range(2):  # once to see where the mass is, once to look closely
        ramps = [torch.linspace(a, b, nodes, dtype=torch.float64) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        points = torch.cartesian_prod(*ramps).reshape(-1, n)
        f = torch.cat([optimum.log_target(p) for p in points.split(CHUNK // (100 * n))])
        there = points[f > f.max() - FLOOR]
        cell = torch.stack([r[1] - r[0] for r in ramps])
        low, high = there.amin(0) - cell, there.amax(0) + cell
    return points, torch.softmax(f, 0)
