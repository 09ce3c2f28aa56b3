"""The guidance that belongs to a *chain*: grad log E_t of its joint distribution, by Monte Carlo.

E_t(x, y) = E[R_0(x0) | x_t = x] over the ancestral (DDPM) chain of the conditional denoiser from level t
down, with R_0 = (p(x0 | y) / p(x0))^w of the data (REG, for the p_theta that a network defines).
With the chain's noise held fixed x0 is a smooth function of x. With r = log p(x0 | y) - log p(x0)

    grad_x E_t = E[w R_0 grad_x r],    grad log E_t = E[R_0 w grad_x r] / E[R_0].

One set of draws does for every w. Variance exploding coordinates throughout: grad_{x_ve} = alpha grad_{x_t}.
(The authors' 1-D script has w log E[R_0 at w = 1], which is the same at w = 1 only.)"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...jacobian import Denoiser
from ...sampling import sample_ddpm
from ..mixtures.zoo import Pair

ROWS = 8_000  # in one batch of the network, which backpropagation keeps for every step


@dataclass(frozen=True)
class Draws:
    """`log_ratio` r [G, N] of N draws from each of G points; `gradient` [G, N, n] of r by the point."""

    log_ratio: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Golden:
    """grad_x log E_t [G, n] with the covariance [G, n, n] of its Monte Carlo error.

    `effective`, `influential` [G]: (sum a)^2 / sum a^2, the number of draws that count, for a = R and for a
    draw's influence on the estimate. Few effective draws: the estimate is biased. Few influential ones: the
    gradient comes from rare draws, and its standard error is likely too small. A tail that no draw has met
    shows in none of these."""

    gradient: Tensor
    covariance: Tensor
    effective: Tensor
    influential: Tensor

    @property
    def standard_error(self) -> Tensor:
        """[G]: root of the summed variances of the components."""
        return self.covariance.diagonal(dim1=1, dim2=2).sum(1).sqrt()


def draw(
    denoiser: Denoiser, pair: Pair, x: Tensor, sigmas: Tensor, count: int, generator: torch.Generator
) -> Draws:
    """`count` chains from every point x [G, n] (VE) at sigmas[0], down `sigmas` to 0.

    Noise is independent between points. The network runs in x's dtype, the densities in float64. Raises
    ValueError unless sigmas decrease to 0, and for count < 2."""
    if count < 2:
        raise ValueError(f"a standard error wants 2 draws or more, got {count}")
    if float(sigmas[-1]) != 0:
        raise ValueError(f"the chain has to end at sigma 0, got {float(sigmas[-1]):.6g}")
    points, n = x.shape
    each = max(1, ROWS // points)
    ratios, gradients = [], []
    for done in range(0, count, each):
        m = min(each, count - done)
        with torch.enable_grad():
            start = x.detach().repeat_interleave(m, 0).requires_grad_(True)
            end = sample_ddpm(denoiser, start, sigmas.to(x.dtype), generator).double()
            ratio = pair.cond.log_prob(end) - pair.uncond.log_prob(end)
            (gradient,) = torch.autograd.grad(ratio.sum(), start)
        ratios.append(ratio.detach().reshape(points, m))
        gradients.append(gradient.double().reshape(points, m, n))
    return Draws(torch.cat(ratios, 1), torch.cat(gradients, 1))


def golden(draws: Draws, weight: float) -> Golden:
    """grad log E_t at w = `weight`; the error of the ratio of two means by linearisation (delta method)."""
    share = torch.softmax(weight * draws.log_ratio, 1)[..., None]  # R / sum R, [G, N, 1]
    slope = weight * draws.gradient
    mean = (share * slope).sum(1)
    influence = share * (slope - mean[:, None])
    count = share.shape[1]
    covariance = influence.mT @ influence * (count / (count - 1))
    return Golden(mean, covariance, _count(share[..., 0]), _count(influence.norm(dim=2)))


def _count(amount: Tensor) -> Tensor:
    """(sum a)^2 / sum a^2 of [G, N], N where all are 0."""
    square = amount.square().sum(1)
    return torch.where(square > 0, amount.sum(1).square() / square, amount.shape[1])
