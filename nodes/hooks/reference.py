"""A second MODEL for the reference prediction: autoguidance, or a separate network for the negative prompt.

Both models stay loaded for the whole run. The pair (D_cond, D_reference) is made in ComfyUI's slot for it, so
samplers, cfg functions, schedules and REG work on it as on plain CFG.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..host.options import PAIR, hooked, sample_arguments
from ..host.second_model import SecondModel, calc_cond_batch, check_same_space, shares_weights

KEY = "reg_reference"
log = logging.getLogger("ComfyUI-REG")


def with_reference(model, reference_model, weights: tuple[float, float] | None = None):
    """A clone of MODEL under which the negative pass runs on `reference_model`.

    With `weights` (w_r, w_n) the reference is a mean, in their ratio: of `reference_model` on the *positive*
    conds (autoguidance, Karras et al. 2024) and of this model on the negative ones. Sampled at cfg = 1 + w_r
    + w_n that gives D_c + w_r (D_c - D_weak) + w_n (D_c - D_negative). Raises ValueError when the models do
    not share latents, or cannot be loaded side by side.
    """
    check_same_space(model, reference_model)
    shared = shares_weights(model, reference_model)

    def outer_sample(executor, *args, **kwargs):
        guider, prompt = executor.class_obj, "negative" if weights is None else "positive"
        conds = guider.conds.get(prompt)
        if conds is None:
            log.warning("REG: %s has no %s prompt: no reference model", type(guider).__name__, prompt)
            return executor(*args, **kwargs)
        other = reference_model if shared else guider.model_patcher.get_additional_models_with_key(KEY)[0]
        second = SecondModel(other, guider, conds, sample_arguments(args, kwargs))
        options = guider.model_options
        pair = ReferencePair(second, weights, options.get(PAIR))
        guider.model_options = {**options, PAIR: pair.calc_cond_batch}
        try:
            return executor(*args, **kwargs)
        finally:
            guider.model_options = options
            second.stop()

    patched = hooked(model, KEY, outer_sample)
    patched.set_additional_models(KEY, [] if shared else [reference_model])
    return patched


@dataclass(frozen=True, eq=False)
class ReferencePair:
    """[D_cond of this model, the reference] in place of ComfyUI's pair, for one run."""

    second: SecondModel
    weights: tuple[float, float] | None
    previous: Callable | None

    def calc_cond_batch(self, args):
        cond, negative = args["conds"] if len(args["conds"]) == 2 else (None, None)
        if negative is None:
            return self._of_this_model(args["conds"], args)
        x, sigma = args["input"], args["sigma"]
        denoised = torch.zeros_like(x) if cond is None else self._of_this_model([cond, None], args)[0]
        if self.weights is None:
            return [denoised, self.second.denoised(x, sigma)]
        w_reference, w_negative = self.weights
        reference = torch.zeros_like(x)
        if w_reference:
            reference = reference + w_reference / (w_reference + w_negative) * self.second.denoised(x, sigma)
        if w_negative:
            own = self._of_this_model([None, negative], args)[1]
            reference = reference + w_negative / (w_reference + w_negative) * own
        return [denoised, reference]

    def _of_this_model(self, conds, args):
        if self.previous is not None:
            return self.previous({**args, "conds": conds})
        return calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])
