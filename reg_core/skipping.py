"""Calls without guidance, where it would not be seen in the image.

In noise R leaves little of guidance, and the steps after it pass on even less. For Gaussian data a change at
sigma_ve reaches the image times sqrt(V / (V + sigma_ve^2)), the root of the share of v that J keeps.
"""

import math

import torch
from torch import Tensor

from .forms import carried_share
from .settings import Settings

REACH = 8.0  # a measured share tells little about noise levels further away than this factor


class Skipping:
    """What one run knows of its guidance. A level is a call's largest sigma_ve, a share is |R v| / |v|."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._share: tuple[float, float] | None = None  # (level, share), measured last
        self._size = (math.inf, 0.0)  # (level, rms of v), seen last
        self._largest = 0.0  # |w| rms(v) of the run so far

    def skips(self, level: float, weight: float) -> bool:
        """True where |R g| does less to the image than `skip_below` times the largest |g| so far."""
        if not self.settings.skip_below > 0:
            return False
        effect = self._effect(self._expected_share(level)) * self._expected_size(level, weight)
        return effect < self.settings.skip_below  # False of a weight that is nan

    def saw(self, level: float, weight: float, v: Tensor, fresh: Tensor | None) -> None:
        """Remember the guidance v [B, ...] of a call, and R v if it was computed there."""
        if not self.settings.skip_below > 0:
            return
        if fresh is not None:
            self._share = level, float(fresh.norm() / v.to(fresh.dtype).norm().clamp_min(1e-12))
        wide = torch.promote_types(v.dtype, torch.float32)
        rms = float(torch.linalg.vector_norm(v, dtype=wide) / v.numel() ** 0.5)
        self._size, self._largest = (level, rms), max(self._largest, abs(weight) * rms)

    def _effect(self, share: float | None) -> float:
        """How much of |g| counts in the image, at most, with gain and strength.

        What `strength` leaves of plain guidance is not reduced by later steps: it adds up over many calls.
        """
        applied, strength = self.settings.applied, self.settings.strength
        if share is None:
            return max(abs(applied(0)), abs(applied(1)), 1.0)
        passed = abs(1 - strength) + abs(strength) * self.settings.gain * share * min(1.0, share) ** 0.5
        return min(passed, abs(applied(share)))

    def _expected_share(self, level: float) -> float | None:
        """The share at this level; None where nothing tells."""
        if self.settings.free:
            return float(self.settings.free_factor(torch.tensor([level])).abs())
        if self._share is None:
            return None
        then, share = self._share
        restarted = level > then * 1.0001
        if restarted or not (math.isfinite(then) and math.isfinite(share)):
            return None
        expected = carried_share(share, level / then)
        far = level < then / REACH and expected < 0.5  # near 1, where all shares end, nothing is far
        return None if far else expected

    def _expected_size(self, level: float, weight: float) -> float:
        """|g| here over the largest |g| so far, at most: with less noise v becomes smaller than seen last."""
        then, rms = self._size
        known = math.isfinite(then) and level <= then * 1.0001 and self._largest > 0
        return min(1.0, abs(weight) * rms / self._largest) if known else 1.0
