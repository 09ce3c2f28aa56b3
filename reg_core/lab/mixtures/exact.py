"""Every form of REG with the exact Jacobian of the conditional mixture in place of an engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...forms import rectify, rectify_by_factor, schedule_factor
from ...space import VE, Space
from .mixture import levels
from .zoo import Pair

MIXTURE_FORMS = ("off", "row_sum", "scalar", "product", "schedule")  # off: plain classifier-free guidance


def difference(pair: Pair, x: Tensor, sigma, form: str, space: Space = VE) -> tuple[Tensor, Tensor]:
    """(D_c, R v) in x's shape, v = D_c - D_u. `schedule` knows the standard deviation of cond."""
    sigma = levels(sigma, x)
    denoised = pair.cond.denoise(x, sigma, space)
    v = denoised - pair.uncond.denoise(x, sigma, space)
    if form == "off":
        return denoised, v
    if form == "schedule":
        factor = schedule_factor(space.s(sigma) / space.alpha(sigma), pair.cond.data_std)
        return denoised, rectify_by_factor(v, factor).vector
    direction = torch.ones_like(v) if form == "row_sum" else v
    jacobian = pair.cond.jacobian(x, sigma, space)
    product = torch.einsum("bij,bj->bi", jacobian, direction.flatten(1).to(jacobian.dtype))
    return denoised, rectify(form, v, product.reshape(v.shape)).vector


def guided_denoiser(pair: Pair, weight: float, form: str) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, sigma) -> D_c + w R v in variance exploding coordinates, for samplers."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised, rectified = difference(pair, x, sigma, form)
        return denoised + weight * rectified

    return denoise
