"""RectifiedGuidance in the denoising loops of modular pipelines, with tiny random networks.

Oracles: `reg_core.Guided` on the same network, stepped by a fresh scheduler; and Eq. 21 by PyTorch's forward mode.
"""

import json
import re
from types import SimpleNamespace

import hosts
import numpy as np
import pytest
import torch

import reg_core
from reg_core.integrations.diffusers import noise_level

diffusers = hosts.diffusers()
from diffusers.modular_pipelines.flux2.denoise import Flux2KleinBaseDenoiseStep  # noqa: E402
from diffusers.modular_pipelines.qwenimage.denoise import QwenImageDenoiseStep  # noqa: E402
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3DenoiseStep  # noqa: E402
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep  # noqa: E402
from diffusers.modular_pipelines.wan.denoise import Wan22DenoiseStep, WanDenoiseStep  # noqa: E402
from diffusers.modular_pipelines.z_image.denoise import ZImageDenoiseStep  # noqa: E402
from tiny_diffusers import BETAS, factor, loud, rand, text_to_image, unet  # noqa: E402

from reg_core.integrations.diffusers_guider import RectifiedGuidance, _shift_once  # noqa: E402

STEPS, SCALE = 4, 5.0


class Family:
    """A modular pipeline's denoising loop, and its network as (x, t, cond?) -> prediction."""

    def __init__(self, block, scheduler, network, latents, inputs, predict, name="transformer", after=lambda pred, cond: pred):
        self.pipe = block.init_pipeline()
        self.pipe.update_components(scheduler=scheduler, **{name: network})
        self.scheduler, self.network, self.latents, self.inputs = scheduler, network, latents, inputs
        self.predict, self.after = predict, after

    def steps(self, scheduler):
        scheduler.set_timesteps(STEPS)

    def sample(self, guider):
        self.steps(self.scheduler)
        self.pipe.update_components(guider=guider)
        given = dict(timesteps=self.scheduler.timesteps, num_inference_steps=STEPS, latents=self.start(self.scheduler), **self.inputs)
        return self.pipe(**given, output="latents")

    def start(self, scheduler):
        return self.latents * getattr(scheduler, "init_noise_sigma", 1.0)

    def loop(self, guided):
        """The same by hand: `guided(x, i, t, scheduler)` is the guided prediction at the network's x."""
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        self.steps(scheduler)
        x = self.start(scheduler)
        for i, t in enumerate(scheduler.timesteps):
            inner = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            with torch.no_grad():
                x = scheduler.step(self.after(guided(inner, i, t, scheduler), self.predict(inner, t, True)), t, x).prev_sample
        return x


def sdxl():
    network = unet(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 10)
    text, pooled = [rand(2, 3, 12), rand(2, 4, 12)[:, :3]], [rand(2, 10), rand(2, 11)[:, :10]]
    times = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2, dtype=torch.float64)
    names = dict(prompt_embeds=text[0], pooled_prompt_embeds=pooled[0], add_time_ids=times, ip_adapter_embeds=None)
    names |= dict(negative_prompt_embeds=text[1], negative_pooled_prompt_embeds=pooled[1], negative_add_time_ids=times)

    def predict(x, t, c):
        i = 0 if c else 1
        return network(x, t, encoder_hidden_states=text[i], added_cond_kwargs=dict(text_embeds=pooled[i], time_ids=times)).sample

    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading")
    return Family(StableDiffusionXLDenoiseStep(), scheduler, network, rand(2, 4, 4, 4), dict(denoiser_input_fields=names), predict, "unet")


def sd3():
    sizes = dict(sample_size=4, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2, pos_embed_max_size=4)
    network = loud(diffusers.SD3Transformer2DModel(**sizes, joint_attention_dim=12, caption_projection_dim=8, pooled_projection_dim=10))
    text, pooled = [rand(2, 3, 12), rand(2, 4, 12)[:, :3]], [rand(2, 10), rand(2, 11)[:, :10]]
    inputs = dict(prompt_embeds=text[0], negative_prompt_embeds=text[1], pooled_prompt_embeds=pooled[0], negative_pooled_prompt_embeds=pooled[1])

    def predict(x, t, c):
        i = 0 if c else 1
        return network(hidden_states=x, timestep=t.expand(len(x)), encoder_hidden_states=text[i], pooled_projections=pooled[i]).sample

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Family(StableDiffusion3DenoiseStep(), scheduler, network, rand(2, 4, 4, 4), inputs, predict)


