"""The value that travels: where a denoiser is evaluated, in the sampler's coordinates."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .space import VE, Space, as_batch


@dataclass(frozen=True, eq=False)
class Point:
    """x = alpha x0 + s noise.

    `x` [B, ...]: what the sampler holds. `sigma` [B]: the noise level as sampler and denoiser state it.
    `alpha`, `s` [B]: the scale of the clean sample and the standard deviation of the noise in x.
    """

    x: Tensor
    sigma: Tensor
    alpha: Tensor
    s: Tensor

    @classmethod
    def of(cls, x: Tensor, sigma, space: Space = VE) -> "Point":
        """`sigma`: a number or [B]. Raises ValueError for another length."""
        sigma = as_batch(sigma, x)
        return cls(x, sigma, space.alpha(sigma), space.s(sigma))

    @property
    def sigma_ve(self) -> Tensor:
        """The noise level in variance exploding coordinates, s / alpha [B]; infinite at flow's sigma 1."""
        return self.s / self.alpha

    def shifted(self, step: Tensor) -> "Point":
        """The point at x + step, added in float32 at least."""
        wide = torch.promote_types(self.x.dtype, torch.float32)
        return replace(self, x=(self.x.to(wide) + step).to(self.x.dtype))
