"""The stand-in MODELs sample through ComfyUI's KSampler, whatever its version and attention."""

import pytest
import torch

from .tiny import ARCHITECTURES, FAMILIES, batches, build, build_controlnet, build_vae, missing, packed, sample

KINDS = {  # of sampling: the class that goes with each
    "EPS": "EPS",
    "STABLE_CASCADE": "EPS",
    "V_PREDICTION": "V_PREDICTION",
    "V_PREDICTION_CONTINUOUS": "V_PREDICTION",
    "V_PREDICTION_EDM": "V_PREDICTION",
    "V_PREDICTION_DDPM": "V_PREDICTION_DDPM",
    "EDM": "EDM",
    "FLOW": "CONST",
    "FLUX": "CONST",
    "FLOW_AV": "CONST",
    "FLOW_COSMOS": "COSMOS_RFLOW",
}
SAMPLING = {name: "FLOW" for name in FAMILIES} | {
    "sd15": "EPS",
    "sd15_edit": "EPS",
    "sdxl": "EPS",
    "pixart_sigma": "EPS",
    "sd21v": "V_PREDICTION",
    "hunyuan_dit": "V_PREDICTION",
    "stable_cascade": "STABLE_CASCADE",
    "stable_audio": "V_PREDICTION_CONTINUOUS",
    "svd": "V_PREDICTION_EDM",
    "cogvideox": "V_PREDICTION_DDPM",
    "cosmos": "EDM",
    "cosmos_predict2": "FLOW_COSMOS",
    "cosmos_predict2_i2v": "FLOW_COSMOS",
    "minimax_h3": "FLOW_AV",
    "flux": "FLUX",
    "flux_fill": "FLUX",
    "flux_kontext": "FLUX",
    "flux2": "FLUX",
    "longcat": "FLUX",
    "chroma": "FLUX",
    "chroma_radiance": "FLUX",
    "qwen_image": "FLUX",
    "qwen_image_edit": "FLUX",
    "qwen_image_edit_offset": "FLUX",
    "qwen_image_edit_2511": "FLUX",
    "ltxv": "FLUX",
    "ltxav": "FLUX",
}


def ksampler(host, tiny, **changes):
    values = dict(
        model=tiny.patcher, seed=1, steps=3, cfg=4.0, sampler_name="euler", scheduler="normal",
        positive=tiny.positive, negative=tiny.negative, latent_image=tiny.empty_latent(), denoise=1.0,
    )  # fmt: skip
    return packed(host.nodes.KSampler().sample(**(values | changes))[0]["samples"])


def built(name, **options):
    if missing(name):
        pytest.skip(missing(name))
    return build(name, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_through_ksampler(host, name):
    tiny = built(name)
    latent = ksampler(host, tiny)
    assert latent.shape == packed(tiny.empty_latent()["samples"]).shape
    assert latent.isfinite().all()
    start = float(tiny.patcher.get_model_object("model_sampling").sigma_max)
    assert 0.5 < tiny.patcher.model.process_latent_in(latent).std() < 2.5 * max(start, 10)  # as the sampler sees it
    assert torch.equal(latent, ksampler(host, tiny)), "not reproducible with the same model"
    assert torch.equal(latent, ksampler(host, build(name))), "not reproducible with a model built again"
    assert not torch.equal(latent, ksampler(host, build(name, seed=1)))
    assert (latent - ksampler(host, tiny, positive=tiny.negative)).std() > 1e-3, "the prompt has no effect"


@pytest.mark.parametrize("name", FAMILIES)
def test_is_the_real_thing(host, name):
    model = built(name).patcher.model
    assert model.model_type.name == SAMPLING[name]
    assert isinstance(model.model_sampling, getattr(host.model_sampling, KINDS[SAMPLING[name]]))
    assert torch.is_inference_mode_enabled()
    assert all(p.is_inference() for p in model.diffusion_model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("cast", [None, torch.float32])
def test_half_precision(name, cast):
    half = built(name, dtype=torch.bfloat16, manual_cast=cast)
    assert half.patcher.model.get_dtype() == torch.bfloat16
    assert packed(sample(half, batch=batches(name)[-1])).isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_vae(name):
    tiny = build(name)
    image = build_vae(name).decode(sample(tiny))
    assert image.shape[-1] == 3
    assert image.shape[-2] == 8 * tiny.latent_shape[-1]
    assert image.isfinite().all()
    assert image.std() > 0.01


def test_controlnet(host):
    tiny = build("sd15")
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    apply = host.nodes.ControlNetApplyAdvanced().apply_controlnet
    positive, negative = apply(tiny.positive, tiny.negative, build_controlnet(), hint, 1.0, 0.0, 1.0)[:2]
    controlled = sample(tiny, positive=positive, negative=negative)
    assert controlled.isfinite().all()
    assert not torch.equal(controlled, sample(tiny))


def test_attention_is_the_one_asked_for(host):
    chosen = host.ldm_modules_attention.optimized_attention
    name = getattr(chosen, "__wrapped__", chosen).__name__
    assert name == f"attention_{host.attention}"


def test_nothing_is_written_into_the_host(host):
    for name in ("output", "input", "temp", "user"):
        folder = getattr(host.folder_paths, f"get_{name}_directory")()
        assert str(host.base_directory) in folder
