"""Rectified guidance for any guider, by the formula: D_c + R (D - D_c), made of the guider's own plain calls.

D is the guider's result, D_c the positive's prediction in the same call. J comes from central differences of D_c in
calls of the whole guider. Nothing of REG is in here.
"""

from contextlib import contextmanager

import comfy.samplers
import torch

STEP = 0.02  # of central differences, relative to the noise
FORMS = ("row_sum", "scalar", "product", "schedule")


@contextmanager
def _watched(guider, seen):
    """In it `seen["positive"]` is the last prediction that ComfyUI made for the guider's positive prompt."""
    before = comfy.samplers.calc_cond_batch

    def calc_cond_batch(model, conds, *args, **kwargs):
        out = before(model, conds, *args, **kwargs)
        for cond, result in zip(conds, out, strict=True):
            if cond is guider.conds["positive"]:
                seen["positive"] = result.clone()
        return out

    comfy.samplers.calc_cond_batch = calc_cond_batch
    try:
        yield
    finally:
        comfy.samplers.calc_cond_batch = before


def rectified(guider, call, form, x, sigma, data_std=1.0):
    """(what a rectified `call(x) -> D` must return, D, D_c) at noise level sigma [B]."""

    def ask(x):
        seen = {}
        with _watched(guider, seen):
            result = call(x)
        return result, seen["positive"]

    def column(numbers):
        return numbers.reshape(-1, *[1] * (x.ndim - 1))

    def rows(t):
        return column(t.flatten(1).sum(1))

    denoised, positive = ask(x)
    guidance = denoised - positive
    scale = guider.inner_model.model_sampling.noise_scaling
    level = sigma.to(torch.float32)
    s, alpha = (column(scale(level, torch.full_like(level, noise), torch.full_like(level, 1 - noise))) for noise in (1.0, 0.0))
    if form == "schedule":
        return positive + data_std**2 / (data_std**2 + (s / alpha) ** 2) * guidance, denoised, positive
    direction = torch.ones_like(x) if form == "row_sum" else guidance
    h = STEP * s.max() * direction.numel() ** 0.5 / direction.norm()
    ahead, behind = (ask(x + sign * h * direction)[1] for sign in (1, -1))
    product = alpha * (ahead - behind) / (2 * h)
    if form == "row_sum":
        correction = product * guidance
    elif form == "scalar":
        correction = rows(product * guidance) / rows(guidance * guidance) * guidance
    else:
        correction = product
    return positive + correction, denoised, positive


def guider_class(kind, form, data_std=1.0):
    """`kind`, a class of guiders, with rectified guidance of its own."""

    class Rectified(kind):
        def __call__(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            call = super().__call__
            return rectified(self, lambda x: call(x, timestep, model_options=model_options, seed=seed), form, x, timestep, data_std)[0]

    return Rectified