def flux2():
    """In float32, which its rotary embedding is anyway."""
    sizes = dict(in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12)
    network = loud(diffusers.Flux2Transformer2DModel(**sizes, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False)).float()
    text, ids = [rand(2, 3, 12).float(), rand(2, 4, 12)[:, :3].float()], torch.cartesian_prod(*[torch.arange(n) for n in (1, 3, 3, 1)])[None].repeat(2, 1, 1)
    words = torch.cartesian_prod(*[torch.arange(n) for n in (1, 1, 1, 3)])[None].repeat(2, 1, 1)
    inputs = dict(prompt_embeds=text[0], negative_prompt_embeds=text[1], txt_ids=words, negative_txt_ids=words, latent_ids=ids)

    def predict(x, t, c):
        given = dict(timestep=t.expand(len(x)).to(x) / 1000, img_ids=ids, txt_ids=words, encoder_hidden_states=text[0 if c else 1])
        return network(hidden_states=x, **given).sample

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    return Family(Flux2KleinBaseDenoiseStep(), scheduler, network, rand(2, 9, 4).float(), inputs, predict)


def qwen():
    """Rescales the guided prediction to the size of the conditional one, afterwards."""
    sizes = dict(patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12)
    network = loud(diffusers.QwenImageTransformer2DModel(**sizes, axes_dims_rope=(2, 2, 4)))
    text, mask, shapes = [rand(2, 3, 12), rand(2, 4, 12)[:, :3]], torch.ones(2, 3, dtype=torch.bool), [[(1, 3, 3)]] * 2
    names = dict(prompt_embeds=text[0], negative_prompt_embeds=text[1], prompt_embeds_mask=mask, negative_prompt_embeds_mask=mask)

    def predict(x, t, c):
        given = dict(encoder_hidden_states=text[0 if c else 1], encoder_hidden_states_mask=mask, img_shapes=shapes)
        return network(hidden_states=x, timestep=t.expand(len(x)).to(x) / 1000, **given).sample

    def rescaled(pred, cond):
        return pred * cond.norm(dim=-1, keepdim=True) / pred.norm(dim=-1, keepdim=True)

    inputs = dict(denoiser_input_fields=names | dict(img_shapes=shapes, additional_cond_kwargs={}), img_shapes=shapes, attention_kwargs={})
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    return Family(QwenImageDenoiseStep(), scheduler, network, rand(2, 9, 16), inputs, predict, after=rescaled)


def wan(block=None):
    sizes = dict(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12, freq_dim=8, ffn_dim=16, num_layers=2)
    network = loud(diffusers.WanTransformer3DModel(**sizes, rope_max_seq_len=32)).float()
    text = [rand(2, 3, 12).float(), rand(2, 4, 12)[:, :3].float()]
    inputs = dict(prompt_embeds=text[0], negative_prompt_embeds=text[1], dtype=torch.float32)

    def predict(x, t, c):
        return network(x, timestep=t.expand(len(x)).to(x), encoder_hidden_states=text[0 if c else 1]).sample

    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return Family(block or WanDenoiseStep(), scheduler, network, rand(2, 4, 2, 4, 4).float(), inputs, predict)


def z_image():
    """Its network takes a list of images and predicts the negative velocity."""
    sizes = dict(in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12)
    network = loud(diffusers.ZImageTransformer2DModel(**sizes, axes_dims=[2, 2, 4], axes_lens=[64, 16, 16])).float()
    for pad in (network.x_pad_token, network.cap_pad_token):
        pad.data = pad.data.float()
    text = [list(rand(2, 3, 12).float()), list(rand(2, 4, 12)[:, :3].float())]
    inputs = dict(prompt_embeds=text[0], negative_prompt_embeds=text[1], dtype=torch.float32)

    def predict(x, t, c):
        time = (1000 - t.expand(len(x)).to(x)) / 1000
        return -torch.stack(network(x=list(x.unsqueeze(2)), t=time, cap_feats=text[0 if c else 1], return_dict=False)[0]).squeeze(2)

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Family(ZImageDenoiseStep(), scheduler, network, rand(2, 4, 4, 4).float(), inputs, predict)


