"""Rewards: classifier guidance on the denoised prediction."""

from dataclasses import dataclass

import torch

from ...reg_core import jacobian
from ...reg_core.classifier import gradient
from ...reg_core.engines import FallBack
from ...reg_core.schedule import within
from ...reg_core.space import expand, flat
from ..backward.reverse import BackwardPass
from ..host.branches import ModelBranches
from ..host.noise_levels import check_percents, point_at, sigma_bounds
from ..host.options import POST_CFG, Interrupted, calls_through, clone_options, hooked
from .rectified import options_without_us

LARGEST_SIGMA = 20.0  # beyond it nothing is known of the image, and a real model's J is noise


def rewarded_model(model, reward, scale: float, rectified: bool, percents: tuple[float, float]):
    """A clone of MODEL whose prediction D_c is moved by scale * sigma_ve^2 * (J^T) grad log_prob(D_c)."""
    if scale == 0:
        return model.clone()
    patched = hooked(model, "reg_reward", RewardHook(reward, scale, rectified, percents).outer_sample)
    if hasattr(reward, "models"):
        patched.set_additional_models(f"reg_reward_{id(reward)}", reward.models())
    return patched


@dataclass(frozen=True, eq=False)
class RewardRun:
    """Of one sampling run; `bounds`: highest and lowest sigma that is guided."""

    fall_back: FallBack
    backward: BackwardPass
    bounds: tuple[float, float]


class RewardHook:
    """`percents`: where the reward guides, in ComfyUI's percent."""

    def __init__(self, reward, scale, rectified, percents):
        self.reward = reward
        self.scale = scale
        self.rectified = rectified
        self.percents = check_percents(*percents)

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        bounds = sigma_bounds(guider.model_patcher.get_model_object("model_sampling"), *self.percents)
        state = RewardRun(FallBack("reverse", (Interrupted,)), BackwardPass(), bounds)

        def predict_noise(executor, x, timestep, model_options=None, seed=None):
            options = clone_options(model_options or {})
            options[POST_CFG] = [*options.get(POST_CFG, []), lambda args: self.moved(state, args)]
            return executor(x, timestep, options, seed)

        with calls_through(guider, "reg_reward", predict_noise):
            return executor(*args, **kwargs)

    def moved(self, state, args):
        """The denoised prediction after this reward, from what a post-cfg function is given."""
        model, x, sigma, denoised = args["model"], args["input"], args["sigma"], args["denoised"]
        high, low = state.bounds
        if self.percents != (0.0, 1.0) and not within(float(sigma.max()), low, high):
            return denoised
        point = point_at(model.model_sampling, x, sigma)
        sigma_ve = (point.s / point.alpha.clamp_min(1e-9)).clamp_max(LARGEST_SIGMA)

        def slope_of_log_prob(prediction):
            # Latent formats are affine per element, with tensors that autograd may not save: their slope by
            # hand.
            out = model.process_latent_out
            slope = out(torch.ones_like(prediction)) - out(torch.zeros_like(prediction))
            return gradient(self.reward.log_prob, out(prediction)) * slope

        if self.rectified:
            direction = self._through_denoiser(state, args, point, slope_of_log_prob)
        else:
            direction = slope_of_log_prob(args["cond_denoised"])
        shift = self.scale * expand(sigma_ve**2, x) * direction
        good = torch.isfinite(flat(shift)).all(1)
        return denoised + torch.where(expand(good, x), shift, 0).to(denoised.dtype)

    def _through_denoiser(self, state, args, point, slope):
        """J^T slope; where there is no backward pass J slope, since J is symmetric in theory."""
        options, known = options_without_us(args["model_options"]), args["cond_denoised"]
        branches = ModelBranches(args["model"], [args["cond"], None], options, state.backward)
        return state.fall_back(
            lambda: branches.reverse(point, slope)[1],
            lambda: jacobian.finite_difference(branches.cond, point, slope(known), known)[1],
        )
