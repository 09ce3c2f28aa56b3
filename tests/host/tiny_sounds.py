"""Recipes of the families that make sound or solid shapes; see tiny_families.py."""

import comfy.ldm.audio.embedders
import torch

from .tiny_families import Recipe, embedding, fill, generator, resized

AUDIO_SECONDS = 768  # width of Stable Audio's time embeddings, fixed in its class

_STABLE_AUDIO = dict(
    audio_model="dit1.0", embed_dim=128, num_heads=2, depth=2, cond_token_dim=AUDIO_SECONDS, global_cond_dim=2 * AUDIO_SECONDS,
    project_cond_tokens=True,  # or the text's width would be the least width of the whole network
)  # fmt: skip
_ACE_STEP = dict(
    audio_model="ace", num_layers=2, attention_head_dim=16, num_attention_heads=4, text_embedding_dim=24,
    lyric_encoder_vocab_size=50, lyric_hidden_size=32, ssl_latent_dims=[8, 8],
)  # fmt: skip
_STABLE_AUDIO3 = dict(
    audio_model="dit1.0", io_channels=256, embed_dim=64, num_heads=2, depth=2, cond_token_dim=AUDIO_SECONDS, global_cond_dim=AUDIO_SECONDS,
    project_cond_tokens=True, global_cond_type="adaLN", global_cond_shared_embed=True, local_add_cond_dim=257, num_memory_tokens=4,
    timestep_features_type="expo", norm_type="rms_norm", attn_kwargs={"qk_norm": "rms", "differential": True},
)  # fmt: skip
_ACE_STEP15 = dict(
    audio_model="ace1.5", hidden_size=64, text_hidden_dim=24, num_dit_layers=2, num_lyric_layers=1, num_timbre_layers=1, num_tokenizer_layers=1,
    num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=96, fsq_dim=32, encoder_hidden_size=32, encoder_intermediate_size=48,
    encoder_num_heads=2,
)  # fmt: skip
_HUNYUAN3D = dict(
    image_model="hunyuan3d2", in_channels=64, context_in_dim=24, hidden_size=64, num_heads=4, depth=1, depth_single_blocks=1, guidance_embed=False,
)  # fmt: skip
_HUNYUAN3D_21 = dict(
    image_model="hunyuan3d2_1", in_channels=64, context_dim=24, hidden_size=64, num_heads=4, depth=2, num_moe_layers=1, num_experts=2, moe_top_k=2,
    guidance_cond_proj_dim=None,
)  # fmt: skip
_TRELLIS2 = dict(image_model="trellis2", resolution=32, model_channels=144, cond_channels=24, num_blocks=1, mlp_ratio=1.0)
_VOXELS = 12
_TRIPOSPLAT = dict(image_model="triposplat", q_token_length=12, model_channels=128, cond_channels=24, num_blocks=1, num_refiner_blocks=1)


def _lyrics(text, tokens):
    return torch.randint(0, 50, (1, tokens), generator=generator(f"lyrics/{text}"))


def _time_embedders(*names, **kind):
    """Stable Audio's time embeddings, which live in the checkpoint next to the network."""

    def state_dict(seed):
        module = torch.nn.ModuleDict({name: comfy.ldm.audio.embedders.NumberConditioner(AUDIO_SECONDS, 0, 512, **kind) for name in names})
        fill(module, seed)
        return {f"conditioner.conditioners.{key}": tensor for key, tensor in module.state_dict().items()}

    return state_dict


def _voxels(text, tokens):
    """Which cells the shape fills: batch, x, y, z."""
    cells = torch.randperm(16**3, generator=generator("voxels"))[:_VOXELS]
    return torch.stack([torch.zeros_like(cells), cells // 256, cells // 16 % 16, cells % 16], dim=1).int()


FAMILIES = {
    "stable_audio": Recipe(
        "StableAudio", _STABLE_AUDIO, (64, 24), AUDIO_SECONDS, state_dict=_time_embedders("seconds_start", "seconds_total"), gain=0.7,
    ),
    "stable_audio3": Recipe(
        "StableAudio3", _STABLE_AUDIO3, (256, 12), AUDIO_SECONDS,
        state_dict=_time_embedders("seconds_total", fourier_features_type="expo"), gain=0.7,
    ),
    "ace_step": Recipe(  # its lyric encoder has 80 M parameters whatever the keys; the latent does not pass through it
        "ACEStep", _ACE_STEP, (8, 16, 24), 24, extra={"conditioning_lyrics": _lyrics},
        shrunk=resized("comfy.ldm.ace.model", LyricEncoder=dict(output_size=32, attention_heads=2, linear_units=32, num_blocks=1)),
    ),
    "ace_step15": Recipe(
        "ACEStep15", _ACE_STEP15, (64, 20), 24, extra={"conditioning_lyrics": lambda text, tokens: embedding(f"lyrics/{text}", 1, 5, 24)},
    ),
    "hunyuan3d": Recipe("Hunyuan3Dv2", _HUNYUAN3D, (64, 16), 24, blank=True),
    "hunyuan3d_21": Recipe("Hunyuan3Dv2_1", _HUNYUAN3D_21, (64, 16), 24, blank=True, dual=False),  # experts without gradient
    "triposplat": Recipe(  # splats and the camera
        "TripoSplat", _TRIPOSPLAT, ((12, 16), (1, 5)), 24,
        extra={"reference_latents": lambda text, tokens: [embedding("picture", 1, 128, 2, 2) * (text != "negative")]},
        blank=True, gain=0.7,
    ),
    "trellis2": Recipe(
        "Trellis2", _TRELLIS2, (32, _VOXELS, 1), 24,
        extra={
            "embeds": lambda text, tokens: embedding(f"fine/{text}", 1, tokens, 24) * (text != "negative"),
            "trellis2_generation_mode": "shape_generation_512",
            "trellis2_coords": _voxels,
            "trellis2_coord_counts": lambda text, tokens: torch.tensor([_VOXELS]),
        },
        blank=True,
    ),
}  # fmt: skip
