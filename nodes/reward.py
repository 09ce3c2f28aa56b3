"""Classifier guidance by a reward on the denoised prediction: REGRewardGuidance and a few rewards.

A reward is any object with `log_prob(x0) -> [B]`, where x0 [B, ...] are clean latents as a VAE takes them.
Another pack makes one by returning such an object from a REG_REWARD output.
"""

from dataclasses import dataclass

import torch
from comfy_api.latest import io

from ..reg_core.checks import one_of
from ..reg_core.demo_models.loading import load_judge
from .checked import checked
from .hooks.rewarded import rewarded_model
from .host.image_reward import ImageReward
from .schema import GUIDANCE, Reward, advanced, choice, described, number, percents, whole

REWARD = "REG/reward"
MATCHES = ("mean", "latent")


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
    @checked
    def execute(cls, model, reward, scale, rectified, start_percent, end_percent) -> io.NodeOutput:
        return io.NodeOutput(rewarded_model(model, reward, scale, rectified, (start_percent, end_percent)))


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
    @checked
    def execute(cls, digit) -> io.NodeOutput:
        return io.NodeOutput(DigitReward(digit))


class DigitReward:
    """log p(digit | x0) by the digits classifier."""

    def __init__(self, digit: int):
        self.digit = digit
        with torch.inference_mode(False):  # weights that autograd may save
            self.classifier = load_judge("digits")

    def log_prob(self, x0):
        every = torch.arange(len(x0), device=x0.device)
        labels = every % 10 if self.digit < 0 else self.digit
        return self.classifier.to(x0.device)(x0.float()).log_softmax(1)[every, labels]


class REGRewardLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGRewardLatent",
            category=REWARD,
            inputs=[
                io.Latent.Input("target"),
                choice("match", MATCHES),
                number("tolerance", 0.5, 0.001, 100.0, 0.001),
            ],
            outputs=[Reward.Output()],
        )
        return described(schema, "color guidance", "brightness")

    @classmethod
    @checked
    def execute(cls, target, match, tolerance) -> io.NodeOutput:
        return io.NodeOutput(LatentReward(target["samples"], match, tolerance))


@dataclass(frozen=True, eq=False)
class LatentReward:
    """-|f(x0) - f(target)|^2 / (2 tolerance^2), f the latent itself or its mean per channel."""

    target: torch.Tensor
    match: str
    tolerance: float

    def __post_init__(self):
        one_of("match", self.match, MATCHES)

    def log_prob(self, x0):
        target = self.target.to(x0).clone()
        if self.match == "mean":  # takes any size
            x0, target = x0.flatten(2).mean(2), target.flatten(2).mean(2)
        if target.shape[1:] != x0.shape[1:]:
            shapes = f"the target is {list(target.shape[1:])}, the model's latents {list(x0.shape[1:])}"
            raise ValueError(f"REGRewardLatent: match {self.match}: {shapes}")
        return -((x0 - target) ** 2).flatten(1).sum(1) / (2 * self.tolerance**2)


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
    @checked
    def execute(cls, clip_vision, vae, image, temperature, max_latent_size) -> io.NodeOutput:
        return io.NodeOutput(ImageReward(clip_vision, vae, image, temperature, max_latent_size))
