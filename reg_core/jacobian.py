"""Products with the Jacobian of a denoiser, J = alpha dD/dx, for latents of any rank. No guidance in here.

In variance exploding coordinates (x / alpha) the Jacobian of the denoiser is alpha dD/dx. For an exact
denoiser it is Cov(x0 | x) / sigma_ve^2: symmetric, with eigenvalues near 1 where the data are certain and
near 0 where they are lost. In the paper's notation J = I - sqrt(1 - abar) d eps / d x_t (Rectified Gradient
Guidance, Eq. 21).

Each function takes a denoiser (x [B, ...], sigma [B]) -> D and a Point, and returns (D, product), both in x's
shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from .point import Point
from .space import expand, flat

Denoiser = Callable[[Tensor, Tensor], Tensor]

# Length of a finite difference, |h v| / (s sqrt(n)), by the network's dtype. A shorter one is lost in
# rounding, a longer one meets curvature. The vector of ones is a smooth direction and allows a longer step;
# so does a central difference.
PROBE = {torch.float64: 1e-5, torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.1}
PROBE_CENTRAL = {torch.float64: 1e-4, torch.float32: 0.02, torch.float16: 0.1, torch.bfloat16: 0.2}
PROBE_ONES = {torch.float64: 1e-5, torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.4}
HALF = (torch.float16, torch.bfloat16)


class JacobianError(RuntimeError):
    """A product could not be computed in the way that was asked for."""


def reverse(denoiser: Denoiser, point: Point, cotangent) -> tuple[Tensor, Tensor]:
    """(D, J^T u) by one backward pass. `cotangent`: u in x's shape, or a function D -> u.

    Works inside `torch.inference_mode()` if the network's weights are no inference tensors.
    Raises JacobianError when the prediction carries no gradient.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = point.x.detach().clone().requires_grad_(True)
        denoised = denoiser(x, point.sigma.clone())
        if not denoised.requires_grad:
            raise JacobianError("reverse mode: the denoiser's prediction is not connected to its input")
        u = cotangent(denoised.detach()) if callable(cotangent) else cotangent
        (grad,) = torch.autograd.grad(denoised, x, u.to(denoised.dtype).clone(), allow_unused=True)
    if grad is None:
        raise JacobianError("reverse mode: the denoiser's prediction does not depend on its input")
    return denoised.detach(), expand(point.alpha, grad) * grad


