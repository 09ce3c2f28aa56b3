"""When a correction is computed anew, and how one that is kept is used at another noise level.

A correction changes slowly from call to call, and mostly as it does for Gaussian data: with the noise level,
by `forms.carry`. So it is computed at every k-th call, and less often once it is nearly plain guidance.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .forms import Rectified, carries, carry
from .settings import Settings
from .space import expand, flat

TOLERANCE = 0.05  # |R v - v| / |v| that counts as plain guidance
LONGEST = 16  # calls that a correction is used for at most


@dataclass(frozen=True, eq=False)
class Kept:
    """A correction, and where it was taken: the call, sigma_ve [B] and its largest value."""

    factor: Tensor
    displacement: Tensor | None  # (R v - v) / |v| of `product`, which is no multiple of v
    away: Tensor  # |R v - v| / |v| where the factor is in (0, 1), and elsewhere
    sigma_ve: Tensor
    level: float
    call: int
    product_name: str

    def fits(self, x: Tensor) -> bool:
        """True for a batch as large, and for an elementwise factor of latents of the same shape."""
        return len(self.factor) == len(x) and (self.factor[0].numel() == 1 or self.factor.shape == x.shape)

    def settled(self, level: float) -> bool:
        """True where the correction, carried to this level, is plain guidance within the tolerance."""
        inside, outside = self.away.tolist()
        if inside < 1 and 0 < level <= self.level < math.inf:
            inside = 1 - carried_share(1 - inside, level / self.level)
        return math.hypot(inside, outside) <= TOLERANCE


class Refresh:
    """The correction that one sampling run keeps."""

    def __init__(self, settings: Settings):
        self.every = int(settings.refresh)
        self.directed = settings.form == "product"  # R v has a direction of its own
        self.kept: Kept | None = None

    def usable(self, call: int, x: Tensor, level: float) -> bool:
        """True when this call may use the correction that is kept. `level`: its largest sigma_ve."""
        kept = self.kept
        if kept is None or not kept.fits(x) or level > kept.level * 1.0001:  # more noise: a restart
            return False
        age = call - kept.call
        return age < self.every or (age < LONGEST and kept.settled(level))

    def reused(self, v: Tensor, sigma_ve: Tensor) -> Rectified:
        """R v by the correction that is kept, carried to sigma_ve [B]."""
        kept = self.kept
        v = v.to(kept.factor.dtype)
        # Where both are infinite (flow at sigma 1) nothing has moved.
        ratio = torch.where(sigma_ve == kept.sigma_ve, 1, sigma_ve / kept.sigma_ve)
        factor = carry(kept.factor, ratio)
        good = torch.zeros(len(v), dtype=torch.bool, device=v.device)
        if kept.displacement is None:
            return Rectified(factor * v, factor, good)
        away = 1 - kept.factor
        shrink = torch.where(away.abs() > 1e-6, (1 - factor) / away, 1)
        return Rectified(v + shrink * kept.displacement * _norm(v), factor, good)

    def keep(self, call: int, level: float, sigma_ve: Tensor, v: Tensor, fresh: Rectified, name: str) -> None:
        """Remember a correction that was computed in this call."""
        if self.every == 1:
            return
        v = v.to(fresh.vector.dtype)
        away, inside = fresh.vector - v, carries(fresh.factor)
        parts = torch.stack([(away * part).norm() for part in (inside, ~inside)]) / v.norm().clamp_min(1e-12)
        displacement = away / _norm(v).clamp_min(1e-12) if self.directed else None
        self.kept = Kept(fresh.factor, displacement, parts, sigma_ve, level, call, name)


def carried_share(share: float, ratio: float) -> float:
    """`forms.carry` of one number."""
    numbers = (torch.tensor([number], dtype=torch.float64) for number in (share, ratio))
    return float(carry(*numbers))


def _norm(v: Tensor) -> Tensor:
    return expand(flat(v).norm(dim=1), v)
