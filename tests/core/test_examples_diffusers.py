"""REG in diffusers pipelines with tiny random networks.

Oracle: the sampling loop written out with the authors' formula (their gradient of the network's sum, Eq. 21) on the same
network and the pipeline's own scheduler; sigma comes from the scheduler, not from the code under test.
"""

import logging
from types import SimpleNamespace

import hosts
import pytest
import torch

import reg_core
from reg_core.integrations.diffusers import LAYOUTS, noise_level, rectified

diffusers = hosts.diffusers()
from diffusers import (  # noqa: E402
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tiny_diffusers import BETAS, SD, factor, loud, rand, unet  # noqa: E402

STEPS, CFG = 3, 5.0
REVERSE = reg_core.Settings(engine="reverse")


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion(scheduler):
    """(pipe, its arguments, network call (x, t, cond?) -> output, the latents it starts from)"""
    pipe = quiet(StableDiffusionPipeline(None, None, None, unet(), scheduler, None, None, requires_safety_checker=False))
    cond, uncond, latents = rand(2, 3, 12), rand(2, 4, 12)[:, :3], rand(2, 4, 4, 4)
    arguments = dict(prompt_embeds=cond, negative_prompt_embeds=uncond, latents=latents)
    return pipe, arguments, lambda x, t, c: pipe.unet(x, t, encoder_hidden_states=cond if c else uncond).sample, latents


def stable_diffusion_xl():
    added = dict(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 10)
    scheduler = EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading")
    # The pipeline asks its second text encoder for one width only.
    encoder = SimpleNamespace(config=SimpleNamespace(projection_dim=10), dtype=torch.float64)
    pipe = quiet(StableDiffusionXLPipeline(None, None, None, None, None, unet(**added), scheduler))
    pipe.text_encoder_2 = encoder
    cond, uncond, pooled, latents = rand(2, 3, 12), rand(2, 4, 12)[:, :3], [rand(2, 10), rand(2, 11)[:, :10]], rand(2, 4, 4, 4)
    arguments = dict(prompt_embeds=cond, negative_prompt_embeds=uncond, pooled_prompt_embeds=pooled[0], negative_pooled_prompt_embeds=pooled[1])
    times = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2, dtype=torch.float64)

    def network(x, t, c):
        given = dict(text_embeds=pooled[0 if c else 1], time_ids=times)
        return pipe.unet(x, t, encoder_hidden_states=cond if c else uncond, added_cond_kwargs=given).sample

    return pipe, arguments | dict(latents=latents, height=32, width=32), network, latents


def stable_diffusion_3():
    sizes = dict(sample_size=4, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2, pos_embed_max_size=4)
    network = loud(SD3Transformer2DModel(**sizes, joint_attention_dim=12, caption_projection_dim=8, pooled_projection_dim=10))
    pipe = quiet(StableDiffusion3Pipeline(network, FlowMatchEulerDiscreteScheduler(shift=3.0), None, None, None, None, None, None, None))
    text, pooled, latents = [rand(2, 3, 12), rand(2, 4, 12)[:, :3]], [rand(2, 10), rand(2, 11)[:, :10]], rand(2, 4, 4, 4)
    arguments = dict(prompt_embeds=text[0], negative_prompt_embeds=text[1], pooled_prompt_embeds=pooled[0], negative_pooled_prompt_embeds=pooled[1])

    def call(x, t, c):
        i = 0 if c else 1
        return network(hidden_states=x, timestep=t.expand(len(x)), encoder_hidden_states=text[i], pooled_projections=pooled[i]).sample

    return pipe, arguments | dict(latents=latents, height=32, width=32), call, latents


def wan(scheduler):
    """Two network calls a step, cond first; five dimensions; float32, which the pipeline forces."""
    network = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12, freq_dim=8, ffn_dim=16, num_layers=2, rope_max_seq_len=32
    )
    network = loud(network).float()
    pipe = quiet(WanPipeline(None, None, None, scheduler, network))
    text, latents = [rand(2, 3, 12).float(), rand(2, 4, 12)[:, :3].float()], rand(2, 4, 2, 4, 4).float()
    arguments = dict(prompt_embeds=text[0], negative_prompt_embeds=text[1], latents=latents, num_frames=5, height=32, width=32)
    return pipe, arguments, lambda x, t, c: network(x, timestep=t.expand(len(x)), encoder_hidden_states=text[0 if c else 1]).sample, latents


