"""Schedules: cfg as a function of the noise level, through the guider, so that every sampler sees it."""

import logging
import math
from functools import lru_cache

from ...reg_core.presets import CfgSchedule, Levels
from ..host.noise_levels import percent_of
from .run_hook import RunHook

KEY = "reg_schedule"
log = logging.getLogger("ComfyUI-REG")


class ScheduleHook(RunHook):
    """The guider's cfg becomes `schedule.cfg(cfg, sigma, levels)` in every model call. Several multiply."""

    key = KEY

    def __init__(self, schedule: CfgSchedule, label: str):
        self.schedule = schedule
        self.label = label

    def begin(self, guider, sigmas) -> Levels:
        return levels_of(guider.model_patcher, sigmas)

    def announce(self, state, guider):
        """Tells where guidance acts. The positions of all steps are known from here on."""
        base = float(getattr(guider, "cfg", math.nan))
        cfgs = [self.schedule.cfg(base, sigma, state) for sigma in state.sigmas]
        on = [i + 1 for i, cfg in enumerate(cfgs) if not math.isclose(cfg, 1.0)]
        if on:
            steps = f"steps {on[0]} to {on[-1]} ({len(on)}) of {len(cfgs)}"
            log.info("REG: %s guides in %s, cfg %.3g to %.3g", self.label, steps, min(cfgs), max(cfgs))
        elif cfgs:
            why = f"cfg is {base}" if math.isclose(base, 1.0) else "it guides in no step"
            log.warning("REG: %s has no effect: %s", self.label, why)

    def call(self, state, guider, executor, x, timestep, model_options, seed):
        cfg = getattr(guider, "cfg", None)
        if cfg is None:
            return executor(x, timestep, model_options, seed)
        guider.cfg = self.schedule.cfg(cfg, float(timestep.max()), state)
        try:
            return executor(x, timestep, model_options, seed)
        finally:
            guider.cfg = cfg


def levels_of(model, sigmas) -> Levels:
    """The noise levels of a run of MODEL over `sigmas` (None: not known); each position is looked up once."""
    sampling = model.get_model_object("model_sampling")
    levels = () if sigmas is None else tuple(level for level in sigmas.tolist() if level > 0)
    percent = lru_cache(None)(lambda sigma: percent_of(sampling, sigma))
    return Levels(levels, float(sampling.sigma_max), percent)
