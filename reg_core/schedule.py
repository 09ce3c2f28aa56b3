"""The guidance weight as a function of the noise level: w(t) = w * multiplier.

A schedule maps a position p in [0, 1] (0 = pure noise, 1 = clean) to a multiplier of the weight w = cfg - 1.
The axis is the variable that p is linear in: `step`, i / (n - 1) in the list of noise levels; `timestep`, the
model's training time 1 - t/T (ComfyUI's percent); `sigma`, 1 - sigma / sigma_max. presets.py has those of the
authors, which differ from these by their ends.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

AXES = ("step", "timestep", "sigma")
Schedule = Callable[[float], float]  # one of the classes below, or any other function


@dataclass(frozen=True)
class Linear:
    """multiplier = start + (end - start) p. 0 to 2 keeps the mean weight (Wang et al. 2024, section 4)."""

    start: float = 0.0
    end: float = 2.0

    def __post_init__(self):
        _finite(start=self.start, end=self.end)

    def __call__(self, p: float) -> float:
        return self.start + (self.end - self.start) * p


@dataclass(frozen=True)
class Cosine:
    """multiplier = (1 - cos(pi p^power)) / 2, from 0 to 1 (powered cosine: Gao et al. 2023, MDT)."""

    power: float = 1.0

    def __post_init__(self):
        _finite(power=self.power)
        if self.power <= 0:
            raise ValueError(f"power must be > 0, got {self.power}")

    def __call__(self, p: float) -> float:
        return (1 - math.cos(math.pi * p**self.power)) / 2


@dataclass(frozen=True)
class Band:
    """1 inside [low, high], else 0 (Kynkaanniemi et al. 2024), of a position, a sigma or a training step."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if math.isnan(self.high) or not 0 <= self.low <= self.high:
            raise ValueError(f"want 0 <= low <= high, got low={self.low}, high={self.high}")

    def __call__(self, value: float) -> float:
        return float(within(value, self.low, self.high))


@dataclass(frozen=True)
class Curve:
    """Straight lines through points (p, multiplier); constant before the first and after the last."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self):
        if not self.points:
            raise ValueError("a curve needs at least one point")
        positions = [p for p, _ in self.points]
        for p, value in self.points:
            _finite(position=p, multiplier=value)
            if not 0 <= p <= 1:
                raise ValueError(f"positions run from 0 (noise) to 1 (clean), got {p}")
        if sorted(set(positions)) != positions:
            raise ValueError(f"positions must increase, got {positions}")

    @classmethod
    def parse(cls, text: str) -> "Curve":
        """ "0:0, 0.5:1.5, 1:1" -> Curve. Raises ValueError with the piece that could not be read."""
        points = []
        for piece in filter(str.strip, text.replace(";", ",").replace("\n", ",").split(",")):
            try:
                p, value = map(float, piece.split(":"))
            except ValueError:
                want = "write 'position:multiplier, ...'"
                raise ValueError(f"cannot read the curve point {piece.strip()!r}; {want}") from None
            points.append((p, value))
        return cls(tuple(points))

    def __call__(self, p: float) -> float:
        return float(np.interp(p, *zip(*self.points, strict=True)))


def within(value: float, low: float, high: float) -> bool:
    """low <= value <= high after rounding all three to float32, in which samplers hold their sigmas."""
    return bool(np.float32(low) <= np.float32(value) <= np.float32(high))


def step_position(sigma: float, levels: Sequence[float]) -> float:
    """Position of `sigma` in a decreasing list of noise levels, in [0, 1]; a closing 0 does not count.

    A sampler of second order also asks between two levels: the position is interpolated there.
    """
    levels = [level for level in levels if level > 0]
    return (
        float(np.interp(-sigma, np.negative(levels), np.linspace(0, 1, len(levels))))
        if len(levels) > 1
        else 0.0
    )


def sigma_position(sigma: float, sigma_max: float) -> float:
    """1 - sigma / sigma_max, clipped to [0, 1]."""
    return min(1.0, max(0.0, 1 - sigma / sigma_max))


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
