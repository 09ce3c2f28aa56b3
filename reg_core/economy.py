"""Doing with less: corrections carried along between refreshes, automatic refresh, and calls without guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .rectify import FREE_FORMS, Rectified, Settings, carries, carry, schedule_factor
from .space import expand

TOLERANCE = 0.05  # |R v - what was carried along| / |v| that is let pass
LONGEST = 16  # the longest interval without a look, in calls
REACH = 8.0  # a measured share says little about noise levels further away than this factor


@dataclass
class _Kept:
    factor: Tensor
    moves: Tensor  # where the factor is in (0, 1)
    bad: Tensor  # [B] bool, of corrections carried along: none
    displacement: Tensor | None  # (R v - v) / |v| of `product`, which is no multiple of v
    sigma_ve: Tensor  # [B]
    level: float
    age: int = 0


class Later:
    """A number, or a few, on their way from the device: reading them waits for no work that was queued after them."""

    def __init__(self, number: Tensor):
        self.host, self.event = number.detach(), None
        if number.device.type == "cuda":
            self.host = torch.empty(number.shape, dtype=number.dtype, pin_memory=True).copy_(number, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> float | list[float]:
        if self.event is not None:
            self.event.synchronize()
        return self.host.tolist()


class Economy:
    """What one sampling run remembers of its corrections. `level` is the batch's largest sigma_ve, on the host.

    Numbers that a decision needs are read at the next call, when the device has long computed them.
    """

    # Where reading a number stalls the device, refresh by count is content with the level of the call before: the
    # first call after a restart is then carried along, the second computed afresh.
    late_devices = ("cuda",)

    def __init__(self, settings: Settings):
        self.settings = settings
        self.free = settings.form in FREE_FORMS
        self.needs_level = settings.skip_below > 0 or (settings.refresh != 1 and not self.free)
        self._kept: _Kept | None = None
        self._interval = 1
        self._moved: Tensor | None = None
        self._away: Later | None = None  # |R v - v| / |v| at the last look: where the correction is in (0, 1), and elsewhere
        self._share: tuple[float, Tensor | float] | None = None  # (level, |R v| / |v| there)
        self._seen: list[tuple[float, float, Later]] = []  # (level, |w|, rms of v) of guided calls, on their way
        self._last, self._largest = (math.inf, 0.0), 0.0  # (level, rms of v), and the largest |w| rms(v)
        self._later: Later | None = None

    def level(self, sigma_ve: Tensor) -> float:
        """The level of this call, as a number; 0 where nothing depends on it."""
        if not self.needs_level:
            return 0.0
        now = sigma_ve.max()
        if now.device.type not in self.late_devices or self.settings.skip_below > 0 or self.settings.refresh == 0:
            return float(now)
        before, self._later = self._later, Later(now)
        return math.inf if before is None else before.read()

    # Calls without guidance

    def skips(self, level: float, weight: float) -> bool:
        """True where what |R g| still does to the image is below `skip_below` times the largest |g| of the run so far."""
        if not self.settings.skip_below > 0:
            return False
        negligible = self._effect(self._expected_share(level)) * self._size(level, weight) < self.settings.skip_below
        if negligible and self._kept is not None:
            self._kept.age += 1
        return negligible  # False of a weight that is nan

    def _effect(self, share: float | None) -> float:
        """|R g| / |g| as it counts in the image, at most, where J keeps `share` of v.

        A change at this level is passed on by the steps after it, for Gaussian data times sqrt(V / (V + sigma_ve^2)),
        the root of the share. Not so what `strength` leaves of plain guidance, which adds up over many calls in noise.
        """
        strength = self.settings.strength
        if share is None:
            return max(1.0, abs(1 - strength))
        passed = abs(1 - strength) + abs(strength) * share * min(1.0, share) ** 0.5
        return min(passed, abs(1 + strength * (share - 1)))

    def saw(self, level: float, v: Tensor, weight: float) -> None:
        """Remember the size of guidance in a guided call."""
        if self.settings.skip_below > 0:
            wide = torch.promote_types(v.dtype, torch.float32)
            self._seen.append((level, abs(weight), Later(torch.linalg.vector_norm(v, dtype=wide) / v.numel() ** 0.5)))

    def _size(self, level: float, weight: float) -> float:
        """|g| expected here over the largest |g| so far, at most: v as it was last seen. With less noise it becomes smaller, since both
        predictions tend to x; 1 where nothing was seen yet, and after a restart."""
        for at, w, size in self._seen:
            self._last, self._largest = (at, size.read()), max(self._largest, w * size.read())
        self._seen.clear()
        at, size = self._last
        known = math.isfinite(at) and level <= at * 1.0001
        return min(1.0, abs(weight) * size / self._largest) if known and self._largest > 0 else 1.0

    def _expected_share(self, level: float) -> float | None:
        if self.settings.form == "schedule":
            return float(schedule_factor(torch.tensor(level), self.settings.data_std))
        if self.settings.form == "calibrated":
            return float(self.settings.calibration(torch.tensor([level])).abs().max())
        if self._share is None:
            return None
        measured, share = self._share[0], float(self._share[1])
        self._share = (measured, share)
        if not (math.isfinite(measured) and math.isfinite(share) and level <= measured * 1.0001):  # noise went up: a restart
            return None
        expected = _carried(share, level / measured)
        return None if level < measured / REACH and expected < 0.5 else expected  # far off, unless it nears 1, where all end

    def unsure(self, level: float) -> bool:
        """True where skipping is wanted, nothing measured tells about this level, and `row_sum` could tell by two rows."""
        return self.settings.skip_below > 0 and self.settings.form == "row_sum" and self._expected_share(level) is None

    def learns(self, level: float, product: Tensor, weight: float) -> bool:
        """Take rms(J 1) as the share, which it is for guidance without a pattern of its own; whether this call may be skipped."""
        self._share = (level, product.square().mean().sqrt())
        return self.skips(level, weight)

    # Reuse between refreshes

    def reusable(self, x: Tensor, level: float) -> bool:
        """True when this call may take the correction that is kept; counts the call."""
        kept = self._kept
        if kept is None:
            return False
        if kept.factor.shape[0] != x.shape[0] or (kept.factor[0].numel() > 1 and kept.factor.shape != x.shape):
            return False
        if level > kept.level * 1.0001:  # noise went up: a restart, not the next step
            self._kept, self._interval, self._moved = None, 1, None
            return False
        if kept.age >= self._interval_wanted() - 1 and not (kept.age < LONGEST - 1 and self._settled(level)):
            return False
        kept.age += 1
        return True

    def _settled(self, level: float) -> bool:
        """True where the correction kept, carried to this level, is within the tolerance of none: with less noise it only comes nearer."""
        inside, outside = self._away.read()
        then = self._kept.level
        if inside < 1 and 0 < level <= then < math.inf:
            inside = 1 - _carried(1 - inside, level / then)
        return math.hypot(inside, outside) <= TOLERANCE

    def _interval_wanted(self) -> int:
        if self.settings.refresh:
            return int(self.settings.refresh)
        if self._moved is not None:  # step size control, as integrators of differential equations do it
            moved, self._moved = float(self._moved), None
            if moved <= TOLERANCE / 2:
                self._interval = min(2 * self._interval, LONGEST)
            elif not moved <= TOLERANCE:
                self._interval = max(self._interval // 2, 1)
        return self._interval

    def reused(self, v: Tensor, sigma_ve: Tensor) -> Rectified:
        """R v at this noise level by the correction kept, carried along as Gaussian data would."""
        kept = self._kept
        wide = v.to(kept.factor.dtype)
        factor = carry(kept.factor, _ratio(sigma_ve, kept.sigma_ve), kept.moves)
        if kept.displacement is None:
            return Rectified(factor * wide, factor, kept.bad)
        away = 1 - kept.factor
        shrink = torch.where(away.abs() > 1e-6, (1 - factor) / away, 1)
        return Rectified(wide + shrink * kept.displacement * _norm(wide), factor, kept.bad)

    def keep(self, fresh: Rectified, v: Tensor, sigma_ve: Tensor, level: float) -> Tensor | None:
        """Remember a correction computed afresh (at strength 1). Returns how far the one kept before was off, if any."""
        if self.free or not self.needs_level:
            return None
        v = v.to(fresh.vector.dtype)
        if self.settings.skip_below > 0:
            self._share = (level, fresh.vector.norm() / v.norm().clamp_min(1e-12))
        if self.settings.refresh == 1:
            return None
        moved = None
        if self._kept is not None and self._kept.factor.shape == fresh.factor.shape:
            moved = (fresh.vector - self.reused(v, sigma_ve).vector).norm() / v.norm().clamp_min(1e-12)
            self._moved = moved if self.settings.refresh == 0 else None
        away, moves = fresh.vector - v, carries(fresh.factor)
        self._away = Later(torch.stack([(away * part).norm() for part in (moves, ~moves)]) / v.norm().clamp_min(1e-12))
        displacement = (fresh.vector - v) / _norm(v).clamp_min(1e-12) if self.settings.form == "product" else None
        self._kept = _Kept(fresh.factor, moves, torch.zeros_like(fresh.bad), displacement, sigma_ve, level)
        return moved


def _carried(share: float, ratio: float) -> float:
    return float(carry(torch.tensor([share], dtype=torch.float64), torch.tensor([ratio], dtype=torch.float64)))


def _ratio(now: Tensor, then: Tensor) -> Tensor:
    # Where both are infinite (flow at sigma 1) nothing has moved.
    return torch.where(now == then, 1, now / then)


def _norm(v: Tensor) -> Tensor:
    return expand(v.flatten(1).norm(dim=1), v)
