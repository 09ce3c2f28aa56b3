"""A second MODEL for the reference prediction: autoguidance, or a separate network for the negative prompt.

Both models stay loaded for the whole run. The pair (D_cond, D_reference) is made in ComfyUI's slot for it, so
samplers, cfg functions, schedules and REG work on it as on plain CFG.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..backward.draws import Draws
from ..host.branches import are_same
from ..host.conds import same_conds
from ..host.guiders import in_the_way, sample_arguments
from ..host.options import PAIR, Interrupted, WrappersMP, hooked, with_wrapper
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
        pair = ReferencePair(guider, second, weights, options.get(PAIR))
        ours = with_wrapper(options, WrappersMP.CALC_COND_BATCH, KEY, pair.beside_the_slot)
        guider.model_options = {**ours, PAIR: pair.calc_cond_batch}
        try:
            result = executor(*args, **kwargs)
        finally:
            guider.model_options = options
            second.stop()
        if not pair.used:
            why = f"no negative prediction was asked for; in the way: {in_the_way(guider)}"
            log.warning("REG: the reference model was not used by %s: %s", type(guider).__name__, why)
        return result

    patched = hooked(model, KEY, outer_sample)
    patched.set_additional_models(KEY, [] if shared else [reference_model])
    return patched


@dataclass(eq=False)
class ReferencePair:
    """The reference in place of the negative prediction, for one run: in ComfyUI's slot for the pair, and in
    its function for all predictions where a guider or a pack does not use the slot.
    """

    guider: object
    second: SecondModel
    weights: tuple[float, float] | None
    previous: Callable | None
    used: bool = False
    in_slot: bool = False
    lone: bool | None = (
        None  # the other predictions are the same without the negative one; None: not known yet
    )

    def __deepcopy__(self, memo):
        return self  # samplers copy their arguments

    def calc_cond_batch(self, args):
        def of_this_model(conds):
            if self.previous is not None:
                return self.previous({**args, "conds": conds})
            return calc_cond_batch(args["model"], conds, x, sigma, args["model_options"])

        x, sigma, self.in_slot = args["input"], args["sigma"], True
        try:
            at = 1 if len(args["conds"]) == 2 and args["conds"][1] is not None else None
            return self._predictions(args["model"], of_this_model, args["conds"], at, x, sigma)
        finally:
            self.in_slot = False

    def beside_the_slot(self, executor, model, conds, x, sigma, model_options):
        negative = self.guider.conds.get("negative")
        at = next((i for i, cond in enumerate(conds) if same_conds(cond, negative)), None)
        at = None if self.in_slot else at
        return self._predictions(
            model, lambda c: executor(model, c, x, sigma, model_options), conds, at, x, sigma
        )

    def _predictions(self, model, of_this_model, conds, at, x, sigma):
        """Those of `conds`, with the reference at place `at` (None: nowhere)."""
        if at is None:
            return of_this_model(conds)
        self.used = True
        w_reference, w_negative = self.weights or (1.0, 0.0)
        share = w_reference / (w_reference + w_negative) if w_reference + w_negative else 0.0
        out = list(self._own(model, of_this_model, conds, None if w_negative else at, x))
        reference = share * self.second.denoised(x, sigma) if share else torch.zeros_like(x)
        out[at] = reference + (1 - share) * out[at] if w_negative else reference
        return out

    def _own(self, model, of_this_model, conds, without, x):
        """This model's predictions; that at `without` is left out where the others stay the same."""
        others = [None if i == without else cond for i, cond in enumerate(conds)]
        if without is None or self.lone is False:
            return of_this_model(conds)
        if self.lone is None and all(cond is not None for cond in conds):
            draws = Draws(x.device)
            known = of_this_model(conds)
            try:
                with draws.again():
                    found = of_this_model(others)
                wanted = [i for i in range(len(conds)) if i != without]
                self.lone = are_same(model, [found[i] for i in wanted], [known[i] for i in wanted], x)
            except Interrupted:
                raise
            except Exception:  # a patch that counts rows
                self.lone = False
            return known
        asked = any(cond is not None for cond in others)
        return of_this_model(others) if asked else [torch.zeros_like(x) for _ in conds]
