"""A further MODEL, loaded beside the sampled one."""

import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch

from .noise_levels import prediction_type
from .options import MULTIGPU, clone_options


def check_same_space(model, other) -> None:
    """Raises ValueError unless both models denoise the same latents in the same coordinates."""
    ours, theirs = (m.get_model_object("model_sampling") for m in (model, other))
    if isinstance(ours, comfy.model_sampling.CONST) != isinstance(theirs, comfy.model_sampling.CONST):
        kinds = " and ".join(prediction_type(sampling) for sampling in (ours, theirs))
        raise ValueError(f"the models sample in different coordinates: {kinds}")
    formats = [m.model.latent_format for m in (model, other)]
    if len({(type(f), f.latent_channels) for f in formats}) > 1:
        names = " and ".join(type(f).__name__ for f in formats)
        raise ValueError(f"the models have different latents: {names}")


def shares_weights(model, other) -> bool:
    """True when `other` is a clone with the same weights. Raises ValueError for one with other weights."""
    if model.model is other.model and model.patches_uuid != other.patches_uuid:
        cure = "load it by a second loader, or use REG Weak Model"
        raise ValueError(f"both models are the same file with different weight patches (LoRA): {cure}")
    return model.model is other.model


class SecondModel:
    """A MODEL with conds. `run`: what the guider's outer_sample was called with, by name."""

    def __init__(self, patcher, guider, conds, run: dict):
        self.patcher = patcher
        self.guider = guider
        self.conds = [c.copy() for c in conds]  # as convert_cond left them; process_conds writes into each
        self.run = run
        self.options = None

    def denoised(self, x, sigma):
        """The denoised prediction at x [B, ...], sigma [B]."""
        if self.options is None:  # only now are both models loaded
            self._start()
        return calc_cond_batch(self.patcher.model, [self.conds], x, sigma, self.options)[0]

    def _start(self):
        run, model, device = self.run, self.patcher.model, self.guider.model_patcher.load_device
        self.options = clone_options(self.patcher.model_options)
        self.options.setdefault("transformer_options", {})["sample_sigmas"] = run["sigmas"].to(device)
        comfy.sampler_helpers.prepare_model_patcher(self.patcher, {"reference": self.conds}, self.options)
        if model is not self.guider.model_patcher.model:
            self.patcher.pre_run()
        noise, latent, mask = run["noise"].to(device), run["latent_image"].to(device), run.get("denoise_mask")
        if torch.count_nonzero(latent) > 0:
            latent = model.process_latent_in(latent)
        if mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(mask, noise.shape, device)
        extra = {}
        if run.get("latent_shapes") is not None:  # hosts since packed latents
            extra["latent_shapes"] = model.latent_shapes = run["latent_shapes"]
        given = model, noise, {"reference": self.conds}, device, latent, mask, run.get("seed")
        self.conds = comfy.samplers.process_conds(*given, **extra)["reference"]

    def stop(self):
        """Undo what the run changed on this MODEL."""
        if self.options is not None and self.patcher.model is not self.guider.model_patcher.model:
            self.patcher.cleanup()
        self.options = None


def calc_cond_batch(model, conds, x, sigma, model_options):
    """ComfyUI's, on this process's devices only."""
    options = {k: v for k, v in model_options.items() if k not in MULTIGPU}
    return comfy.samplers.calc_cond_batch(model, conds, x, sigma, options)
