"""Recipes of the families that make videos, some of them with sound; see tiny_families.py."""

import comfy.ldm.hunyuan_video.model
import torch

from .tiny_families import BLOCKS, UNET, WAN, Recipe, embedding, first_frame, guide, guides, ones, resized, vision
from .tiny_images import BYT5, HUNYUAN, KANDINSKY5, PREDICT2, glyphs

_HUNYUAN_VIDEO = dict(
    image_model="hunyuan_video", in_channels=16, out_channels=16, patch_size=[1, 2, 2], vec_in_dim=24, theta=256,
    guidance_embed=True, byt5=False, meanflow=False, meanflow_sum=False, use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip
_LTXV = dict(
    image_model="ltxv", in_channels=128, attention_head_dim=32, num_attention_heads=2, caption_channels=24, num_layers=2,
    cross_attention_dim=64,  # heads * head dim: the caption is projected to it
)  # fmt: skip
_HUNYUAN15 = HUNYUAN | dict(
    in_channels=65, out_channels=32, patch_size=[1, 1, 1], use_cond_type_embedding=True, vision_in_dim=48, meanflow_sum=True,
)  # fmt: skip
_LTXAV = _LTXV | dict(
    image_model="ltxav", audio_in_channels=128, audio_attention_head_dim=16, audio_num_attention_heads=2, audio_cross_attention_dim=32,
    connector_attention_head_dim=16, connector_num_attention_heads=2, connector_num_layers=1,
)  # fmt: skip
_COSMOS = dict(
    image_model="cosmos", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2,
    patch_temporal=1, model_channels=72, num_heads=3, num_blocks=2, block_config="FA-CA-MLP", concat_padding_mask=True,
    crossattn_emb_channels=24, pos_emb_cls="rope3d", pos_emb_learnable=False, pos_emb_interpolation="crop", block_x_format="THWBD",
    affline_emb_norm=True, use_adaln_lora=True, adaln_lora_dim=16, extra_per_block_abs_pos_emb=True,
    extra_per_block_abs_pos_emb_type="learnable", rope_h_extrapolation_ratio=1.0, rope_w_extrapolation_ratio=1.0,
    rope_t_extrapolation_ratio=2.0,
)  # fmt: skip
_MOCHI = dict(
    image_model="mochi_preview", depth=2, patch_size=2, num_heads=4, hidden_size_x=64, hidden_size_y=48, mlp_ratio_y=4.0,
    mlp_ratio_x=192.0,  # 1536 * 8 hidden units, the only number its class takes
    learn_sigma=False, in_channels=12, qk_norm=True, qkv_bias=False, out_bias=True, attn_drop=0.0, patch_embed_bias=True,
    posenc_preserve_area=True, timestep_mlp_bias=True, attend_to_padding=False, timestep_scale=1000.0, use_t5=True, t5_feat_dim=24,
    t5_token_length=256, rope_theta=10000.0,
)  # fmt: skip
_COGVIDEOX = dict(
    image_model="cogvideox", num_attention_heads=2, attention_head_dim=32, in_channels=16, time_embed_dim=32, text_embed_dim=24, num_layers=2,
    patch_size=2, use_rotary_positional_embeddings=True, use_learned_positional_embeddings=False,
)  # fmt: skip
_SVD = dict(
    model_channels=64, in_channels=8, use_linear_in_transformer=True, adm_in_channels=768, num_classes="sequential",
    use_temporal_attention=True, use_temporal_resblock=True, extra_ff_mix_layer=True, use_spatial_context=True,
    merge_strategy="learned_with_images", merge_factor=0.0, video_kernel_size=[3, 1, 1], disable_temporal_crossattention=False,
)  # fmt: skip
_MINIMAX_H3 = dict(
    image_model="minimax_h3", hidden_size=64, num_layers=2, token_refiner_num_layers=1, num_attention_heads=2, attention_head_dim=24,
    ffn_hidden_size=96, text_dim=24, timestep_input_dim=32, time_embed_hidden_size=32, time_embed_dim=32, rope_inv_freq_len=4,
)  # fmt: skip
_PICTURE = {"concat_latent_image": guide("picture", 16, 3, 8, 8), "concat_mask": first_frame(1, 3, 8, 8)}  # as WanImageToVideo makes them
_CLIP = {"clip_vision_output": vision(1280)}
_FRAME = {"concat_latent_image": guide("picture", 16, 1, 8, 8), "concat_mask": first_frame(1, 2, 8, 8)}


def _sound(*shape):
    """Features of the sound track, silent in the negative."""
    return lambda text, tokens: embedding("sound", 1, *shape) * (text != "negative")


def _cameras(text, tokens):
    """Six numbers a pixel and frame: where its ray comes from."""
    return embedding("cameras", 1, 24, 3, 64, 64)


def _first_picture(text, tokens):
    """Of SVD_img2vid_Conditioning: no picture in the negative."""
    return embedding("picture", 1, 4, 8, 8) * (text != "negative")


_HUNYUAN_PARAMS = comfy.ldm.hunyuan_video.model.HunyuanVideoParams
FAMILIES = {
    "hunyuan_video": Recipe("HunyuanVideo", BLOCKS | _HUNYUAN_VIDEO, (16, 2, 8, 8), 24, pooled_dim=24, params=_HUNYUAN_PARAMS),
    "hunyuan_video_frame": Recipe(  # "v2 (replace)" of HunyuanImageToVideo, which has one prompt; older networks take one row only
        "HunyuanVideo", BLOCKS | _HUNYUAN_VIDEO, (16, 2, 8, 8), 24, pooled_dim=24,
        extra={"guiding_frame_index": lambda text, tokens: None if text == "negative" else 0}, params=_HUNYUAN_PARAMS, single=True,
    ),
    "hunyuan_video_frames": Recipe(  # both prompts through that node; this network takes two rows in a batch, not three
        "HunyuanVideo", BLOCKS | _HUNYUAN_VIDEO, (16, 2, 8, 8), 24, pooled_dim=24, extra={"guiding_frame_index": 0}, params=_HUNYUAN_PARAMS,
        single=True, since=(0, 33),
    ),
    "hunyuan_video_i2v": Recipe(  # "v1 (concat)"
        "HunyuanVideoI2V", BLOCKS | _HUNYUAN_VIDEO | dict(in_channels=33), (16, 2, 8, 8), 24, pooled_dim=24, extra=_FRAME, params=_HUNYUAN_PARAMS,
    ),
    "hunyuan_video_skyreels": Recipe(
        "HunyuanVideoSkyreelsI2V", BLOCKS | _HUNYUAN_VIDEO | dict(in_channels=32), (16, 2, 8, 8), 24, pooled_dim=24,
        extra={"concat_latent_image": guide("picture", 16, 2, 8, 8)}, params=_HUNYUAN_PARAMS,
    ),
    "hunyuan_video15": Recipe(  # it moves a weight as it runs, and would keep torch.func.jvp's own tensor in its place
        "HunyuanVideo15", BLOCKS | _HUNYUAN15, (32, 2, 4, 4), 24,
        extra={"pooled_output": None, "conditioning_byt5small": glyphs}, params=_HUNYUAN_PARAMS, shrunk=BYT5, dual=False,
    ),
    "hunyuan_video15_i2v": Recipe(
        "HunyuanVideo15", BLOCKS | _HUNYUAN15, (32, 2, 4, 4), 24,
        extra={
            "pooled_output": None,
            "concat_latent_image": guide("picture", 32, 2, 4, 4),
            "concat_mask": first_frame(1, 2, 4, 4),
            "clip_vision_output": vision(48),
        },
        params=_HUNYUAN_PARAMS, shrunk=BYT5, dual=False,
    ),
    "ltxv": Recipe("LTXV", _LTXV, (128, 2, 4, 4), 24, extra={"attention_mask": ones}),
    "ltxav": Recipe("LTXAV", _LTXAV, ((128, 2, 4, 4), (8, 6, 16)), 48, extra={"attention_mask": ones}),  # text for both streams
    "wan_i2v": Recipe("WAN21_I2V", WAN | dict(model_type="i2v", in_dim=36), (16, 3, 8, 8), 24, extra=_PICTURE | _CLIP),
    "wan_fun_control": Recipe(
        "WAN21_FunControl2V", WAN | dict(model_type="i2v", in_dim=48), (16, 3, 8, 8), 24,
        extra={"concat_latent_image": guide("control", 32, 3, 8, 8)} | _CLIP,
    ),
    "wan_camera": Recipe(
        "WAN21_Camera", WAN | dict(model_type="camera", in_dim=32), (16, 3, 8, 8), 24,
        extra={"concat_latent_image": guide("picture", 16, 3, 8, 8), "camera_conditions": _cameras} | _CLIP,
    ),
    "wan22_camera": Recipe(
        "WAN22_Camera", WAN | dict(model_type="camera_2.2", in_dim=36), (16, 3, 8, 8), 24, extra=_PICTURE | {"camera_conditions": _cameras},
    ),
    "wan_vace": Recipe(
        "WAN21_Vace", WAN | dict(model_type="vace", vace_layers=1, vace_in_dim=96), (16, 3, 8, 8), 24,
        extra={
            "vace_frames": guides("control", 32, 3, 8, 8),
            "vace_mask": lambda text, tokens: [torch.ones(1, 64, 3, 8, 8)],
            "vace_strength": [1.0],
        },
    ),
    "wan_humo": Recipe(
        "WAN21_HuMo", WAN | dict(model_type="humo", in_dim=36), (16, 3, 8, 8), 24,
        extra={"reference_latents": guides("picture", 16, 1, 8, 8), "audio_embed": _sound(3, 8, 5, 8)},
        shrunk=resized("comfy.ldm.wan.model", AudioProjModel=dict(channels=8, intermediate_dim=16)),
    ),
    "wan22_5b": Recipe("WAN22_T2V", WAN | dict(in_dim=48, out_dim=48), (48, 3, 8, 8), 24),
    "wan22_s2v": Recipe(
        "WAN22_S2V", WAN | dict(model_type="s2v", audio_dim=16, audio_inject_layers=[0]), (16, 3, 8, 8), 24,
        extra={
            "audio_embed": _sound(25, 16, 12),
            "reference_latents": guides("picture", 16, 1, 8, 8),
            "control_video": guide("control", 16, 3, 8, 8),
        },
    ),
    "wan22_animate": Recipe(
        "WAN22_Animate", WAN | dict(model_type="animate", in_dim=36), (16, 3, 8, 8), 24,
        extra=_PICTURE | _CLIP | {"pose_video_latent": guide("pose", 16, 2, 8, 8)},
        shrunk=resized("comfy.ldm.wan.model_animate", Generator=None, FaceEncoder=None),  # of 30 M parameters; no face is given
    ),
    "cosmos": Recipe("CosmosT2V", _COSMOS, (16, 2, 8, 8), 24, extra={"attention_mask": ones}),
    "cosmos_predict2_i2v": Recipe("CosmosI2VPredict2", PREDICT2 | dict(in_channels=17), (16, 2, 8, 8), 24, extra={"concat_mask": first_frame(1, 2, 8, 8)}),
    "mochi": Recipe("GenmoMochi", _MOCHI, (12, 2, 8, 8), 24, extra={"attention_mask": ones}),
    "cogvideox": Recipe("CogVideoX_T2V", _COGVIDEOX, (16, 2, 8, 8), 24),
    "kandinsky5": Recipe(
        "Kandinsky5", KANDINSKY5 | dict(visual_embed_dim=132), (16, 2, 8, 8), 24, pooled_dim=24,
        extra={"time_dim_replace": guide("picture", 16, 1, 8, 8), "concat_mask": first_frame(1, 2, 8, 8)},
    ),
    "svd": Recipe(  # its batch are the frames of one video; torch.func.jvp fails at GroupNorm over frames
        "SVD_img2vid", UNET | _SVD, (4, 8, 8), 16, extra={"concat_latent_image": _first_picture}, blank=True, frames=True, dual=False,
    ),
    "minimax_h3": Recipe("MiniMaxH3", _MINIMAX_H3, ((24, 2, 4, 4), (32, 2, 8)), 24, single=True),
}  # fmt: skip
