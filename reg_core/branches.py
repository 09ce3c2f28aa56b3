"""The two predictions that guidance is the difference of."""

import torch
from torch import Tensor

from . import jacobian
from .jacobian import Denoiser
from .point import Point


class Branches:
    """D_c and D_ref, each a denoiser (x [B, ...], sigma [B]) -> D in x's shape.

    The reference is the unconditional prediction for classifier-free guidance (Ho & Salimans 2022), a worse
    model for autoguidance (Karras et al. 2024). A host overrides methods to join rows or to differentiate.
    """

    cached = False  # `both` may answer from a cache: a difference then needs a fresh prediction at x
    notes: tuple[str, ...] | list[str] = ()  # what a backward pass had to do to fit into memory

    def __init__(self, cond: Denoiser, reference: Denoiser):
        self.cond = cond
        self.reference = reference

    def both(self, point: Point) -> tuple[Tensor, Tensor]:
        """(D_c, D_ref)."""
        return self.cond(point.x, point.sigma), self.reference(point.x, point.sigma)

    def only(self, point: Point) -> Tensor:
        """D_c, as the one pass of a call without guidance."""
        return self.cond(point.x, point.sigma)

    def both_and_probe(self, point: Point, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(D_c, D_ref, D_c at x + step); `step` [B, 1, ...] is the same for all elements of a row."""
        denoised, reference = self.both(point)
        return denoised, reference, self.cond(point.shifted(step).x, point.sigma)

    def reverse(self, point: Point, cotangent) -> tuple[Tensor, Tensor]:
        """(D_c, J^T u), as jacobian.reverse."""
        return jacobian.reverse(self.cond, point, cotangent)

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        """The precision the network really works in; it sets the length of finite differences."""
        return x.dtype
