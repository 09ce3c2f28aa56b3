"""Schedules: cfg as a function of the noise level, through the guider, so that every sampler sees it."""

import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

from ...reg_core.presets import CfgSchedule, Levels
from ..host.guiders import calls_through, reads_cfg, sample_arguments
from ..host.noise_levels import percent_of
from ..host.options import hooked, with_watch

KEY = "reg_schedule"
log = logging.getLogger("ComfyUI-REG")


def scheduled_model(model, schedule: CfgSchedule, label: str):
    """A clone of MODEL whose sampler's cfg becomes `schedule.cfg(...)` at every call. Several multiply."""
    return hooked(model, KEY, ScheduleHook(schedule, label).outer_sample, alone=False)


@dataclass(frozen=True)
class ScheduleHook:
    """Holds settings only; positions belong to a run."""

    schedule: CfgSchedule
    label: str

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        cfg = getattr(guider, "cfg", None)
        if not isinstance(cfg, Real) or not reads_cfg(guider):
            why = "its cfg is not one number" if cfg is not None else "it has no cfg"
            why = why if not isinstance(cfg, Real) else "it does not guide by its cfg"
            log.warning("REG: %s has no effect on %s: %s", self.label, type(guider).__name__, why)
            return executor(*args, **kwargs)
        others: list[str] = []
        levels = levels_of(guider.model_patcher, sample_arguments(args, kwargs)["sigmas"])
        self._announce(guider, levels)

        def predict_noise(executor, x, timestep, model_options=None, seed=None):
            cfg = guider.cfg
            guider.cfg = self.schedule.cfg(cfg, float(timestep.max()), levels)
            try:
                return executor(x, timestep, with_watch(model_options or {}, others), seed)
            finally:
                guider.cfg = cfg

        with calls_through(guider, KEY, predict_noise):
            result = executor(*args, **kwargs)
        if others:
            log.warning(
                "REG: %s has no effect on %s: it uses other scales than cfg",
                self.label,
                type(guider).__name__,
            )
        return result

    def _announce(self, guider, levels):
        """Tells where guidance acts. The positions of all steps are known from here on."""
        base = float(guider.cfg)
        cfgs = [self.schedule.cfg(base, sigma, levels) for sigma in levels.sigmas]
        on = [i + 1 for i, cfg in enumerate(cfgs) if not math.isclose(cfg, 1.0)]
        if on:
            steps = f"steps {on[0]} to {on[-1]} ({len(on)}) of {len(cfgs)}"
            log.info("REG: %s guides in %s, cfg %.3g to %.3g", self.label, steps, min(cfgs), max(cfgs))
        elif cfgs:
            log.warning("REG: %s has no effect: it guides in no step at cfg %s", self.label, base)


def levels_of(model, sigmas) -> Levels:
    """The noise levels of a run of MODEL over `sigmas`; each position is looked up once."""
    sampling = model.get_model_object("model_sampling")
    levels = tuple(level for level in sigmas.tolist() if level > 0)
    percent = lru_cache(None)(lambda sigma: percent_of(sampling, sigma))
    return Levels(levels, float(sampling.sigma_max), percent)
