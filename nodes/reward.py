"""Classifier guidance by a reward on the denoised prediction: REGRewardGuidance and the rewards that ship
with the pack.

A reward is any object with `log_prob(x0) -> [B]`, where x0 [B, ...] are clean latents as a VAE takes them. A
third pack makes one by returning such an object from a REG_REWARD output."""

import math

import torch
from comfy_api.latest import io

from ..reg_core.demo_models.loading import load_digits_classifier
from .hooks.rewarded import rewarded_model
from .host.image_reward import ImageReward
from .schema import GUIDANCE, Reward, advanced, check_percents, choice, described, number, percents, whole

REWARD = "REG/reward"


class REGRewardGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGRewardGuidance",
            category=GUIDANCE,
            inputs=[
                io.Model.Input("model"),
                Reward.Input("reward"),
                number("scale", 1.0, -1000.0, 1000.0, 0.01),
                io.Boolean.Input("rectified", default=True),
                *percents(),
            ],
            outputs=[io.Model.Output()],
        )
        return described(schema, "classifier guidance", "loss guidance", "universal guidance")

    @classmethod
    def execute(cls, model, reward, scale, rectified, start_percent, end_percent) -> io.NodeOutput:
        bounds = check_percents("REGRewardGuidance", start_percent, end_percent)
        if not math.isfinite(scale):
            raise ValueError(f"REGRewardGuidance: scale must be finite, got {scale}")
        if not callable(getattr(reward, "log_prob", None)):
            raise ValueError(
                f"REGRewardGuidance: a reward needs log_prob(x0), {type(reward).__name__} has none"
            )
        return io.NodeOutput(rewarded_model(model, reward, scale, rectified, bounds))


class REGRewardDigit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGRewardDigit",
            category=REWARD,
            inputs=[whole("digit", 3, -1, 9)],
            outputs=[Reward.Output()],
        )
        return described(schema, "classifier")

    @classmethod
    def execute(cls, digit) -> io.NodeOutput:
        if not -1 <= digit <= 9:
            raise ValueError(f"REGRewardDigit: digit must be between -1 and 9, got {digit}")
        return io.NodeOutput(DigitReward(digit))


class DigitReward:
    """log p(digit | x0) by the digits classifier."""

    def __init__(self, digit: int):
        self.digit = digit
        self.classifier = None

    def log_prob(self, x0):
        if self.classifier is None:
            with torch.inference_mode(False):  # weights that autograd may save
                self.classifier = load_digits_classifier(device=x0.device)
        labels = (
            torch.arange(len(x0), device=x0.device) % 10
            if self.digit < 0
            else x0.new_full((len(x0),), self.digit)
        )
        return self.classifier(x0.float()).log_softmax(1).gather(1, labels.long()[:, None])[:, 0]


class REGRewardLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGRewardLatent",
            category=REWARD,
            inputs=[
                io.Latent.Input("target"),
                choice("match", ("mean", "latent")),
                number("tolerance", 0.5, 0.001, 100.0, 0.001),
            ],
            outputs=[Reward.Output()],
        )
        return described(schema, "color guidance", "brightness")

    @classmethod
    def execute(cls, target, match, tolerance) -> io.NodeOutput:
        if not (math.isfinite(tolerance) and tolerance > 0):
            raise ValueError(f"REGRewardLatent: tolerance must be finite and > 0, got {tolerance}")
        return io.NodeOutput(LatentReward(target["samples"], match, tolerance))


class LatentReward:
    """-|f(x0) - f(target)|^2 / (2 tolerance^2), f the latent itself or its mean per channel."""

    def __init__(self, target, match, tolerance):
        self.target, self.match, self.tolerance = target, match, tolerance

    def log_prob(self, x0):
        target = self.target.to(x0).clone()
        if target.shape[1] != x0.shape[1]:
            raise ValueError(
                f"REGRewardLatent: the target has {target.shape[1]} channels, the model {x0.shape[1]}"
            )
        if self.match == "mean":
            difference = x0.flatten(2).mean(2) - target.flatten(2).mean(2)
        elif target.shape[2:] == x0.shape[2:]:
            difference = x0 - target
        else:
            sizes = f"the target is {list(target.shape[2:])}, the model's latents {list(x0.shape[2:])}"
            raise ValueError(f"REGRewardLatent: {sizes}; match 'mean' takes any size")
        return -(difference**2).flatten(1).sum(1) / (2 * self.tolerance**2)


class REGRewardImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGRewardImage",
            category=REWARD,
            inputs=[
                io.ClipVision.Input("clip_vision"),
                io.Vae.Input("vae"),
                io.Image.Input("image"),
                number("temperature", 0.01, 0.0001, 1.0, 0.0001),
                *advanced(whole("max_latent_size", 32, 8, 256)),
            ],
            outputs=[Reward.Output()],
        )
        return described(schema, "clip guidance", "image guidance")

    @classmethod
    def execute(cls, clip_vision, vae, image, temperature, max_latent_size) -> io.NodeOutput:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"REGRewardImage: temperature must be finite and > 0, got {temperature}")
        return io.NodeOutput(ImageReward(clip_vision, vae, image, temperature, max_latent_size))
