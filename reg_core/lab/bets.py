"""Candidate forms of our own, judged like the others (docs/evidence.md has their rows). None of them is public unless it wins there.

A bet maps v = D_c - D_ref to R v. It may ask once for a product J d, which costs one more model row; where d is known before
the model is called (ones, a random sign, the last v) the probe joins the batch of three, as that of `row_sum` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import jacobian
from ..rectify import per_sample
from ..space import VE, as_batch, expand
from ..trace import Row, Run

Product = Callable[[Tensor], Tensor]  # d -> J d, in d's shape


@dataclass(frozen=True)
class Prior:
    """Second moments of the conditional data in a basis: `basis` U [n, n] (rows), `variances` S [n] of U x0.

    `table`: (sigma_ve [B]) -> mean diagonal of U J U^T as measured on the model, [B, n].
    """

    basis: Tensor
    variances: Tensor
    table: Callable[[Tensor], Tensor] | None = None

    def filtered(self, v: Tensor, gain: Tensor) -> Tensor:
        """U^T diag(gain) U v for gain [B, n]."""
        basis = self.basis.to(v.dtype)
        flat = v.flatten(1)
        return ((flat @ basis.T * gain.to(v.dtype)) @ basis).reshape(v.shape)


@dataclass
class Call:
    """What a bet sees: v [B, ...], sigma_ve [B], `product`, the priors by name, and `memory`, which lives as long as a run."""

    v: Tensor
    sigma: Tensor
    product: Product
    priors: dict[str, Prior]
    memory: dict = field(default_factory=dict)


def wiener(call: Call, prior: str) -> Tensor:
    """S / (S + sigma^2) in the prior's basis: J of Gaussian data whose covariance is diagonal there. Free."""
    p = call.priors[prior]
    variances = p.variances.to(call.sigma.dtype)
    return p.filtered(call.v, variances / (variances + call.sigma[:, None] ** 2))


def wiener_spectrum(call: Call) -> Tensor:
    """The Wiener filter from the power spectrum of the data (images: cosine transform), which is J of stationary Gaussian data."""
    return wiener(call, "spectrum")


def wiener_full(call: Call) -> Tensor:
    """The same from the full covariance: what no form without model calls can beat on Gaussian data, and no latent affords."""
    return wiener(call, "full")


def table_spectrum(call: Call) -> Tensor:
    """Diagonal of J in the spectral basis, measured once on the model, as `calibrated` is per frequency. Free at use."""
    prior = call.priors["spectrum"]
    return prior.filtered(call.v, prior.table(call.sigma))


def row_mean(call: Call) -> Tensor:
    """Mean of the row sums, a number per sample: 1^T J 1 / n. One row, batch of three."""
    product = call.product(torch.ones_like(call.v))
    return product.flatten(1).mean(1).reshape(-1, *(1,) * (call.v.ndim - 1)) * call.v


def row_smooth(call: Call) -> Tensor:
    """Row sums averaged over the 3 x 3 neighbours (images), else over the row. One row, batch of three."""
    product = call.product(torch.ones_like(call.v))
    if call.v.ndim < 4:
        return product.mean(-1, keepdim=True) * call.v
    return torch.nn.functional.avg_pool2d(product, 3, 1, 1, count_include_pad=False) * call.v


def trace_probe(call: Call) -> Tensor:
    """z^T J z / n with random signs z, Hutchinson's tr J / n, a number per sample. One row, batch of three."""
    generator = call.memory.setdefault("generator", torch.Generator().manual_seed(0))
    z = torch.randint(0, 2, call.v.shape[1:], generator=generator).to(call.v) * 2 - 1
    z = z.expand_as(call.v)
    return per_sample(z * call.product(z)) / z[0].numel() * call.v


def lagged_scalar(call: Call) -> Tensor:
    """`scalar` along the v of the call before, so that the probe joins the batch of three; ones at the first call."""
    u = call.memory.get("v", torch.ones_like(call.v))
    call.memory["v"] = call.v
    norm = per_sample(u * u)
    ratio = per_sample(u * call.product(u)) / norm.clamp_min(1e-30)
    return torch.where(norm > 0, ratio, 1) * call.v


def sign_sum(call: Call) -> Tensor:
    """Row sums in the basis that makes v positive: z (J z) v with z = sign v. Unlike `row_sum` the same for mirrored latents."""
    return _signed(call, call.v)


def lagged_sign_sum(call: Call) -> Tensor:
    """`sign_sum` with the signs of the call before (ones at first): one row, batch of three."""
    last = call.memory.get("v", torch.ones_like(call.v))
    call.memory["v"] = call.v
    return _signed(call, last)


def _signed(call: Call, v: Tensor) -> Tensor:
    z = torch.where(v < 0, -1.0, 1.0).to(call.v)
    return z * call.product(z) * call.v


@dataclass(frozen=True)
class Bet:
    """`rows`: model rows beyond plain guidance. `equal`: the forms of equal cost that it is compared with."""

    rectified: Callable[[Call], Tensor]
    rows: int
    trajectory: bool = False  # needs the call before: no error map at single points

    @property
    def equal(self) -> tuple[str, ...]:
        return ("row_sum", "scalar") if self.rows else ("schedule", "calibrated")


BETS: dict[str, Bet] = {
    "wiener_spectrum": Bet(wiener_spectrum, 0),
    "wiener_full": Bet(wiener_full, 0),
    "table_spectrum": Bet(table_spectrum, 0),
    "row_mean": Bet(row_mean, 1),
    "row_smooth": Bet(row_smooth, 1),
    "trace_probe": Bet(trace_probe, 1),
    "lagged_scalar": Bet(lagged_scalar, 1, trajectory=True),
    "sign_sum": Bet(sign_sum, 1),
    "lagged_sign_sum": Bet(lagged_sign_sum, 1, trajectory=True),
}


class BetGuided:
    """Like reg_core.Guided with a bet for its form, in VE coordinates: (x, sigma) -> D_c + w R (D_c - D_ref).

    Products by finite differences, with the probe lengths of the library.
    """

    def __init__(self, cond, reference, weight, name: str, priors: dict[str, Prior]):
        if name not in BETS:
            raise ValueError(f"bet must be one of {', '.join(BETS)}, got {name!r}")
        self.cond, self.reference, self.weight, self.bet, self.priors = cond, reference, weight, BETS[name], priors
        self.run, self._memory = Run(name), {}

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma) -> Tensor:
        sigma = as_batch(sigma, x)
        weight = self.weight(float(sigma.max())) if callable(self.weight) else self.weight
        denoised = self.cond(x, sigma)
        if weight == 0:
            self.run.add(Row(_sigma=sigma, cfg=1.0))
            return denoised
        v = denoised - self.reference(x, sigma)
        alpha = VE.alpha(sigma)

        def product(direction: Tensor) -> Tensor:
            return jacobian.finite_difference(self.cond, x, sigma, alpha, direction, sigma, denoised)[1]

        rectified = self.bet.rectified(Call(v, sigma, product, self.priors, self._memory))
        factor = per_sample(rectified * v) / per_sample(v * v).clamp_min(1e-30)
        row = self.run.add(Row(_sigma=sigma, cfg=1 + weight, engine="bet", extra_rows=self.bet.rows))
        row.guidance_norm, row.rectified_norm = (abs(weight) * float(t.square().mean().sqrt()) for t in (v, rectified))
        row.correction_mean = float(factor.mean())
        row.correction_low, row.correction_high = (float(factor.flatten().quantile(q)) for q in (0.05, 0.95))
        return (denoised + expand(torch.full_like(sigma, weight), x) * rectified).to(x.dtype)
