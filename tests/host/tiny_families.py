"""Recipes of the tiny MODELs (tiny.py): which ComfyUI class, how small, and what its conditioning holds.

Here are what all recipes are made of and the `CORE` six, which most tests run on. The other families, for test_families.py,
test_truth.py and matrix.py, are in tiny_images.py, tiny_videos.py and tiny_sounds.py.
"""

import importlib
import zlib
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import comfy.clip_vision
import comfy.ldm.flux.model
import torch


@dataclass(frozen=True)
class Recipe:
    config: str  # class name in comfy.supported_models
    keys: dict
    latent_shape: tuple  # without the batch; of a nested latent, one shape a stream
    context_dim: int
    pooled_dim: int | None = None
    extra: dict = field(default_factory=dict)  # entries of the conditioning's dict; a callable gets (text, tokens)
    params: type | None = None  # dataclass of the keys this ComfyUI takes: newer ones need more than older ones know
    state_dict: Callable[[int], dict] = lambda seed: {}  # what get_model reads from a checkpoint; gets the seed
    shrunk: Callable = nullcontext  # context in which the model is built, where a size is no key
    single: bool = False  # the network takes one sample at a time only
    blank: bool = False  # the negative's context is zeros, as nodes make it from a picture
    gain: float = 1.0  # of the weights: less where the network would curve too much for differences
    frames: bool = False  # the batch are the frames of one sample
    dual: bool = True  # torch.func.jvp can differentiate the network
    since: tuple = ()  # the ComfyUI version whose network can do this without REG


def fill(module: torch.nn.Module, seed: int = 0, gain: float = 1.0) -> None:
    """Weights from a seed, for everything a checkpoint would fill: ComfyUI's layers leave them uninitialised, and so
    are some persistent buffers (SD3's pos_embed). Each tensor has its own generator, so order does not matter."""
    for key, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        values = torch.randn(tensor.shape, generator=generator(f"{seed}/{key}"))
        if tensor.ndim >= 2:
            values *= gain * tensor[0].numel() ** -0.5  # fan in
        elif key.endswith("bias"):
            values *= 0.05
        else:  # norm scales
            values = 1 + 0.05 * values
        tensor.copy_(values)


def embedding(text: str, *shape) -> torch.Tensor:
    """Unit variance; two texts share most of it, as prompts of a real encoder do (or guidance would be huge)."""
    common, own = (torch.randn(shape, generator=generator(seed)) for seed in ("", f"text/{text}"))
    return 0.8 * common + 0.6 * own


def generator(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))


def ones(text, tokens):
    """An attention mask of a prompt that fills its tokens."""
    return torch.ones(1, tokens, dtype=torch.long)


def guide(name: str, *shape):
    """A conditioning entry that nodes add to both prompts alike: a picture's latent, say."""
    return lambda text, tokens: embedding(name, 1, *shape)


def guides(name: str, *shape):
    """The same as a list of one."""
    return lambda text, tokens: [embedding(name, 1, *shape)]


def first_frame(*shape):
    """The mask of picture-to-video nodes: 0 where a frame is given."""
    mask = torch.ones(1, *shape)
    mask[:, :, 0] = 0
    return lambda text, tokens: mask


def vision(width: int, tokens: int = 4):
    """What CLIPVisionEncode returns for the picture."""

    def encoded(text, _):
        output = comfy.clip_vision.Output()
        output.last_hidden_state = output.penultimate_hidden_states = embedding("vision", 1, tokens, width)
        return output

    return encoded


def resized(module: str, **classes):
    """A context in which classes of a module are built with these arguments, or left out (None): their sizes are no keys."""

    @contextmanager
    def context():
        found = importlib.import_module(module)
        whole = {name: getattr(found, name) for name in classes}
        for name, sizes in classes.items():
            setattr(found, name, _Resized(whole[name], sizes))
        try:
            yield
        finally:
            for name, kind in whole.items():
                setattr(found, name, kind)

    return context


@dataclass(frozen=True)
class _Resized:
    whole: type
    sizes: dict | None

    def __call__(self, *args, **keys):
        return torch.nn.Identity() if self.sizes is None else self.whole(*args, **keys | self.sizes)


UNET = dict(
    use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, in_channels=4, out_channels=4,
    use_temporal_attention=False, use_temporal_resblock=False, model_channels=32, num_res_blocks=[1, 1],
    channel_mult=[1, 2], transformer_depth=[1, 1], transformer_depth_output=[1] * 4, transformer_depth_middle=1,
    context_dim=16, adm_in_channels=None, use_linear_in_transformer=False,
)  # fmt: skip
_SDXL = dict(
    model_channels=64, use_linear_in_transformer=True, transformer_depth=[0, 2], transformer_depth_output=[0, 0, 2, 2],
    transformer_depth_middle=2, num_classes="sequential", adm_in_channels=2816,
)  # fmt: skip
_SD3 = dict(
    in_channels=16, patch_size=2, depth=2, adm_in_channels=2048, input_size=None, num_patches=24 * 24,
    pos_embed_max_size=24, pos_embed_scaling_factor=None, qk_norm="rms", x_block_self_attn_layers=[0],
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
)  # fmt: skip
BLOCKS = dict(context_in_dim=24, hidden_size=64, mlp_ratio=4.0, num_heads=4, depth=1, depth_single_blocks=1, axes_dim=[4, 6, 6], qkv_bias=True)
FLUX = dict(image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=24, theta=10000, guidance_embed=True, txt_ids_dims=[])
WAN = dict(
    image_model="wan2.1", model_type="t2v", dim=96, num_heads=2, ffn_dim=128, num_layers=2, freq_dim=64, text_dim=24,
    in_dim=16, out_dim=16,
)  # fmt: skip

CORE = {
    "sd15": Recipe("SD15", UNET, (4, 16, 16), 16),  # channels must be multiples of 32: GroupNorm(32)
    "sd21v": Recipe("SD20", UNET | dict(model_channels=64, use_linear_in_transformer=True), (4, 16, 16), 16),  # heads of 64
    "sdxl": Recipe("SDXL", UNET | _SDXL, (4, 16, 16), 16, pooled_dim=1280),
    "sd3": Recipe("SD3", _SD3, (16, 16, 16), 24, pooled_dim=2048),
    "flux": Recipe("Flux", BLOCKS | FLUX, (16, 16, 16), 24, pooled_dim=24, extra={"guidance": 3.5}, params=comfy.ldm.flux.model.FluxParams),
    "wan": Recipe("WAN21_T2V", WAN, (16, 3, 8, 8), 24),
}
