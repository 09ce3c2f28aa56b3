"""Recipes of the families that make pictures; see tiny_families.py."""

import comfy.ldm.chroma.model
import comfy.ldm.chroma_radiance.model
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import torch

from .tiny_families import BLOCKS, FLUX, UNET, Recipe, embedding, generator, guides, ones, resized

_CHROMA = dict(
    image_model="chroma", in_channels=64, out_channels=64, patch_size=2, theta=10000, guidance_embed=False,
    in_dim=64, out_dim=64, hidden_dim=64, n_layers=2, txt_ids_dims=[], vec_in_dim=None,
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
_HUNYUAN_DIT = dict(
    image_model="hydit", hidden_size=64, depth=4, num_heads=4, text_states_dim=24, text_states_dim_t5=32, text_len=7, text_len_t5=5,
)  # fmt: skip
_CASCADE = dict(
    stable_cascade_stage="c", c_cond=32, c_hidden=[32, 32], nhead=[4, 4], blocks=[[1, 1], [1, 1]], c_clip_text=24,
    c_clip_text_pooled=24,
)  # fmt: skip
_FLUX2 = dict(
    image_model="flux2", in_channels=128, out_channels=128, patch_size=1, vec_in_dim=None, theta=2000, guidance_embed=False,
    axes_dim=[4, 4, 4, 4], mlp_ratio=3.0, qkv_bias=False, ops_bias=False, global_modulation=True, mlp_silu_act=True,
    default_ref_method="index", ref_index_scale=10.0, txt_ids_dims=[3],
)  # fmt: skip
_RADIANCE = dict(
    image_model="chroma_radiance", in_channels=3, out_channels=3, patch_size=8, nerf_hidden_size=8, nerf_mlp_ratio=2, nerf_depth=1,
    nerf_max_freqs=2, nerf_tile_size=512, nerf_final_head_type="conv", nerf_embedder_dtype=torch.float32, use_x0=False,
    use_sequential_txt_ids=False,
)  # fmt: skip
_Z_IMAGE = dict(
    dim=256, n_kv_heads=4, axes_dims=[16, 24, 24], axes_lens=[1536, 512, 512], n_layers=1, rope_theta=256.0, ffn_dim_multiplier=1.0,
    z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32,
)  # fmt: skip
PREDICT2 = dict(
    image_model="cosmos_predict2", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2,
    patch_temporal=1, model_channels=72, num_heads=3, num_blocks=2, concat_padding_mask=True, crossattn_emb_channels=24,
    pos_emb_cls="rope3d", pos_emb_learnable=True, pos_emb_interpolation="crop", min_fps=1, max_fps=30, use_adaln_lora=True,
    adaln_lora_dim=16, extra_per_block_abs_pos_emb=False, rope_h_extrapolation_ratio=4.0, rope_w_extrapolation_ratio=4.0,
    rope_t_extrapolation_ratio=1.0, rope_enable_fps_modulation=False,
)  # fmt: skip
_HIDREAM = dict(
    image_model="hidream", attention_head_dim=16, axes_dims_rope=[8, 4, 4], caption_channels=[24, 32], max_resolution=[128, 128],
    in_channels=16, out_channels=16, llama_layers=[0, 1], num_attention_heads=4, num_routed_experts=2, num_layers=1,
    num_single_layers=1, patch_size=2, text_emb_dim=24,
    num_activated_experts=2,  # all: where a token changes its expert, a network has no derivative
)  # fmt: skip
_OMNIGEN2 = dict(
    image_model="omnigen2", axes_dim_rope=[8, 8, 8], axes_lens=[1024, 1664, 1664], hidden_size=96, in_channels=16, multiple_of=32,
    num_attention_heads=4, num_kv_heads=2, num_layers=2, num_refiner_layers=1, out_channels=None, patch_size=2, text_feat_dim=24,
    timestep_scale=1000.0,
)  # fmt: skip
HUNYUAN = dict(
    image_model="hunyuan_video", vec_in_dim=None, theta=256, byt5=True, guidance_embed=False, meanflow=False, meanflow_sum=False,
    use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip
BYT5 = resized("comfy.ldm.hunyuan_video.model", ByT5Mapper=dict(out_dim=32, hidden_dim=32))
_PIXELDIT = dict(
    image_model="pixeldit_t2i", hidden_size=64, num_groups=4, pixel_hidden_size=16, pixel_attn_hidden_size=32, pixel_num_groups=2,
    patch_depth=2, pixel_depth=1, patch_size=8, txt_embed_dim=24,
)  # fmt: skip
_ERNIE = dict(
    image_model="ernie", hidden_size=64, num_attention_heads=4, num_layers=2, ffn_hidden_size=128, text_in_dim=24, rope_axes_dim=(4, 6, 6),
)  # fmt: skip
KANDINSKY5 = dict(
    image_model="kandinsky5", model_dim=64, ff_dim=128, time_dim=32, in_text_dim=24, in_text_dim2=24, num_text_blocks=1,
    num_visual_blocks=2, axes_dims=(4, 6, 6),
)  # fmt: skip


def glyphs(text, tokens):
    """Hunyuan's encoder adds features of the letters where a prompt quotes words to be drawn, and nothing where not."""
    return embedding(f"glyphs/{text}", 1, 5, 1472) if text == "positive" else None


def _t5_ids(text, tokens):
    return torch.randint(0, 32128, (tokens,), generator=generator(f"t5/{text}"))


def _two_pictures(text, tokens):
    """One alone has the same place by either method."""
    return [embedding(name, 1, 16, 1, 8, 6) for name in ("picture", "second")]


FAMILIES = {
    "chroma": Recipe("Chroma", BLOCKS | _CHROMA, (16, 16, 16), 24, extra={"pooled_output": None}, params=comfy.ldm.chroma.model.ChromaParams),
    "auraflow": Recipe("AuraFlow", _AURAFLOW, (4, 16, 16), 24),
    "pixart_sigma": Recipe("PixArtSigma", _PIXART, (4, 40, 40), 24),  # its position embedding divides by zero below 33
    "lumina2": Recipe("Lumina2", _LUMINA2, (16, 16, 16), 24, extra={"attention_mask": ones}),
    "qwen_image": Recipe("QwenImage", _QWEN_IMAGE, (16, 1, 16, 16), 24),
    "hunyuan_dit": Recipe(
        "HunyuanDiT", _HUNYUAN_DIT, (4, 16, 16), 24,
        extra={
            "attention_mask": ones,
            "conditioning_mt5xl": lambda text, tokens: embedding(f"t5/{text}", 1, 5, 32),
            "attention_mask_mt5xl": lambda text, tokens: ones(text, 5),
        },
    ),
    "stable_cascade": Recipe("Stable_Cascade_C", _CASCADE, (16, 12, 12), 24, pooled_dim=24),
    "sd15_edit": Recipe(  # pictures edited by an instruction
        "SD15_instructpix2pix", UNET | dict(in_channels=8), (4, 16, 16), 16,
        extra={"concat_latent_image": lambda text, tokens: embedding("picture", 1, 4, 16, 16)},
    ),
    "flux_schnell": Recipe(
        "FluxSchnell", BLOCKS | FLUX | dict(guidance_embed=False), (16, 16, 16), 24, pooled_dim=24, params=comfy.ldm.flux.model.FluxParams,
    ),
    "flux_fill": Recipe(
        "FluxInpaint", BLOCKS | FLUX | dict(in_channels=96), (16, 16, 16), 24, pooled_dim=24,
        extra={
            "guidance": 30.0,
            "concat_latent_image": lambda text, tokens: embedding("picture", 1, 16, 16, 16),
            "concat_mask": lambda text, tokens: (torch.arange(128) < 64).expand(1, 1, 128, 128).float(),
        },
        params=comfy.ldm.flux.model.FluxParams,
    ),
    "flux_kontext": Recipe(
        "Flux", BLOCKS | FLUX, (16, 16, 16), 24, pooled_dim=24, extra={"guidance": 2.5, "reference_latents": guides("picture", 16, 16, 12)},
        params=comfy.ldm.flux.model.FluxParams,
    ),
    "flux2": Recipe(  # Klein; its text is padded to 512 tokens
        "Flux2", BLOCKS | _FLUX2, (128, 8, 8), 24, extra={"pooled_output": None, "reference_latents": guides("picture", 128, 8, 6)},
        params=comfy.ldm.flux.model.FluxParams,
    ),
    "longcat": Recipe(
        "LongCatImage", BLOCKS | FLUX | dict(guidance_embed=False, vec_in_dim=None, txt_ids_dims=[1, 2]), (16, 16, 16), 24,
        extra={"pooled_output": None}, params=comfy.ldm.flux.model.FluxParams,
    ),
    "chroma_radiance": Recipe(
        "ChromaRadiance", BLOCKS | _CHROMA | _RADIANCE, (3, 32, 32), 24, extra={"pooled_output": None},
        params=comfy.ldm.chroma_radiance.model.ChromaRadianceParams,
    ),
    "qwen_image_edit": Recipe(
        "QwenImage", _QWEN_IMAGE, (16, 1, 16, 16), 24,
        extra={"reference_latents": _two_pictures, "reference_latents_method": "index"},
    ),
    "qwen_image_edit_offset": Recipe(
        "QwenImage", _QWEN_IMAGE, (16, 1, 16, 16), 24,
        extra={"reference_latents": _two_pictures, "reference_latents_method": "offset"},
    ),
    "qwen_image_edit_2511": Recipe(  # its network has a second time for the picture, 0
        "QwenImage", _QWEN_IMAGE, (16, 1, 16, 16), 24,
        extra={"reference_latents": _two_pictures, "reference_latents_method": "index_timestep_zero"},
    ),
    "z_image": Recipe("ZImage", _LUMINA2 | _Z_IMAGE, (16, 16, 16), 24, extra={"attention_mask": ones}),  # a width of 256 at least
    "cosmos_predict2": Recipe("CosmosT2IPredict2", PREDICT2, (16, 1, 16, 16), 24),
    "anima": Recipe(  # its text passes through an adapter, which pads it to 512 tokens
        "Anima", PREDICT2 | dict(image_model="anima", crossattn_emb_channels=8), (16, 1, 16, 16), 24,
        extra={"t5xxl_ids": _t5_ids, "t5xxl_weights": lambda text, tokens: torch.ones(tokens)},
        shrunk=resized("comfy.ldm.anima.model", LLMAdapter=dict(source_dim=24, target_dim=8, model_dim=32, num_layers=1, num_heads=2)),
    ),
    "hidream": Recipe(
        "HiDream", _HIDREAM, (16, 16, 16), 24, pooled_dim=24,
        extra={"conditioning_llama3": lambda text, tokens: embedding(f"llama/{text}", 1, 2, tokens, 32)},
    ),
    "omnigen2": Recipe(
        "Omnigen2", _OMNIGEN2, (16, 16, 16), 24, extra={"attention_mask": ones, "reference_latents": guides("picture", 16, 16, 12)},
    ),
    "hunyuan_image": Recipe(
        "HunyuanImage21", BLOCKS | HUNYUAN | dict(in_channels=64, out_channels=64, patch_size=[1, 1], axes_dim=[8, 8]), (64, 8, 8), 24,
        extra={"conditioning_byt5small": glyphs}, params=comfy.ldm.hunyuan_video.model.HunyuanVideoParams, shrunk=BYT5,
    ),
    "pixeldit": Recipe(  # torch.func.jvp drops a part of its addcmul_ in place
        "PixelDiTT2I", _PIXELDIT, (3, 32, 32), 24, extra={"attention_mask": ones}, dual=False,
    ),
    "ernie": Recipe("ErnieImage", _ERNIE, (128, 8, 8), 24),
    "kandinsky5_image": Recipe("Kandinsky5Image", KANDINSKY5 | dict(visual_embed_dim=64), (16, 16, 16), 24, pooled_dim=24),
}  # fmt: skip
