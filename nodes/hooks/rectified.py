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
from dataclasses import dataclass, field
from numbers import Real

from ...reg_core.rectifier import Rectifier
from ...reg_core.settings import Settings
from ...reg_core.trace import Run, Trace
from ..backward.draws import Draws
from ..backward.reverse import BackwardPass
from ..host.branches import ModelBranches, Passes
from ..host.conds import is_present, same_conds
from ..host.noise_levels import has_noise, model_kind, point_at, sigma_bounds
from ..host.options import (
    CFG,
    PAIR,
    POST_CFG,
    PRE_CFG,
    Interrupted,
    WrappersMP,
    calls_through,
    hooked,
    in_the_way,
    is_cached,
    is_stock,
    sample_arguments,
    with_wrapper,
)

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
        shapes = sample_arguments(args, kwargs).get("latent_shapes") or []
        run = self.trace.start(Run(settings.form, settings.engine, settings.strength, shapes))
        if not has_noise(guider.model_patcher):
            sampling = type(guider.model_patcher.get_model_object("model_sampling")).__bases__
            why = f"{' and '.join(base.__name__ for base in sampling)} has no noise, so there is no REG"
            run.remark(why)
            log.warning("REG did nothing: %s", why)
            return executor(*args, **kwargs)
        rectifier = Rectifier(settings, run, (Interrupted,), self.observe)
        state = RunState(guider, rectifier, Passes(BackwardPass(self.memory)), is_stock(guider) or None)
        with calls_through(guider, KEY, state.predict_noise):
            result = executor(*args, **kwargs)
        state.report()
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
        why = "; ".join(reasons) or "the sampler never called the model"
        if run.remark(f"did nothing: {why}"):
            name, cfg = type(self.guider).__name__, getattr(self.guider, "cfg", "?")
            log.warning("REG did nothing with %s (cfg %s): %s", name, cfg, why)


@dataclass(frozen=True, eq=False)
class Positive:
    """The positive prompt's prediction: that of cond list `index`, in ComfyUI's function for all of them."""

    model: object
    conds: list
    index: int
    x: object
    sigma: object
    draws: Draws
    denoised: object


@dataclass(eq=False)
class ModelCall:
    """One call of the guider. `given`: model_options without us. `row`: what the trace says of it."""

    state: RunState
    given: dict
    reached: bool = False
    row: object = None
    uncond: object = None
    positive: Positive | None = None
    scales: list = field(default_factory=list)

    def __deepcopy__(self, memo):
        return self

    def options(self):
        options = with_wrapper(self.given, WrappersMP.CALC_COND_BATCH, KEY, self.note_positive)
        post_cfg = [self._with_true_uncond(function) for function in self.given.get(POST_CFG, [])]
        pre_cfg = [self.learn_scale, *self.given.get(PRE_CFG, [])]
        return {**options, PAIR: self.pair, PRE_CFG: pre_cfg, POST_CFG: post_cfg}

    def pair(self, args):
        """In ComfyUI's slot for both predictions: [d, d - R (d - u)]."""
        self.reached, state = True, self.state
        model, conds, x, sigma = args["model"], args["conds"], args["input"], args["sigma"]
        rectifier, cfg = state.rectifier, state.cfg
        branches = ModelBranches(model, conds, x, sigma, self.given, state.passes)
        if args["model_options"].get(CFG) is not self.given.get(
            CFG
        ):  # the guider combines them in its own way
            self.reached, draws = False, Draws(x.device)
            denoised, reference = branches.both()
            self.positive = Positive(model, conds, 0, x, sigma, draws, denoised)
            return [denoised, reference]
        if why := self._why_plain(conds, cfg, sigma):
            self.row = rectifier.run.plain(sigma, cfg, why)
            return branches.evaluate(conds, x, self.given)
        # Whoever switches ComfyUI's shortcut at cfg 1 off wants the unconditional prediction for itself.
        may_skip = not self.given.get("disable_cfg1_optimization", False)
        made = rectifier(branches, point_at(model.model_sampling, x, sigma), cfg - 1, may_skip)
        self.uncond, self.row = made.reference, made.row
        return [made.denoised, (made.denoised - made.rectified).to(made.denoised.dtype)]

    def _why_plain(self, conds, cfg, sigma) -> str:
        """Why the pair is not rectified; "" where it is. Guidance is where two prompts are asked for."""
        if len(conds) != 2 or conds[0] is None or conds[1] is None:
            return (
                "cfg 1: no guidance to rectify"
                if cfg == 1
                else "no unconditional pass: no guidance to rectify"
            )
        if not all(is_present(cond, sigma) for cond in conds):
            return "a prompt has no entry at this noise level"
        known = self.state.cfg_is_scale or cfg != 1
        return self.state.rectifier.settings.why_plain(cfg - 1 if known else math.nan, sigma)

    def learn_scale(self, args):
        """First of the pre-cfg functions: those are given the scale that the guider guides with."""
        scale, state = args["cond_scale"], self.state
        if isinstance(scale, Real):
            state.cfg_is_scale = math.isclose(scale, state.cfg)
            if self.row is not None:
                self.row.cfg = float(scale)
        return args["conds_out"]

    def _with_true_uncond(self, post_cfg):
        """CFG++ samplers and others read the unconditional prediction here: give them the model's own."""
        return lambda args: post_cfg(args | ({} if self.uncond is None else {"uncond_denoised": self.uncond}))

    def note_positive(self, executor, model, conds, x, sigma, model_options):
        """Around ComfyUI's function for all predictions, whoever calls it."""
        prompt = self.state.guider.conds.get("positive")
        found = [i for i, cond in enumerate(conds) if same_conds(cond, prompt)]
        if self.reached or self.positive is not None or not found:
            return executor(model, conds, x, sigma, model_options)
        draws = Draws(x.device)
        out = executor(model, conds, x, sigma, model_options)
        self.positive = Positive(model, conds, found[0], x, sigma, draws, out[found[0]].clone())
        return out

    def around_positive(self, result, sigma):
        """D of a guider that does not use the slot -> d + R (D - d)."""
        state, d = self.state, self.positive
        run = state.rectifier.run
        if why := self._why_as_it_is(result, sigma):
            run.plain(sigma, math.nan, why)
            return result
        known = d.denoised, 2 * d.denoised - result
        options = {k: v for k, v in self.given.items() if k != PAIR}
        branches = ModelBranches(
            d.model, d.conds, d.x, d.sigma, options, state.passes, d.index, known, d.draws
        )
        point = point_at(d.model.model_sampling, d.x, d.sigma)
        made = state.rectifier(branches, point, math.nan, may_skip=False)
        made.row.extra_rows += 2  # the guider's own
        name = in_the_way(state.guider)
        run.remark(f"{name} guides in its own way: all of its guidance is rectified")
        return made.guided(1.0)

    def _why_as_it_is(self, result, sigma) -> str:
        if self.positive is None:
            cached = is_cached(self.given)
            return (
                "a cache answered"
                if cached
                else f"{in_the_way(self.state.guider)} does not let the positive prediction be seen"
            )
        if self.positive.x.shape != result.shape:
            return "context windows in a sampling function of its own"
        if (self.positive.denoised == result).all():
            return "no guidance to rectify"
        return self.state.rectifier.settings.why_plain(math.nan, sigma)


def options_without_us(model_options):
    """model_options as they were before REG: an extra pass of ours is nobody's guidance."""
    call = getattr(model_options.get(PAIR), "__self__", None)
    return call.given if isinstance(call, ModelCall) else model_options
