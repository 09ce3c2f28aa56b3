"""Recipes of the tiny MODELs (tiny.py): which ComfyUI class, how small, and what its conditioning holds.

`CORE` are the six that most tests run on; `FURTHER` the other families, for test_families.py and matrix.py.
"""

import functools
import zlib
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import comfy.ldm.ace.model
import comfy.ldm.audio.embedders
import comfy.ldm.chroma.model
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import torch

AUDIO_SECONDS = 768  # width of Stable Audio's two time embeddings, fixed in its class


@dataclass(frozen=True)
class Recipe:
    config: str  # class name in comfy.supported_models
    keys: dict
    latent_shape: tuple  # without the batch
    context_dim: int
    pooled_dim: int | None = None
    extra: dict = field(default_factory=dict)  # entries of the conditioning's dict; a callable gets (text, tokens)
    params: type | None = None  # dataclass of the keys this ComfyUI takes: newer ones need more than older ones know
    state_dict: Callable[[int], dict] = lambda seed: {}  # what get_model reads from a checkpoint; gets the seed
    shrunk: Callable = nullcontext  # context in which the model is built, where a size is no key


def fill(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights from a seed, for everything a checkpoint would fill: ComfyUI's layers leave them uninitialised, and so
    are some persistent buffers (SD3's pos_embed). Each tensor has its own generator, so order does not matter."""
    for key, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        values = torch.randn(tensor.shape, generator=generator(f"{seed}/{key}"))
        if tensor.ndim >= 2:
            values *= tensor[0].numel() ** -0.5  # fan in
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


_UNET = dict(
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
_BLOCKS = dict(context_in_dim=24, hidden_size=64, mlp_ratio=4.0, num_heads=4, depth=1, depth_single_blocks=1, axes_dim=[4, 6, 6], qkv_bias=True)
_FLUX = dict(image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=24, theta=10000, guidance_embed=True, txt_ids_dims=[])
_CHROMA = dict(
    image_model="chroma", in_channels=64, out_channels=64, patch_size=2, theta=10000, guidance_embed=False,
    in_dim=64, out_dim=64, hidden_dim=64, n_layers=2, txt_ids_dims=[], vec_in_dim=None,
)  # fmt: skip
_HUNYUAN_VIDEO = dict(
    image_model="hunyuan_video", in_channels=16, out_channels=16, patch_size=[1, 2, 2], vec_in_dim=24, theta=256,
    guidance_embed=True, byt5=False, meanflow=False, meanflow_sum=False, use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip
_WAN = dict(
    image_model="wan2.1", model_type="t2v", dim=96, num_heads=2, ffn_dim=128, num_layers=2, freq_dim=64, text_dim=24,
    in_dim=16, out_dim=16,
)  # fmt: skip
_AURAFLOW = dict(in_channels=4, out_channels=4, dim=64, n_layers=2, n_double_layers=1, n_heads=4, global_conddim=64, cond_seq_dim=24, max_seq=64)
_PIXART = dict(
    image_model="pixart_sigma", hidden_size=64, num_heads=4, depth=2, caption_channels=24, input_size=128,
    pe_interpolation=2, micro_condition=False, model_max_length=300,
)  # fmt: skip
_LUMINA2 = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=96, cap_feat_dim=24, n_layers=2, n_refiner_layers=1,
    qk_norm=True, n_heads=4, n_kv_heads=2, axes_dims=[8, 8, 8], axes_lens=[300, 512, 512], multiple_of=32,
)  # fmt: skip
_QWEN_IMAGE = dict(
    image_model="qwen_image", in_channels=64, out_channels=16, num_layers=2, attention_head_dim=32, num_attention_heads=2,
    joint_attention_dim=24, axes_dims_rope=(8, 12, 12),
)  # fmt: skip
_LTXV = dict(
    image_model="ltxv", in_channels=128, attention_head_dim=32, num_attention_heads=2, caption_channels=24, num_layers=2,
    cross_attention_dim=64,  # heads * head dim: the caption is projected to it
)  # fmt: skip
_HUNYUAN_DIT = dict(
    image_model="hydit", hidden_size=64, depth=4, num_heads=4, text_states_dim=24, text_states_dim_t5=32, text_len=7, text_len_t5=5,
)  # fmt: skip
_CASCADE = dict(
    stable_cascade_stage="c", c_cond=32, c_hidden=[32, 32], nhead=[4, 4], blocks=[[1, 1], [1, 1]], c_clip_text=24,
    c_clip_text_pooled=24,
)  # fmt: skip
_STABLE_AUDIO = dict(
    audio_model="dit1.0", embed_dim=128, num_heads=2, depth=2, cond_token_dim=AUDIO_SECONDS, global_cond_dim=2 * AUDIO_SECONDS,
    project_cond_tokens=True,  # or the text's width would be the least width of the whole network
)  # fmt: skip
_ACE_STEP = dict(
    audio_model="ace", num_layers=2, attention_head_dim=16, num_attention_heads=4, text_embedding_dim=24,
    lyric_encoder_vocab_size=50, lyric_hidden_size=32, ssl_latent_dims=[8, 8],
)  # fmt: skip


def _ones(text, tokens):
    return torch.ones(1, tokens, dtype=torch.long)


def _lyrics(text, tokens):
    return torch.randint(0, 50, (1, tokens), generator=generator(f"lyrics/{text}"))


def _seconds_embedders(seed):
    """Stable Audio's time embeddings, which live in the checkpoint next to the network."""
    module = torch.nn.ModuleDict({name: comfy.ldm.audio.embedders.NumberConditioner(AUDIO_SECONDS, 0, 512) for name in ("seconds_start", "seconds_total")})
    fill(module, seed)
    return {f"conditioner.conditioners.{key}": tensor for key, tensor in module.state_dict().items()}


@contextmanager
def _short_lyric_encoder():
    """ACE-Step's lyric encoder has 80 M parameters whatever the keys; the latent does not pass through it."""
    module = comfy.ldm.ace.model
    whole = module.LyricEncoder
    module.LyricEncoder = functools.partial(whole, output_size=32, attention_heads=2, linear_units=32, num_blocks=1)
    try:
        yield
    finally:
        module.LyricEncoder = whole


CORE = {
    "sd15": Recipe("SD15", _UNET, (4, 16, 16), 16),  # channels must be multiples of 32: GroupNorm(32)
    "sd21v": Recipe("SD20", _UNET | dict(model_channels=64, use_linear_in_transformer=True), (4, 16, 16), 16),  # heads of 64
    "sdxl": Recipe("SDXL", _UNET | _SDXL, (4, 16, 16), 16, pooled_dim=1280),
    "sd3": Recipe("SD3", _SD3, (16, 16, 16), 24, pooled_dim=2048),
    "flux": Recipe("Flux", _BLOCKS | _FLUX, (16, 16, 16), 24, pooled_dim=24, extra={"guidance": 3.5}, params=comfy.ldm.flux.model.FluxParams),
    "wan": Recipe("WAN21_T2V", _WAN, (16, 3, 8, 8), 24),
}
FURTHER = {
    "chroma": Recipe("Chroma", _BLOCKS | _CHROMA, (16, 16, 16), 24, extra={"pooled_output": None}, params=comfy.ldm.chroma.model.ChromaParams),
    "auraflow": Recipe("AuraFlow", _AURAFLOW, (4, 16, 16), 24),
    "pixart_sigma": Recipe("PixArtSigma", _PIXART, (4, 40, 40), 24),  # its position embedding divides by zero below 33
    "lumina2": Recipe("Lumina2", _LUMINA2, (16, 16, 16), 24, extra={"attention_mask": _ones}),
    "qwen_image": Recipe("QwenImage", _QWEN_IMAGE, (16, 1, 16, 16), 24),
    "hunyuan_video": Recipe(
        "HunyuanVideo", _BLOCKS | _HUNYUAN_VIDEO, (16, 2, 8, 8), 24, pooled_dim=24,
        params=comfy.ldm.hunyuan_video.model.HunyuanVideoParams,
    ),
    "ltxv": Recipe("LTXV", _LTXV, (128, 2, 4, 4), 24, extra={"attention_mask": _ones}),
    "hunyuan_dit": Recipe(
        "HunyuanDiT", _HUNYUAN_DIT, (4, 16, 16), 24,
        extra={
            "attention_mask": _ones,
            "conditioning_mt5xl": lambda text, tokens: embedding(f"t5/{text}", 1, 5, 32),
            "attention_mask_mt5xl": lambda text, tokens: _ones(text, 5),
        },
    ),
    "stable_cascade": Recipe("Stable_Cascade_C", _CASCADE, (16, 12, 12), 24, pooled_dim=24),
    "stable_audio": Recipe("StableAudio", _STABLE_AUDIO, (64, 24), AUDIO_SECONDS, state_dict=_seconds_embedders),
    "ace_step": Recipe("ACEStep", _ACE_STEP, (8, 16, 24), 24, extra={"conditioning_lyrics": _lyrics}, shrunk=_short_lyric_encoder),
}  # fmt: skip
