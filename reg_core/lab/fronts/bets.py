"""Forms of our own that might beat `schedule` at its price. Those that lose go; their results stay.

A bet is another c(sigma), V the data's variance: R g = c g."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ...branches import Branches
from ...forms import projection, schedule_factor
from ...point import Point
from ...settings import Settings

PROJECTED = "projected"


def power(sigma_ve: Tensor, data_std: float, exponent: float) -> Tensor:
    """(V / (V + sigma_ve^2))^exponent [B]: above 1 it falls faster with the noise."""
    return schedule_factor(sigma_ve, data_std) ** exponent


def floor(sigma_ve: Tensor, data_std: float, least: float) -> Tensor:
    """`schedule`, but at least `least` [B]."""
    return schedule_factor(sigma_ve, data_std).clamp_min(least)


BETS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "power_1.5": partial(power, exponent=1.5),
    "power_2": partial(power, exponent=2.0),
    "floor_0.02": partial(floor, least=0.02),
    "floor_0.1": partial(floor, least=0.1),
}
WORDS = {
    "power_1.5": "the factor of `schedule` to the power 1.5",
    "power_2": "the square of the factor of `schedule`",
    "floor_0.02": "the factor of `schedule`, at least 0.02",
    "floor_0.1": "the factor of `schedule`, at least 0.1",
    PROJECTED: "`schedule` without the part of the guidance along the prediction (APG, Sadat et al. 2024)",
}


@dataclass(frozen=True)
class Bet(Settings):
    """Settings of `schedule` with another `factor` (sigma_ve [B], data_std) -> c [B]."""

    factor: Callable[[Tensor, float], Tensor] = schedule_factor

    def free_factor(self, sigma_ve: Tensor) -> Tensor:
        return self.factor(sigma_ve, self.data_std)


class Projected(Branches):
    """v without its part along D_c: APG at eta 0, without momentum and without a norm threshold."""

    def both(self, point: Point) -> tuple[Tensor, Tensor]:
        denoised, reference = super().both(point)
        v = denoised - reference
        return denoised, reference + projection(v, denoised) * denoised
