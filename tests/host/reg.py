"""Helpers of the REG tests: apply the node, look inside a real sampling run, count model calls, an independent oracle."""

from contextlib import contextmanager

import comfy.samplers
import torch


def apply(pack, model, form="row_sum", engine="auto", start=0.0, end=1.0, refresh=1, calibration=None, memory="auto", **settings):
    """REGGuidance's outputs (model, trace). `memory`: of the backward pass, which the node leaves at auto."""
    if memory == "auto":
        values = dict(gain=1.0, strength=1.0, skip_below=0.0, data_std=1.0) | settings
        node = pack.nodes["REGGuidance"]
        return node.execute(model, form, start, end, calibration, engine=engine, refresh=refresh, **values).result
    core = pack.import_("reg_core")
    chosen = core.Settings(form=form, engine=engine, refresh=refresh, calibration=calibration, **settings)
    return pack.import_("nodes.hooks.rectified").rectified_model(model, chosen, (start, end), memory=memory)


@contextmanager
def counted(patcher):
    """Calls and rows of the network itself, whatever wraps it."""
    seen = {"calls": 0, "rows": 0}

    def count(module, args, kwargs):
        seen["calls"] += 1
        seen["rows"] += (args[0] if args else kwargs["x"]).shape[0]

    handle = patcher.model.diffusion_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def inside(t, look, model=None, batch=1, cfg=4.0, steps=3, at=1, latent=None, positive=None, negative=None, noise_mask=None, make=None):
    """Run `look(guider, x, sigma, model_options)` at noise level `at` of a real sampling run and return its result.

    `make(model)`: the guider, in place of ComfyUI's own with these prompts and this cfg.
    """
    found = {}

    def sampler(wrapped, x, sigmas, extra_args=None, callback=None, disable=None):
        scaled = x if at == 0 else x * (sigmas[at] / sigmas[0])
        found["result"] = look(wrapped.inner_model, scaled, sigmas[at].expand(x.shape[0]), extra_args["model_options"])
        return x

    model = t.patcher if model is None else model
    guider = comfy.samplers.CFGGuider(model) if make is None else make(model)
    if make is None:
        guider.set_conds(t.positive if positive is None else positive, t.negative if negative is None else negative)
        guider.set_cfg(cfg)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    latent = t.empty_latent(batch)["samples"] if latent is None else latent
    guider.sample(t.noise(batch), latent, comfy.samplers.KSAMPLER(sampler), sigmas, denoise_mask=noise_mask, disable_pbar=True, seed=0)
    return found["result"]


def oracle_model(patcher, flow=False, factor=None, h=0.02, gain=1.0):
    """REG written as a plain sampler_cfg_function, by another way: J 1 from central differences of ComfyUI's own calls.

    `factor(sigma)`: take R as this number instead (form `schedule`). `gain`: of REG Guidance.
    """
    model = patcher.clone()

    def combine(args):
        x, sigma, d, u = args["input"], args["sigma"], args["cond_denoised"], args["uncond_denoised"]
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        if factor is not None:
            correction = factor(level)
        else:
            step = h * level
            options = {k: v for k, v in args["model_options"].items() if not k.startswith("sampler_")}
            ahead, behind = (comfy.samplers.calc_cond_batch(args["model"], [args["input_cond"]], x + sign * step, sigma, options)[0] for sign in (1, -1))
            correction = (1 - level if flow else 1.0) * (ahead - behind) / (2 * step)
        return x - (d + (args["cond_scale"] - 1) * gain * correction * (d - u))

    model.set_model_sampler_cfg_function(combine)
    return model


def fingerprint(patcher):
    """Every parameter and buffer of the model: identity, bytes, and the flags that differentiation might touch."""
    return {
        name: (id(t), t.data_ptr(), t.is_inference(), t.requires_grad, float(t.double().sum()), float(t.double().square().sum()))
        for name, t in [*patcher.model.named_parameters(), *patcher.model.named_buffers()]
    }


def relative(a, b):
    """|a - b| / |b|."""
    return ((a - b).norm() / b.norm()).item()


class NoDerivative(torch.autograd.Function):
    """A fused kernel: right values, no derivative."""

    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("no derivative for this kernel")
