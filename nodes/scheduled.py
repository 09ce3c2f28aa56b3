"""Schedules: cfg as a function of the noise level, through the guider, so that every sampler and every pack sees it."""

from __future__ import annotations

import math

from ..reg_core.presets import Plan, position
from .host import WrappersMP, log, percent_of, sample_arguments

KEY = "reg_schedule"


def scheduled_model(model, plan: Plan, label: str):
    """A clone of MODEL under which the guider's cfg becomes `plan.scheduled(cfg, multiplier)` at every model call.

    Several schedules multiply. At cfg 1 ComfyUI leaves the unconditional pass out.
    """
    patched = model.clone()
    hook = _ScheduleHook(plan, label)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, hook.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, hook.predict_noise)
    return patched


class _ScheduleHook:
    def __init__(self, plan, label):
        self.plan = plan
        self.label = label

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        sigmas = sample_arguments(args, kwargs).get("sigmas")
        if sigmas is not None and len(sigmas) > 1:
            self._announce(guider, sigmas)
        return executor(*args, **kwargs)

    def _announce(self, guider, sigmas):
        sampling = guider.model_patcher.get_model_object("model_sampling")
        base = float(getattr(guider, "cfg", math.nan))
        factors = [self.multiplier(float(v), sampling, sigmas) for v in sigmas[:-1]]
        cfgs = [self.plan.scheduled(base, factor) for factor in factors]
        on = [i for i, cfg in enumerate(cfgs) if not math.isclose(cfg, 1.0)]
        steps = f"steps {on[0] + 1} to {on[-1] + 1} ({len(on)}) of {len(cfgs)}" if on else f"none of {len(cfgs)} steps"
        log.info("REG: %s guides in %s, cfg %.3g to %.3g", self.label, steps, min(cfgs), max(cfgs))
        if not on:
            log.warning("REG: %s has no effect: %s", self.label, f"cfg is {base}" if any(factors) else "it guides in no step")

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        guider, model_options = executor.class_obj, model_options or {}
        base = getattr(guider, "cfg", None)
        if base is None:
            return executor(x, timestep, model_options, seed)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
        guider.cfg = self.plan.scheduled(base, self.multiplier(float(timestep.max()), sampling, sigmas))
        try:
            return executor(x, timestep, model_options, seed)
        finally:
            guider.cfg = base

    def multiplier(self, sigma, sampling, sigmas):
        """At noise level `sigma` of a run over `sigmas` (None: not known)."""
        return self.plan.schedule(position(self.plan.axis, sigma, sigmas, float(sampling.sigma_max), lambda s: percent_of(sampling, s)))
