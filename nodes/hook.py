"""REG in a sampling run.

Sampling calls us in a chain (ComfyUI's names): OUTER_SAMPLE once a run -> PREDICT_NOISE per model call ->
sampler_calc_cond_batch_function, where the conditional and unconditional predictions are made. There we return
[d, d - R (d - u)]: any cfg function then computes d + (cfg - 1) R (d - u), and whatever follows composes.
"""

from __future__ import annotations

import dataclasses
import math

from ..reg_core.rectifier import Rectifier
from ..reg_core.rectify import Settings
from ..reg_core.trace import Row, Run, Trace
from .host import Interrupted, ModelBranches, WrappersMP, caches, clone_options, coordinates, log
from .host_runs import model_kind
from .memory import ReverseMemory

KEY = "reg"  # of our wrappers on a MODEL
RUN = "reg_run"  # of the run's state in the guider's own copy of model_options


def rectified_model(model, settings: Settings, start_percent: float = 0.0, end_percent: float = 1.0, observe=None):
    """A clone of MODEL whose guidance is rectified, and the trace its sampling runs will fill. The last one applied wins.

    `observe`: see Rectifier. Raises ValueError for a calibration table of another kind of model.
    """
    if settings.calibration is not None:
        settings.calibration.check(*model_kind(model)[:3])
    patched = model.clone()
    trace = Trace()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE):
        patched.remove_wrappers_with_key(kind, KEY)
    if not settings.enabled:
        return patched, trace
    hook = _Hook(settings, start_percent, end_percent, trace, observe)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, hook.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, hook.predict_noise)
    return patched, trace


class _Hook:
    """The two wrappers of one patched MODEL. Holds settings only; what belongs to a run lives in the run."""

    def __init__(self, settings, start_percent, end_percent, trace, observe):
        self.settings = settings
        self.percents = (start_percent, end_percent)
        self.trace = trace
        self.observe = observe

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        rectifier = self._new_run(guider)
        guider.model_options[RUN] = rectifier  # the guider's private copy, made for this sampling
        try:
            result = executor(*args, **kwargs)
        finally:
            guider.model_options.pop(RUN, None)
        _report(rectifier.run, guider)  # after success only: reading the trace must not hide an error
        return result

    def _new_run(self, guider):
        sampling = guider.model_patcher.get_model_object("model_sampling")
        start, end = self.percents
        settings = dataclasses.replace(
            self.settings,
            sigma_start=math.inf if start <= 0 else float(sampling.percent_to_sigma(start)),
            sigma_end=0.0 if end >= 1 else float(sampling.percent_to_sigma(end)),
        )
        run = self.trace.start(Run(settings.form, settings.engine, settings.strength))
        rectifier = Rectifier(settings, run=run, fatal=(Interrupted,), observe=self.observe)
        rectifier.host = ReverseMemory(settings.memory), coordinates(sampling)
        return rectifier

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        guider, model_options = executor.class_obj, model_options or {}
        # A guider driven without sample() has no run: rectify all the same, with a state of its own.
        rectifier = model_options.get(RUN) or self._new_run(guider)
        call = _Call(rectifier, guider, model_options)
        result = executor(x, timestep, call.options(), seed)
        if not call.reached:
            kept = " or ".join(caches(model_options))
            why = f"{kept} answered from memory" if kept else f"{type(guider).__name__} does not ask for the conditional and unconditional pair"
            rectifier.run.add(Row(_sigma=timestep, note=why))
        return result


class _Call:
    """One model call: its private model_options, and the pair of predictions made in place of ComfyUI's."""

    def __init__(self, rectifier, guider, model_options):
        self.rectifier = rectifier
        self.guider = guider
        self.given = model_options
        self.reached = False
        self.uncond = None

    def options(self):
        options = clone_options(self.given)
        options["sampler_calc_cond_batch_function"] = self.calc_cond_batch
        if "sampler_post_cfg_function" in options:
            options["sampler_post_cfg_function"] = [self._with_true_uncond(f) for f in options["sampler_post_cfg_function"]]
        return options

    def calc_cond_batch(self, args):
        self.reached = True
        model, conds, x, sigma = args["model"], args["conds"], args["input"], args["sigma"]
        cfg = float(getattr(self.guider, "cfg", math.nan))
        note = self._why_not(conds, cfg, sigma)
        bounds, alpha_and_s = self.rectifier.host
        branches = ModelBranches(model, conds, self.given, bounds, every_call=self.rectifier.settings.refresh == 1)
        if note is not None:
            self.rectifier.run.add(Row(_sigma=sigma, cfg=cfg, note=note))
            return branches.evaluate(conds, x, sigma)
        alpha, s = alpha_and_s(sigma, x)
        # Whoever switches ComfyUI's own shortcut at cfg 1 off wants the unconditional prediction for itself.
        may_skip = not self.given.get("disable_cfg1_optimization", False)
        prediction = self.rectifier(branches, x, sigma, cfg - 1, alpha, s, may_skip)
        self.uncond = prediction.reference
        return [prediction.denoised, (prediction.denoised - prediction.rectified).to(prediction.denoised.dtype)]

    def _why_not(self, conds, cfg, sigma):
        if len(conds) != 2 or conds[1] is None or conds[0] is None:
            return "cfg 1: no guidance to rectify" if math.isclose(cfg, 1.0) else "no unconditional pass: no guidance to rectify"
        if math.isclose(cfg, 1.0):
            return "cfg 1: no guidance to rectify"
        if self.rectifier.settings.bounded and not self.rectifier.settings.covers(float(sigma.max())):
            return "outside start and end"
        return None

    def _with_true_uncond(self, post_cfg):
        """CFG++ samplers and others take the unconditional prediction from here: give them the model's own."""

        def call(args):
            return post_cfg(args if self.uncond is None else {**args, "uncond_denoised": self.uncond})

        return call


def _report(run: Run, guider) -> None:
    """One line a run, and a warning when REG did nothing or had to fall back."""
    if run.active:
        log.info("REG: %s", run.summary())
        bad = [row for row in run.active if row.nonfinite]
        if bad and run.remark(f"non-finite correction in {len(bad)} of {len(run.active)} active calls: plain guidance there"):
            log.warning("REG: %s", run.notes[-1])
        return
    reasons = list(dict.fromkeys(row.note for row in run.rows if row.note))
    why = "; ".join(reasons) or "the model was never called"
    if run.remark(f"did nothing: {why}"):
        log.warning("REG did nothing with %s (cfg %s): %s", type(guider).__name__, getattr(guider, "cfg", "?"), why)


def without_reg(model_options):
    """model_options as they were before this call was rectified: our own extra passes are nobody's guidance."""
    hooked = getattr(model_options.get("sampler_calc_cond_batch_function"), "__self__", None)
    return hooked.given if isinstance(hooked, _Call) else model_options
