"""Whole sampling runs."""

import comfy.sample
import comfy.samplers
import comfy.utils
import torch

SAMPLERS = list(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS = list(comfy.samplers.KSampler.SCHEDULERS)


def sample_once(model, positive, negative, latent: dict, seed: int, callback, **options):
    """One KSampler run over a LATENT. `options`: steps, cfg, sampler_name, scheduler."""
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    options |= {"latent_image": samples, "noise_mask": latent.get("noise_mask"), "disable_pbar": True}
    conds = {"positive": positive, "negative": negative}
    return comfy.sample.sample(model, noise, **conds, callback=callback, seed=seed, **options)


def latent_std(model, samples) -> float:
    """Standard deviation of clean latents in the sampler's units, a root mean square over channels."""
    scaled = model.model.process_latent_in
    parts = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
    variances = [scaled(part).float().transpose(0, 1).flatten(1).var(1) for part in parts]
    return float(torch.cat(variances).mean().sqrt())


def step_counter(total: int):
    """A callback for `sample_once` that moves the running node's progress bar over `total` steps."""
    bar = comfy.utils.ProgressBar(total)
    return lambda step, denoised, x, steps: bar.update(1)


def cfg_guider(model, positive, negative, cfg):
    """A GUIDER of ComfyUI's own kind."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider
