"""Each engine differentiates real architectures: adjoint identity, differences, and the MODEL left as it was.

Run in inference mode with weights made there, under both attention settings (conftest, noxfile).
"""

import pytest
import torch
from comfy.ldm.modules import attention

from . import reg, tiny, tiny_engines

CASES = [*tiny.ARCHITECTURES, "controlnet"]
_built = {}


def fixture(case):
    """(tiny, positive, negative), built once."""
    if case not in _built:
        t = tiny.build("sd15" if case == "controlnet" else case)
        positive, negative = t.positive, t.negative
        if case == "controlnet":
            import nodes

            hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(5))
            positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, tiny.build_controlnet(), hint, 0.8, 0.0, 1.0)
        _built[case] = t, positive, negative
    return _built[case]


@pytest.mark.parametrize("case", CASES)
def test_dot_products_agree(host, pack, case):
    """<u, J v> = <J^T u, v> between forward and reverse mode, and J v = central differences."""
    found = tiny_engines.products(pack, *fixture(case))
    assert found.agree, found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", tiny_engines.FORMS)
@pytest.mark.parametrize("engine", tiny_engines.ENGINES)
def test_every_form_and_engine_samples(host, pack, case, form, engine):
    """Through a real KSampler: the engine asked for runs to the end, nothing falls back, the MODEL stays bit-identical."""
    t, positive, negative = fixture(case)
    found = tiny_engines.sampled(pack, t, form, engine, positive=positive, negative=negative)
    assert found.served_by(engine), found


@pytest.mark.parametrize("case", CASES)
def test_engines_agree_on_the_same_product(host, pack, case):
    """`scalar` needs v^T J v only, which is the same number for J and J^T: all engines must give the same latents."""
    t, positive, negative = fixture(case)
    conds = dict(positive=positive, negative=negative, batch=2)
    latents = {e: tiny.sample(t, reg.apply(pack, t.patcher, "scalar", e)[0], **conds) for e in ("forward", "reverse", "finite_difference")}
    assert reg.relative(latents["reverse"], latents["forward"]) < 1e-3
    assert reg.relative(latents["finite_difference"], latents["forward"]) < 3e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("engine", tiny_engines.ENGINES)
def test_half_precision_and_manual_cast(host, pack, dtype, engine):
    """Weights stored in half, computed in float32 (manual cast): close to the float32 model, no fallback."""
    name = "wan"  # a patch embedding that stays float32 and hands its inference weight out uncopied
    full, cast = tiny.build(name), tiny.build(name, dtype=dtype, manual_cast=torch.float32)
    want = tiny.sample(full, reg.apply(pack, full.patcher, "row_sum", engine)[0])
    model, trace = reg.apply(pack, cast.patcher, "row_sum", engine)
    before = reg.fingerprint(cast.patcher)
    out = tiny.sample(cast, model)
    assert [r.engine for r in trace.last.rows] == [engine] * 3, trace
    assert reg.relative(out, want) < 0.05
    assert reg.fingerprint(cast.patcher) == before


@pytest.mark.parametrize("form", tiny_engines.FORMS)
def test_networks_computing_in_bfloat16(host, pack, form):
    """The probe is longer where arithmetic is coarse: the result stays near float32's."""
    full, half = tiny.build("sd3"), tiny.build("sd3", dtype=torch.bfloat16)
    want = tiny.sample(full, reg.apply(pack, full.patcher, form)[0])
    model, trace = reg.apply(pack, half.patcher, form)
    out = tiny.sample(half, model)
    assert torch.isfinite(out).all() and reg.relative(out, want) < 0.2
    assert not any(r.nonfinite for r in trace.last.rows)


@pytest.mark.parametrize("shape", ["merged", "split", "mixed"])
@pytest.mark.parametrize("mask_rank", [None, 2, 3, 4])
def test_replacement_attention_equals_comfys(host, pack, shape, mask_rank):
    """Oracle: ComfyUI's attention_basic, for every layout of q, k, v and every rank of mask."""
    ours = pack.import_("nodes.attention").differentiable_attention
    g = torch.Generator().manual_seed(0)
    b, h, n, m, d = 2, 3, 5, 7, 4
    q, k, v = (torch.randn(b, length, h * d, generator=g) for length in (n, m, m))
    mask = None if mask_rank is None else torch.randn({2: (n, m), 3: (b, n, m), 4: (b, 1, n, m)}[mask_rank], generator=g)
    want = attention.attention_basic(q, k, v, h, mask=mask)
    if shape == "split":
        q, k, v = (t.unflatten(-1, (h, d)).transpose(1, 2) for t in (q, k, v))
        got = ours(None, q, k, v, h, mask=mask, skip_reshape=True)
        apart = ours(None, q, k, v, h, mask=mask, skip_reshape=True, skip_output_reshape=True)
        assert torch.allclose(apart.transpose(1, 2).flatten(2), want, atol=1e-5)
    else:
        v = v.unflatten(-1, (h, d)) if shape == "mixed" else v
        got = ours(None, q, k, v, h, mask=mask, unknown_option=1)
    assert torch.allclose(got, want, atol=1e-5)


def test_lora_patched_weights(host, pack):
    """A LoRA changes the weights in place while loaded: REG differentiates the patched model."""
    t = tiny.build("sd15")
    key = next(k for k in t.patcher.model.state_dict() if k.endswith("attn1.to_q.weight"))
    weight = t.patcher.model.state_dict()[key]
    patched = t.patcher.clone()
    patched.add_patches({key: ("diff", (torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)),))}, 0.5)
    outs = {e: tiny.sample(t, reg.apply(pack, patched, "scalar", e)[0]) for e in ("reverse", "forward", "finite_difference")}
    assert reg.relative(outs["reverse"], outs["forward"]) < 1e-3 and reg.relative(outs["finite_difference"], outs["forward"]) < 3e-2
    assert not torch.equal(outs["forward"], tiny.sample(t, reg.apply(pack, t.patcher, "scalar", "forward")[0]))
