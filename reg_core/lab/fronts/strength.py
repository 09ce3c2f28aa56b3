"""How much less a form guides at equal weight: measured on fronts, and estimated without any sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ...forms import PRODUCT_FORMS, schedule_factor
from ...guided import Guided, calibrate
from ...settings import Settings
from .analysis import Front, band
from .setups import SETUPS, denoisers, labels, model, noise
from .trials import CALIBRATION, Size, levels

WINDOW = (0.3, 8.0)  # of sigma_ve over data_std: where guidance decides most of what a picture shows


@dataclass(frozen=True)
class Ratio:
    """Weight of a form over that of CFG at equal inception score: geometric mean, least, largest."""

    mean: float
    low: float
    high: float


def measured_ratio(front: Front, plain: Front) -> Ratio | None:
    """Over inception scores that both fronts have weights around; None where there are none."""
    found = []
    for level in band([front, plain]):
        ours, theirs = front.crossing(level)[0], plain.crossing(level)[0]
        found.append(float(np.nanmean(ours) / np.nanmean(theirs)))
    if not found or not np.isfinite(found).all():
        return None
    return Ratio(float(np.exp(np.mean(np.log(found)))), min(found), max(found))


def estimated_ratio(sigma_ve, c, data_std: float, window: tuple[float, float] = WINDOW) -> float:
    """1 / mean of c over log sigma_ve, between `window` times data_std.

    `sigma_ve` [K] > 0, increasing; `c` [K] = <R v, v> / <v, v> there, linear in log sigma_ve in between and
    constant beyond. Raises ValueError where the mean is not above 0."""
    low, high = (math.log(share * data_std) for share in window)
    at = low + (high - low) * (np.arange(400) + 0.5) / 400
    share = float(np.interp(at, np.log(sigma_ve), c).mean())
    if not share > 0:
        raise ValueError(f"the mean correction must be above 0, got {share:g}")
    return 1 / share


def corrections(setup: str, size: Size, images: int) -> dict[str, dict[str, list[float]]]:
    """{form: {"sigma": [K], "c": [K]}} of a setup, at w = 1 under the plain schedule.

    Products are computed as the setup's fronts have them: see CALIBRATION."""
    _, seed, engine = CALIBRATION[SETUPS[setup].data]
    pair = denoisers(setup, labels(images).to(size.device), size.folder)
    start, sigmas = noise(setup, images, seed, size.folder, size.device), levels(setup, size)
    found = {}
    for form in PRODUCT_FORMS:
        table = calibrate(Guided(*pair, 1.0, Settings(form=form, engine=engine)), [start], sigmas)
        found[form] = {"sigma": _short(table.sigma), "c": _short(table.factor)}
    found["calibrated"] = found["scalar"]
    own = model(SETUPS[setup].main, size.folder, device=size.device).sigma_data
    sigma = torch.tensor(found["scalar"]["sigma"])
    found["schedule"] = {"sigma": _short(sigma), "c": _short(schedule_factor(sigma, own))}
    return found


def _short(values) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]
