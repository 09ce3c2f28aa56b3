"""How weights are stored and run: fp8 with manual cast, compiled models, custom layers without derivative. Oracle: the plain model."""

import pytest
import torch

from . import reg, tiny

ENGINES = ("finite_difference", "forward", "reverse")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["row_sum", "scalar"])
def test_fp8_storage_with_manual_cast(host, pack, form, engine):
    """Stored in float8, computed in float32. Oracle: the same rounded weights stored in float32."""
    t, plain = tiny.build("sd3", dtype=torch.float8_e4m3fn, manual_cast=torch.float32), tiny.build("sd3")
    rounded = dict(t.patcher.model.diffusion_model.named_parameters())
    for name, weight in plain.patcher.model.diffusion_model.named_parameters():
        weight.copy_(rounded[name].to(torch.float32))
    before = reg.fingerprint(t.patcher)
    model, trace = reg.apply(pack, t.patcher, form, engine)
    out = tiny.sample(t, model)
    assert {r.engine for r in trace.last.rows} == {engine}, trace
    assert reg.relative(out, tiny.sample(plain, reg.apply(pack, plain.patcher, form, engine)[0])) < 1e-3
    assert reg.fingerprint(t.patcher) == before


@pytest.mark.parametrize("engine", ENGINES)
def test_compiled_models(host, pack, engine):
    """ComfyUI's own torch.compile wrapper (backend eager: no compiler on a test machine). Derivatives go around it."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    t = tiny.build("sd3")
    compiled = t.patcher.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    model, trace = reg.apply(pack, compiled, "scalar", engine)
    out = tiny.sample(t, model)
    assert {r.engine for r in trace.last.rows} == {engine}, trace
    assert reg.relative(out, tiny.sample(t, reg.apply(pack, t.patcher, "scalar", engine)[0])) < 1e-3
    assert reg.relative(tiny.sample(t, reg.apply(pack, compiled)[0]), tiny.sample(t, reg.apply(pack, t.patcher)[0])) < 1e-3


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


def test_custom_layers_without_derivative_take_differences(host, pack):
    t = tiny.build("sd3")
    plain = {form: tiny.sample(t, reg.apply(pack, t.patcher, form, "finite_difference")[0]) for form in ("row_sum", "scalar", "product")}
    for block in t.patcher.model.diffusion_model.joint_blocks:
        block.x_block.attn.qkv = Dequantised(block.x_block.attn.qkv)
    for form, want in plain.items():
        for engine in ENGINES:
            model, trace = reg.apply(pack, t.patcher, form, engine)
            out = tiny.sample(t, model)
            assert {r.engine for r in trace.last.rows} == {"finite_difference"}, trace
            assert torch.allclose(out, want, atol=1e-4)
            assert engine == "finite_difference" or f"engine {engine} failed" in str(trace)
