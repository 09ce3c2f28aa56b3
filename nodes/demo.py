"""REGDemo*: small models of digits and of clothes that come with the pack. No download, on a CPU."""

import math

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..reg_core.demo_models.data import CLOTHES, DATA_SETS, DIGITS
from ..reg_core.demo_models.loading import DENOISERS, load_model
from .checked import checked
from .host.demo_model import demo_model
from .schema import choice, described, whole

CATEGORY = "REG/demo"
IN_TURN, ANY = "all ten in turn", "no prompt"
PROMPTS = [*DIGITS.names, *CLOTHES, IN_TURN, ANY]


class REGDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGDemoModel",
            category=CATEGORY,
            inputs=[choice("variant", DENOISERS)],
            outputs=[io.Model.Output()],
        )
        return described(schema, "digits", "fashion", "mnist", "example model")

    @classmethod
    @checked
    def execute(cls, variant) -> io.NodeOutput:
        return io.NodeOutput(demo_model(load_model(variant)))


class REGDemoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGDemoPrompt",
            category=CATEGORY,
            inputs=[choice("digit", PROMPTS, "3")],
            outputs=[io.Conditioning.Output()],
        )
        return described(schema, "digits prompt", "fashion prompt")

    @classmethod
    @checked
    def execute(cls, digit) -> io.NodeOutput:
        labels = torch.eye(11, 10)[:, None]  # the last one: no condition
        # ComfyUI repeats a batch of conditionings over the latents. Either model has ten classes.
        which = slice(10) if digit == IN_TURN else [10 if digit == ANY else PROMPTS.index(digit) % 10]
        return io.NodeOutput([[labels[which], {}]])


class REGDemoLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGDemoLatent",
            category=CATEGORY,
            inputs=[whole("batch_size", 40, 1, 4096), choice("pictures", DATA_SETS, optional=True)],
            outputs=[io.Latent.Output()],
        )
        return described(schema, "empty latent digits", "empty latent fashion")

    @classmethod
    @checked
    def execute(cls, batch_size, pictures=DIGITS.name) -> io.NodeOutput:
        return io.NodeOutput({"samples": torch.zeros(batch_size, *DATA_SETS[pictures].shape)})


class REGDemoDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGDemoDecode",
            category=CATEGORY,
            inputs=[io.Latent.Input("latent"), whole("scale", 8, 1, 64), whole("columns", 10, 0, 64)],
            outputs=[io.Image.Output()],
        )
        return described(schema, "vae decode digits", "vae decode fashion")

    @classmethod
    @checked
    def execute(cls, latent, scale, columns) -> io.NodeOutput:
        samples = latent["samples"]
        if samples.ndim != 4 or samples.shape[1] != 1:
            raise ValueError(f"REGDemoDecode: want latents [B, 1, H, W], got {list(samples.shape)}")
        images = F.interpolate(((samples.float() + 1) / 2).clamp(0, 1), scale_factor=scale, mode="nearest")
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
