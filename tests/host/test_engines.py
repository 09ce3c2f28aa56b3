"""Each engine differentiates real architectures: adjoint identity, differences, and the MODEL left as it was.

Run in inference mode with weights made there, under both attention settings (conftest, noxfile).
"""

import pytest
import torch

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
    """<u, J v> = <J^T u, v> between torch.func.jvp and reverse mode, and J v = central differences."""
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
    latents = {e: tiny.sample(t, reg.apply(pack, t.patcher, "scalar", e)[0], **conds) for e in tiny_engines.ENGINES}
    assert reg.relative(latents["finite_difference"], latents["reverse"]) < 3e-2


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


def test_lora_patched_weights(host, pack):
    """A LoRA changes the weights in place while loaded: REG differentiates the patched model."""
    t = tiny.build("sd15")
    key = next(k for k in t.patcher.model.state_dict() if k.endswith("attn1.to_q.weight"))
    weight = t.patcher.model.state_dict()[key]
    patched = t.patcher.clone()
    patched.add_patches({key: ("diff", (torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)),))}, 0.5)
    outs = {e: tiny.sample(t, reg.apply(pack, patched, "scalar", e)[0]) for e in tiny_engines.ENGINES}
    assert reg.relative(outs["finite_difference"], outs["reverse"]) < 3e-2
    assert not torch.equal(outs["reverse"], tiny.sample(t, reg.apply(pack, t.patcher, "scalar", "reverse")[0]))