def class_labels():
    """Learned variances in the output, cond first in the batch, a dataclass for output."""
    sizes = dict(num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=2, norm_num_groups=4, sample_size=4)
    network = loud(DiTTransformer2DModel(**sizes, num_embeds_ada_norm=1000))
    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0, block_out_channels=(1,)), decode=lambda x: SimpleNamespace(sample=2 * x - 1))
    pipe = quiet(DiTPipeline(network, None, DDIMScheduler(clip_sample=False)))
    pipe.vae = vae
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([3, 7])

    def call(x, t, c):
        y = labels if c else torch.full_like(labels, 1000)
        return network(x, timestep=t.expand(len(x)), class_labels=y).sample[:, :4]

    return pipe, dict(class_labels=[3, 7], generator=generator, output_type="pt"), call, latents


CASES = {
    "sd ddim": lambda: stable_diffusion(DDIMScheduler(**SD)),
    "sd ddim v": lambda: stable_diffusion(DDIMScheduler(**SD, prediction_type="v_prediction")),
    "sd ddim v zero snr": lambda: stable_diffusion(
        DDIMScheduler(**SD, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    ),
    "sd ddim x0": lambda: stable_diffusion(DDIMScheduler(**SD, prediction_type="sample")),
    "sd euler": lambda: stable_diffusion(EulerDiscreteScheduler(**BETAS, steps_offset=1)),
    "sd dpm++ karras": lambda: stable_diffusion(DPMSolverMultistepScheduler(**BETAS, steps_offset=1, use_karras_sigmas=True)),
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "wan euler": lambda: wan(FlowMatchEulerDiscreteScheduler(shift=2.0)),
    "wan unipc": lambda: wan(UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)),
    "dit": class_labels,
}


def authors_loop(case, cfg=CFG):
    pipe, _, network, x = case
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for i, t in enumerate(scheduler.timesteps):
        inner = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        inner = inner.detach().requires_grad_(True)
        cond = network(inner, t, True)
        (grad,) = torch.autograd.grad(cond.sum(), inner)
        with torch.no_grad():
            out = cond + (cfg - 1) * factor(scheduler, i, t, grad) * (cond - network(inner, t, False))
            x = scheduler.step(out, t, x).prev_sample
    return x


def sampled(case, cfg=CFG):
    pipe, arguments, _, latents = case
    if "generator" in arguments:
        arguments["generator"].manual_seed(0)
    more = dict(guidance_scale=cfg, num_inference_steps=STEPS)
    return pipe(**({"output_type": "latent"} | arguments), **more)[0].to(latents.dtype)


@pytest.mark.parametrize("name", CASES)
def test_pipeline_equals_the_authors_formula(name):
    case = CASES[name]()
    plain = sampled(case)
    with rectified(case[0], REVERSE) as trace:
        result = sampled(case)
    expected = authors_loop(case)
    if name == "dit":
        expected = expected.clamp(0, 1)  # the pipeline's, after its stand-in decoder
    scale = expected.abs().max()
    tolerance = 2e-3 if expected.dtype == torch.float32 else 1e-4 if "zero" in name else 1e-5
    assert (result - expected).abs().max() < tolerance * scale
    assert (result - plain).abs().max() > 20 * tolerance * scale
    assert len(trace.last.active) == STEPS and not any(row.note for row in trace.last.rows)
    if name != "dit":
        assert {row.cfg for row in trace.last.rows} == {CFG}
    assert torch.equal(sampled(case), plain)  # nothing of the hook is left


@pytest.mark.parametrize("name", ["sd euler", "sd3", "wan euler", "dit"])
def test_off_is_bit_identical(name):
    case = CASES[name]()
    plain = sampled(case)
    for settings in (reg_core.Settings(form="off"), reg_core.Settings(strength=0.0)):
        with rectified(case[0], settings):
            assert torch.equal(sampled(case), plain)


def test_finite_differences_agree_with_a_jacobian_vector_product():
    case = CASES["sd ddim"]()
    pipe, arguments, network, latents = case
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(1)
    (t,) = scheduler.timesteps
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        cond, product = torch.func.jvp(lambda x: network(x, t, True), (latents,), (torch.ones_like(latents),))
        out = cond + (CFG - 1) * factor(scheduler, 0, t, product) * (cond - network(latents, t, False))
    expected = scheduler.step(out, t, latents).prev_sample
    with rectified(pipe, reg_core.Settings(engine="finite_difference")) as trace:
        result = pipe(**arguments, guidance_scale=CFG, num_inference_steps=1, output_type="latent").images
    assert (result - expected).abs().max() < 1e-3 * expected.abs().max()
    assert trace.last.extra_rows == 1


