"""The guidance weight as a function of the noise level: w(t) = w * multiplier.

A schedule maps a position p in [0, 1] (0 = pure noise, 1 = clean) to a multiplier of the weight w = cfg - 1. Which
variable p is linear in is the axis, and it matters: the REG authors' three code bases use three different ones.

- `step`: the index in the list of noise levels, i / (n - 1).
- `timestep`: the model's training time, 1 - t/T (what ComfyUI calls percent).
- `sigma`: the noise level itself, 1 - sigma / sigma_max.

The authors' own variables, which differ from these by their ends, come with their definitions: presets.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

AXES = ("step", "timestep", "sigma")


@dataclass(frozen=True)
class Constant:
    """The same weight everywhere."""

    def __call__(self, p: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear:
    """multiplier = start + (end - start) p. The default 0 -> 2 keeps the mean weight (Wang et al. 2024, section 4)."""

    start: float = 0.0
    end: float = 2.0

    def __post_init__(self):
        _finite(start=self.start, end=self.end)

    def __call__(self, p: float) -> float:
        return self.start + (self.end - self.start) * p


@dataclass(frozen=True)
class Cosine:
    """multiplier = (1 - cos(pi p^power)) / 2, from 0 to 1 (powered cosine: Gao et al. 2023, MDT; REG, appendix)."""

    power: float = 1.0

    def __post_init__(self):
        _finite(power=self.power)
        if self.power <= 0:
            raise ValueError(f"power must be > 0, got {self.power}")

    def __call__(self, p: float) -> float:
        return (1 - math.cos(math.pi * p**self.power)) / 2


@dataclass(frozen=True)
class Interval:
    """1 inside [start, end], else 0 (Kynkaanniemi et al. 2024). Closed bounds, rounded to float32 like the sigmas."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        _finite(start=self.start, end=self.end)
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"want 0 <= start <= end <= 1, got start={self.start}, end={self.end}")

    def __call__(self, p: float) -> float:
        return float(within(p, self.start, self.end))


@dataclass(frozen=True)
class SigmaInterval:
    """1 where low <= sigma <= high, else 0: the interval in units of sigma, as EDM2 states it. Takes sigma, not p."""

    high: float
    low: float = 0.0

    def __post_init__(self):
        if math.isnan(self.high) or math.isnan(self.low) or not 0 <= self.low <= self.high:
            raise ValueError(f"want 0 <= sigma_end <= sigma_start, got sigma_start={self.high}, sigma_end={self.low}")

    def __call__(self, sigma: float) -> float:
        return float(within(sigma, self.low, self.high))


@dataclass(frozen=True)
class Curve:
    """Straight lines through points (p, multiplier); constant before the first and after the last."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self):
        if not self.points:
            raise ValueError("a curve needs at least one point")
        for p, value in self.points:
            _finite(position=p, multiplier=value)
            if not 0 <= p <= 1:
                raise ValueError(f"positions run from 0 (noise) to 1 (clean), got {p}")
        positions = [p for p, _ in self.points]
        if any(b <= a for a, b in zip(positions, positions[1:], strict=False)):
            raise ValueError(f"positions must increase, got {positions}")

    @classmethod
    def parse(cls, text: str) -> Curve:
        """ "0:0, 0.5:1.5, 1:1" -> Curve. Raises ValueError with the piece that could not be read."""
        points = []
        for piece in text.replace(";", ",").replace("\n", ",").split(","):
            if not piece.strip():
                continue
            try:
                p, value = piece.split(":")
                points.append((float(p), float(value)))
            except ValueError:
                raise ValueError(f"cannot read the curve point {piece.strip()!r}; write 'position:multiplier, ...'") from None
        return cls(tuple(points))

    def __call__(self, p: float) -> float:
        left = self.points[0]
        for right in self.points:
            if p <= right[0]:
                span = right[0] - left[0]
                return right[1] if span == 0 else left[1] + (right[1] - left[1]) * (p - left[0]) / span
            left = right
        return left[1]


@dataclass(frozen=True)
class TimestepInterval:
    """1 where low <= t <= high, else 0: the interval in training steps 0..999, as DiT states it. Takes t, not p."""

    high: float
    low: float = 0.0

    def __post_init__(self):
        if math.isnan(self.high) or math.isnan(self.low) or not 0 <= self.low <= self.high:
            raise ValueError(f"want 0 <= timestep_end <= timestep_start, got timestep_start={self.high}, timestep_end={self.low}")

    def __call__(self, t: float) -> float:
        return float(within(round(t, 3), self.low, self.high))  # t comes from a float32 sigma, which gives it to about 1e-5


@dataclass(frozen=True)
class Drawn:
    """A curve drawn elsewhere: any function of the position. Raises ValueError where it is not finite."""

    function: Callable[[float], float]

    def __call__(self, p: float) -> float:
        value = float(self.function(p))
        _finite(multiplier=value)
        return value


Schedule = Constant | Linear | Cosine | Interval | SigmaInterval | TimestepInterval | Curve | Drawn


def within(value: float, low: float, high: float) -> bool:
    """low <= value <= high after rounding all three to float32, in which samplers hold their sigmas."""
    value, low, high = torch.tensor([value, low, high], dtype=torch.float64).float().tolist()
    return low <= value <= high


def step_position(sigma: float, sigmas: Tensor) -> float:
    """Position of `sigma` in a decreasing list of noise levels (a closing 0 does not count), by interpolation in [0, 1].

    A sampler of second order also asks between two levels or at the next one; the position then follows sigma.
    """
    levels = [float(v) for v in sigmas]
    if len(levels) > 1 and levels[-1] == 0:
        levels.pop()
    if len(levels) < 2 or sigma >= levels[0]:
        return 0.0
    for i in range(len(levels) - 1):
        high, low = levels[i], levels[i + 1]
        if low <= sigma <= high:
            part = 0.0 if high == low else (high - sigma) / (high - low)
            return (i + part) / (len(levels) - 1)
    return 1.0


def sigma_position(sigma: float, sigma_max: float) -> float:
    """1 - sigma / sigma_max, clipped to [0, 1]."""
    return min(1.0, max(0.0, 1 - sigma / sigma_max))


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
