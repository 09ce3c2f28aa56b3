"""Rewards: classifier guidance on the denoised prediction."""

import math
from dataclasses import dataclass, field

import torch

from ...reg_core import jacobian
from ...reg_core.classifier import gradient
from ...reg_core.engines import FallBack
from ...reg_core.schedule import within
from ...reg_core.space import expand, flat
from ..backward.draws import Draws
from ..host.branches import ModelBranches, Passes
from ..host.guiders import calls_through, sample_arguments
from ..host.noise_levels import point_at, sigma_bounds
from ..host.options import POST_CFG, Interrupted, hooked
from .model_call import options_without_us

KEY = "reg_reward"
LARGEST_SIGMA = 20.0  # beyond it nothing is known of the image, and a real model's J is noise


def rewarded_model(model, reward, scale: float, rectified: bool, percents: tuple[float, float]):
    """A clone of MODEL whose prediction D_c is moved by scale * sigma_ve^2 * (J^T) grad log_prob(D_c)."""
    sigma_bounds(model, *percents)  # refuses wrong percents now
    if scale == 0:
        return model.clone()

    def outer_sample(executor, *args, **kwargs):
        guider = executor.class_obj
        if len(sample_arguments(args, kwargs).get("latent_shapes") or []) > 1:
            raise ValueError("REG Reward Guidance: a reward cannot judge video and sound in one latent")
        run = RewardRun(reward, scale, rectified, sigma_bounds(guider.model_patcher, *percents))

        def predict_noise(executor, x, timestep, model_options=None, seed=None):
            given = model_options or {}
            return executor(x, timestep, {**given, POST_CFG: [*given.get(POST_CFG, []), run.moved]}, seed)

        with calls_through(guider, KEY, predict_noise):
            return executor(*args, **kwargs)

    patched = hooked(model, KEY, outer_sample, alone=False)
    if hasattr(reward, "models"):
        patched.set_additional_models(f"{KEY}_{id(reward)}", reward.models())
    return patched


@dataclass(frozen=True, eq=False)
class RewardRun:
    """One sampling run. `bounds`: highest and lowest sigma where the reward guides."""

    reward: object
    scale: float
    rectified: bool
    bounds: tuple[float, float]
    fall_back: FallBack = field(default_factory=lambda: FallBack("reverse", (Interrupted,)))
    passes: Passes = field(default_factory=Passes)

    def moved(self, args):
        """The denoised prediction after this reward, from what a post-cfg function is given."""
        model, x, sigma, denoised = args["model"], args["input"], args["sigma"], args["denoised"]
        high, low = self.bounds
        if (high, low) != (math.inf, 0.0) and not within(float(sigma.max()), low, high):
            return denoised
        point = point_at(model.model_sampling, x, sigma)
        sigma_ve = (point.s / point.alpha.clamp_min(1e-9)).clamp_max(LARGEST_SIGMA)

        def slope_of_log_prob(prediction):
            # Latent formats are affine, with tensors that autograd may not save: their slope by hand.
            out = model.process_latent_out
            slope = out(torch.ones_like(prediction)) - out(torch.zeros_like(prediction))
            return gradient(self.reward.log_prob, out(prediction)) * slope

        if self.rectified:
            direction = self._through_denoiser(args, point, slope_of_log_prob)
        else:
            direction = slope_of_log_prob(args["cond_denoised"])
        shift = self.scale * expand(sigma_ve**2, x) * direction
        good = torch.isfinite(flat(shift)).all(1)
        return denoised + torch.where(expand(good, x), shift, 0).to(denoised.dtype)

    def _through_denoiser(self, args, point, slope):
        """J^T slope; without a backward pass J slope, since J is symmetric in theory; else slope itself."""
        conds, options = [args["cond"], args["uncond"]], options_without_us(args["model_options"])
        made = {"known": (args["cond_denoised"], args["uncond_denoised"]), "draws": Draws(point.x.device)}
        branches = ModelBranches(
            args["model"], conds, args["input"], args["sigma"], options, self.passes, **made
        )
        denoised = args["cond_denoised"]

        def difference():
            nearby = lambda x, sigma: branches.probe(point, x)  # noqa: E731
            return jacobian.finite_difference(nearby, point, slope(denoised), denoised)[1]

        return self.fall_back(
            reverse=lambda: branches.reverse(point, slope)[1],
            finite_difference=difference,
            none=lambda: slope(denoised),
        )
