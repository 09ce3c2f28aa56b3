"""REGDemo*: a small class-conditional model of handwritten digits, shipped with the pack. No download, seconds on a CPU."""

import math

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..reg_core.lab.evaluate import SIGMA_MAX, SIGMA_MIN
from ..reg_core.lab.models import DENOISERS, load_digits_model
from .host_demo import demo_model
from .schema import with_aliases

CATEGORY = "REG/demo"
IN_TURN, ANY = "0 to 9 in turn", "any digit"
PROMPTS = [str(d) for d in range(10)] + [IN_TURN, ANY]


class REGDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGDemoModel",
            display_name="REG Demo Model (digits)",
            category=CATEGORY,
            description="A diffusion model of 8x8 handwritten digits (EDM), trained on real data and shipped with this pack.",
            inputs=[
                io.Combo.Input(
                    "variant", options=list(DENOISERS), default=DENOISERS[0], tooltip="digits: the good model. digits_weak: a worse one, for autoguidance."
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For any sampler. Latents are 1x8x8, from REG Demo Latent.")],
        )
        return with_aliases(schema, "digits", "mnist", "example model")

    @classmethod
    def execute(cls, variant) -> io.NodeOutput:
        return io.NodeOutput(demo_model(load_digits_model(variant), SIGMA_MIN, SIGMA_MAX))


class REGDemoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGDemoPrompt",
            display_name="REG Demo Prompt (digit)",
            category=CATEGORY,
            description="The conditioning of the digits model.",
            inputs=[
                io.Combo.Input(
                    "digit", options=PROMPTS, default="3", tooltip="The digit to draw, or 0, 1, 2, ... over the batch. 'any digit' is unconditional."
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For the positive or negative input of a sampler.")],
        )
        return with_aliases(schema, "digits prompt")

    @classmethod
    def execute(cls, digit) -> io.NodeOutput:
        if digit not in PROMPTS:
            raise ValueError(f"REGDemoPrompt: digit must be one of {', '.join(PROMPTS)}, got {digit!r}")
        if digit == IN_TURN:  # ComfyUI repeats a batch of conditionings over the latents
            return io.NodeOutput([[torch.eye(10)[:, None], {}]])
        label = torch.zeros(1, 1, 10)
        if digit != ANY:
            label[0, 0, int(digit)] = 1
        return io.NodeOutput([[label, {}]])


class REGDemoLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGDemoLatent",
            display_name="REG Demo Latent (digits)",
            category=CATEGORY,
            description="Empty latents for the digits model.",
            inputs=[io.Int.Input("batch_size", default=40, min=1, max=4096, tooltip="How many digits to draw at once.")],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Zeros of shape batch_size x 1 x 8 x 8.")],
        )
        return with_aliases(schema, "empty latent digits")

    @classmethod
    def execute(cls, batch_size) -> io.NodeOutput:
        return io.NodeOutput({"samples": torch.zeros(batch_size, 1, 8, 8)})


class REGDemoDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGDemoDecode",
            display_name="REG Demo Decode (digits)",
            category=CATEGORY,
            description="Turns the digits model's latents into an image: one sheet, or an image each.",
            inputs=[
                io.Latent.Input("latent", tooltip="Latents sampled with the digits model."),
                io.Int.Input("scale", default=8, min=1, max=64, tooltip="Pixels per latent pixel: 8 makes 64 x 64 px digits."),
                io.Int.Input("columns", default=10, min=0, max=64, tooltip="Digits in a row of the sheet. 0 = no sheet, a batch of separate images."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="RGB image, 0..1.")],
        )
        return with_aliases(schema, "vae decode digits")

    @classmethod
    def execute(cls, latent, scale, columns) -> io.NodeOutput:
        samples = latent["samples"]
        if samples.ndim != 4 or samples.shape[1] != 1:
            raise ValueError(f"REGDemoDecode: want latents of shape [batch, 1, height, width], got {list(samples.shape)}")
        images = ((samples.float() + 1) / 2).clamp(0, 1)
        images = F.interpolate(images, scale_factor=scale, mode="nearest")
        if columns > 0:
            framed = F.pad(images, (scale // 2,) * 4, value=0.25)  # or neighbours would run into each other
            images = sheet(framed, min(columns, len(images)))
        return io.NodeOutput(images.movedim(1, -1).expand(-1, -1, -1, 3).contiguous())


def sheet(images, columns):
    """[B, 1, H, W] -> one image [1, 1, rows H, columns W], in reading order; missing cells are black."""
    rows = math.ceil(len(images) / columns)
    blank = images.new_zeros(rows * columns - len(images), *images.shape[1:])
    cells = torch.cat([images, blank]).unflatten(0, (rows, columns))  # [rows, columns, 1, H, W]
    return cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)[None]
