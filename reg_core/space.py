"""The space a sampler works in: x = alpha(sigma) x0 + s(sigma) noise, and the ways a network predicts x0.

Everything in reg_core speaks of the denoised prediction D(x, sigma) ~ E[x0 | x]. This module says what
`alpha` and `s` are, and converts what a network puts out (noise, velocity, clean sample) to D and back.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTIONS = ("eps", "v", "x0", "flow")


@dataclass(frozen=True)
class Space:
    """A noising process, by name.

    - `ve`: alpha = 1, s = sigma. EDM, k-diffusion and ComfyUI's eps, v and EDM models (their x is already
      unscaled).
    - `flow`: alpha = 1 - sigma, s = sigma, sigma in [0, 1]. Rectified flow: SD3, Flux, Wan, ...
    - `vp`: alpha = sqrt(abar), s = sqrt(1 - abar) with sigma = s / alpha. DDPM and the paper's own notation.
    """

    name: str

    def __post_init__(self):
        if self.name not in ("ve", "flow", "vp"):
            raise ValueError(f"space must be 've', 'flow' or 'vp', got {self.name!r}")

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
    """`sigma` as a tensor [B] in at least float32 on x's device; a number or a 0-d/1-element tensor is
    repeated.

    Raises ValueError when its length is neither 1 nor B.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    sigma = torch.as_tensor(sigma, device=x.device, dtype=dtype).reshape(-1)
    if sigma.numel() == 1:
        return sigma.expand(x.shape[0])
    if sigma.numel() != x.shape[0]:
        raise ValueError(
            f"sigma has {sigma.numel()} values for a batch of {x.shape[0]}; want 1 or {x.shape[0]}"
        )
    return sigma


def expand(v: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ..., 1], to broadcast over x of any rank."""
    return v.reshape(v.shape[:1] + (1,) * (x.ndim - 1))


def flat(x: Tensor) -> Tensor:
    """[B, ...] -> [B, N]: a row a sample, for x of any rank; [B] -> [B, 1]."""
    return x.reshape(len(x), -1)


def to_denoised(prediction: str, output: Tensor, x: Tensor, sigma: Tensor, space: Space = VE) -> Tensor:
    """Network output -> denoised prediction D, same shape as x.

    `prediction`: "eps" (noise), "v" (alpha' noise - s' x0 with alpha'^2 + s'^2 = 1: Salimans & Ho 2022,
    section 4), "x0" (D itself), "flow" (noise - x0). Holds in every space. Raises ValueError for another
    name.
    """
    a, s = expand(space.alpha(sigma), x), expand(space.s(sigma), x)
    if prediction == "eps":
        return (x - s * output) / a
    if prediction == "v":
        r = a**2 + s**2
        return x * a / r - output * s / r.sqrt()
    if prediction == "x0":
        return output
    if prediction == "flow":
        return (x - s * output) / (a + s)
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")


def from_denoised(prediction: str, denoised: Tensor, x: Tensor, sigma: Tensor, space: Space = VE) -> Tensor:
    """The inverse of `to_denoised`: what the network would have put out, same shape as x (sigma > 0)."""
    a, s = expand(space.alpha(sigma), x), expand(space.s(sigma), x)
    if prediction == "eps":
        return (x - a * denoised) / s
    if prediction == "v":
        r = a**2 + s**2
        return (x * a / r - denoised) * r.sqrt() / s
    if prediction == "x0":
        return denoised
    if prediction == "flow":
        return (x - (a + s) * denoised) / s
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