class HunyuanImage(Family):
    """An ordinary pipeline with a component `guider`."""

    def __init__(self):
        sizes = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_single_layers=1)
        sizes |= dict(num_refiner_layers=1, text_embed_dim=12, text_embed_2_dim=10, rope_axes_dim=(4, 4))
        network = loud(diffusers.HunyuanImageTransformer2DModel(**sizes)).float()
        self.scheduler, self.network = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), network
        self.pipe = diffusers.HunyuanImagePipeline(self.scheduler, None, None, None, None, None, network)
        self.latents, self.after = rand(2, 4, 4, 4).float(), lambda pred, cond: pred
        text, more, mask = [rand(2, 3, 12), rand(2, 4, 12)[:, :3]], [rand(2, 3, 10), rand(2, 4, 10)[:, :3]], torch.ones(2, 3)
        names = ("prompt_embeds", "prompt_embeds_2", "prompt_embeds_mask", "prompt_embeds_mask_2")
        self.inputs = {}
        for i, prefix in enumerate(("", "negative_")):
            self.inputs |= {prefix + name: value for name, value in zip(names, (text[i].float(), more[i].float(), mask, mask), strict=True)}

        def predict(x, t, c):
            given = [self.inputs[("" if c else "negative_") + name] for name in names]
            kinds = ("encoder_hidden_states", "encoder_hidden_states_2", "encoder_attention_mask", "encoder_attention_mask_2")
            return network(x, timestep=t.expand(len(x)), **dict(zip(kinds, given, strict=True))).sample

        self.predict = predict

    def sample(self, guider):
        self.pipe.guider = guider
        more = dict(num_inference_steps=STEPS, height=128, width=128, output_type="latent")
        return self.pipe(**self.inputs, latents=self.latents, **more, sigmas=SIGMAS).images

    def steps(self, scheduler):
        scheduler.set_timesteps(sigmas=SIGMAS)


SIGMAS = [1.0, 0.75, 0.5, 0.25]
FAMILIES = {"hunyuan image": HunyuanImage, "sdxl": sdxl, "sd3": sd3, "flux2": flux2, "qwen": qwen, "wan": wan, "z image": z_image}


def by_guided(family, settings, weight=SCALE - 1):
    """The run with reg_core.Guided in place of the guider."""
    kind, space, _ = noise_level(family.scheduler, torch.tensor(1.0), 1)
    times = {}

    def denoiser(c):
        return lambda x, sigma: reg_core.to_denoised(kind, family.predict(x, times["now"], c), x, sigma, space)

    model = reg_core.Guided(denoiser(True), denoiser(False), weight, settings, space)

    def guided(x, i, t, scheduler):
        times["now"], sigma = t, scheduler.sigmas[i].to(x)
        return reg_core.from_denoised(kind, model(x, sigma), x, sigma[None], space)

    return family.loop(guided), model.trace.last


@pytest.mark.parametrize("form", ["row_sum", "schedule"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_latents_as_guided_on_the_same_network(name, form):
    family = FAMILIES[name]()
    chosen = dict(form=form, gain=1.5, data_std=0.8)
    guider = RectifiedGuidance(guidance_scale=SCALE, **chosen, scheduler=family.scheduler)
    calls = []
    family.network.register_forward_hook(lambda *_: calls.append(1))
    result, again = family.sample(guider), family.sample(guider)
    assert torch.equal(result, again), "every run starts anew"
    per_run = len(calls) // 2
    expected, run = by_guided(family, reg_core.Settings(**chosen))
    plain = family.sample(diffusers.ClassifierFreeGuidance(SCALE))
    tolerance, scale = 2e-4 if result.dtype == torch.float32 else 1e-6, expected.abs().max()
    assert (result - expected).abs().max() < tolerance * scale
    assert (result - plain).abs().max() > 20 * tolerance * scale
    ours = guider.trace.last
    assert [row.sigma for row in ours.rows] == pytest.approx([row.sigma for row in run.rows], rel=1e-5)
    assert [row.share for row in ours.rows] == pytest.approx([row.share for row in run.rows], rel=1e-2, abs=1e-3)
    pure_noise = int(ours.rows[0].sigma == 1.0)  # of flow, where J is 0
    assert per_run == 2 * STEPS + (STEPS - pure_noise if form == "row_sum" else 0)
    assert ours.extra_rows == per_run - 2 * STEPS and not any(row.note for row in ours.rows)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "qwen"])
