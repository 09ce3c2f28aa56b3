"""Products with the Jacobian of a denoiser, J = alpha dD/dx, for any latent rank. No guidance in here.

In variance exploding coordinates (x / alpha) the Jacobian of the denoiser is alpha dD/dx; for an exact denoiser it
is Cov(x0 | x) / sigma_ve^2, symmetric, with eigenvalues that go to 1 where data is certain and to 0 where it is lost.
In the paper's VP notation J = I - sqrt(1 - abar) d eps / d x_t (Rectified Gradient Guidance, Eq. 21).

Three engines, one signature: denoiser (x, sigma) -> D, `x` [B, ...], `sigma` and `alpha` [B]; each returns
(denoised, product) in x's shape. `reverse` gives J^T u, `forward` and `finite_difference` give J v.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel

from .dual import DualLayers
from .space import expand

Denoiser = Callable[[Tensor, Tensor], Tensor]

# Relative probe length |h v| / (s sqrt(n)). Shorter drowns in rounding, longer meets curvature. The constant
# direction is smooth, so it takes a longer step where arithmetic is coarse; so does a difference to both sides.
PROBE = {torch.float64: 1e-5, torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.1}
PROBE_CENTRAL = {torch.float64: 1e-4, torch.float32: 0.02, torch.float16: 0.1, torch.bfloat16: 0.2}
PROBE_ONES = {torch.float64: 1e-5, torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.4}


class JacobianError(RuntimeError):
    """A product could not be computed by the engine asked for."""


def reverse(denoiser: Denoiser, x: Tensor, sigma: Tensor, alpha: Tensor, cotangent) -> tuple[Tensor, Tensor]:
    """J^T u by one backward pass. `cotangent`: u in x's shape, or a function D -> u (then D is computed once).

    Works inside `torch.inference_mode()` as long as the network's weights are no inference tensors.
    Raises JacobianError when the prediction carries no gradient.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x_in = x.detach().clone().requires_grad_(True)
        denoised = denoiser(x_in, sigma.clone())
        if not denoised.requires_grad:
            raise JacobianError("reverse mode: the denoiser's prediction is not connected to its input")
        u = cotangent(denoised.detach()) if callable(cotangent) else cotangent
        (grad,) = torch.autograd.grad(denoised, x_in, u.to(denoised.dtype).clone(), allow_unused=True)
    if grad is None:
        raise JacobianError("reverse mode: the denoiser's prediction does not depend on its input")
    return denoised.detach(), expand(alpha, grad) * grad


def forward(denoiser: Denoiser, x: Tensor, sigma: Tensor, alpha: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """J v by one pass with dual numbers. Attention is our own (dual_attention.py); what evades it falls back to PyTorch's math
    kernel, the only one with a tangent, of quadratic memory. Works inside `torch.inference_mode()`, also where PyTorch
    (before 2.12 or 2.13) gives tangents of zero there."""
    # torch.func.jvp gives the same and takes a quarter longer, in Python, over each operation.
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), DualLayers(), dual_level():
        x = make_dual(x.clone(), tangent.to(x.dtype, copy=True))
        denoised, product = unpack_dual(denoiser(x, sigma.clone()))
    product = torch.zeros_like(denoised) if product is None else product
    return denoised, expand(alpha, product) * product


def probe_step(direction: Tensor, s: Tensor, relative) -> Tensor:
    """h [B, 1, ...] such that |h v| = relative * s * sqrt(n) in every row; finite also for v = 0. `relative`: number or [B]."""
    n = direction[0].numel()
    norm = direction.flatten(1).norm(dim=1).clamp_min(1e-12)
    return expand(relative * s.to(norm.dtype) * n**0.5 / norm, direction)


def probe_length(dtype: torch.dtype, s: Tensor, alpha: Tensor, central: bool = False) -> Tensor:
    """|h v| / (s sqrt(n)) [B] for an arbitrary direction, by the network's dtype and noise level.

    Curvature grows with sigma_ve = s / alpha and rounding does not: in half precision the probe is up to twice as long
    where sigma_ve is below 1.
    """
    table = PROBE_CENTRAL if central else PROBE
    relative = table.get(dtype, table[torch.float32])
    if dtype not in (torch.float16, torch.bfloat16):
        return torch.full_like(s, relative)
    return relative * (alpha / s.clamp_min(1e-12)).sqrt().clamp(1, 2)


def finite_difference(
    denoiser: Denoiser,
    x: Tensor,
    sigma: Tensor,
    alpha: Tensor,
    tangent: Tensor,
    s: Tensor,
    denoised: Tensor | None = None,
    relative: float | None = None,
    central: bool = False,
    richardson: bool = False,
) -> tuple[Tensor, Tensor]:
    """J v ~ alpha (D(x + h v) - D(x)) / h, one more pass (`denoised` saves the other one) and no derivative at all.

    `s` [B]: noise standard deviation in x, which sets the probe's length; `relative` overrides the length that
    suits x's dtype. `central`: alpha (D(x + h v) - D(x - h v)) / 2h, two passes and an error of second order.
    `richardson`: extrapolated from h and h/2, twice the passes and an error of the next order (second; central: fourth).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if relative is None:
        relative = probe_length(x.dtype, s.to(wide), alpha.to(wide), central)
    with torch.no_grad():
        if denoised is None:
            denoised = denoiser(x, sigma)
        tangent = tangent.to(wide)
        h = _representable(x, tangent, probe_step(tangent, s, relative))

        def at(step):
            return denoiser((x.to(wide) + step * tangent).to(x.dtype), sigma)

        def quotient(step):
            return difference(at(step), at(-step), 2 * step, alpha) if central else difference(at(step), denoised, step, alpha)

        product = quotient(h)
        if richardson:
            half, order = quotient(h / 2), 4 if central else 2
            product = (order * half - product) / (order - 1)
        return denoised, product


def _representable(x: Tensor, tangent: Tensor, h: Tensor) -> Tensor:
    """h, shortened in rows where x + h v or x - h v would leave the range of x's dtype (float16 ends at 65504)."""
    room = torch.finfo(x.dtype).max - x.abs().flatten(1).amax(1).to(h.dtype)
    reach = tangent.abs().flatten(1).amax(1).clamp_min(1e-12)
    return torch.minimum(h, expand(0.9 * room.clamp_min(0) / reach, h))


def difference_error(x: Tensor, denoised: Tensor, product: Tensor, h: Tensor, alpha: Tensor, dtype: torch.dtype) -> Tensor:
    """Relative error [B] of a one-sided difference by rounding, sqrt(2) eps alpha rms(x - D) / (h rms(product)); no model call.

    Networks add to x (D = x - s eps, x - s v), so x - D is what their last digit is relative to. `dtype`: the network's;
    `h` [B, 1, ...]: the step, in terms of the direction that `product` is J times. Curvature is not in it: see `richardson`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    rounding, size = (torch.linalg.vector_norm(t.to(wide).flatten(1), dim=1) for t in (x.to(wide) - denoised, product))
    noise = (2**0.5 * torch.finfo(dtype).eps) * alpha.to(wide) * rounding
    return noise / (h.flatten(1)[:, 0].to(wide).abs() * size).clamp_min(1e-30)


def difference(probe: Tensor, denoised: Tensor, h: Tensor, alpha: Tensor) -> Tensor:
    """alpha (D(x + h v) - D(x)) / h in at least float32. Rows with h = 0 (no noise left) give 0."""
    wide = torch.promote_types(denoised.dtype, torch.float32)
    quotient = (probe.to(wide) - denoised.to(wide)) / torch.where(h == 0, 1, h)
    return expand(alpha.to(wide), denoised) * quotient
