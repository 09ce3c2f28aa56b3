"""A second MODEL for the reference prediction: autoguidance, or a separate network for the negative prompt.

Both models stay loaded for the whole run. The pair (D_cond, D_reference) is made in the slot that sampling asks for it,
so every sampler, every cfg function, schedules and REG work on it as on plain CFG.
"""

from __future__ import annotations

import torch

from . import host, host_second

KEY = "reg_reference"


def with_reference(model, reference_model, weight_reference=None, weight_negative=None):
    """A clone of MODEL under which the negative pass runs on `reference_model`.

    With weights, the reference is instead the mean of `reference_model` on the *positive* conds (autoguidance, Karras
    et al. 2024) and this model on the negative ones, in the ratio of the weights: sampled at
    cfg = 1 + weight_reference + weight_negative that gives D_c + w_r (D_c - D_weak) + w_n (D_c - D_negative).
    Raises ValueError when the two models do not share latents or weights cannot be loaded side by side.
    """
    host_second.check_same_space(model, reference_model)
    patched = model.clone()
    patched.remove_wrappers_with_key(host.WrappersMP.OUTER_SAMPLE, KEY)
    shared = host_second.shares_weights(model, reference_model)
    patched.set_additional_models(KEY, [] if shared else [reference_model])
    hook = _Hook(reference_model if shared else None, weight_reference, weight_negative)
    patched.add_wrapper_with_key(host.WrappersMP.OUTER_SAMPLE, KEY, hook.outer_sample)
    return patched


class _Hook:
    """Settings of one patched MODEL; the state of a run is in _Run."""

    def __init__(self, shared, weight_reference, weight_negative):
        self.shared = shared
        self.weights = None if weight_reference is None else (weight_reference, weight_negative)

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        patcher = self.shared or guider.model_patcher.get_additional_models_with_key(KEY)[0]
        conds = guider.conds.get("negative" if self.weights is None else "positive")
        if conds is None:
            host.log.warning("REG: %s has no %s prompt: the reference model is not used", type(guider).__name__, "negative")
            return executor(*args, **kwargs)
        second = host_second.SecondModel(patcher, guider, conds, host.sample_arguments(args, kwargs))
        run = _Run(second, self.weights, guider.model_options.get("sampler_calc_cond_batch_function"))
        guider.model_options["sampler_calc_cond_batch_function"] = run.pair  # the guider's private copy
        try:
            return executor(*args, **kwargs)
        finally:
            second.stop()


class _Run:
    def __init__(self, second, weights, previous):
        self.second = second
        self.weights = weights
        self.previous = previous

    def pair(self, args):
        """In place of ComfyUI's calc_cond_batch: [D_cond of this model, the reference]."""
        cond, negative = args["conds"] if len(args["conds"]) == 2 else (None, None)
        if negative is None:
            return self._own(args["conds"], args)
        x, sigma = args["input"], args["sigma"]
        denoised = torch.zeros_like(x) if cond is None else self._own([cond, None], args)[0]
        if self.weights is None:
            return [denoised, self.second.denoised(x, sigma)]
        w_reference, w_negative = self.weights
        reference = torch.zeros_like(x)
        if w_reference:
            reference = reference + w_reference / (w_reference + w_negative) * self.second.denoised(x, sigma)
        if w_negative:
            reference = reference + w_negative / (w_reference + w_negative) * self._own([None, negative], args)[1]
        return [denoised, reference]

    def _own(self, conds, args):
        if self.previous is not None:
            return self.previous({**args, "conds": conds})
        return host_second.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])
