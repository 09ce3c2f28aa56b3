"""When a correction is computed anew, and how one that is kept is used at another noise level.

A correction changes slowly from call to call, and mostly as it does for Gaussian data: with the noise level,
by `forms.carry`. So it is computed at every k-th call, and less often once it is nearly plain guidance. Its
factor is kept: in between `product` has the direction of v.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .forms import Rectified, carried_share, carries, carry
from .settings import Settings

TOLERANCE = 0.05  # |R v - v| / |v| that counts as plain guidance, and what carrying may make of an error
LONGEST = 16  # calls that a correction is used for at most
REACH = 10.0  # ratio of sigma_ve that a correction is carried over at most


@dataclass(frozen=True, eq=False)
class Kept:
    """A correction, and where it was taken: the call, sigma_ve [B] and its largest value."""

    factor: Tensor
    numbers: Tensor  # |R v - v| / |v| where the factor is in (0, 1), and elsewhere; the error of R v
    sigma_ve: Tensor
    level: float
    call: int
    product_name: str

    @cached_property
    def shares(self) -> list[float]:
        """`numbers`, read from the device once."""
        return self.numbers.tolist()

    def fits(self, x: Tensor) -> bool:
        """True for a batch as large, and for an elementwise factor of latents of the same shape."""
        return len(self.factor) == len(x) and (self.factor.numel() == len(x) or self.factor.shape == x.shape)

    def reaches(self, level: float) -> bool:
        """True where not much less noise is left, and carrying has not made much of the error."""
        inside, _, error = self.shares
        return self.level <= level * REACH and error * growth(1 - inside, level / self.level) <= TOLERANCE

    def settled(self, level: float) -> bool:
        """True where the correction, carried to this level, is plain guidance within the tolerance."""
        inside, outside, _ = self.shares
        if inside < 1:
            inside = 1 - carried_share(1 - inside, level / self.level)
        return math.hypot(inside, outside) <= TOLERANCE


class Refresh:
    """The correction that one sampling run keeps."""

    def __init__(self, settings: Settings):
        self.every = int(settings.refresh)
        self.kept: Kept | None = None

    def usable(self, call: int, x: Tensor, level: float) -> bool:
        """True when this call may use the correction that is kept. `level`: its largest sigma_ve."""
        kept = self.kept
        if kept is None or not kept.fits(x) or not 0 < level <= kept.level * 1.0001 < math.inf:
            return False
        age = call - kept.call
        return (age < self.every and kept.reaches(level)) or (age < LONGEST and kept.settled(level))

    def reused(self, v: Tensor, sigma_ve: Tensor) -> Rectified:
        """R v by the correction that is kept, carried to sigma_ve [B]."""
        kept = self.kept
        v = v.to(kept.factor.dtype)
        factor = carry(kept.factor, sigma_ve / kept.sigma_ve)
        return Rectified(factor * v, factor)

    def keep(self, call: int, point, v: Tensor, fresh: Rectified, error: Tensor, name: str) -> None:
        """Remember a correction that was computed in this call. `error`: of R v, relative to v, 0-d."""
        if self.every == 1:
            return
        v, level = v.to(fresh.vector.dtype), float(point.sigma_ve.max())
        away, inside = fresh.vector - v, carries(fresh.factor)
        parts = [(away * part).norm() / v.norm().clamp_min(1e-12) for part in (inside, ~inside)]
        numbers = torch.stack([*parts, error])
        self.kept = Kept(fresh.factor, numbers, point.sigma_ve, level, call, name)


def growth(share: float, ratio: float) -> float:
    """By how much `carry` enlarges an error of a factor, the slope of carried_share."""
    share, square = min(1.0, max(0.0, share)), ratio * ratio
    return max(1.0, square / (share + (1 - share) * square) ** 2)
