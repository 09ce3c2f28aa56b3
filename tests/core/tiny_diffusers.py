"""Tiny random networks of diffusers, and what their Jacobians do to a prediction."""

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD = BETAS | dict(steps_offset=1, clip_sample=False)


def rand(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def loud(module):
    """Random weights large enough that the Jacobian is far from the identity."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * (1.5 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.2)
    return module.double().eval()


def unet(channels=4, **more):
    blocks = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    sizes = dict(sample_size=4, in_channels=channels, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
    return loud(UNet2DConditionModel(**sizes | blocks | dict(cross_attention_dim=12, attention_head_dim=2) | more))


def factor(scheduler, i, t, grad):
    """J^T 1 of the network's output by its gradient: 1 - sqrt(1 - abar) grad for noise prediction (Eq. 21), and likewise."""
    name = scheduler.config.get("prediction_type", "flow_prediction")
    if name == "flow_prediction" or scheduler.config.get("use_flow_sigmas"):
        sigma = scheduler.sigmas[i].double()
        return (1 - sigma) * (1 - sigma * grad)
    sigmas = getattr(scheduler, "sigmas", None)
    abar = scheduler.alphas_cumprod[t.long()].double() if sigmas is None else 1 / (1 + sigmas[i].double() ** 2)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    return {"epsilon": 1 - s * grad, "v_prediction": a * a - a * s * grad, "sample": a * grad}[name]


def text_to_image(folder, prediction="epsilon", xl=False):
    """A Stable Diffusion of random weights, tokenizer and text encoders included, saved as real ones are."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *(c + "</w>" for c in letters), *letters]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    config = CLIPTextConfig(vocab_size=len(words), hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                            projection_dim=10, bos_token_id=0, eos_token_id=1, pad_token_id=1)  # fmt: skip
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                        norm_num_groups=2, latent_channels=4, sample_size=8)  # fmt: skip
    added = dict(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 10)
    network = unet(**(added | {"cross_attention_dim": 24} if xl else {})).float()
    scheduler = EulerDiscreteScheduler(**BETAS, steps_offset=1, prediction_type=prediction)
    if xl:
        encoders = CLIPTextModel(config).eval(), CLIPTextModelWithProjection(config).eval()
        pipe = StableDiffusionXLPipeline(vae, *encoders, tokenizer, tokenizer, network, scheduler)
    else:
        pipe = StableDiffusionPipeline(vae, CLIPTextModel(config).eval(), tokenizer, network, scheduler, None, None, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    return folder
