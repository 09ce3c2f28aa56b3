"""The Gaussian closed form through ComfyUI's own sampling classes: c(sigma) g for eps, v, EDM, x0 and flow models.

The MODEL is a real BaseModel whose network puts out what a perfect one would for N(m, V I), in that class's terms.
Oracle: linear regression, c = V alpha^2 / (V alpha^2 + s^2).
"""

import logging

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models_base
import pytest
import torch

from . import reg, tiny

VARIANCE, MEANS = 0.49, {"cond": 0.3, "uncond": -0.5}
TYPES = comfy.model_base.ModelType
CLASSES = {
    "eps": (TYPES.EPS, {}),
    "v": (TYPES.V_PREDICTION, {}),
    "v_zsnr": (TYPES.V_PREDICTION, {"zsnr": True}),
    "edm": (TYPES.EDM, {"sigma_data": 0.5}),
    "v_edm": (TYPES.V_PREDICTION_EDM, {"sigma_data": 1.0}),
    "flow": (TYPES.FLOW, {"shift": 3.0}),
    "flux": (TYPES.FLUX, {}),
    "x0": (TYPES.EPS, {}),  # with comfy.model_sampling.X0 patched in, as ModelSamplingDiscrete does
    "img_to_img": ("IMG_TO_IMG", {}),
    "flow_cosmos": ("FLOW_COSMOS", {}),
    "v_ddpm": ("V_PREDICTION_DDPM", {}),
    "flow_av": ("FLOW_AV", {"shift": 3.0, "audio_shift": 2.0}),
    "flow_noise_scale": ("FLOW", {"shift": 3.0, "noise_scale": 0.7}),
}
FLOW = ("flow", "flux", "flow_av", "flow_noise_scale")
NOISE = {"flow_noise_scale": 0.7}  # standard deviation of the noise that sigma stands for; else 1
SHAPES = {3: (8, 20), 4: (4, 6, 6), 5: (3, 2, 4, 4)}


class Perfect(torch.nn.Module):
    """The network output which makes ComfyUI's denoised prediction the exact posterior mean."""

    dtype = torch.float32

    def __init__(self, owner):
        super().__init__()
        self.sampling = lambda: owner.model_sampling

    def forward(self, x_in, t, context=None, transformer_options=None, **kwargs):
        sampling = self.sampling()
        sigma = transformer_options["sigmas"]
        sigma = sigma.repeat(x_in.shape[0] // len(sigma))
        column = sigma.reshape(-1, *[1] * (x_in.ndim - 1))
        is_flow = isinstance(sampling, comfy.model_sampling.CONST)
        alpha = 1 - column if is_flow else torch.ones_like(column)
        s = column * getattr(sampling, "noise_scale", 1.0)
        x = x_in / sampling.calculate_input(sigma, torch.ones_like(x_in))
        mean = context[:, 0, 0].reshape(-1, *[1] * (x.ndim - 1))
        denoised = mean + VARIANCE * alpha / (alpha**2 * VARIANCE + s**2) * (x - alpha * mean)
        # calculate_denoised is affine in the output: solve for it
        zero = sampling.calculate_denoised(sigma, torch.zeros_like(x), x)
        slope = sampling.calculate_denoised(sigma, torch.ones_like(x), x) - zero
        return (denoised - zero) / slope


def build(kind, rank):
    model_type, settings = CLASSES[kind]
    if isinstance(model_type, str):
        if not hasattr(TYPES, model_type) or (kind in NOISE and not hasattr(comfy.model_sampling.ModelSamplingDiscreteFlow, "set_noise_scale")):
            pytest.skip(f"this ComfyUI has no {kind}")
        model_type = getattr(TYPES, model_type)
    config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True})
    config.sampling_settings = settings
    model = comfy.model_base.BaseModel(config, model_type)
    model.diffusion_model = Perfect(model)
    if kind == "x0":

        class ModelSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0):
            pass

        model.model_sampling = ModelSampling(config)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    cond, uncond = ([[torch.full((1, 1, 1), MEANS[k]), {}]] for k in ("cond", "uncond"))
    return tiny.Tiny(kind, patcher, SHAPES[rank], cond, uncond)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
def test_all_forms_equal_c_times_g(host, pack, kind, rank, engine):
    t = build(kind, rank)
    branches_of, levels_of = pack.import_("nodes.host.branches"), pack.import_("nodes.host.noise_levels")
    core = pack.import_("reg_core")

    def look(guider, x, sigma, options):
        results = {}
        conds = [guider.conds["positive"], guider.conds["negative"]]
        sampling = guider.inner_model.model_sampling
        levels = [float(sampling.percent_to_sigma(p)) for p in (0.15, 0.5, 0.9)]
        for level in levels:
            sigma = torch.full((x.shape[0],), level)
            point = levels_of.point_at(sampling, x, sigma)
            for form in ("row_sum", "scalar", "product", "schedule"):
                rectifier = core.Rectifier(core.Settings(form=form, engine=engine, data_std=VARIANCE**0.5))
                branches = branches_of.ModelBranches(guider.inner_model, conds, x, sigma, options)
                results[level, form] = rectifier(branches, point, 3.0), rectifier.run.rows[0], point
        return results

    for (level, form), (result, row, point) in reg.inside(t, look, batch=2).items():
        a, s = 1 - level if kind in FLOW else 1.0, level * NOISE.get(kind, 1.0)
        assert torch.allclose(point.alpha, torch.tensor(a), atol=1e-6) and torch.allclose(point.s, torch.tensor(s), rtol=1e-6)
        c = VARIANCE * a * a / (VARIANCE * a * a + s * s)
        v = result.denoised - result.reference
        want_v = (MEANS["cond"] - MEANS["uncond"]) * (1 - c)
        assert torch.allclose(v, torch.full_like(v, want_v), atol=1e-4), "the model is not the Gaussian"
        # x carries float32's rounding of large noise into D: up to sigma * 1e-7, over a probe of 0.01 sigma
        assert (result.rectified - c * v).abs().max() < 2e-4 * max(abs(want_v), 1e-2), (level, form)
        assert form == "schedule" or row.engine == engine, row


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_whole_runs_agree_with_the_closed_form(host, pack, kind):
    """A KSampler run with REG and one with the factor c(sigma) written into a cfg function."""
    t = build(kind, 4)
    out = tiny.sample(t, reg.apply(pack, t.patcher)[0], steps=8, sampler="heun")
    factor = (lambda s: VARIANCE * (1 - s) ** 2 / (VARIANCE * (1 - s) ** 2 + s**2)) if kind == "flow" else (lambda s: VARIANCE / (VARIANCE + s**2))
    want = tiny.sample(t, reg.oracle_model(t.patcher, factor=factor), steps=8, sampler="heun")
    assert reg.relative(out, want) < 1e-4
    assert reg.relative(tiny.sample(t, steps=8, sampler="heun"), want) > 0.05


def test_a_class_without_noise_is_left_alone_by_name(host, pack, caplog):
    """IMG_TO_IMG_FLOW starts from an image: sigma is no noise level, and J has no place."""

    class Img2Img(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
            return latent_image

    t = build("flow", 4)
    t.patcher.model.model_sampling = Img2Img(t.patcher.model.model_config)
    for values in ({}, {"skip_below": 0.05}, {"form": "schedule"}):
        model, trace = reg.apply(pack, t.patcher, **values)
        with caplog.at_level(logging.WARNING):
            assert torch.equal(tiny.sample(t, model), tiny.sample(t))
        assert any("has no noise" in m and "DiscreteFlow" in m for m in caplog.messages) and "has no noise" in str(trace)