def test_row_sum_is_the_papers_formula(name):
    """Oracle: Eq. 21 with J 1 by torch.func.jvp of the network's own prediction."""
    family = FAMILIES[name]()

    def eq_21(x, i, t, scheduler):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            c, product = torch.func.jvp(lambda z: family.predict(z, t, True), (x,), (torch.ones_like(x),))
        return c + (SCALE - 1) * factor(scheduler, i, t, product) * (c - family.predict(x, t, False))

    result, expected = family.sample(RectifiedGuidance(guidance_scale=SCALE, scheduler=family.scheduler)), family.loop(eq_21)
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["sdxl", "qwen", "z image"])
def test_off_is_the_guider_of_diffusers(name):
    family = FAMILIES[name]()
    result = family.sample(RectifiedGuidance(guidance_scale=SCALE, form="off", scheduler=family.scheduler))
    expected = family.sample(diffusers.ClassifierFreeGuidance(SCALE))
    assert torch.allclose(result, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_start_and_stop_are_those_of_other_guiders():
    family, bounds = sd3(), dict(start=0.25, stop=0.75)
    result = family.sample(RectifiedGuidance(guidance_scale=SCALE, form="off", **bounds, scheduler=family.scheduler))
    assert torch.allclose(result, family.sample(diffusers.ClassifierFreeGuidance(SCALE, **bounds)), rtol=1e-9)


def test_sigma_bounds_leave_plain_guidance():
    """Oracle: the guider of diffusers where nothing is inside; else Guided with the same bounds."""
    family = sd3()
    none = RectifiedGuidance(guidance_scale=SCALE, sigma_end=2.0, scheduler=family.scheduler)
    assert torch.allclose(family.sample(none), family.sample(diffusers.ClassifierFreeGuidance(SCALE)), rtol=1e-9)
    assert none.trace.last.extra_rows == 0 and {row.note for row in none.trace.last.rows} == {"outside start and end"}
    part = RectifiedGuidance(guidance_scale=SCALE, sigma_start=0.9, sigma_end=0.5, scheduler=family.scheduler)
    expected, run = by_guided(family, reg_core.Settings(sigma_start=0.9, sigma_end=0.5))
    assert torch.allclose(family.sample(part), expected, rtol=1e-8)
    assert 0 < len(part.trace.last.active) == len(run.active) < STEPS


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_schedule_of_the_scale(name):
    """Oracle: Guided with the weights of the formula; where there is no guidance the network runs once."""
    family, calls = FAMILIES[name](), []
    family.network.register_forward_hook(lambda *_: calls.append(1))
    guider = RectifiedGuidance(guidance_scale=SCALE, form="schedule", schedule=["linear", "step", 0, 2], scheduler=family.scheduler)
    result = family.sample(guider)
    assert len(calls) == 2 * STEPS - 1
    weights = iter([(SCALE - 1) * 2 * i / (STEPS - 1) for i in range(STEPS)])
    expected, _ = by_guided(family, reg_core.Settings(form="schedule"), lambda sigma: next(weights))
    assert torch.allclose(result, expected, rtol=1e-6)
    assert [row.cfg for row in guider.trace.last.rows] == pytest.approx([1 + 4 * 2 * i / (STEPS - 1) for i in range(STEPS)])
    high = RectifiedGuidance(guidance_scale=SCALE, form="off", schedule=["interval", "sigma", 0.9, 0.0], scheduler=family.scheduler)
    family.sample(high)
    assert [row.cfg for row in high.trace.last.rows] == [1.0 if float(s) > 0.9 else SCALE for s in family.scheduler.sigmas[:STEPS]]


def test_calibrated(tmp_path):
    family = sd3()
    table = reg_core.Calibration(torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0.9, 0.6, 0.1]), torch.zeros(3), "row_sum")
    path = str(table.save(tmp_path / "table.safetensors"))
    result = family.sample(RectifiedGuidance(guidance_scale=SCALE, form="calibrated", calibration=path, scheduler=family.scheduler))
    expected, _ = by_guided(family, reg_core.Settings(form="calibrated", calibration=table))
    assert torch.allclose(result, expected, rtol=1e-8)


def test_two_experts_have_a_guider_each():
    """Wan 2.2: oracle, the same latents as one network with one guider."""
    family = wan(Wan22DenoiseStep())
    guiders = [RectifiedGuidance(guidance_scale=SCALE, scheduler=family.scheduler) for _ in range(2)]
    family.pipe.update_components(transformer_2=family.network, guider_2=guiders[1], boundary_ratio=0.9)
    one = wan()
    expected = one.sample(RectifiedGuidance(guidance_scale=SCALE, scheduler=one.scheduler))
    assert torch.equal(family.sample(guiders[0]), expected)
    split = [len(guider.trace.last.rows) for guider in guiders]
    assert sum(split) == STEPS and all(split)


