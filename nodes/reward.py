"""Classifier guidance by a reward on the denoised prediction: REGRewardGuidance and the rewards that ship with the pack.

A reward is any object with `log_prob(x0) -> [B]`, where x0 [B, ...] are clean latents as a VAE takes them, and `device`
is x0's. A third pack makes its own by returning such an object from a REG_REWARD output.
"""

import math

import torch
from comfy_api.latest import io

from ..reg_core.lab.models import load_digits_classifier
from .rewarded import ImageReward, rewarded_model
from .schema import Reward, advanced, with_aliases

GUIDANCE = "advanced/guidance"
REWARD = "REG/reward"


class REGRewardGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGRewardGuidance",
            display_name="REG Reward Guidance",
            category=GUIDANCE,
            description="Classifier guidance: follows the gradient of a reward on the denoised image. Rectified, the gradient passes through the "
            "denoiser (exact chain rule, one more model row and a backward pass); unrectified it does not.",
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model. Works with CFG and REG Guidance in any order, and with cfg 1."),
                Reward.Input("reward", tooltip="What to raise, from a REG Reward node."),
                io.Float.Input("scale", default=1.0, min=-1000.0, max=1000.0, step=0.01, tooltip="Weight of the reward's gradient. 0 = none."),
                io.Boolean.Input("rectified", default=True, tooltip="On: through the denoiser's Jacobian (REG). Off: as if the prediction were the image."),
                advanced(io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001, tooltip="Where it begins: 0 = pure noise, 1 = clean.")),
                advanced(io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip="Where it ends: 0 = pure noise, 1 = clean.")),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For any sampler.")],
        )
        return with_aliases(schema, "classifier guidance", "loss guidance", "universal guidance")

    @classmethod
    def execute(cls, model, reward, scale, rectified, start_percent, end_percent) -> io.NodeOutput:
        if not math.isfinite(scale):
            raise ValueError(f"REGRewardGuidance: scale must be finite, got {scale}")
        if not 0 <= start_percent <= end_percent <= 1:
            raise ValueError(f"REGRewardGuidance: want 0 <= start_percent <= end_percent <= 1, got {start_percent} and {end_percent}")
        if not callable(getattr(reward, "log_prob", None)):
            raise ValueError(f"REGRewardGuidance: a reward needs a method log_prob(x0), {type(reward).__name__} has none")
        return io.NodeOutput(rewarded_model(model, reward, scale, rectified, start_percent, end_percent))


class REGRewardDigit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGRewardDigit",
            display_name="REG Reward: Digit",
            category=REWARD,
            description="Log probability of a digit by the demo's classifier: for the digits model.",
            inputs=[io.Int.Input("digit", default=3, min=-1, max=9, tooltip="The digit to reward. -1: 0, 1, 2, ... over the batch.")],
            outputs=[Reward.Output(display_name="reward", tooltip="For REG Reward Guidance.")],
        )
        return with_aliases(schema, "classifier")

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
        labels = torch.arange(len(x0), device=x0.device) % 10 if self.digit < 0 else torch.full((len(x0),), self.digit, device=x0.device)
        return self.classifier(x0.float()).log_softmax(1).gather(1, labels[:, None])[:, 0]


class REGRewardLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGRewardLatent",
            display_name="REG Reward: Latent Target",
            category=REWARD,
            description="Rewards closeness to a target latent, or to its mean per channel (colour and brightness): no other network needed.",
            inputs=[
                io.Latent.Input("target", tooltip="For example a VAE-encoded picture with the colours wanted."),
                io.Combo.Input("match", options=["mean", "latent"], default="mean", tooltip="mean: average per channel. latent: every latent pixel."),
                io.Float.Input("tolerance", default=0.5, min=0.001, max=100.0, step=0.001, tooltip="Standard deviation allowed, in latent units."),
            ],
            outputs=[Reward.Output(display_name="reward", tooltip="For REG Reward Guidance.")],
        )
        return with_aliases(schema, "color guidance", "brightness")

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
            raise ValueError(f"REGRewardLatent: the target has {target.shape[1]} channels, the model's latents {x0.shape[1]}")
        if self.match == "mean":
            difference = x0.flatten(2).mean(2) - target.flatten(2).mean(2)
        else:
            if target.shape[2:] != x0.shape[2:]:
                sizes = f"the target is {list(target.shape[2:])}, the model's latents {list(x0.shape[2:])}"
                raise ValueError(f"REGRewardLatent: {sizes}; match 'mean' takes any size")
            difference = (x0 - target).flatten(1)
        return -(difference**2).flatten(1).sum(1) / (2 * self.tolerance**2)


class REGRewardImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGRewardImage",
            display_name="REG Reward: Image Similarity",
            category=REWARD,
            description="Similarity to a reference picture in the eyes of CLIP vision, through the VAE decoder. Decodes at a reduced size to bound memory.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="A CLIP vision model."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("image", tooltip="The reference picture."),
                io.Float.Input("temperature", default=0.01, min=0.0001, max=1.0, step=0.0001, tooltip="log p = cosine similarity / temperature."),
                advanced(
                    io.Int.Input("max_latent_size", default=32, min=8, max=256, tooltip="Latents are shrunk to this side before decoding, in latent pixels.")
                ),
            ],
            outputs=[Reward.Output(display_name="reward", tooltip="For REG Reward Guidance.")],
        )
        return with_aliases(schema, "clip guidance", "image guidance")

    @classmethod
    def execute(cls, clip_vision, vae, image, temperature, max_latent_size) -> io.NodeOutput:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"REGRewardImage: temperature must be finite and > 0, got {temperature}")
        return io.NodeOutput(ImageReward(clip_vision, vae, image, temperature, max_latent_size))
