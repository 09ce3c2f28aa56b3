"""The guidance vector g, added to the conditional prediction: D_guided = D_c + g.

- Classifier-free guidance (Ho & Salimans 2022): g = w (D_c - D_u), w = cfg - 1.
- Autoguidance (Karras et al. 2024): g = w (D_c - D_weak), the reference is a worse model of the same conditioning.
- Classifier guidance (Dhariwal & Nichol 2021) on the denoised prediction: g = w s^2 / alpha^2 grad_x0 log p(y | x0).
Linear, cosine and interval guidance only make w a function of the noise level (schedule.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from . import jacobian
from .jacobian import Denoiser
from .space import VE, Space, as_batch, expand


class Branches:
    """The two predictions that a guidance is the difference of, as callables (x, sigma [B]) -> D.

    A host overrides the methods to evaluate several rows in one model call and to prepare its model for
    differentiation; the plain class calls one after the other.
    """

    # True when `both` may answer from a cache: a difference then needs a fresh prediction at x as well.
    cached = False
    # What a reverse pass had to do to fit, for the trace; hosts that bound their memory say it here.
    notes: tuple[str, ...] | list[str] = ()

    def __init__(self, cond: Denoiser, reference: Denoiser):
        self.cond = cond
        self.reference = reference

    def both(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(D_c, D_ref) at x."""
        return self.cond(x, sigma), self.reference(x, sigma)

    def only(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_c at x as the one pass of an unguided step."""
        return self.cond(x, sigma)

    def only_and_probe(self, x: Tensor, sigma: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """(D_c(x), D_c(x + step)), the first as the one pass of an unguided step."""
        return self.only(x, sigma), self.cond((x + step).to(x.dtype), sigma)

    def both_and_probe(self, x: Tensor, sigma: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(D_c(x), D_ref(x), D_c(x + step)); `step` [B, 1, ...] is the same for all elements of a row."""
        return self.cond(x, sigma), self.reference(x, sigma), self.cond((x + step).to(x.dtype), sigma)

    def differentiable(self, engine: str):
        """Context in which `cond` can be differentiated by `engine` ("reverse" or "forward")."""
        return nullcontext()

    def reverse(self, x: Tensor, sigma: Tensor, alpha: Tensor, cotangent) -> tuple[Tensor, Tensor]:
        """(D_c, J^T u) as jacobian.reverse; a `cotangent` function must treat samples one by one."""
        with self.differentiable("reverse"):
            return jacobian.reverse(self.cond, x, sigma, alpha, cotangent)

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        """The precision the network really works in; sets the length of finite differences."""
        return x.dtype


def classifier_guidance(
    denoiser: Denoiser,
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    sigma,
    weight: float = 1.0,
    space: Space = VE,
    rectified: bool = True,
) -> tuple[Tensor, Tensor]:
    """(D_c, g) of classifier guidance with a classifier of clean samples, applied to the denoised prediction.

    `log_prob`: x0 [B, ...] -> log p(y | x0) [B]. Unrectified, g = w s^2/alpha^2 grad log p at D, as if D did not
    depend on x. Rectified, the chain rule through D is exact: g = w s^2/alpha^2 J^T grad log p (REG, section 3).
    """
    sigma = as_batch(sigma, x)
    # At flow sigma = 1 alpha is 0 and J vanishes with it: keep the quotient finite.
    alpha, s = space.alpha(sigma).clamp_min(1e-3), space.s(sigma)

    def gradient(denoised: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x0 = denoised.detach().clone().requires_grad_(True)
            return torch.autograd.grad(log_prob(x0).sum(), x0)[0]

    if rectified:
        denoised, direction = jacobian.reverse(denoiser, x, sigma, alpha, gradient)
    else:
        with torch.no_grad():
            denoised = denoiser(x, sigma)
        direction = gradient(denoised)
    return denoised, weight * expand((s / alpha) ** 2, x) * direction
