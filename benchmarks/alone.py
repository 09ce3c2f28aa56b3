"""Reverse mode as PyTorch gives it, without this pack's part in a pass: what it could cost at the least.

Two predictions and torch.autograd.grad, weights made ordinary once a run, everything kept: no check, no bound on memory, no
copy of what networks write to, no trace. What the pack's own reverse mode takes beyond it is the price of those.
"""

from __future__ import annotations

import torch

KEY = "alone"


def rectified(patcher, pack):
    """A clone of MODEL with Eq. 21 in every call, by autograd alone. `pack`: for tensors made in inference mode.

    For networks that do not add in place to what they have saved, and conds that are prompts only."""
    import comfy.samplers
    from comfy.patcher_extension import WrappersMP

    thaw, thawed_cond = pack.import_("nodes.backward.thaw").Thaw(), pack.import_("nodes.host.conds").thawed_cond

    def whole_run(executor, *args, **kwargs):
        with torch.inference_mode(False), thaw.over([patcher.model]):
            return executor(*args, **kwargs)

    def predict_noise(executor, x, timestep, model_options, seed=None):
        return executor(x, timestep, model_options | {"sampler_calc_cond_batch_function": pair}, seed)

    def pair(args):
        model, (positive, negative), x, sigma = args["model"], args["conds"], args["input"], args["sigma"]
        options = {k: v for k, v in args["model_options"].items() if k != "sampler_calc_cond_batch_function"}
        reference = comfy.samplers.calc_cond_batch(model, [None, negative], x, sigma, options)[1]
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            denoised = comfy.samplers.calc_cond_batch(model, [[thawed_cond(c) for c in positive], None], x, sigma.clone(), options)[0]
            (product,) = torch.autograd.grad(denoised.sum(), x)
        denoised = denoised.detach()
        alpha = model.model_sampling.noise_scaling(sigma, torch.zeros_like(sigma), torch.ones_like(sigma))
        return [denoised, denoised - alpha.reshape(-1, *[1] * (x.ndim - 1)) * product * (denoised - reference)]

    model = patcher.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, whole_run)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict_noise)
    return model
