"""Noise levels: what ComfyUI's sampling classes say of x = alpha x0 + s noise, for any prediction type."""

import math

import comfy.model_sampling
import torch

from ...reg_core.point import Point


def point_at(sampling, x, sigma) -> Point:
    """Where the model is evaluated, in float32, by the sampling class's `noise_scaling`. sigma [1] or [B]."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    sigma = sigma.expand(len(x)).to(x.dtype)
    alpha = sampling.noise_scaling(sigma, torch.zeros_like(sigma), torch.ones_like(sigma))
    s = sampling.noise_scaling(sigma, torch.ones_like(sigma), torch.zeros_like(sigma))
    return Point(x, sigma, alpha, s)


def has_noise(model) -> bool:
    """False for sampling classes that start from an image (IMG_TO_IMG): there is no noise to denoise."""
    sampling = model.get_model_object("model_sampling")
    sigma = sampling.sigma_max.reshape(1).float()
    return bool((sampling.noise_scaling(sigma, torch.ones_like(sigma), torch.zeros_like(sigma)) != 0).all())


def sigma_bounds(model, start_percent: float, end_percent: float) -> tuple[float, float]:
    """(highest, lowest) sigma of an interval in ComfyUI's percent of a MODEL; no bound at either end.

    Raises ValueError for a value outside of [0, 1] or an end before the start.
    """
    check_percents(start_percent, end_percent)
    sampling = model.get_model_object("model_sampling")
    high = math.inf if start_percent == 0 else float(sampling.percent_to_sigma(start_percent))
    return high, 0.0 if end_percent == 1 else float(sampling.percent_to_sigma(end_percent))


def check_percents(start_percent: float, end_percent: float) -> None:
    """Raises ValueError for a value outside of [0, 1] or an end before the start."""
    if not 0 <= start_percent <= end_percent <= 1:
        want = "want 0 <= start_percent <= end_percent <= 1"
        raise ValueError(f"{want}, got {start_percent} and {end_percent}")


def percent_of(sampling, sigma: float) -> float:
    """The inverse of `percent_to_sigma`, by bisection: 0 at pure noise, 1 clean, for every sampling class."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) >= sigma else (low, middle)
    return round((low + high) / 2, 9)


def prediction_type(sampling) -> str:
    """eps, v, edm, x0 or flow: which quantity the network predicts."""
    for kind in ("CONST", "X0", "EDM", "V_PREDICTION", "EPS"):  # children before parents
        if isinstance(sampling, getattr(comfy.model_sampling, kind, ())):
            return {"CONST": "flow", "V_PREDICTION": "v"}.get(kind, kind.lower())
    return type(sampling).__name__


def model_kind(model) -> tuple[str, str]:
    """(prediction, latent) of a MODEL: what a calibration table belongs to."""
    return prediction_type(model.get_model_object("model_sampling")), type(model.model.latent_format).__name__