def test_inpainting_channels_are_not_shifted():
    """x carries five more channels than the prediction; oracle: the network at x with h added to the first four."""
    network, scheduler = unet(channels=9), diffusers.DDIMScheduler(**BETAS, steps_offset=1)
    scheduler.set_timesteps(2)
    guider, x, text = RectifiedGuidance(scheduler=scheduler), rand(1, 9, 4, 4), [rand(1, 3, 12), rand(1, 4, 12)[:, :3]]
    t = scheduler.timesteps[1]
    guider.set_state(1, 2, t)
    batches = guider.prepare_inputs({"text": tuple(text)})
    for batch in batches:
        guider.prepare_models(network)
        with torch.no_grad():
            batch.noise_pred = network(x, t, encoder_hidden_states=batch.text).sample
    s = float((1 - scheduler.alphas_cumprod[t]).sqrt())
    there = x.clone()
    there[:, :4] += 1e-5 * s
    with torch.no_grad():
        assert torch.allclose(batches[2].noise_pred, network(there, t, encoder_hidden_states=text[0]).sample, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(batches[0].noise_pred, batches[2].noise_pred, rtol=1e-9, atol=1e-12)
        assert torch.equal(network(x, t, encoder_hidden_states=text[0]).sample, batches[0].noise_pred), "nothing of the hook is left"


def test_a_pipeline_that_widens_predictions_hides_no_half_precision():
    """Oracle: the network at x + 0.4 s, the length for bfloat16."""
    family = sd3()
    network, scheduler = family.network.bfloat16(), family.scheduler
    scheduler.set_timesteps(2)
    scheduler.set_begin_index(1)
    guider, t, x = RectifiedGuidance(scheduler=scheduler), scheduler.timesteps[1], family.latents.bfloat16()
    text, pooled = family.inputs["prompt_embeds"].bfloat16(), family.inputs["pooled_prompt_embeds"].bfloat16()

    def predict(x):
        return network(hidden_states=x, timestep=t.expand(2), encoder_hidden_states=text, pooled_projections=pooled).sample.float()

    guider.set_state(1, 2, t)
    batches = guider.prepare_inputs({"text": (text, text)})
    with torch.no_grad():
        for batch in batches:
            guider.prepare_models(network)
            batch.noise_pred = predict(x)
        assert torch.equal(batches[2].noise_pred, predict((x.float() + 0.4 * scheduler.sigmas[1]).bfloat16()))
    batches[1].noise_pred = batches[0].noise_pred + 1  # else there is no guidance
    factor = guider(batches).pred - batches[0].noise_pred
    s, ahead = scheduler.sigmas[1], batches[2].noise_pred - batches[0].noise_pred
    expected = -(7.5 - 1) * (1 - s) * (1 - s * ahead / (0.4 * s))
    assert torch.allclose(factor, expected, rtol=1e-3, atol=1e-3)


def test_half_precision():
    """Oracle: the same latents in float32; an extra pass in bfloat16 still tells the Jacobian."""
    family = sd3()
    family.network.float()
    for name, value in family.inputs.items():
        family.inputs[name] = value.float()
    family.latents = family.latents.float()
    exact = family.sample(RectifiedGuidance(guidance_scale=SCALE, scheduler=family.scheduler))
    plain = family.sample(diffusers.ClassifierFreeGuidance(SCALE))
    family.network.bfloat16()
    for name, value in family.inputs.items():
        family.inputs[name] = value.bfloat16()
    family.latents = family.latents.bfloat16()
    result = family.sample(RectifiedGuidance(guidance_scale=SCALE, scheduler=family.scheduler)).float()
    assert (result - exact).norm() < 0.2 * (exact - plain).norm()


def test_a_compiled_network():
    family = flux2()
    expected = family.sample(RectifiedGuidance(guidance_scale=SCALE, scheduler=family.scheduler))
    compiled = torch.compile(family.network, backend="eager")
    family.pipe.update_components(transformer=compiled)
    assert torch.allclose(family.sample(RectifiedGuidance(guidance_scale=SCALE, scheduler=family.scheduler)), expected, rtol=1e-3, atol=1e-4)


def test_a_stopped_run_leaves_nothing():
    family, guider = sd3(), None
    guider = RectifiedGuidance(guidance_scale=SCALE, scheduler=family.scheduler)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 5:  # the pass at x + h of the second step; the first, at pure noise, has none
            raise KeyboardInterrupt

    handle = family.network.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        family.sample(guider)
    handle.remove()
    assert not family.network._forward_pre_hooks
    fresh = family.sample(RectifiedGuidance(guidance_scale=SCALE, scheduler=family.scheduler))
    assert torch.equal(family.sample(guider), fresh)


def test_the_configuration_is_saved_and_copied(tmp_path):
    family = sd3()
    guider = RectifiedGuidance(guidance_scale=SCALE, form="schedule", gain=2.0, schedule=["cosine", "timestep", 2.0], scheduler=family.scheduler)
    expected = family.sample(guider)
    assert torch.equal(family.sample(guider.new()), expected)
    assert guider.new(gain=1.0).settings.gain == 1.0
    guider.save_pretrained(tmp_path)
    assert "scheduler" not in json.loads((tmp_path / "guider_config.json").read_text())
    loaded = RectifiedGuidance.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="guider.scheduler = pipe.scheduler.*got NoneType"):
        family.sample(loaded)
    loaded.scheduler = family.scheduler
    assert torch.equal(family.sample(loaded), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(form="product"), "row_sum, schedule, calibrated, off, got 'product'"),
        (dict(form="calibrated"), "calibration table go together, but none is given"),
        (dict(guidance_scale=float("nan")), "guidance_scale must be a number from .*, got nan"),
        (dict(gain=0.0), "gain must be a number from .*, got 0.0"),
        (dict(schedule=["sine", "step", 1]), r"linear, cosine, interval, got 'sine'"),
        (dict(schedule=["linear", "step", 1]), "schedule .*'linear', 'step', 1.* missing"),
        (dict(sigma_start=0.1, sigma_end=0.5), "got sigma_start=0.1, sigma_end=0.5"),
        (dict(start=1.0), "got 1.0"),
    ],
)
def test_bad_input_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        RectifiedGuidance(**given)


