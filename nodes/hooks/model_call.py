"""One call of the guider in a run with REG: both places where guidance can be rectified."""

import math
from dataclasses import dataclass
from numbers import Real

from ..backward.draws import Draws
from ..host.branches import ModelBranches
from ..host.conds import is_present, same_conds
from ..host.guiders import in_the_way
from ..host.noise_levels import point_at
from ..host.options import CFG, PAIR, POST_CFG, PRE_CFG, WrappersMP, is_cached, with_wrapper

KEY = "reg"


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

    state: object  # rectified.RunState
    given: dict
    reached: bool = False
    row: object = None
    uncond: object = None
    positive: Positive | None = None

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
        if args["model_options"].get(CFG) is not self.given.get(CFG):
            return self._of_a_guider_with_its_own_formula(branches)
        if why := self._why_plain(conds, cfg, sigma):
            self.row = rectifier.run.plain(sigma, cfg, why)
            return branches.evaluate(conds, x, self.given)
        # Whoever switches ComfyUI's shortcut at cfg 1 off wants the unconditional prediction for itself.
        may_skip = not self.given.get("disable_cfg1_optimization", False)
        made = rectifier(branches, point_at(model.model_sampling, x, sigma), cfg - 1, may_skip)
        self.uncond, self.row = made.reference, made.row
        return [made.denoised, (made.denoised - made.rectified).to(made.denoised.dtype)]

    def _of_a_guider_with_its_own_formula(self, branches):
        self.reached, draws = False, Draws(branches.x.device)
        pair = branches.both()
        made = branches.model, branches.conds, 0, branches.x, branches.sigma, draws
        self.positive = Positive(*made, pair[0])
        return list(pair)

    def _why_plain(self, conds, cfg, sigma) -> str:
        """Why the pair is not rectified; "" where it is. Guidance is where two prompts are asked for."""
        if len(conds) != 2 or conds[0] is None or conds[1] is None:
            return f"{'cfg 1' if cfg == 1 else 'no unconditional pass'}: no guidance to rectify"
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
        run_so_far = state.passes, d.index, known, d.draws
        branches = ModelBranches(d.model, d.conds, d.x, d.sigma, options, *run_so_far)
        point = point_at(d.model.model_sampling, d.x, d.sigma)
        made = state.rectifier(branches, point, math.nan, may_skip=False)
        made.row.extra_rows += 2  # the guider's own
        name = in_the_way(state.guider)
        run.remark(f"{name} guides in its own way: all of its guidance is rectified")
        return made.guided(1.0)

    def _why_as_it_is(self, result, sigma) -> str:
        if self.positive is None and is_cached(self.given):
            return "a cache answered"
        if self.positive is None:
            return f"{in_the_way(self.state.guider)} does not let the positive prediction be seen"
        if self.positive.x.shape != result.shape:
            return "context windows in a sampling function of its own"
        if (self.positive.denoised == result).all():
            return "no guidance to rectify"
        return self.state.rectifier.settings.why_plain(math.nan, sigma)


def options_without_us(model_options):
    """model_options as they were before REG: an extra pass of ours is nobody's guidance."""
    call = getattr(model_options.get(PAIR), "__self__", None)
    return call.given if isinstance(call, ModelCall) else model_options
