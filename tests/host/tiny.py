"""Tiny MODELs of real architectures, with no checkpoint: ComfyUI's own config and model classes, a few layers, and
weights from a seed. Import only in a process that is ready to import comfy (see conftest.py).

Nothing about image quality can be read from them: their weights are random.
"""

import dataclasses
import importlib
from dataclasses import dataclass

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ldm.wan.vae
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfyui_version
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

from . import tiny_families, tiny_images, tiny_sounds, tiny_videos
from .tiny_families import embedding, fill

RECIPES = tiny_families.CORE | tiny_images.FAMILIES | tiny_videos.FAMILIES | tiny_sounds.FAMILIES
ARCHITECTURES = tuple(tiny_families.CORE)
FAMILIES = tuple(RECIPES)


@dataclass
class Tiny:
    """A tiny MODEL and what is needed to sample it."""

    name: str
    patcher: comfy.model_patcher.ModelPatcher
    latent_shape: tuple
    positive: list
    negative: list

    def conditioning(self, text: str, tokens: int = 7) -> list:
        """A further CONDITIONING; the same text gives the same tensors."""
        return conditioning(self.name, text, tokens)

    def empty_latent(self, batch: int = 1) -> dict:
        """What an Empty...Latent node returns. Where a latent has several streams, they are nested."""
        if not isinstance(self.latent_shape[0], tuple):
            return {"samples": torch.zeros(batch, *self.latent_shape)}
        nested = importlib.import_module("comfy.nested_tensor").NestedTensor  # a newer ComfyUI's
        return {"samples": nested([torch.zeros(batch, *shape) for shape in self.latent_shape])}

    def noise(self, batch: int = 1, seed: int = 0) -> torch.Tensor:
        return comfy.sample.prepare_noise(self.empty_latent(batch)["samples"], seed)


def missing(name: str) -> str | None:
    """Why this ComfyUI has no such family, if so."""
    recipe, version = RECIPES[name], comfyui_version.__version__
    if not hasattr(comfy.supported_models, recipe.config):
        return f"ComfyUI {version} has no {recipe.config}"
    if tuple(int(n) for n in version.split(".")[: len(recipe.since)]) < recipe.since:
        return f"ComfyUI {version} fails at {name} itself"
    return None


def batches(name: str) -> tuple:
    """Batch sizes that the family's network takes."""
    return (1,) if RECIPES[name].single else (1, 2)


def build(name: str, dtype=torch.float32, manual_cast=None, seed: int = 0) -> Tiny:
    """A tiny MODEL. Weights are inference tensors of `dtype`, as a loader leaves them; `manual_cast` is the dtype the
    weights are cast to at use (None: computed as stored). The same seed gives the same weights on every ComfyUI that
    gives its tensors the same names. Recipes: tiny_families.py."""
    recipe = RECIPES[name]
    known = {f.name for f in dataclasses.fields(recipe.params)} | {"image_model"} if recipe.params else recipe.keys
    with torch.inference_mode(), recipe.shrunk():
        config = getattr(comfy.supported_models, recipe.config)({k: v for k, v in recipe.keys.items() if k in known})
        if name == "sd21v":  # the real class looks for a hint in the checkpoint
            config.model_type = lambda state_dict, prefix="": comfy.model_base.ModelType.V_PREDICTION
        config.set_inference_dtype(dtype, manual_cast)
        model = config.get_model(recipe.state_dict(seed), device="cpu").eval()
        fill(model.diffusion_model, seed, recipe.gain)
        patcher = comfy.model_patcher.ModelPatcher(
            model,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
    return Tiny(name, patcher, recipe.latent_shape, conditioning(name, "positive"), conditioning(name, "negative"))


def conditioning(name: str, text: str, tokens: int = 7) -> list:
    """CONDITIONING of the right widths for this architecture, from the text's hash."""
    recipe = RECIPES[name]
    entries = {key: value(text, tokens) if callable(value) else value for key, value in recipe.extra.items()}
    context = embedding(text, 1, tokens, recipe.context_dim)
    if recipe.blank and text == "negative":
        context = torch.zeros_like(context)
    if recipe.pooled_dim:
        entries["pooled_output"] = embedding(text, 1, recipe.pooled_dim)
    return [[context, entries]]


def sample(tiny: Tiny, model=None, *, seed=0, steps=3, cfg=4.0, sampler="euler", scheduler="normal", batch=1,
           latent=None, positive=None, negative=None, denoise=1.0, **options) -> torch.Tensor:  # fmt: skip
    """comfy.sample.sample with defaults: the latent tensor. `model` is a patched clone of `tiny.patcher`, if any."""
    latent = tiny.empty_latent(batch)["samples"] if latent is None else latent
    return comfy.sample.sample(
        tiny.patcher if model is None else model,
        comfy.sample.prepare_noise(latent, seed),
        steps, cfg, sampler, scheduler,
        tiny.positive if positive is None else positive,
        tiny.negative if negative is None else negative,
        latent, denoise=denoise, seed=seed, disable_pbar=True, **options,
    )  # fmt: skip


def packed(latent) -> torch.Tensor:
    """One tensor, also of a nested latent."""
    return torch.cat([stream.flatten(1) for stream in latent.unbind()], dim=1) if getattr(latent, "is_nested", False) else latent


def build_controlnet(dtype=torch.float32, seed: int = 0) -> comfy.controlnet.ControlNet:
    """A tiny SD 1.5 ControlNet, as a loader returns it (give its hint with ControlNetApplyAdvanced or set_cond_hint)."""
    keys = {k: v for k, v in RECIPES["sd15"].keys.items() if k not in ("out_channels", "transformer_depth_output")}
    with torch.inference_mode():
        net = comfy.cldm.cldm.ControlNet(**keys, num_heads=8, hint_channels=3, operations=comfy.ops.disable_weight_init, dtype=dtype, device="cpu").eval()
        fill(net, seed)
        return comfy.controlnet.ControlNet(net, load_device=comfy.model_management.get_torch_device())


def build_vae(name: str, seed: int = 0) -> comfy.sd.VAE:
    """A tiny real VAE whose latents fit the architecture: 8 pixels a latent pixel."""
    channels = RECIPES[name].latent_shape[0]
    with torch.inference_mode():
        if name == "wan":
            return _wan_vae(channels, seed)
        ddconfig = dict(
            double_z=True, z_channels=channels, resolution=64, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1, 1, 1],
            num_res_blocks=1, attn_resolutions=[], dropout=0.0,
        )  # fmt: skip
        params = {"ddconfig": ddconfig, "embed_dim": channels}
        net = AutoencoderKL(**params)
        fill(net, seed)
        vae = comfy.sd.VAE(sd=net.state_dict(), config={"params": params})
        vae.latent_channels = channels
        return vae


def _wan_vae(channels: int, seed: int) -> comfy.sd.VAE:
    """A video VAE. Newer ComfyUI reads its width from the tensors, older takes 96 only."""
    for width in (16, 96):
        net = comfy.ldm.wan.vae.WanVAE(
            dim=width, z_dim=channels, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True],
        )  # fmt: skip
        fill(net, seed)
        try:
            return comfy.sd.VAE(sd=net.state_dict())
        except RuntimeError:
            if width == 96:
                raise
