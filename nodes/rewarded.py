"""Rewards: classifier guidance on the denoised prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..reg_core import jacobian
from ..reg_core.schedule import within
from ..reg_core.space import expand
from .hook import without_reg
from .host import Interrupted, ModelBranches, alpha_and_s, log
from .thaw import private_saved_tensors, thawed


def rewarded_model(model, reward, scale: float, rectified: bool, start_percent: float, end_percent: float):
    """A clone of MODEL whose denoised prediction is moved by scale * sigma_ve^2 * (J^T) grad log_prob(D_cond).

    sigma_ve = s / alpha, limited to 20.
    """
    patched = model.clone()
    if scale == 0:
        return patched
    keep_loaded = getattr(reward, "models", None)
    if keep_loaded is not None:
        patched.set_additional_models(f"reg_reward_{id(reward)}", keep_loaded())
    patched.set_model_sampler_post_cfg_function(_RewardHook(reward, scale, rectified, (start_percent, end_percent)))
    return patched


MAX_REWARD_SIGMA = 20.0


class _RewardHook:
    def __init__(self, reward, scale, rectified, percents):
        self.reward, self.scale, self.rectified, self.percents = reward, scale, rectified, percents
        self.warned = False

    def __call__(self, args):
        model, x, sigma = args["model"], args["input"], args["sigma"]
        sampling = model.model_sampling
        high, low = (float(sampling.percent_to_sigma(p)) for p in self.percents)
        if self.percents != (0.0, 1.0) and not within(float(sigma.max()), low, high):
            return args["denoised"]
        alpha, s = alpha_and_s(sampling, sigma, x)
        # Infinite for flow at sigma = 1, and beyond 20 nothing is known of the image: a real model's J is noise there.
        sigma_ve = (s / alpha.clamp_min(1e-9)).clamp_max(MAX_REWARD_SIGMA)

        def gradient(denoised):
            # Latent formats are affine per element, with tensors autograd may not save: their slope by hand.
            slope = model.process_latent_out(torch.ones_like(denoised)) - model.process_latent_out(torch.zeros_like(denoised))
            x0 = model.process_latent_out(denoised)
            with torch.inference_mode(False), torch.enable_grad():
                x0 = x0.clone().requires_grad_(True)
                return torch.autograd.grad(self.reward.log_prob(x0).sum(), x0)[0] * slope

        direction = self._through_denoiser(args, gradient, alpha, s) if self.rectified else gradient(args["cond_denoised"])
        shift = self.scale * expand(sigma_ve**2, x) * direction
        good = torch.isfinite(shift).flatten(1).all(1)
        return args["denoised"] + torch.where(expand(good, x), shift, 0).to(args["denoised"].dtype)

    def _through_denoiser(self, args, gradient, alpha, s):
        """J^T gradient; where there is no backward pass J gradient by finite differences, as J is symmetric in theory."""
        branches = ModelBranches(args["model"], [args["cond"], None], without_reg(args["model_options"]))
        x, sigma = args["input"], args["sigma"]
        try:
            return branches.reverse(x, sigma, alpha, gradient)[1]
        except Interrupted:
            raise
        except RuntimeError as error:
            if not self.warned:
                self.warned = True
                log.warning("REG reward: no backward pass (%s): finite differences", str(error).split("\n")[0][:200])
        return jacobian.finite_difference(branches.cond, x, sigma, alpha, gradient(args["cond_denoised"]), s, args["cond_denoised"])[1]


class ImageReward:
    """Cosine similarity of CLIP vision embeddings / temperature, through the VAE decoder; sample by sample, at bounded size."""

    def __init__(self, clip_vision, vae, image, temperature: float, max_latent_size: int):
        self.clip, self.vae, self.temperature, self.size = clip_vision, vae, temperature, max_latent_size
        self.target = clip_vision.encode_image(image[:1])["image_embeds"]

    def models(self):
        """Kept loaded beside the sampled model."""
        return [self.vae.patcher, self.clip.patcher]

    def log_prob(self, x0):
        if x0.ndim != 4:
            raise ValueError(f"REGRewardImage: want image latents [B, C, H, W], got {list(x0.shape)}")
        with thawed([self.vae.first_stage_model, self.clip.model]) as weights, private_saved_tensors(weights):
            return torch.stack([self._one(sample[None]) for sample in x0])

    def _one(self, x0):
        scale = min(1.0, self.size / max(x0.shape[2:]))
        if scale < 1:
            x0 = F.interpolate(x0, scale_factor=scale, mode="area")
        pixels = (self.vae.first_stage_model.decode(x0.to(self.vae.vae_dtype)).float() + 1) / 2
        side = self.clip.image_size
        pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
        # ComfyUI's own preparation rounds to 8 bits, which has no gradient
        mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (self.clip.image_mean, self.clip.image_std))
        embedding = self.clip.model(pixel_values=(pixels - mean) / std, intermediate_output=-2)[2].float()
        return F.cosine_similarity(embedding, self.target.to(embedding).clone()).mean() / self.temperature