def test_every_run_starts_anew():
    case = CASES["sd ddim"]()
    with rectified(case[0], reg_core.Settings(refresh=2)) as trace:
        first, second = sampled(case), sampled(case)
    assert torch.equal(first, second)
    assert [[row.fresh for row in run.rows] for run in trace.runs] == [[True, False, False]] * 2  # a random eps network has J near 1


def test_sigma_bounds_leave_the_other_steps_plain():
    case = CASES["sd ddim"]()
    with rectified(case[0], reg_core.Settings(sigma_start=2.0, sigma_end=0.1)) as trace:
        sampled(case)
    abar = case[0].scheduler.alphas_cumprod[case[0].scheduler.timesteps].double()
    inside = [s for s in ((1 - abar) / abar).sqrt().tolist() if 0.1 <= s <= 2.0]
    assert 0 < len(inside) < STEPS
    assert [row.sigma for row in trace.last.active] == pytest.approx(inside, rel=1e-5)
    plain = [row.note for row in trace.last.rows if not row.active]
    assert plain == ["outside start and end"] * (STEPS - len(inside)), "every call is in the trace, with its reason"


def test_cfg_1_is_transparent():
    """Where a pipeline asks for both predictions although nothing is multiplied by their difference. Oracle: no hook."""
    scheduler, network = DDIMScheduler(**SD), unet()
    scheduler.set_timesteps(2)
    t, x, text = scheduler.timesteps[1], rand(1, 4, 4, 4).repeat(2, 1, 1, 1), rand(2, 3, 12)
    calls, forward = [], network.forward
    network.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    with torch.no_grad():
        plain = network(x, t, encoder_hidden_states=text).sample
        for given, cfg in ((1.0, None), (CFG, 1.0)):
            calls.clear()
            pipe = SimpleNamespace(unet=network, scheduler=scheduler, guidance_scale=given)
            with rectified(pipe, REVERSE, layout="uncond, cond", cfg=cfg) as trace:
                assert torch.equal(network(x, t, encoder_hidden_states=text).sample, plain)
            assert len(calls) == 1 and [(row.cfg, row.note) for row in trace.last.rows] == [(1.0, "cfg 1: no guidance to rectify")]


def test_inpainting_channels_and_offloaded_forward_take_part():
    """x carries five more channels than the output; oracle: gradient with respect to the four latent ones."""
    network, scheduler = unet(channels=9), DDIMScheduler(**SD)
    scheduler.set_timesteps(2)
    t = scheduler.timesteps[1]
    latents, held, text = rand(1, 4, 4, 4), rand(1, 5, 4, 4), [rand(1, 3, 12), rand(1, 4, 12)[:, :3]]
    original, calls = network.forward, []
    network.forward = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)  # what accelerate does to offload
    pipe = SimpleNamespace(unet=network, scheduler=scheduler, guidance_scale=CFG)
    with rectified(pipe, REVERSE, layout="uncond, cond") as trace, torch.no_grad():
        x = torch.cat([latents, held], 1)
        uncond, cond = network(torch.cat([x, x]), t, encoder_hidden_states=torch.cat([text[1], text[0]]), return_dict=False)[0].chunk(2)
    assert len(calls) > 1
    inner = latents.clone().requires_grad_(True)
    c = original(torch.cat([inner, held], 1), t, encoder_hidden_states=text[0]).sample
    (grad,) = torch.autograd.grad(c.sum(), inner)
    u = original(x, t, encoder_hidden_states=text[1]).sample
    expected = c + (CFG - 1) * factor(scheduler, 1, t, grad) * (c - u)
    assert torch.allclose(uncond + CFG * (cond - uncond), expected, rtol=1e-5, atol=1e-6) and trace.last.active


@pytest.mark.parametrize("karras", [False, True])
def test_noise_level_between_timesteps_is_the_schedulers(karras):
    scheduler = EulerDiscreteScheduler(**BETAS, use_karras_sigmas=karras)
    scheduler.set_timesteps(6)
    fractional = [i for i, t in enumerate(scheduler.timesteps.tolist()) if t != int(t)]
    assert len(fractional) >= 4
    for i in fractional:
        prediction, _, sigma = noise_level(scheduler, scheduler.timesteps[i], 2)
        assert prediction == "eps" and sigma.tolist() == pytest.approx([float(scheduler.sigmas[i])] * 2, rel=2e-5)


def test_learned_variances_are_left_alone():
    pipe, _, _, x = class_labels()
    pipe.scheduler.set_timesteps(2)
    arguments = dict(timestep=torch.tensor([400] * 4), class_labels=torch.tensor([3, 7, 1000, 1000]), return_dict=False)
    x = torch.cat([x, x])
    with torch.no_grad():
        plain = pipe.transformer(x, **arguments)[0]
        with rectified(pipe):
            out = pipe.transformer(x, **arguments)[0]
    assert torch.equal(out[:, 4:], plain[:, 4:]) and torch.equal(out[:2], plain[:2])
    assert not torch.allclose(out[2:, :4], plain[2:, :4])


