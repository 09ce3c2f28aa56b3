"""Cases of features.py: how weights are stored, run and spread."""

import functools
import json
from contextlib import contextmanager
from unittest import mock

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from . import reg, tiny
from .features import Missing, Setup, case, generator

KIND = "weights"
NO_DERIVATIVE = dict(engines=("finite_difference",), why="failed")
BUDGET = 1.2e6  # bytes of the tiny SD3 that may be loaded: about a fifth


@case(KIND, "float32")
def float32(w):
    return Setup(tiny.build("sd3"), flow=True)


@case(KIND, "bfloat16")
def bfloat16(w):
    return Setup(tiny.build("sd3", dtype=torch.bfloat16), flow=True, transparent=2e-2)


@case(KIND, "float16")
def float16(w):
    return Setup(tiny.build("sd3", dtype=torch.float16), flow=True, transparent=2e-3)


@case(KIND, "bfloat16 cast to float32")
def manual_cast(w):
    return Setup(tiny.build("wan", dtype=torch.bfloat16, manual_cast=torch.float32), flow=True)


@case(KIND, "float8 cast to float32")
def float8(w):
    return Setup(tiny.build("sd3", dtype=torch.float8_e4m3fn, manual_cast=torch.float32), flow=True)


def rounded(t, plain):
    """`plain` with the weights of `t` as they are after storage."""
    stored = dict(t.patcher.model.diffusion_model.named_parameters())
    for name, weight in plain.patcher.model.diffusion_model.named_parameters():
        value = stored[name]
        weight.copy_(value.dequantize() if hasattr(value, "dequantize") else value.to(torch.float32))
    return plain


@case(KIND, "quantised layers (scaled float8)")
def quantised(w):
    """ComfyUI's own quantised tensors in the attention layers, as its loader makes them of a checkpoint."""
    plain = tiny.build("sd3")
    state = plain.patcher.model.diffusion_model.state_dict()
    layers = [key[: -len(".weight")] for key in state if key.endswith("attn.qkv.weight")]
    for layer in layers:
        weight = state[f"{layer}.weight"]
        scale = weight.abs().max() / 448.0
        state |= {f"{layer}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{layer}.weight_scale": scale}
        if hasattr(comfy.supported_models.SD3, "quant_config"):
            state[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    if hasattr(comfy.supported_models.SD3, "quant_config"):
        config = {"quant_config": {"mixed_ops": True}}
    elif hasattr(comfy.supported_models.SD3, "layer_quant_config"):
        config = {"layer_quant_config": {layer: {"format": "float8_e4m3fn"} for layer in layers}}
    else:
        raise Missing
    with mock.patch.multiple(comfy.supported_models.SD3, **config), mock.patch.object(tiny, "fill", lambda network, seed, gain: network.load_state_dict(state)):
        t = tiny.build("sd3", manual_cast=torch.float32)
    types = {type(p).__name__ for p in t.patcher.model.diffusion_model.parameters()}
    assert "QuantizedTensor" in types, types
    return Setup(t, flow=True)


class Dequantised(torch.nn.Module):
    """A layer as GGUF and int8 packs make them: the weight appears inside a kernel that has no derivative."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            return torch.nn.functional.linear(x, weight, bias)

        @staticmethod
        def backward(ctx, grad):
            raise NotImplementedError("no derivative for this kernel")

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return Dequantised.Kernel.apply(x, self.weight, self.bias)


@case(KIND, "layers without derivative (GGUF, int8)")
def without_derivative(w):
    t = tiny.build("sd3")
    for block in t.patcher.model.diffusion_model.joint_blocks:
        block.x_block.attn.qkv = Dequantised(block.x_block.attn.qkv)
    return Setup(t, flow=True, **NO_DERIVATIVE)


@contextmanager
def lowvram():
    """ComfyUI's own loader told that almost nothing fits: layers that do not are cast, and patched, at every use."""
    real = comfy.model_patcher.ModelPatcher.load

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        return real(self, device_to, lowvram_model_memory=BUDGET, force_patch_weights=force_patch_weights, full_load=False)

    with mock.patch.object(comfy.model_patcher.ModelPatcher, "load", load):
        yield


def patched(t, strength=0.5):
    """Patches on every attention layer."""
    model, g = t.patcher.clone(), generator(3)
    state = {k: v for k, v in t.patcher.model.state_dict().items() if k.endswith(("attn.qkv.weight", "attn1.to_q.weight"))}
    model.add_patches({k: ("diff", (0.3 * torch.randn(v.shape, generator=g),)) for k, v in state.items()}, strength)
    return model


@case(KIND, "LoRA")
def lora(w):
    t = tiny.build("sd15")
    return Setup(t, patched(t))


@case(KIND, "low VRAM")
def low_vram(w):
    return Setup(tiny.build("sd3"), flow=True, during=lowvram)


@case(KIND, "low VRAM with LoRA")
def low_vram_lora(w):
    """The LoRA is added to each weight at its use, by ComfyUI's weight functions."""
    t = tiny.build("sd3")
    return Setup(t, patched(t), flow=True, during=lowvram)


@case(KIND, "dynamic VRAM's patcher on a CPU")
def dynamic(w):
    """What its loader makes where there is no GPU; its paging itself needs CUDA."""
    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        raise Missing
    t = tiny.build("sd3")
    t.patcher = comfy.model_patcher.ModelPatcherDynamic(t.patcher.model, t.patcher.load_device, t.patcher.offload_device)
    return Setup(t, flow=True)


@case(KIND, "torch.compile (backend eager)")
def compiled(w):
    """ComfyUI's own wrapper; no compiler on a test machine. Derivatives go around it."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    t = tiny.build("sd3")
    model = t.patcher.clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    return Setup(t, model, values=dict(steps=2), flow=True)


@case(KIND, "attention without derivative (sage, flash), by override")
def fused_attention(w):
    t = tiny.build("sd15")
    model = t.patcher.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = _fused
    return Setup(t, model)


def _fused(func, q, k, v, heads, **kwargs):
    return reg.NoDerivative.apply(func(q, k, v, heads, **kwargs))


@case(KIND, "attention without derivative, inside the network")
def fused_inside(w):
    """A pack that puts its kernel into the modules: nothing can go around it."""
    t = tiny.build("sd15")
    for block in t.patcher.model.diffusion_model.modules():
        if type(block).__name__ == "CrossAttention":
            block.forward = functools.partial(_unreachable, block.forward)
    return Setup(t, **NO_DERIVATIVE)


def _unreachable(forward, *args, **kwargs):
    return reg.NoDerivative.apply(forward(*args, **kwargs))


@case(KIND, "two devices (multi-GPU work units)")
def two_devices(w):
    """ComfyUI's scheduler and worker threads with the same network on `cpu` and `cpu:1`, where cond and uncond run apart."""
    if not hasattr(comfy.model_patcher.ModelPatcher, "deepclone_multigpu"):
        raise Missing
    t = tiny.build("sd3")
    model = t.patcher.clone()
    twin = comfy.model_patcher.ModelPatcher(tiny.build("sd3").patcher.model, torch.device("cpu", 1), t.patcher.offload_device)
    twin.is_multigpu_base_clone = True
    twin.clone_base_uuid = model.clone_base_uuid
    model.set_additional_models("multigpu", [twin])
    return Setup(t, model, values=dict(batch=2), flow=True)
