"""The guidance that REG approximates, for Gaussian mixtures: D_c + (s^2/alpha) grad log E_t.

E_t(x, y) = E[R_0(x0, y) | x, y] with R_0 = (p(x0 | y) / p(x0))^w. Weighting the posterior p(x0 | x, y) by R_0
and normalising gives the posterior of the tilted target q0 = p(x0 | y) R_0 / Z, so

    grad_x log E_t = (alpha / s^2) (D_q - D_c),    D_c + (s^2/alpha) grad_x log E_t = D_q = E_q[x0 | x]:

the optimum is the exact denoiser of the tilted target. Written so, it is finite where alpha = 0. Single
Gaussians for cond and uncond make q0 a Gaussian, in any dimension. Otherwise the difference to D_c is a ratio
of two integrals (quadrature.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...space import VE, Space
from .mixture import Mixture, levels
from .quadrature import CHUNK, FLOOR, REACH, integrate, nodes_of
from .zoo import Pair


@dataclass(frozen=True)
class Estimate:
    """The optimum at x, in x0 units, in x's shape.

    - `shift`: D_q - D_c = (s^2/alpha) grad_x log E_t, what the optimal guidance adds to D_c.
    - `denoised`: D_q. `gradient`: grad_x log E_t. `log_reward` [B]: log E_t itself.
    - `error` [B]: estimate of |shift - exact|, a generous one: what leaving out every second node changes,
      plus rounding. Doubling the nodes squares such an error, so the value is far better. 0 in closed form.
    """

    shift: Tensor
    denoised: Tensor
    gradient: Tensor
    log_reward: Tensor
    error: Tensor


@dataclass(frozen=True)
class Optimum:
    """The optimally guided denoiser of a pair at weight w = cfg - 1, constant over noise levels.

    `tolerance`: the quadrature refines until its error is below this share of the posterior's standard
    deviation. Raises ValueError when q0 = p(x0|y)^(1+w) / p(x0)^w is no distribution: uncond narrower than
    cond, roughly."""

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

    def log_target(self, x0: Tensor) -> Tensor:
        """log p(x0|y) + log R_0 = log q0 + log Z of clean points [..., n] -> [...]."""
        p = self.pair.cond.log_prob(x0)
        return p + self.weight * (p - self.pair.uncond.log_prob(x0))

    def evaluate(self, x: Tensor, sigma, space: Space = VE) -> Estimate:
        """The optimum at x [B, ...] and sigma (a number or [B]), all in float64.

        Raises ValueError above 2-D if not in closed form."""
        cond, flat = self.pair.cond, x.flatten(1).to(torch.float64)
        sigma = levels(sigma, flat)
        denoised = cond.denoise(flat, sigma, space)
        if self.closed:
            shift = self.envelope.denoise(flat, sigma, space) - denoised
            log_reward = self.envelope.log_prob_at(flat, sigma, space) - cond.log_prob_at(flat, sigma, space)
            gradient = self.envelope.score(flat, sigma, space) - cond.score(flat, sigma, space)
            error = torch.zeros_like(log_reward)
        else:
            shift, log_reward, gradient, error = self._by_quadrature(flat, sigma, space, denoised)
        moved = denoised + shift
        return Estimate(*(v.reshape(x.shape) for v in (shift, moved, gradient)), log_reward, error)

    def _by_quadrature(self, x: Tensor, sigma: Tensor, space: Space, denoised: Tensor):
        """Shift, log E_t, its gradient and the shift's error, at x [B, n]."""
        p, q = self.pair.cond, self.pair.uncond
        alpha, s = space.alpha(sigma)[:, None], space.s(sigma)[:, None]
        shift, gradient = torch.zeros_like(x), torch.zeros_like(x)
        log_reward, error = torch.zeros_like(sigma), torch.zeros_like(sigma)
        done = s[:, 0] == 0
        if bool(done.any()):  # the posterior is a point: log E_t = log R_0(x0), only its gradient is left
            clean, zero = x[done] / alpha[done], sigma[done]
            log_reward[done] = self.weight * (p.log_prob(clean) - q.log_prob(clean))
            gradient[done] = self.weight / alpha[done] * (p.score(clean, zero) - q.score(clean, zero))
        rows = ~done
        if bool(rows.any()):
            found = integrate(self, x[rows], sigma[rows], space, denoised[rows])
            shift[rows], log_reward[rows], error[rows] = found
            log_reward[rows] -= p.log_prob_at(x[rows], sigma[rows], space)
            gradient[rows] = (alpha / s**2 * shift)[rows]
        return shift, log_reward, gradient, error

    def denoiser(self, space: Space = VE) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, sigma) -> D_q, for samplers."""
        return lambda x, sigma: self.evaluate(x, sigma, space).denoised.to(x.dtype)


def _envelope(cond: Mixture, uncond: Mixture, weight: float) -> Mixture:
    """(pi_k N_k)^(1+w) / (rho_j U_j)^w for every k and j as an unnormalised Gaussian.

    Its precision is (1+w)/C_k - w/U_j. Pairs for which that is not positive definite get infinite mass; every
    k needs one that is, else ValueError."""

    def natural(m: Mixture):  # precision, precision times mean, log of weight * density at 0
        precision = (m.axes / m.variances[:, None, :]) @ m.axes.mT
        linear = (precision @ m.means[..., None])[..., 0]
        constant = m.variances.log().sum(1) + m.dim * math.log(2 * math.pi)
        return precision, linear, m.log_weights - 0.5 * ((linear * m.means).sum(1) + constant)

    (p, h, c), (pu, hu, cu) = natural(cond), natural(uncond)
    precision = ((1 + weight) * p[:, None] - weight * pu[None]).flatten(0, 1)  # [K J, n, n]
    linear = ((1 + weight) * h[:, None] - weight * hu[None]).flatten(0, 1)
    log_at_0 = ((1 + weight) * c[:, None] - weight * cu[None]).flatten()
    values, axes = torch.linalg.eigh(precision)
    proper = values[:, 0] > 1e-9 * values[:, -1]
    if not bool(proper.reshape(len(p), -1).any(1).all()):
        rule = "uncond has to be at least as wide as cond"
        raise ValueError(f"cond^(1+w) / uncond^w cannot be normalised at w={weight}: {rule}")
    values = torch.where(proper[:, None], values, 1)
    means = (axes @ ((axes.mT @ linear[..., None]) / values[..., None]))[..., 0]
    means = torch.where(proper[:, None], means, 0)
    constant = cond.dim * math.log(2 * math.pi) - values.log().sum(1)
    log_mass = log_at_0 + 0.5 * ((linear * means).sum(1) + constant)
    return Mixture(torch.where(proper, log_mass, math.inf), means, 1 / values, axes)


def target_nodes(optimum: Optimum, nodes: int | None = None) -> tuple[Tensor, Tensor]:
    """The tilted target on a regular grid over all its mass: points [G, n], weights [G] that sum to 1.

    In 1-D and 2-D; raises ValueError above."""
    nodes_of(optimum)
    n = optimum.pair.dim
    nodes = nodes or {1: 20001, 2: 257}[n]
    k, q = len(optimum.pair.cond.means), optimum.envelope
    least = q.log_weights.reshape(k, -1).argmin(1) + torch.arange(k) * (len(q.means) // k)
    std = q.covs[least].diagonal(dim1=1, dim2=2).sqrt()
    low, high = (q.means[least] - REACH * std).amin(0), (q.means[least] + REACH * std).amax(0)
    for _ in range(2):  # once to see where the mass is, once to look closely
        ends = zip(low.tolist(), high.tolist(), strict=True)
        ramps = [torch.linspace(a, b, nodes, dtype=torch.float64) for a, b in ends]
        points = torch.cartesian_prod(*ramps).reshape(-1, n)
        f = torch.cat([optimum.log_target(p) for p in points.split(CHUNK // (100 * n))])
        there = points[f > f.max() - FLOOR]
        cell = torch.stack([r[1] - r[0] for r in ramps])
        low, high = there.amin(0) - cell, there.amax(0) + cell
    return points, torch.softmax(f, 0)
