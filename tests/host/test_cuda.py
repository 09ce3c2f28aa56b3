"""The engines on a real GPU: kernels chosen there, half precision, memory that runs out, weights left in main memory.

    REG_TEST_DEVICE=cuda python -m pytest tests/host/test_cuda.py

Oracle: the same MODEL, noise and settings on the CPU.
"""

import dataclasses
import gc
import os

import comfy.model_management
import comfy.model_patcher
import pytest
import torch

from . import reg, tiny, tiny_engines

pytestmark = pytest.mark.skipif(not torch.cuda.is_available() or comfy.model_management.get_torch_device().type != "cuda", reason="needs REG_TEST_DEVICE=cuda")

ENGINES = {"finite_difference": "row_sum", "reverse": "scalar"}
# Latents after 3 steps against the CPU's in the same dtype: this much, and this many times what plain guidance loses by the dtype.
CLOSE, TIMES = {torch.float32: 2e-3, torch.float16: 0.03, torch.bfloat16: 0.1}, 4
_built = {}


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """cuDNN rounds float32 to TF32, which the CPU does not; no kernel is chosen by racing."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


def built(family, dtype=torch.float32):
    if tiny.missing(family):
        pytest.skip(tiny.missing(family))
    if (family, dtype) not in _built:
        t = _built[family, dtype] = tiny.build(family, dtype)
        tiny.sample(t, steps=1)  # loads it
    return _built[family, dtype]


def on_cpu(family, dtype=torch.float32):
    if (family, dtype, "cpu") not in _built:
        t, cpu = tiny.build(family, dtype), torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(t.patcher.model, load_device=cpu, offload_device=cpu)
        _built[family, dtype, "cpu"] = dataclasses.replace(t, patcher=patcher)
    return _built[family, dtype, "cpu"]


def sampled(pack, t, engine, **options):
    """(latent, the run's trace)."""
    model, trace = reg.apply(pack, t.patcher, ENGINES[engine], engine, **options)
    return plain(t, model), trace.last


def plain(t, model=None):
    return tiny.packed(tiny.sample(t, model, batch=tiny.batches(t.name)[-1])).cpu()


def complaints(run, engine):
    return [note for note in (*run.notes, *(row.note for row in run.rows), *(row.engine for row in run.rows if row.engine != engine)) if note]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_dot_products_agree(host, pack, family):
    """<u, J v> = <J^T u, v> between torch.func.jvp and reverse mode, and J v = central differences."""
    t = built(family)
    assert t.patcher.model.device.type == "cuda"
    if not tiny.RECIPES[family].dual:
        pytest.skip("torch.func.jvp cannot differentiate it")
    found = tiny_engines.products(pack, t)
    assert found.agree, found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_latents_are_those_of_the_cpu(host, pack, family, dtype, engine):
    t = built(family, dtype)
    before = reg.fingerprint(t.patcher)
    latent, run = sampled(pack, t, engine)
    right, _ = sampled(pack, on_cpu(family, dtype), engine)
    assert not complaints(run, engine)
    lost = reg.relative(plain(t), plain(on_cpu(family)))
    assert reg.relative(latent, right) < CLOSE[dtype] + TIMES * lost
    assert reg.fingerprint(t.patcher) == before


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
def test_weights_left_in_main_memory(host, pack, monkeypatch, family, engine):
    """Nothing fits: every layer brings its weights to the device as it runs. Oracle: the latents with the model loaded."""
    right, _ = sampled(pack, built(family), engine)
    monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NO_VRAM)
    t = tiny.build(family)
    latent, run = sampled(pack, t, engine)
    network = t.patcher.model.diffusion_model
    assert any(p.device.type == "cpu" for p in network.parameters()), "the host loaded it all the same"
    assert not complaints(run, engine)
    assert reg.relative(latent, right) < CLOSE[torch.float32]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux", "wan"])
def test_dynamic_vram(host, pack, monkeypatch, family, engine):
    """Newer hosts page weights in as layers run. Oracle: the CPU."""
    if os.environ.get("REG_TEST_DEVICE") != "cuda-dynamic":
        pytest.skip("needs REG_TEST_DEVICE=cuda-dynamic")
    right, _ = sampled(pack, on_cpu(family), engine)
    t = tiny.build(family)
    # Not before: weights are made here, and layers would wait for a file to bring them.
    monkeypatch.setattr("comfy.memory_management.aimdo_enabled", True)
    t.patcher = comfy.model_patcher.ModelPatcherDynamic(t.patcher.model, t.patcher.load_device, t.patcher.offload_device)
    latent, run = sampled(pack, t, engine)
    assert t.patcher.is_dynamic() and any(hasattr(m, "_v") for m in t.patcher.model.diffusion_model.modules())
    assert not complaints(run, engine)
    assert reg.relative(latent, right) < CLOSE[torch.float32]


@pytest.mark.parametrize("memory", ["resident", "checkpoint"])
def test_memory_that_really_runs_out(host, pack, memory):
    """A limit between what plain guidance and what a whole reverse pass take. Oracle: latents without the limit, and the trace."""
    t = built("sd15")
    latent = torch.zeros(4, *t.latent_shape[:1], 64, 64)

    def peak(model):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        result = tiny.sample(t, model, latent=latent)
        return result, torch.cuda.max_memory_reserved()

    peak(t.patcher)
    _, plain = peak(t.patcher)
    model, _ = reg.apply(pack, t.patcher, "scalar", "reverse", memory="resident")
    right, whole = peak(model)
    assert whole > 1.5 * plain, "the test needs a pass that takes more"
    model, trace = reg.apply(pack, t.patcher, "scalar", "reverse", memory=memory)
    torch.cuda.set_per_process_memory_fraction((plain + 0.3 * (whole - plain)) / torch.cuda.get_device_properties(0).total_memory)
    try:
        found, used = peak(model)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert used < whole and {row.engine for row in trace.last.rows} == {"reverse"}
    assert memory == "checkpoint" or any("out of memory" in note for note in trace.last.notes)
    assert reg.relative(found, right) < CLOSE[torch.float32]