def test_separate_calls_belong_together_by_their_x(caplog):
    """Steps without guidance call the network once each: no two of them are a conditional and an unconditional prediction."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    network = wan(scheduler)[0].transformer
    text, xs = rand(1, 3, 12).float(), [rand(1, 4, 2, 4, 4).float(), rand(1, 4, 2, 4, 4).float() + 1]
    with rectified(SimpleNamespace(transformer=network, scheduler=scheduler), layout="separate") as trace, torch.no_grad():
        plain = [network(x, timestep=torch.tensor([500.0]), encoder_hidden_states=text).sample for x in xs]
    assert not trace.last.rows and "nothing was rectified" in caplog.text
    for x, out in zip(xs, plain, strict=True):
        assert torch.equal(out, network(x, timestep=torch.tensor([500.0]), encoder_hidden_states=text).sample)


def test_a_guider_of_modular_pipelines_gets_rectified_predictions():
    """As their denoising blocks do: the guider's conditions in turn, one call each, then its forward. Oracle: Eq. 21 for flow."""
    pipe, _, network, x = stable_diffusion_3()
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    t, guider = scheduler.timesteps[1], diffusers.ClassifierFreeGuidance(guidance_scale=CFG)
    guider.set_state(step=1, num_inference_steps=4, timestep=t)
    components = SimpleNamespace(transformer=pipe.transformer, scheduler=scheduler, guider=guider)
    with rectified(components, REVERSE, layout="separate") as trace, torch.no_grad():
        predictions = {name: network(x, t, name == "pred_cond") for name in guider._input_predictions}
        result = guider.forward(**predictions).pred
    inner = x.clone().requires_grad_(True)
    c, u = network(inner, t, True), network(x, t, False)
    (grad,) = torch.autograd.grad(c.sum(), inner)
    expected = c + (CFG - 1) * factor(scheduler, 1, t, grad) * (c - u)
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-6) and (expected - u - CFG * (c - u)).abs().max() > 1e-3
    assert [row.cfg for row in trace.last.rows] == [CFG]


def test_known_pipelines_exist():
    assert [name for name in LAYOUTS if not hasattr(diffusers, name)] == []


def test_a_compiled_network_is_called_alike():
    class Network(torch.nn.Module):
        def forward(self, sample, timestep, encoder_hidden_states):
            return torch.sin(sample * (encoder_hidden_states + 1))

    scheduler, text, x = DDIMScheduler(**SD), rand(2, 4, 1, 1), rand(1, 4, 4, 4).repeat(2, 1, 1, 1)
    results = []
    for network in (Network(), torch.compile(Network(), backend="eager")):
        with rectified(SimpleNamespace(unet=network, scheduler=scheduler), layout="uncond, cond") as trace, torch.no_grad():
            results.append(network(x, 500, encoder_hidden_states=text))
        assert len(trace.last.active) == 1
    assert torch.allclose(*results) and not torch.allclose(results[0][:1], Network()(x, 500, text)[:1])


def test_it_says_when_it_did_nothing(caplog):
    case = CASES["sd ddim"]()
    with caplog.at_level(logging.WARNING), rectified(case[0]):
        unguided = sampled(case, cfg=1.0)
    assert "nothing was rectified" in caplog.text
    assert torch.equal(sampled(case, cfg=1.0), unguided)
    caplog.clear()
    with caplog.at_level(logging.WARNING), rectified(case[0]):
        sampled(case)
    assert "nothing" not in caplog.text


def test_bad_input_is_named():
    pipe = CASES["sd ddim"]()[0]
    with pytest.raises(ValueError, match="SimpleNamespace is not one of"), rectified(SimpleNamespace(unet=pipe.unet)):
        pass
    with pytest.raises(ValueError, match="got 'cond uncond'"), rectified(pipe, layout="cond uncond"):
        pass
    with pytest.raises(ValueError, match="has none of unet"), rectified(SimpleNamespace(), layout="separate"):
        pass
    with pytest.raises(ValueError, match="noise levels of EDMEulerScheduler with prediction_type 'epsilon'"):
        noise_level(EDMEulerScheduler(), torch.tensor(0.5), 1)
    pipe.scheduler = EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    with pytest.raises(ValueError, match="noise levels of EulerDiscreteScheduler"), rectified(pipe):
        sampled((pipe, *stable_diffusion(pipe.scheduler)[1:]))
