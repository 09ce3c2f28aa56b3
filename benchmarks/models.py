"""MODELs of full size with random weights: the arithmetic, and so the cost, is that of a checkpoint. And the digits.

Random eps networks have a Jacobian far from a denoiser's; a v network with a small output is close to one, since then
D = x / (1 + sigma^2) + little and J = 1 / (1 + sigma^2). So skipping, which looks at J, is measured on v and on the digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 2**22 + 15  # normal numbers made once and laid out again and again: 860 M parameters in seconds
V_OUTPUT = 0.05  # of the last layer of a v network

_LDM = dict(
    use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, in_channels=4, out_channels=4,
    use_temporal_attention=False, use_temporal_resblock=False, adm_in_channels=None, use_linear_in_transformer=False,
)  # fmt: skip
_SD15 = _LDM | dict(
    model_channels=320, num_res_blocks=[2] * 4, channel_mult=[1, 2, 4, 4], transformer_depth=[1] * 6 + [0, 0],
    transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1, context_dim=768,
)  # fmt: skip
_SD21 = _SD15 | dict(use_linear_in_transformer=True, context_dim=1024)
_SDXL = _LDM | dict(
    model_channels=320, num_res_blocks=[2] * 3, channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0] * 3 + [2] * 3 + [10] * 3, transformer_depth_middle=10, context_dim=2048,
    num_classes="sequential", adm_in_channels=2816, use_linear_in_transformer=True,
)  # fmt: skip
_TINY = dict(
    model_channels=64, num_res_blocks=[1, 1], channel_mult=[1, 2], transformer_depth=[1, 1], transformer_depth_output=[1] * 4,
    transformer_depth_middle=1,
)  # fmt: skip

# name: (class in comfy.supported_models, keys, tokens, width of the pooled text, prediction)
NETWORKS = {
    "sd15": ("SD15", _SD15, 77, 0, "eps"),
    "sd15_v": ("SD15", _SD15, 77, 0, "v"),
    "sd21_v": ("SD20", _SD21, 77, 0, "v"),
    "sdxl": ("SDXL", _SDXL, 77, 1280, "eps"),
    "sdxl_v": ("SDXL", _SDXL, 77, 1280, "v"),
    "sd15_small_v": ("SD15", _SD15 | dict(model_channels=96), 77, 0, "v"),
    "tiny_sd15": ("SD15", _SD15 | _TINY, 7, 0, "eps"),
    "tiny_sd21_v": ("SD20", _SD21 | _TINY, 7, 0, "v"),
    "tiny_sdxl": ("SDXL", _SDXL | _TINY, 7, 1280, "eps"),
}


@dataclass
class Subject:
    """A MODEL and its CONDITIONING."""

    patcher: object
    positive: list
    negative: list
    weights: int  # bytes


def build(name: str, pack, dtype=torch.float32) -> Subject:
    """The MODEL called `name` in NETWORKS, or "digits", or "digits_autoguidance". Weights are inference tensors, as a loader leaves them."""
    if name.startswith("digits"):
        return _digits(pack, autoguidance=name.endswith("autoguidance"))
    import comfy.model_management
    import comfy.model_patcher

    _, keys, tokens, pooled, prediction = NETWORKS[name]
    with torch.inference_mode():
        model = network(name, dtype)
        fill(model.diffusion_model)
        if prediction == "v":
            model.diffusion_model.out[-1].weight.mul_(V_OUTPUT)
        patcher = comfy.model_patcher.ModelPatcher(
            model,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        conds = [_conditioning(seed, tokens, keys["context_dim"], pooled) for seed in (1, 2)]
    return Subject(patcher, *conds, weights=weight_bytes(model))


def network(name: str, dtype=torch.float32, device="cpu"):
    """ComfyUI's model of this name, weights not yet filled."""
    import comfy.model_base
    import comfy.supported_models

    kind, keys, _, _, prediction = NETWORKS[name]
    config = getattr(comfy.supported_models, kind)(dict(keys))
    model_type = comfy.model_base.ModelType.V_PREDICTION if prediction == "v" else comfy.model_base.ModelType.EPS
    config.model_type = lambda state_dict, prefix="": model_type  # the classes look for a hint in the checkpoint
    config.set_inference_dtype(dtype, None)
    return config.get_model({}, device=device).eval()


def fill(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights from one block of normal numbers: scaled by the fan-in, biases small, norm scales about 1."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
    at = 0
    for key, tensor in module.state_dict().items():
        flat, done = tensor.view(-1), 0
        while done < len(flat):
            n = min(len(flat) - done, BLOCK - at)
            flat[done : done + n] = block[at : at + n]
            done, at = done + n, (at + n) % BLOCK
        if tensor.ndim >= 2:
            tensor.mul_(tensor[0].numel() ** -0.5)
        else:
            tensor.mul_(0.05)
            tensor.add_(0 if key.endswith("bias") else 1)


def weight_bytes(model: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def _conditioning(seed, tokens, width, pooled):
    """Two prompts share most of their embedding, as those of a text encoder do."""
    shared, own = (torch.Generator().manual_seed(s) for s in (0, seed))

    def embedding(*shape):
        return 0.8 * torch.randn(shape, generator=shared) + 0.6 * torch.randn(shape, generator=own)

    return [[embedding(1, tokens, width), {"pooled_output": embedding(1, pooled)} if pooled else {}]]


def _digits(pack, autoguidance):
    def first(node, *inputs):
        return pack.nodes[node].execute(*inputs).result[0]

    model = first("REGDemoModel", "digits")
    weights = weight_bytes(model.model)
    positive = first("REGDemoPrompt", "all ten in turn")
    if not autoguidance:
        return Subject(model, positive, first("REGDemoPrompt", "no prompt"), weights)
    weak = first("REGDemoModel", "digits_weak")
    return Subject(first("REGReferenceModel", model, weak), positive, positive, weights + weight_bytes(weak.model))