def forward(denoiser: Denoiser, point: Point, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """(D, J v) by torch.func.jvp, with PyTorch's math attention, the only one that has a tangent.

    Raises JacobianError for an operator outside of aten: PyTorch would drop its tangent in silence. An
    in-place operator that reads its own output, as x.addcmul_(x, t), loses a part of it and cannot be seen.
    """
    # In inference mode, and by a tensor made there, tangents are zero (before PyTorch 2.13).
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _AtenOnly():
        x, tangent, sigma = point.x.clone(), tangent.to(point.x.dtype, copy=True), point.sigma.clone()
        denoised, product = torch.func.jvp(lambda z: denoiser(z, sigma), (x,), (tangent,))
    return denoised, expand(point.alpha, product) * product


class _AtenOnly(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace not in ("aten", "prim", "prims"):
            raise JacobianError(f"forward mode: {func} has no tangent that PyTorch knows of")
        return func(*args, **(kwargs or {}))


def finite_difference(
    denoiser: Denoiser,
    point: Point,
    tangent: Tensor,
    denoised: Tensor | None = None,
    relative: float | Tensor | None = None,
    central: bool = False,
) -> tuple[Tensor, Tensor]:
    """(D, J v) with J v ~ alpha (D(x + h v) - D(x)) / h: one more pass and no derivative at all.

    `denoised`: D at x, if it is known. `relative`: |h v| / (s sqrt(n)), a number or [B], in place of the one
    that suits x's dtype. `central`: alpha (D(x + h v) - D(x - h v)) / 2h, two passes and an error of second
    order."""
    wide = torch.promote_types(point.x.dtype, torch.float32)
    if relative is None:
        relative = probe_length(point.x.dtype, point, central)
    with torch.no_grad():
        if denoised is None:
            denoised = denoiser(point.x, point.sigma)
        tangent = tangent.to(wide)
        h = _representable(point.x, tangent, probe_step(tangent, point, relative))
        ahead = denoiser(point.shifted(h * tangent).x, point.sigma)
        if not central:
            return denoised, difference(ahead, denoised, h, point)
        behind = denoiser(point.shifted(-h * tangent).x, point.sigma)
        return denoised, difference(ahead, behind, 2 * h, point)


def difference(ahead: Tensor, behind: Tensor, h: Tensor, point: Point) -> Tensor:
    """alpha (D(ahead) - D(behind)) / h in float32 at least; 0 in rows where h [B, 1, ...] is 0 (no noise is
    left)."""
    wide = torch.promote_types(behind.dtype, torch.float32)
    quotient = (ahead.to(wide) - behind.to(wide)) / torch.where(h == 0, 1, h)
    return expand(point.alpha.to(wide), behind) * quotient


def ones_step(point: Point, dtype: torch.dtype) -> Tensor:
    """h [B, 1, ...] of a probe along the vector of ones, by the network's dtype."""
    wide = torch.promote_types(point.x.dtype, torch.float32)
    return expand(point.s.to(wide) * PROBE_ONES.get(dtype, 0.4), point.x)


def probe_step(direction: Tensor, point: Point, relative) -> Tensor:
    """h [B, 1, ...] such that |h v| = relative * s * sqrt(n) in every row; finite also for v = 0."""
    norm = flat(direction).norm(dim=1).clamp_min(1e-12)
    return expand(relative * point.s.to(norm.dtype) * flat(direction).shape[1] ** 0.5 / norm, direction)


def probe_length(dtype: torch.dtype, point: Point, central: bool = False) -> Tensor:
    """|h v| / (s sqrt(n)) [B] for an arbitrary direction, by the network's dtype and the noise level.

    Curvature grows with sigma_ve and rounding does not: in half precision the probe is up to twice as long
    below 1."""
    wide = torch.promote_types(point.x.dtype, torch.float32)
    s, alpha = point.s.to(wide), point.alpha.to(wide)
    table = PROBE_CENTRAL if central else PROBE
    relative = table.get(dtype, table[torch.float32])
    if dtype not in HALF:
        return torch.full_like(s, relative)
    return relative * (alpha / s.clamp_min(1e-12)).sqrt().clamp(1, 2)


def rounding_error(point: Point, denoised: Tensor, product: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
    """Relative error [B] of a one-sided difference by rounding: sqrt(2) eps alpha rms(x - D) / (h
    rms(product)).

    Networks add to x (D = x - s eps, x - s v), so x - D is what their last digit is relative to. `dtype`: the
    network's. `h` [B, 1, ...]: the step, for the direction that `product` is J times. Curvature is not in it.
    """
    wide = torch.promote_types(point.x.dtype, torch.float32)
    added = torch.linalg.vector_norm(flat(point.x.to(wide) - denoised), dim=1)
    size = torch.linalg.vector_norm(flat(product.to(wide)), dim=1)
    noise = (2**0.5 * torch.finfo(dtype).eps) * point.alpha.to(wide) * added
    return noise / (flat(h)[:, 0].to(wide).abs() * size).clamp_min(1e-30)


def _representable(x: Tensor, tangent: Tensor, h: Tensor) -> Tensor:
    """h, shorter in rows where x + h v or x - h v would leave the range of x's dtype (float16 ends at
    65504)."""
    room = torch.finfo(x.dtype).max - flat(x).abs().amax(1).to(h.dtype)
    reach = flat(tangent).abs().amax(1).clamp_min(1e-12)
    return torch.minimum(h, expand(0.9 * room.clamp_min(0) / reach, h))
