"""The space a sampler works in: x = alpha(sigma) x0 + s(sigma) noise, and the ways a network predicts x0.

Everything in reg_core speaks of the denoised prediction D(x, sigma) ~ E[x0 | x].
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import number, one_of

PREDICTIONS = ("eps", "v", "x0", "flow")


@dataclass(frozen=True)
class Space:
    """A noising process, by name.

    - `ve`: alpha = 1, s = sigma. EDM, k-diffusion, and ComfyUI's eps, v and EDM models.
    - `flow`: alpha = 1 - sigma, s = sigma, sigma in [0, 1]. Rectified flow: SD3, Flux, Wan, ...
    - `vp`: alpha = sqrt(abar), s = sqrt(1 - abar) with sigma = s / alpha. DDPM and the paper's own notation.
    """

    name: str

    def __post_init__(self):
        one_of("space", self.name, ("ve", "flow", "vp"))

    def alpha(self, sigma: Tensor) -> Tensor:
        """Scale of the clean sample, same shape as `sigma`."""
        if self.name == "ve":
            return torch.ones_like(sigma)
        if self.name == "flow":
            return 1 - sigma
        return torch.rsqrt(1 + sigma**2)

    def s(self, sigma: Tensor) -> Tensor:
        """Standard deviation of the noise in x, same shape as `sigma`."""
        if self.name == "vp":
            return sigma * torch.rsqrt(1 + sigma**2)
        return sigma.clone()


VE, FLOW, VP = Space("ve"), Space("flow"), Space("vp")


def as_batch(sigma, x: Tensor) -> Tensor:
    """`sigma`, a number or [1] or [B], as [B] in float32 at least. Raises ValueError for another length."""
    if not isinstance(sigma, (Tensor, list, tuple)):
        sigma = number("sigma", sigma, 0, math.inf)
    dtype = torch.promote_types(x.dtype, torch.float32)
    sigma = torch.as_tensor(sigma, device=x.device, dtype=dtype).reshape(-1)
    if len(sigma) not in (1, len(x)):
        raise ValueError(f"sigma has {len(sigma)} values for a batch of {len(x)}; want 1 or {len(x)}")
    return sigma.expand(len(x))


def expand(v: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ..., 1], to broadcast over x of any rank."""
    return v.reshape(v.shape[:1] + (1,) * (x.ndim - 1))


def flat(x: Tensor) -> Tensor:
    """[B, ...] -> [B, N]: a row a sample, for x of any rank; [B] -> [B, 1]."""
    return x.reshape(len(x), -1)


def to_denoised(prediction: str, output: Tensor, x: Tensor, sigma: Tensor, space: Space = VE) -> Tensor:
    """Network output -> denoised prediction D, same shape as x, in every space.

    `prediction`: "eps" (noise), "v" (alpha' noise - s' x0 with alpha'^2 + s'^2 = 1: Salimans & Ho 2022,
    section 4), "x0" (D itself), "flow" (noise - x0). Raises ValueError for another name.
    """
    of_x, of_output = _affine(prediction, x, sigma, space)
    return of_x * x + of_output * output


def from_denoised(prediction: str, denoised: Tensor, x: Tensor, sigma: Tensor, space: Space = VE) -> Tensor:
    """The inverse of `to_denoised`: what the network would have put out, same shape as x (sigma > 0)."""
    of_x, of_output = _affine(prediction, x, sigma, space)
    return (denoised - of_x * x) / of_output


def _affine(prediction, x, sigma, space):
    """p and q [B, 1, ...] of D = p x + q output."""
    one_of("prediction", prediction, PREDICTIONS)
    a, s = expand(space.alpha(sigma), x), expand(space.s(sigma), x)
    if prediction == "eps":
        return 1 / a, -s / a
    if prediction == "v":
        return a / (a**2 + s**2), -s / (a**2 + s**2).sqrt()
    if prediction == "flow":
        return 1 / (a + s), -s / (a + s)
    return torch.zeros_like(a), torch.ones_like(a)
