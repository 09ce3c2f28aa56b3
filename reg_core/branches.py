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

    stale = (
        False  # `both` is no neighbour of `probe` (a cache, half precision): a difference needs a fresh one
    )
    notes: tuple[str, ...] | list[str] = ()  # what a backward pass had to do to fit into memory
    rows = 0  # evaluated so far, for each sample
    dtype: torch.dtype | None = None  # what the network computes in, where x does not tell

    def __init__(self, cond: Denoiser, reference: Denoiser, dtype: torch.dtype | None = None):
        self._cond, self._reference, self.dtype = cond, reference, dtype

    def cond(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_c."""
        self.rows += 1
        return self._cond(x, sigma)

    def reference(self, point: Point) -> Tensor:
        """D_ref."""
        self.rows += 1
        return self._reference(point.x, point.sigma)

    def both(self, point: Point) -> tuple[Tensor, Tensor]:
        """(D_c, D_ref)."""
        return self.cond(point.x, point.sigma), self.reference(point)

    def apart(self, point: Point) -> bool:
        """True when D_c and D_ref are the same by passes of their own as together."""
        return True

    def only(self, point: Point) -> Tensor:
        """D_c, as the one pass of a call without guidance."""
        return self.cond(point.x, point.sigma)

    def probe(self, point: Point, x: Tensor) -> Tensor:
        """D_c at x, a neighbour of the point's, and never from a cache."""
        return self.cond(x, point.sigma)

    def both_and_probe(self, point: Point, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(D_c, D_ref, D_c at x + step); `step` [B, 1, ...] is the same for all elements of a row."""
        denoised, reference = self.both(point)
        return denoised, reference, self.probe(point, point.shifted(step).x)

    def reverse(self, point: Point, cotangent) -> tuple[Tensor, Tensor]:
        """(D_c, J^T u), as jacobian.reverse."""
        return jacobian.reverse(self.cond, point, cotangent)

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        """The precision the network really works in; it sets the length of finite differences."""
        kind = x.device.type
        if self.dtype is None and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return self.dtype or x.dtype
