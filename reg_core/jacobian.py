"""Products with the Jacobian of a denoiser, J = alpha dD/dx, for latents of any rank. No guidance in here.

J is taken in variance exploding coordinates, x / alpha. For an exact denoiser it is Cov(x0 | x) / sigma_ve^2:
symmetric, with eigenvalues near 1 where the data are certain and near 0 where they are lost. In the paper's
notation J = I - sqrt(1 - abar) d eps / d x_t (Rectified Gradient Guidance, Eq. 21).
The functions take a denoiser (x [B, ...], sigma [B]) -> D and a Point; they return (D, product) in x's shape.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .point import Point
from .space import expand, flat

Denoiser = Callable[[Tensor, Tensor], Tensor]

# Length of a finite difference, |h v| / (s sqrt(n)), by the network's dtype. A shorter one is lost in
# rounding, a longer one meets curvature. A smooth direction (ones) and a central difference allow more.
PROBE = {torch.float64: 1e-5, torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.1}
PROBE_CENTRAL = {torch.float64: 1e-4, torch.float32: 0.02, torch.float16: 0.1, torch.bfloat16: 0.2}
PROBE_ONES = {torch.float64: 1e-5, torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.4}
HALF = (torch.float16, torch.bfloat16)
OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)  # as torch.ops.namespace.name


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

    Raises JacobianError for an operator outside of aten: PyTorch drops its tangent in silence. So it does
    with a part of x.addcmul_(x, t) and the like, which cannot be seen here.
    """
    # In inference mode, and by a tensor made there, tangents are zero (before PyTorch 2.13).
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _AtenOnly():
        x, tangent, sigma = point.x.clone(), tangent.to(point.x.dtype, copy=True), point.sigma.clone()
        denoised, product = torch.func.jvp(lambda z: denoiser(z, sigma), (x,), (tangent,))
    return denoised, expand(point.alpha, product) * product


class _AtenOnly(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if isinstance(func, OPERATORS) and str(func).split(".")[0] != "aten":
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

    `denoised`: D at x, if it is known. `relative`: |h v| / (s sqrt(n)), a number or [B], in place of PROBE's.
    `central`: alpha (D(x + h v) - D(x - h v)) / 2h, two passes and an error of second order.
    """
    wide = torch.promote_types(point.x.dtype, torch.float32)
    if relative is None:
        relative = probe_length(point.x.dtype, point, central)
    with torch.no_grad():
        if denoised is None:
            denoised = denoiser(point.x, point.sigma)
        tangent = tangent.to(wide)
        h = probe_step(tangent, point, relative)
        ahead = denoiser(point.shifted(h * tangent).x, point.sigma)
        if not central:
            return denoised, difference(ahead, denoised, h, point)
        behind = denoiser(point.shifted(-h * tangent).x, point.sigma)
        return denoised, difference(ahead, behind, 2 * h, point)


def difference(ahead: Tensor, behind: Tensor, h: Tensor, point: Point) -> Tensor:
    """alpha (D(ahead) - D(behind)) / h in float32 at least; 0 where h [B, 1, ...] is 0 (no noise is left)."""
    wide = torch.promote_types(behind.dtype, torch.float32)
    quotient = (ahead.to(wide) - behind.to(wide)) / torch.where(h == 0, 1, h)
    return expand(point.alpha.to(wide), behind) * quotient


def probe_step(direction: Tensor, point: Point, relative) -> Tensor:
    """h [B, 1, ...] such that rms(h v) = relative * s over all rows of one noise level; finite for v = 0 too.

    They have one h, since a network may mix them: the frames of a video are rows.
    """
    square = flat(direction).square().mean(1)
    if (point.s == point.s[0]).all():
        square = square.mean()
    return expand(relative * point.s.to(square.dtype) / square.sqrt().clamp_min(1e-12), direction)


def probe_length(dtype: torch.dtype, point: Point, central: bool = False) -> Tensor:
    """|h v| / (s sqrt(n)) [B] for an arbitrary direction, by the network's dtype and the noise level.

    Curvature grows with sigma_ve and rounding does not: in half precision it is up to twice as long below 1.
    """
    table = PROBE_CENTRAL if central else PROBE
    relative = table.get(dtype, table[torch.float32])
    if dtype not in HALF:
        return torch.full_like(point.s, relative)
    return relative * (point.alpha / point.s.clamp_min(1e-12)).sqrt().clamp(1, 2)


def rounding_error(point: Point, denoised: Tensor, length, dtype: torch.dtype) -> Tensor:
    """Error of J v by rounding, relative to v [B]: sqrt(2) eps alpha rms(x - D) / (length s).

    Networks add to x (D = x - s eps, x - s v), so x - D is what their last digit is relative to. `dtype`: the
    network's. `length`: of the difference, relative to s. Curvature is not in it.
    """
    wide = torch.promote_types(point.x.dtype, torch.float32)
    added = flat(point.x.to(wide) - denoised).square().mean(1).sqrt()
    return 2**0.5 * torch.finfo(dtype).eps * point.alpha * added / (length * point.s.clamp_min(1e-12))
