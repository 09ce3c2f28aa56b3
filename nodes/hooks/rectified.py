"""REG in a sampling run.

In each model call ComfyUI makes the conditional and the unconditional prediction, d and u, in one slot. There
we return [d, d - R (d - u)]: every cfg function then computes d + (cfg - 1) R (d - u).

Guiders and packs with a sampling function of their own do not use the slot. There we note the positive's
prediction d as it is made, and the guider's result D becomes d + R (D - d).
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

from ...reg_core.rectifier import Rectifier
from ...reg_core.settings import Settings
from ...reg_core.trace import Run, Trace
from ..backward.reverse import BackwardPass
from ..host.branches import Passes
from ..host.guiders import calls_through, is_stock, sample_arguments
from ..host.noise_levels import has_noise, model_kind, sigma_bounds
from ..host.options import Interrupted, hooked
from .model_call import KEY, ModelCall

log = logging.getLogger("ComfyUI-REG")


def rectified_model(
    model, settings: Settings, percents=(0.0, 1.0), observe=None, memory: str = "auto", tell=None
):
    """(a clone of MODEL whose guidance is rectified, the Trace of its runs). The last one applied wins.

    `percents`: where, in ComfyUI's percent. `observe`: see Rectifier. `memory`: see BackwardPass. `tell`: is
    called with a line about each run.
    Raises ValueError for a calibration table of another kind of model.
    """
    if settings.calibration is not None:
        settings.calibration.check(*model_kind(model))
    hook = RectifyHook(settings, percents, observe, memory, Trace(), tell or (lambda line: None))
    hook.settings_for(model)  # refuses wrong percents now
    return hooked(model, KEY, hook.outer_sample if settings.enabled else None), hook.trace


@dataclass(frozen=True, eq=False)
class RectifyHook:
    """See `rectified_model`. Holds settings only; what belongs to a run is in a RunState."""

    settings: Settings
    percents: tuple[float, float]
    observe: Callable | None
    memory: str
    trace: Trace
    tell: Callable[[str], None]

    def settings_for(self, model) -> Settings:
        """The settings with the bounds in units of MODEL's sigma."""
        high, low = sigma_bounds(model, *self.percents)
        return dataclasses.replace(self.settings, sigma_start=high, sigma_end=low)

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        settings = self.settings_for(guider.model_patcher)
        shapes = sample_arguments(args, kwargs).get("latent_shapes") or []
        run = self.trace.start(Run(settings, shapes=shapes))
        if not has_noise(guider.model_patcher):
            sampling = type(guider.model_patcher.get_model_object("model_sampling")).__bases__
            why = f"{' and '.join(base.__name__ for base in sampling)} has no noise, so there is no REG"
            run.remark(why)
            log.warning("REG did nothing: %s", why)
            self.tell(f"REG did nothing: {why}")
            return executor(*args, **kwargs)
        rectifier = Rectifier(settings, run, (Interrupted,), self.observe)
        state = RunState(guider, rectifier, Passes(BackwardPass(self.memory)), is_stock(guider) or None)
        with calls_through(guider, KEY, state.predict_noise):
            result = executor(*args, **kwargs)
        self.tell(state.report())
        return result


@dataclass(eq=False)
class RunState:
    """One sampling run. `cfg_is_scale`: whether the guider's `cfg` is the scale it uses, once known."""

    guider: object
    rectifier: Rectifier
    passes: Passes
    cfg_is_scale: bool | None

    def __deepcopy__(self, memo):
        return self  # samplers copy their arguments, and with them the wrappers of a run

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        call = ModelCall(self, model_options or {})
        result = executor(x, timestep, call.options(), seed)
        return result if call.reached else call.around_positive(result, timestep)

    @property
    def cfg(self) -> float:
        """The guider's scale as far as it says one; else nan."""
        cfg = getattr(self.guider, "cfg", None)
        number = isinstance(cfg, Real) and not isinstance(cfg, bool)
        return float(cfg) if number and self.cfg_is_scale is not False else math.nan

    def report(self) -> str:
        """Logs a line, and a warning when REG did nothing or found no number. Returns what the node says."""
        run = self.rectifier.run
        if run.active:
            log.info("REG: %s", run.summary())
            note = run.not_finite()
            if note and run.remark(note):
                log.warning("REG: %s", note)
            if (warning := run.settings.warning) and run.remark(warning):
                log.warning("REG: %s", warning)
            return "\n".join([*run.facts(), *filter(None, [warning])])
        reasons = dict.fromkeys(row.note for row in run.rows if row.note)
        why = "; ".join(reasons) or "the sampler never called the model"
        if run.remark(f"did nothing: {why}"):
            name, cfg = type(self.guider).__name__, getattr(self.guider, "cfg", "?")
            log.warning("REG did nothing with %s (cfg %s): %s", name, cfg, why)
        return f"REG did nothing: {why}"
