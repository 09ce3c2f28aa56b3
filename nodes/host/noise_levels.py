"""Noise levels: what ComfyUI's sampling classes say of x = alpha x0 + s noise, for any prediction type."""

import math

import comfy.model_sampling
import torch

from ...reg_core.point import Point


def point_at(sampling, x, sigma) -> Point:
    """Where the model is evaluated, by the sampling class's own `noise_scaling`. x [B, ...], sigma one number
    or [B]."""
    count = x.shape[0]
    sigma = sigma.reshape(-1).expand(count).to(torch.promote_types(x.dtype, torch.float32))
    latent = torch.zeros(
        2 * count, dtype=sigma.dtype, device=sigma.device
    )  # fresh: noise_scaling adds in place
    latent[:count] = 1
    scaled = sampling.noise_scaling(sigma.repeat(2), 1 - latent, latent)
    alpha, s = scaled.reshape(-1).expand(2 * count).split(count)
    return Point(x, sigma, alpha, s)


def sigma_bounds(sampling, start_percent: float, end_percent: float) -> tuple[float, float]:
    """(highest, lowest) sigma of an interval in ComfyUI's percent; without a bound at its ends."""
    high = math.inf if start_percent <= 0 else float(sampling.percent_to_sigma(start_percent))
    return high, 0.0 if end_percent >= 1 else float(sampling.percent_to_sigma(end_percent))


def percent_of(sampling, sigma: float) -> float:
    """The inverse of ComfyUI's `percent_to_sigma`, by bisection: 0 at pure noise, 1 clean, for every sampling
    class."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) >= sigma else (low, middle)
    return round((low + high) / 2, 9)


def prediction_type(sampling) -> str:
    """eps, v, edm, x0 or flow: which quantity the network predicts."""
    kinds = {
        "flow": "CONST",
        "x0": "X0",
        "edm": "EDM",
        "v": "V_PREDICTION",
        "eps": "EPS",
    }  # children before parents
    found = (k for k, name in kinds.items() if isinstance(sampling, getattr(comfy.model_sampling, name, ())))
    return next(found, type(sampling).__name__)


def model_kind(model) -> tuple[str, str]:
    """(prediction, latent) of a MODEL: what a calibration table belongs to."""
    return prediction_type(model.get_model_object("model_sampling")), type(model.model.latent_format).__name__
