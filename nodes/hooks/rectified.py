"""REG in a sampling run.

In each model call ComfyUI makes the conditional and the unconditional prediction, d and u, in one slot. There
we return [d, d - R (d - u)]: every cfg function then computes d + (cfg - 1) R (d - u).
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from ...reg_core.rectifier import Rectifier
from ...reg_core.settings import Settings
from ...reg_core.trace import Run, Trace
from ..backward.reverse import BackwardPass
from ..host.branches import ModelBranches
from ..host.noise_levels import model_kind, point_at, sigma_bounds
from ..host.options import PAIR, POST_CFG, Interrupted, calls_through, clone_options, hooked

KEY = "reg"
log = logging.getLogger("ComfyUI-REG")


def rectified_model(model, settings: Settings, percents=(0.0, 1.0), observe=None, memory: str = "auto"):
    """(a clone of MODEL whose guidance is rectified, the Trace of its runs). The last one applied wins.

    `percents`: where, in ComfyUI's percent. `observe`: see Rectifier. `memory`: see BackwardPass.
    Raises ValueError for a calibration table of another kind of model.
    """
    if settings.calibration is not None:
        settings.calibration.check(*model_kind(model))
    hook = RectifyHook(settings, percents, observe, memory, Trace())
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

    def settings_for(self, model) -> Settings:
        """The settings with the bounds in units of MODEL's sigma."""
        high, low = sigma_bounds(model, *self.percents)
        return dataclasses.replace(self.settings, sigma_start=high, sigma_end=low)

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        settings = self.settings_for(guider.model_patcher)
        run = self.trace.start(Run(settings.form, settings.engine, settings.strength))
        rectifier = Rectifier(settings, run, (Interrupted,), self.observe)
        state = RunState(guider, rectifier, BackwardPass(self.memory))
        with calls_through(guider, KEY, state.predict_noise):
            result = executor(*args, **kwargs)
        state.report()
        return result


@dataclass(frozen=True, eq=False)
class RunState:
    """One sampling run."""

    guider: object
    rectifier: Rectifier
    backward: BackwardPass

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        pair = RectifiedPair(self, model_options or {})
        result = executor(x, timestep, pair.options(), seed)
        if not pair.reached:
            why = f"{type(self.guider).__name__} does not ask for the conditional and unconditional pair"
            self.rectifier.run.plain(timestep, math.nan, why)
        return result

    def report(self):
        """One line a run, and a warning when REG did nothing or found no number."""
        run = self.rectifier.run
        if run.active:
            log.info("REG: %s", run.summary())
            bad = sum(row.nonfinite > 0 for row in run.active)
            note = f"non-finite correction in {bad} of {len(run.active)} active calls: plain guidance there"
            if bad and run.remark(note):
                log.warning("REG: %s", note)
            return
        reasons = dict.fromkeys(row.note for row in run.rows if row.note)
        why = "; ".join(reasons) or "the model was never called"
        if run.remark(f"did nothing: {why}"):
            name, cfg = type(self.guider).__name__, getattr(self.guider, "cfg", "?")
            log.warning("REG did nothing with %s (cfg %s): %s", name, cfg, why)


@dataclass(eq=False)
class RectifiedPair:
    """The pair of predictions of one model call. `given`: model_options without us."""

    state: RunState
    given: dict
    reached: bool = False
    uncond: object = None

    def options(self):
        options = clone_options(self.given)
        options[PAIR] = self.calc_cond_batch
        if POST_CFG in options:
            options[POST_CFG] = [self._with_true_uncond(function) for function in options[POST_CFG]]
        return options

    def calc_cond_batch(self, args):
        self.reached = True
        model, conds, x, sigma = args["model"], args["conds"], args["input"], args["sigma"]
        rectifier, cfg = self.state.rectifier, float(getattr(self.state.guider, "cfg", math.nan))
        branches = ModelBranches(model, conds, self.given, self.state.backward)
        why = rectifier.settings.why_plain(cfg - 1, sigma)
        if not why and (len(conds) != 2 or conds[0] is None or conds[1] is None):
            why = "no unconditional pass: no guidance to rectify"
        if why:
            rectifier.run.plain(sigma, cfg, why)
            return branches.evaluate(conds, x, sigma)
        # Whoever switches ComfyUI's shortcut at cfg 1 off wants the unconditional prediction for itself.
        may_skip = not self.given.get("disable_cfg1_optimization", False)
        point = point_at(model.model_sampling, x, sigma)
        made = rectifier(branches, point, cfg - 1, may_skip)
        self.uncond = made.reference
        return [made.denoised, (made.denoised - made.rectified).to(made.denoised.dtype)]

    def _with_true_uncond(self, post_cfg):
        """CFG++ samplers and others read the unconditional prediction here: give them the model's own."""
        return lambda args: post_cfg(args | ({} if self.uncond is None else {"uncond_denoised": self.uncond}))


def options_without_us(model_options):
    """model_options as they were before REG: an extra pass of ours is nobody's guidance."""
    hooked = getattr(model_options.get(PAIR), "__self__", None)
    return hooked.given if isinstance(hooked, RectifiedPair) else model_options
