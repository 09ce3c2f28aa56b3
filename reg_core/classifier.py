"""Classifier guidance on the denoised prediction (Dhariwal & Nichol 2021)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from . import jacobian
from .jacobian import Denoiser
from .point import Point
from .space import expand

LogProb = Callable[[Tensor], Tensor]  # x0 [B, ...] -> log p(y | x0) [B]


def classifier_guidance(denoiser: Denoiser, log_prob: LogProb, point: Point, weight=1.0, rectified=True):
    """(D_c, g) with a classifier of clean samples; the guided prediction is D_c + g.

    Unrectified, g = w s^2/alpha^2 grad log p at D, as if D did not depend on x. Rectified, the chain rule
    takes it through D: g = w s^2/alpha^2 J^T grad log p.
    """
    # At flow's sigma 1 alpha is 0 and J vanishes with it: keep the quotient finite.
    point = replace(point, alpha=point.alpha.clamp_min(1e-3))
    if rectified:
        denoised, direction = jacobian.reverse(denoiser, point, lambda d: gradient(log_prob, d))
    else:
        with torch.no_grad():
            denoised = denoiser(point.x, point.sigma)
        direction = gradient(log_prob, denoised)
    return denoised, weight * expand(point.sigma_ve**2, point.x) * direction


def gradient(log_prob: LogProb, x0: Tensor) -> Tensor:
    """grad_x0 log p(y | x0) [B, ...], also inside `torch.inference_mode()`."""
    with torch.inference_mode(False), torch.enable_grad():
        x0 = x0.detach().clone().requires_grad_(True)
        return torch.autograd.grad(log_prob(x0).sum(), x0)[0]
