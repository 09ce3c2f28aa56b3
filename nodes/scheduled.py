"""Schedules: cfg as a function of the noise level, through the guider, so that every sampler and every pack sees it."""

from __future__ import annotations

import math

from ..reg_core.schedule import Schedule, SigmaInterval, sigma_position, step_position
from .host import WrappersMP, log, percent_of

KEY = "reg_schedule"


def scheduled_model(model, schedule: Schedule, axis: str, label: str):
    """A clone of MODEL under which the guider's cfg becomes 1 + (cfg - 1) * multiplier at every model call.

    Several schedules multiply. At cfg 1 ComfyUI leaves the unconditional pass out.
    """
    patched = model.clone()
    hook = _ScheduleHook(schedule, axis, label)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, hook.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, hook.predict_noise)
    return patched


class _ScheduleHook:
    def __init__(self, schedule, axis, label):
        self.schedule = schedule
        self.axis = axis
        self.label = label

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        sigmas = kwargs.get("sigmas", args[3] if len(args) > 3 else None)
        if sigmas is not None and len(sigmas) > 1:
            self._announce(guider, sigmas)
        return executor(*args, **kwargs)

    def _announce(self, guider, sigmas):
        sampling = guider.model_patcher.get_model_object("model_sampling")
        factors = [self.multiplier(float(v), sampling, sigmas) for v in sigmas[:-1]]
        on = [i for i, factor in enumerate(factors) if factor != 0]
        steps = f"steps {on[0] + 1} to {on[-1] + 1} ({len(on)}) of {len(factors)}" if on else f"none of {len(factors)} steps"
        base = float(getattr(guider, "cfg", math.nan))
        log.info("REG: %s guides in %s, cfg %.3g to %.3g", self.label, steps, *(1 + (base - 1) * f for f in (min(factors), max(factors))))
        if not on or math.isclose(base, 1.0):
            log.warning("REG: %s has no effect: %s", self.label, "it guides in no step" if not on else f"cfg is {base}")

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        guider, model_options = executor.class_obj, model_options or {}
        base = getattr(guider, "cfg", None)
        if base is None:
            return executor(x, timestep, model_options, seed)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
        guider.cfg = 1 + (base - 1) * self.multiplier(float(timestep.max()), sampling, sigmas)
        try:
            return executor(x, timestep, model_options, seed)
        finally:
            guider.cfg = base

    def multiplier(self, sigma, sampling, sigmas):
        if isinstance(self.schedule, SigmaInterval):
            return self.schedule(sigma)
        if self.axis == "step" and sigmas is not None:
            return self.schedule(step_position(sigma, sigmas))
        if self.axis == "sigma":
            return self.schedule(sigma_position(sigma, float(sampling.sigma_max)))
        return self.schedule(percent_of(sampling, sigma))
