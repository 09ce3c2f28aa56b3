"""A tiny MODEL of video and audio together (LTX-AV), for guiders and patches that only such a model has."""

import comfy.samplers
import comfy.supported_models
import torch

from . import tiny
from .tiny_families import Recipe

_LTXAV = dict(
    image_model="ltxav", in_channels=128, audio_in_channels=128, cross_attention_dim=64, audio_cross_attention_dim=32,
    attention_head_dim=32, audio_attention_head_dim=16, num_attention_heads=2, audio_num_attention_heads=2, caption_channels=24,
    num_layers=2, connector_attention_head_dim=12, connector_num_attention_heads=2, connector_num_layers=1,
)  # fmt: skip
VIDEO, AUDIO = (128, 2, 4, 4), (8, 6, 16)
RECIPE = Recipe("LTXAV", _LTXAV, VIDEO, 2 * 24)  # its prompts hold the video's half and the audio's half


def known() -> bool:
    """Whether this ComfyUI has the class, with a guider for it."""
    return hasattr(comfy.supported_models, "LTXAV")


def build(seed: int = 0) -> tiny.Tiny:
    tiny.RECIPES["ltxav"] = RECIPE
    try:
        return tiny.build("ltxav", seed=seed)
    finally:
        del tiny.RECIPES["ltxav"]


def nested(fill=torch.zeros, batch: int = 1):
    """A latent of both parts, made by `fill(*shape)`."""
    import comfy.nested_tensor

    return comfy.nested_tensor.NestedTensor([fill(batch, *shape) for shape in (VIDEO, AUDIO)])


def draw(make, model, sigmas=(0.9, 0.6, 0.3, 0.0), batch: int = 1):
    """One run of the guider `make(model)`: both parts of its latent, as one row of numbers."""
    sigmas = torch.tensor(sigmas)
    generator = torch.Generator().manual_seed(0)
    noise = nested(lambda *shape: torch.randn(shape, generator=generator), batch)
    out = make(model).sample(noise, nested(batch=batch), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)
    return torch.cat([part.flatten(1) for part in out.unbind()], 1)