def test_what_cannot_be_rectified_is_refused():
    family = sd3()
    other = diffusers.FlowMatchEulerDiscreteScheduler()
    other.set_timesteps(7)
    with pytest.raises(ValueError, match="got FlowMatchEulerDiscreteScheduler without the timestep 857"):
        family.sample(RectifiedGuidance(scheduler=other))
    edit = flux2()
    more = torch.cat([edit.inputs["latent_ids"]] * 2, 1)[:, :9]
    edit.inputs |= dict(image_latents=rand(2, 9, 4).float(), image_latent_ids=more)
    with pytest.raises(ValueError, match=r"reference images, got an input of shape \(2, 18, 4\) for \(2, 9, 4\)"):
        edit.sample(RectifiedGuidance(scheduler=edit.scheduler))
    reference = dict(hidden_states=rand(2, 18, 4), img_shapes=[[(1, 3, 3), (1, 3, 3)]] * 2)  # as Qwen-Image Edit calls its network
    network = qwen().network
    _shift_once(network, torch.Size((2, 18, 4)), torch.ones(2, 1, 1))
    with pytest.raises(ValueError, match="cannot tell latents from reference images"):
        network(**reference)
    assert torch.isfinite(edit.sample(RectifiedGuidance(form="schedule", scheduler=edit.scheduler))).all()


def test_conditions_outside_of_a_step():
    """Pipelines ask before the first step whether a negative prompt is wanted."""
    family = sd3()
    guider = RectifiedGuidance(guidance_scale=SCALE, stop=0.5, scheduler=family.scheduler)
    assert guider.num_conditions == 2
    family.sample(guider)  # ends in a step without guidance
    assert guider.num_conditions == 2
    assert RectifiedGuidance(guidance_scale=1.0).num_conditions == RectifiedGuidance(enabled=False).num_conditions == 1
    assert SimpleNamespace(**guider.get_state()).num_conditions == 2


def test_the_page_runs(tmp_path):
    """docs/diffusers.md, block after block, in a whole modular SDXL of random weights. Oracle: plain guidance by its own guider."""
    ordinary = diffusers.StableDiffusionXLPipeline.from_pretrained(text_to_image(tmp_path, xl=True))
    pipe = diffusers.StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.update_components(**{name: part for name, part in ordinary.components.items() if part is not None and name in pipe.components})
    page = (hosts.ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")
    scope = {"pipe": pipe}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, scope)  # noqa: S102
    assert len(scope["images"]) == 1 and len(scope["pictures"]) == 6
    off = RectifiedGuidance(guidance_scale=7.0, form="off", scheduler=pipe.scheduler)
    pipe.update_components(guider=off)
    same = pipe(**scope["given"] | {"generator": torch.Generator().manual_seed(0)}, output="images")[0]
    assert np.abs(np.asarray(same).astype(int) - np.asarray(scope["pictures"]["CFG 7.0"])).max() <= 1
