"""The schedules of the REG authors' three code bases, as each of them defines its own.

All three say "linear" and "cosine" and mean different variables (w0, w1: their weights at both ends, w = cfg - 1):

| preset | linear                                                   | cosine, coefficient (1 - cos(pi p^s)) / 2     |
|--------|----------------------------------------------------------|-----------------------------------------------|
| edm2   | w0 at the run's first sigma, w1 at its last, straight in sigma | p = 1 - sigma / first sigma              |
| dit    | k t + w0, k = (w1 - w0) / (0 - 1000): from 2 w0 - w1 to w0     | p = 1 - t / 1000                         |
| t2i    | w0 at the run's first timestep, w1 at its last, straight in t  | p = (t - t_first) / (t_last - t_first)   |

With REG all of them are anchored at the conditional prediction, D_c + w g. Their baselines without REG are too, but for DiT's
cosine and both of t2i, which count from the unconditional one, D_u + w (D_c - D_u): those are the presets `_plain`, and what they
schedule is cfg itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .schedule import Cosine, Linear, Schedule, SigmaInterval, TimestepInterval, sigma_position, step_position

LINEAR_PRESETS = ("edm2", "dit", "t2i", "t2i_plain")
COSINE_PRESETS = ("edm2", "dit", "dit_plain", "t2i", "t2i_plain")
INTERVAL_PRESETS = ("edm2", "dit")
LAST_TIMESTEP = 999  # timesteps of training count from 0
PLAIN = "_plain"


@dataclass(frozen=True)
class Plan:
    """A schedule, the variable it is a function of, and whether it multiplies cfg itself instead of the weight cfg - 1."""

    schedule: Schedule
    axis: str
    of_cfg: bool = False

    def scheduled(self, cfg: float, multiplier: float) -> float:
        """The cfg to sample with."""
        return cfg * multiplier if self.of_cfg else 1 + (cfg - 1) * multiplier


def linear(preset: str, start: float, end: float) -> Plan:
    """start and end: the authors' two weights over the weight cfg - 1 (over cfg for `t2i_plain`)."""
    if preset == "edm2":
        return Plan(Linear(start, end), "run_sigma")
    if preset == "dit":
        return Plan(Linear(2 * start - end, start), "training_time")
    if preset in ("t2i", "t2i_plain"):
        return Plan(Linear(start, end), "run_time", preset.endswith(PLAIN))
    raise ValueError(f"preset must be one of {', '.join(LINEAR_PRESETS)}, got {preset!r}")


def cosine(preset: str, power: float) -> Plan:
    axes = {"edm2": "first_sigma", "dit": "training_time", "t2i": "run_time"}
    if preset not in COSINE_PRESETS:
        raise ValueError(f"preset must be one of {', '.join(COSINE_PRESETS)}, got {preset!r}")
    return Plan(Cosine(power), axes[preset.removesuffix(PLAIN)], preset.endswith(PLAIN))


def interval(preset: str, high: float, low: float) -> Plan:
    """high, low: in sigma for `edm2`, in training steps 0..999 for `dit`; both bounds inside."""
    if preset == "edm2":
        return Plan(SigmaInterval(high, low), "sigma_itself")
    if preset == "dit":
        return Plan(TimestepInterval(high, low), "timestep_itself")
    raise ValueError(f"preset must be one of {', '.join(INTERVAL_PRESETS)}, got {preset!r}")


def position(axis: str, sigma: float, sigmas: Tensor | None, sigma_max: float, percent: Callable[[float], float]) -> float:
    """What a schedule over `axis` is to be called with at noise level `sigma`.

    sigmas: the run's decreasing noise levels [steps + 1]; None where no run is known, and the model's whole range stands in.
    sigma_max: of the model. percent(sigma): the model's training time, 0 at pure noise and 1 clean.
    """
    levels = [] if sigmas is None else [float(v) for v in sigmas if v > 0]
    if axis == "step" and levels:
        return step_position(sigma, sigmas)
    if axis == "sigma":
        return sigma_position(sigma, sigma_max)
    if axis == "sigma_itself":
        return sigma
    if axis == "first_sigma":
        return sigma_position(sigma, levels[0] if levels else sigma_max)
    if axis == "run_sigma":
        return _between(sigma, levels[0], levels[-1]) if levels else sigma_position(sigma, sigma_max)
    t = LAST_TIMESTEP * (1 - percent(sigma))
    if axis == "timestep_itself":
        return t
    if axis == "training_time":
        return 1 - t / 1000
    if axis == "run_time" and levels:
        first, last = (LAST_TIMESTEP * (1 - percent(level)) for level in (levels[0], levels[-1]))
        return _between(t, first, last)
    return percent(sigma)


def _between(value: float, first: float, last: float) -> float:
    """0 at `first`, 1 at `last`, clipped: a sampler that adds noise between its steps asks beyond."""
    return 0.0 if first == last else min(1.0, max(0.0, (first - value) / (first - last)))
