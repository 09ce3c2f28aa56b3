"""Tiny MODELs of real architectures, with no checkpoint: ComfyUI's own config and model classes, a few layers, and
weights from a seed. Import only in a process that is ready to import comfy (see conftest.py).

Nothing about image quality can be read from them: their weights are random.
"""

import dataclasses
import zlib
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
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

ARCHITECTURES = ("sd15", "sd21v", "sdxl", "sd3", "flux", "wan")

_UNET = dict(
    use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, in_channels=4, out_channels=4,
    use_temporal_attention=False, use_temporal_resblock=False, model_channels=32, num_res_blocks=[1, 1],
    channel_mult=[1, 2], transformer_depth=[1, 1], transformer_depth_output=[1] * 4, transformer_depth_middle=1,
    context_dim=16, adm_in_channels=None, use_linear_in_transformer=False,
)  # fmt: skip
_UNETS = {
    "sd15": _UNET,  # channels must be multiples of 32: GroupNorm(32)
    "sd21v": _UNET | dict(model_channels=64, use_linear_in_transformer=True),  # heads of 64 channels
    "sdxl": _UNET | dict(
        model_channels=64, use_linear_in_transformer=True, transformer_depth=[0, 2], transformer_depth_output=[0, 0, 2, 2],
        transformer_depth_middle=2, num_classes="sequential", adm_in_channels=2816,
    ),
}  # fmt: skip
_SD3 = dict(
    in_channels=16, patch_size=2, depth=2, adm_in_channels=2048, input_size=None, num_patches=24 * 24,
    pos_embed_max_size=24, pos_embed_scaling_factor=None, qk_norm="rms", x_block_self_attn_layers=[0],
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
)  # fmt: skip
_FLUX = dict(
    image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=24, context_in_dim=24, hidden_size=64,
    mlp_ratio=4.0, num_heads=4, depth=1, depth_single_blocks=1, axes_dim=[4, 6, 6], theta=10000, qkv_bias=True,
    guidance_embed=True, txt_ids_dims=[],
)  # fmt: skip
_WAN = dict(
    image_model="wan2.1", model_type="t2v", dim=96, num_heads=2, ffn_dim=128, num_layers=2, freq_dim=64, text_dim=24,
    in_dim=16, out_dim=16,
)  # fmt: skip


@dataclass(frozen=True)
class _Recipe:
    config: str  # class name in comfy.supported_models
    keys: dict
    latent_shape: tuple  # without the batch
    context_dim: int
    pooled_dim: int | None = None
    extra: dict = dataclasses.field(default_factory=dict)  # entries of the conditioning's dict


_RECIPES = {
    "sd15": _Recipe("SD15", _UNETS["sd15"], (4, 16, 16), 16),
    "sd21v": _Recipe("SD20", _UNETS["sd21v"], (4, 16, 16), 16),
    "sdxl": _Recipe("SDXL", _UNETS["sdxl"], (4, 16, 16), 16, pooled_dim=1280),
    "sd3": _Recipe("SD3", _SD3, (16, 16, 16), 24, pooled_dim=2048),
    "flux": _Recipe("Flux", _FLUX, (16, 16, 16), 24, pooled_dim=24, extra={"guidance": 3.5}),
    "wan": _Recipe("WAN21_T2V", _WAN, (16, 3, 8, 8), 24),
}


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
        """What an Empty...Latent node returns."""
        return {"samples": torch.zeros(batch, *self.latent_shape)}

    def noise(self, batch: int = 1, seed: int = 0) -> torch.Tensor:
        return comfy.sample.prepare_noise(self.empty_latent(batch)["samples"], seed)


def build(name: str, dtype=torch.float32, manual_cast=None, seed: int = 0) -> Tiny:
    """A tiny MODEL. Weights are inference tensors of `dtype`, as a loader leaves them; `manual_cast` is the dtype the
    weights are cast to at use (None: computed as stored). The same seed gives the same weights on every ComfyUI."""
    recipe = _RECIPES[name]
    with torch.inference_mode():
        config = getattr(comfy.supported_models, recipe.config)(_accepted(name, recipe.keys))
        if name == "sd21v":  # the real class looks for a hint in the checkpoint
            config.model_type = lambda state_dict, prefix="": comfy.model_base.ModelType.V_PREDICTION
        config.set_inference_dtype(dtype, manual_cast)
        model = config.get_model({}, device="cpu").eval()
        fill(model.diffusion_model, seed)
        patcher = comfy.model_patcher.ModelPatcher(
            model,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
    return Tiny(name, patcher, recipe.latent_shape, conditioning(name, "positive"), conditioning(name, "negative"))


def fill(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights from a seed, for everything a checkpoint would fill: ComfyUI's layers leave them uninitialised, and so
    are some persistent buffers (SD3's pos_embed). Each tensor has its own generator, so order does not matter."""
    for key, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        values = torch.randn(tensor.shape, generator=_generator(f"{seed}/{key}"))
        if tensor.ndim >= 2:
            values *= tensor[0].numel() ** -0.5  # fan in
        elif key.endswith("bias"):
            values *= 0.05
        else:  # norm scales
            values = 1 + 0.05 * values
        tensor.copy_(values)


def conditioning(name: str, text: str, tokens: int = 7) -> list:
    """CONDITIONING of the right widths for this architecture, from the text's hash."""
    recipe = _RECIPES[name]
    entries = dict(recipe.extra)
    context = _embedding(text, 1, tokens, recipe.context_dim)
    if recipe.pooled_dim:
        entries["pooled_output"] = _embedding(text, 1, recipe.pooled_dim)
    return [[context, entries]]


def _embedding(text: str, *shape) -> torch.Tensor:
    """Unit variance; two texts share most of it, as prompts of a real encoder do (or guidance would be huge)."""
    common, own = (torch.randn(shape, generator=_generator(seed)) for seed in ("", f"text/{text}"))
    return 0.8 * common + 0.6 * own


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


def build_controlnet(dtype=torch.float32, seed: int = 0) -> comfy.controlnet.ControlNet:
    """A tiny SD 1.5 ControlNet, as a loader returns it (give its hint with ControlNetApplyAdvanced or set_cond_hint)."""
    keys = {k: v for k, v in _UNETS["sd15"].items() if k not in ("out_channels", "transformer_depth_output")}
    with torch.inference_mode():
        net = comfy.cldm.cldm.ControlNet(**keys, num_heads=8, hint_channels=3, operations=comfy.ops.disable_weight_init, dtype=dtype, device="cpu").eval()
        fill(net, seed)
        return comfy.controlnet.ControlNet(net, load_device=comfy.model_management.get_torch_device())


def build_vae(name: str, seed: int = 0) -> comfy.sd.VAE:
    """A tiny real VAE whose latents fit the architecture: 8 pixels a latent pixel."""
    channels = _RECIPES[name].latent_shape[0]
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


def _accepted(name: str, keys: dict) -> dict:
    """Without the keys which this ComfyUI's class does not know: newer Flux needs more than older Flux takes."""
    if name != "flux":
        return keys
    from comfy.ldm.flux.model import FluxParams

    known = {field.name for field in dataclasses.fields(FluxParams)} | {"image_model"}
    return {key: value for key, value in keys.items() if key in known}


def _generator(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))
