"""How weights are stored, run and spread (feature_weights.py). Oracle: the plain model, with the weights that storage left."""

import comfy.model_patcher
import pytest
import torch

from . import feature_weights, features, reg, tiny

NAMES = [name for _, name in features.names("weights") if name not in ("float32", "LoRA")]
COARSE = {"bfloat16": 0.2, "float16": 0.05, "bfloat16 cast to float32": 0.05}  # the arithmetic, or the storage, is not the oracle's
RUNS = [("row_sum", "finite_difference"), *(("scalar", engine) for engine in features.ENGINES)]


def identity(patcher):
    """Which tensors the MODEL holds, and their bytes as far as quantised ones give them."""
    return {name: (id(p), float(p.float().sum())) for name, p in patcher.model.named_parameters()}


def oracle(name, s):
    """The MODEL whose samples the case must reproduce."""
    plain = tiny.build(s.t.name)
    if name in ("float8 cast to float32", "quantised layers (scaled float8)"):
        feature_weights.rounded(s.t, plain)
    return feature_weights.patched(plain) if "LoRA" in name else plain.patcher


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_serves_or_says_why_and_the_latents_are_the_plain_models(host, pack, all_nodes, name):
    try:
        s = features.build("weights", name, features.world(host, pack, all_nodes))
    except features.Missing:
        pytest.skip(f"ComfyUI {host.version} has no {name}")
    model = oracle(name, s)
    s.sample()  # loading itself may replace quantised parameters
    before = identity(s.t.patcher)
    for form, engine in RUNS if "compile" not in name else RUNS[:1] + RUNS[-1:]:  # compiling takes its time
        patched, trace = reg.apply(pack, s.model, form, engine)
        out = s.sample(patched)
        used = {r.engine for r in trace.last.rows if r.product != "0"}  # that of pure noise needs no engine
        if engine in s.engines:
            assert used == {engine} and not trace.last.notes, trace
        else:
            assert used == {"finite_difference"} and f"engine {engine} failed" in str(trace)
            engine = "finite_difference"
        want = tiny.sample(s.t, reg.apply(pack, model, form, engine)[0], **s.values)
        assert reg.relative(out, want) < COARSE.get(name, 1e-3), (form, engine)
    assert "low VRAM" in name or identity(s.t.patcher) == before


def test_low_vram_really_patches_at_use(host, pack):
    """The case is what it says: layers stay unloaded, and their LoRA sits in their weight functions."""
    s = feature_weights.low_vram_lora(features.world(host, pack, {}))
    s.sample()
    layers = [m for m in s.t.patcher.model.diffusion_model.modules() if getattr(m, "comfy_cast_weights", False)]
    assert len(layers) > 10 and s.t.patcher.model.model_lowvram
    assert any(layer.weight_function for layer in layers)


def test_two_devices_share_guidance_and_the_probe_stays_at_home(host, pack, all_nodes):
    """Cond and uncond on a device each, as without REG; one more row a step on the first, none on the second."""
    try:
        s = features.build("weights", "two devices (multi-GPU work units)", features.world(host, pack, all_nodes))
    except features.Missing:
        pytest.skip("this ComfyUI has no work units")
    (twin,) = s.model.get_additional_models_with_key("multigpu")
    counts = {}
    for name, model in (("plain", s.model), ("reg", reg.apply(pack, s.model)[0])):
        with reg.counted(s.t.patcher) as home, reg.counted(twin) as away:
            s.sample(model)
        counts[name] = home["rows"], away["rows"]
    assert counts == {"plain": (6, 6), "reg": (12, 6)}


def test_dynamic_vram_is_left_to_its_own_on_a_cpu(host):
    """Where there is no GPU its loader makes the ordinary patcher: the paging itself cannot run here."""
    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        pytest.skip("this ComfyUI has no dynamic VRAM")
    t = tiny.build("sd15")
    made = comfy.model_patcher.ModelPatcherDynamic(t.patcher.model, torch.device("cpu"), torch.device("cpu"))
    assert type(made) is comfy.model_patcher.ModelPatcher and not made.is_dynamic()
