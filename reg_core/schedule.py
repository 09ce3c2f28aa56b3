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

from .checks import SMALLEST, number, shortened

AXES = ("step", "timestep", "sigma")
Schedule = Callable[[float], float]  # one of the classes below, or any other function


@dataclass(frozen=True)
class Linear:
    """multiplier = start + (end - start) p. 0 to 2 keeps the mean weight (Wang et al. 2024, section 4)."""

    start: float = 0.0
    end: float = 2.0

    def __post_init__(self):
        number("start", self.start)
        number("end", self.end)

    def __call__(self, p: float) -> float:
        return self.start + (self.end - self.start) * p


@dataclass(frozen=True)
class Cosine:
    """multiplier = (1 - cos(pi p^power)) / 2, from 0 to 1 (powered cosine: Gao et al. 2023, MDT)."""

    power: float = 1.0

    def __post_init__(self):
        number("power", self.power, SMALLEST)

    def __call__(self, p: float) -> float:
        return (1 - math.cos(math.pi * p**self.power)) / 2


@dataclass(frozen=True)
class Band:
    """1 inside [low, high], else 0 (Kynkaanniemi et al. 2024), of a position, a sigma or a training step."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        number("low", self.low, 0, math.inf)
        number("high", self.high, 0, math.inf)
        if self.low > self.high:
            raise ValueError(f"want 0 <= low <= high, got low={self.low}, high={self.high}")

    def __call__(self, value: float) -> float:
        return float(within(value, self.low, self.high))


@dataclass(frozen=True)
class Curve:
    """Straight lines through points (p, multiplier); constant before the first and after the last."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self):
        points = self.points if isinstance(self.points, (tuple, list)) else ()
        if not points or not all(isinstance(point, (tuple, list)) and len(point) == 2 for point in points):
            want = "one or more pairs of position and multiplier"
            raise ValueError(f"a curve needs {want}, got {shortened(self.points)}")
        for p, value in points:
            number("position (0 noise, 1 clean)", p, 0, 1)
            number("multiplier", value)
        positions = [p for p, _ in points]
        if sorted(set(positions)) != positions:
            raise ValueError(f"positions must increase, got {shortened(positions)}")

    @classmethod
    def parse(cls, text: str) -> "Curve":
        """ "0:0, 0.5:1.5, 1:1" -> Curve. Raises ValueError with the piece that could not be read."""
        points = []
        for piece in filter(str.strip, text.replace(";", ",").replace("\n", ",").split(",")):
            try:
                p, value = map(float, piece.split(":"))
            except ValueError:
                want = "write 'position:multiplier, ...'"
                raise ValueError(f"cannot read the curve point {shortened(piece.strip())}; {want}") from None
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
    if len(levels) < 2:
        return 0.0
    return float(np.interp(-sigma, np.negative(levels), np.linspace(0, 1, len(levels))))


def sigma_position(sigma: float, sigma_max: float) -> float:
    """1 - sigma / sigma_max, clipped to [0, 1]."""
    return min(1.0, max(0.0, 1 - sigma / sigma_max))
