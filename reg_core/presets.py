"""Schedules of cfg over an axis of the user's choice, or as each of the REG authors' code bases has them.

Their "linear" and "cosine" (coefficient (1 - cos(pi p^s)) / 2) run over three variables:

- edm2: sigma. Linear between those of the run, cosine over p = 1 - sigma / first sigma.
- dit: p = 1 - t / 1000. Linear is k t + w0 with k = (w1 - w0) / -1000, which runs from 2 w0 - w1 to w0.
- t2i: the timestep, between those of the run.

With REG all start from the conditional prediction, D_c + w g. DiT's cosine and both of t2i have baselines
that start from the unconditional one and so schedule cfg itself: the presets that end in `_plain`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .checks import LARGEST, number, one_of
from .schedule import AXES, Band, Cosine, Linear, Schedule, sigma_position, step_position

PRESETS = ("edm2", "dit", "t2i")  # their interval has no t2i
LINEAR_PRESETS = (*PRESETS, "t2i_plain")
COSINE_PRESETS = (*PRESETS, "dit_plain", "t2i_plain")
LAST_TIMESTEP = 999  # timesteps of training count from 0
VARIABLES = (
    *AXES, "sigma itself", "timestep itself", "sigma of the run, from 0", "sigma of the run", "t / 1000",
    "timestep of the run",
)  # fmt: skip


@dataclass(frozen=True)
class Levels:
    """Noise levels, from which positions are read.

    `sigmas`: of the run, decreasing and > 0; empty: the model's whole range is meant. `sigma_max`: of the
    model. `percent`: sigma -> the model's training time, 0 at pure noise and 1 clean.
    """

    sigmas: tuple[float, ...]
    sigma_max: float
    percent: Callable[[float], float]

    def timestep(self, sigma: float) -> float:
        """The training timestep, LAST_TIMESTEP at pure noise and 0 clean."""
        return LAST_TIMESTEP * (1 - self.percent(sigma))

    def position(self, variable: str, sigma: float) -> float:
        """What a schedule over `variable` is called with at `sigma`."""
        first, last = (self.sigmas[0], self.sigmas[-1]) if self.sigmas else (self.sigma_max, 0.0)
        if variable == "step" and self.sigmas:
            return step_position(sigma, self.sigmas)
        if variable == "sigma":
            return sigma_position(sigma, self.sigma_max)
        if variable == "sigma itself":
            return sigma
        if variable == "timestep itself":
            return round(self.timestep(sigma), 3)  # a float32 sigma gives it to about 1e-5
        if variable == "sigma of the run, from 0":
            return sigma_position(sigma, first)
        if variable == "sigma of the run":
            return _between(sigma, first, last)
        if variable == "t / 1000":
            return 1 - self.timestep(sigma) / 1000
        if variable == "timestep of the run" and self.sigmas:
            return _between(*(self.timestep(level) for level in (sigma, first, last)))
        return self.percent(sigma)  # "timestep", and what asks for a run where none is known


@dataclass(frozen=True)
class CfgSchedule:
    """A schedule and which of VARIABLES it runs over. `of_cfg`: it multiplies cfg itself, not cfg - 1.

    Raises ValueError for another variable.
    """

    schedule: Schedule
    variable: str
    of_cfg: bool = False

    def __post_init__(self):
        one_of("axis", self.variable, VARIABLES)

    def cfg(self, cfg: float, sigma: float, levels: Levels) -> float:
        """The cfg in force at `sigma`; the sampler was given `cfg`. Raises ValueError for an infinite one."""
        multiplier = float(self.schedule(levels.position(self.variable, sigma)))
        if not abs(multiplier) <= LARGEST:
            raise ValueError(f"the schedule's multiplier must be finite, got {multiplier} at sigma {sigma}")
        return cfg * multiplier if self.of_cfg else 1 + (cfg - 1) * multiplier


def linear(axis: str, start: float, end: float) -> CfgSchedule:
    """Multipliers of the weight cfg - 1 at both ends; for a preset the authors' two weights over it."""
    line = Linear(start, end)
    if axis == "dit":
        line = Linear(2 * start - end, start)
    return _over(axis, LINEAR_PRESETS, line, "sigma of the run")


def cosine(axis: str, power: float) -> CfgSchedule:
    """The weight cfg - 1 times (1 - cos(pi p^power)) / 2."""
    return _over(axis, COSINE_PRESETS, Cosine(power), "sigma of the run, from 0")


def interval(axis: str, start: float, end: float) -> CfgSchedule:
    """Guidance between `start` (noisy) and `end` (clean), both included.

    Positions from 0 to 1 for `step` and `timestep`, noise levels for `sigma` and `edm2`, timesteps 0 to 999
    for `dit`. Raises ValueError for bounds in the wrong order or out of range.
    """
    one_of("axis", axis, (*AXES, "edm2", "dit"))
    number("start", start, 0, math.inf)
    number("end", end, 0, math.inf)
    variables = {"sigma": "sigma itself", "edm2": "sigma itself", "dit": "timestep itself"}
    if axis in ("step", "timestep"):
        want, bounds = "0 <= start <= end <= 1", (0, start, end, 1)
    else:
        want, bounds = "start >= end >= 0, since noise falls", (0, end, start, math.inf)
    if not bounds[0] <= bounds[1] <= bounds[2] <= bounds[3]:
        raise ValueError(f"an interval over {axis} wants {want}, got start={start}, end={end}")
    return CfgSchedule(Band(*bounds[1:3]), variables.get(axis, axis))


def _over(axis, presets, schedule, edm2) -> CfgSchedule:
    one_of("axis", axis, (*AXES, *presets))
    variables = {"edm2": edm2, "dit": "t / 1000", "t2i": "timestep of the run"}
    preset = axis.removesuffix("_plain")
    return CfgSchedule(schedule, variables.get(preset, axis), axis != preset)


def _between(value: float, first: float, last: float) -> float:
    """0 at `first`, 1 at `last`, clipped: a sampler that adds noise between its steps asks beyond."""
    return 0.0 if first == last else min(1.0, max(0.0, (first - value) / (first - last)))
