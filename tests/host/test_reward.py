"""Classifier guidance in real runs. Oracles: the library, closed forms on Gaussian data, and autograd written out."""

import asyncio
import math
import re
import sys
import types

import comfy.patcher_extension
import pytest
import torch

from . import reg, tiny
from .setup_host import REPO
from .test_sampling_classes import VARIANCE, build


@pytest.fixture(scope="module")
def weak(pack):
    """The weaker digits model: unguided it errs in one of ten."""

    def run(name, **values):
        return pack.nodes[name].execute(**values).result[0]

    prompt, anything = (run("REGDemoPrompt", digit=d) for d in ("all ten in turn", "no prompt"))
    return tiny.Tiny("digits", run("REGDemoModel", variant="digits_weak"), (1, 8, 8), prompt, anything)


def guide(pack, model, reward, scale=1.0, rectified=True, start=0.0, end=1.0):
    return pack.nodes["REGRewardGuidance"].execute(model, reward, scale, rectified, start, end).result[0]


def digit(pack, value=-1):
    return pack.nodes["REGRewardDigit"].execute(value).result[0]


@pytest.mark.parametrize("rectified,scale", [(True, 1.0), (False, 0.1)])
def test_it_raises_accuracy_at_the_same_seed(host, pack, weak, rectified, scale):
    classifier = pack.import_("reg_core.demo_models.loading").load_judge("digits")
    labels = torch.arange(300) % 10
    values = dict(cfg=1.0, steps=12, batch=300, sampler="heun", scheduler="karras")

    def accuracy(model):
        return (classifier(tiny.sample(weak, model, **values)).argmax(1) == labels).float().mean().item()

    unguided, guided = accuracy(weak.patcher), accuracy(guide(pack, weak.patcher, digit(pack), scale, rectified))
    print(f"\nreward guidance, rectified={rectified}: accuracy {unguided:.3f} -> {guided:.3f}")
    assert guided > unguided + 0.02


@pytest.mark.parametrize("kind", ["eps", "v", "edm", "flow", "flux"])
@pytest.mark.parametrize("rectified", [True, False])
def test_closed_form_on_gaussian_data(host, pack, kind, rectified):
    """g = scale s^2/alpha^2 c grad log p at D, with c = 1 when unrectified, for a Gaussian reward around t."""
    t = build(kind, 4)
    target = torch.full((1, 4, 6, 6), 1.5)
    reward = pack.nodes["REGRewardLatent"].execute({"samples": target}, "latent", 0.8).result[0]
    before, after = [], []

    def note_before(args):
        before.append((args["sigma"].clone(), args["cond_denoised"].clone(), args["denoised"].clone()))
        return args["denoised"]

    def note_after(executor, *args, **kwargs):
        after.append(executor(*args, **kwargs))
        return after[-1]

    model = guide(pack, t.patcher, reward, 0.3, rectified).clone()
    model.set_model_sampler_post_cfg_function(note_before)
    model.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, note_after)
    tiny.sample(t, model, cfg=1.0, steps=4, scheduler="simple")
    for (sigma, d, plain), shifted in zip(before, after, strict=True):
        level = float(sigma.max())
        alpha = 1 - level if kind in ("flow", "flux") else 1.0
        c = VARIANCE * alpha**2 / (VARIANCE * alpha**2 + level**2) if rectified else 1.0
        sigma_ve = min(20.0, level / max(alpha, 1e-9))
        want = 0.3 * sigma_ve**2 * c * (1.5 - d) / 0.64
        assert torch.allclose(shifted - plain, want, rtol=2e-3, atol=2e-3 * float(want.abs().max()) + 1e-4), level


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "wan"])
def test_real_architectures_follow_a_mean_colour(host, pack, name):
    """Under inference mode, through real networks: the channel means move toward the target, more with more scale."""
    t = tiny.build(name)
    target = {"samples": torch.full((1, *t.latent_shape), 0.7)}
    reward = pack.nodes["REGRewardLatent"].execute(target, "mean", 0.2).result[0]
    before = reg.fingerprint(t.patcher)

    def distance(model):
        out = tiny.sample(t, model, cfg=2.0, steps=8, batch=2)
        return (out.flatten(2).mean(2) - 0.7).norm().item()

    plain = distance(t.patcher)
    # the late half only: a random network's J does not vanish at high noise, as a denoiser's does
    assert distance(guide(pack, t.patcher, reward, 1.0, start=0.5)) < plain
    assert reg.fingerprint(t.patcher) == before


def test_order_against_reg_does_not_matter_and_the_trace_stays_clean(host, pack, weak):
    reward = digit(pack)
    a, trace = reg.apply(pack, guide(pack, weak.patcher, reward, 0.5))
    b = guide(pack, reg.apply(pack, weak.patcher)[0], reward, 0.5)
    values = dict(cfg=3.0, steps=5, batch=20, scheduler="karras")
    out = tiny.sample(weak, a, **values)
    assert torch.equal(out, tiny.sample(weak, b, **values))
    assert len(trace.last.rows) == len(trace.last.active) == 5
    assert not torch.equal(out, tiny.sample(weak, reg.apply(pack, weak.patcher)[0], **values))


def test_a_backward_pass_that_fails_is_tried_once_a_run(host, pack, monkeypatch):
    """As with REG Guidance: finite differences from there on."""
    t, attempts = tiny.build("sd15"), []
    model = t.patcher.clone()
    model.set_model_attn1_output_patch(lambda out, extra: reg.NoDerivative.apply(out))
    monkeypatch.setattr(reg.NoDerivative, "backward", lambda ctx, grad: attempts.append(1) or refuse())

    def refuse():
        raise NotImplementedError("no derivative for this kernel")

    reward = pack.nodes["REGRewardLatent"].execute(t.empty_latent(), "mean", 0.2).result[0]
    guided = guide(pack, model, reward, 0.1)
    for run in (1, 2):
        out = tiny.sample(t, guided, steps=4)
        assert len(attempts) == run
    assert torch.isfinite(out).all() and not torch.equal(out, tiny.sample(t, model, steps=4))


def test_nodes_behind_it_do_not_copy_the_reward(host, pack, weak):
    """ComfyUI up to 0.3.75 makes deep copies of what is in a MODEL's options at every clone: a VAE and a CLIP model, for pictures."""

    class Loaded:
        def log_prob(self, x0):
            return -x0.flatten(1).mean(1)

        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    model = guide(pack, weak.patcher, Loaded(), 0.1)
    assert torch.equal(tiny.sample(weak, reg.apply(pack, model.clone())[0]), tiny.sample(weak, reg.apply(pack, model)[0]))


def test_interval_and_zero(host, pack, weak):
    values = dict(cfg=2.0, steps=6, batch=4, scheduler="karras")
    want = tiny.sample(weak, **values)
    assert torch.equal(tiny.sample(weak, guide(pack, weak.patcher, digit(pack), 0.0), **values), want)
    with reg.counted(weak.patcher) as rows:
        tiny.sample(weak, guide(pack, weak.patcher, digit(pack), 1.0, True, 0.3, 0.6), **values)
    extra = rows["rows"] - 6 * 8
    assert 0 < extra < 6 * 4 and extra % 4 == 0


def test_image_similarity_through_a_real_vae_and_clip_vision(host, pack):
    """Tiny CLIP vision and VAE. Oracle: finite differences of the reward itself in a random direction."""

    t, vae = tiny.build("sd15"), tiny.build_vae("sd15")
    clip = tiny_clip_vision()
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    reward = pack.nodes["REGRewardImage"].execute(clip, vae, image, 0.05, 8).result[0]
    with torch.inference_mode(False), torch.enable_grad():
        g = torch.Generator().manual_seed(1)
        x0, u = (torch.randn(2, 4, 16, 16, generator=g) for _ in range(2))
        x0.requires_grad_(True)
        value = reward.log_prob(x0)
        (gradient,) = torch.autograd.grad(value.sum(), x0)
        with torch.no_grad():
            slope = (reward.log_prob(x0 + 1e-2 * u).sum() - reward.log_prob(x0 - 1e-2 * u).sum()) / 2e-2
    assert value.shape == (2,) and (gradient * u).sum().item() == pytest.approx(slope.item(), rel=0.05, abs=1e-3)
    before, vae_before = reg.fingerprint(t.patcher), [p.is_inference() for p in vae.first_stage_model.parameters()]
    out = tiny.sample(t, guide(pack, t.patcher, reward, 0.1), batch=2)
    assert torch.isfinite(out).all() and not torch.equal(out, tiny.sample(t, batch=2))
    assert reg.fingerprint(t.patcher) == before and [p.is_inference() for p in vae.first_stage_model.parameters()] == vae_before
    with pytest.raises(ValueError, match=r"\[1, 16, 3, 8, 8\]"):
        reward.log_prob(torch.zeros(1, 16, 3, 8, 8))


def tiny_clip_vision():
    """A comfy.clip_vision.ClipVisionModel of two layers."""
    import json
    import tempfile

    import comfy.clip_vision

    config = dict(
        model_type="clip_vision_model", hidden_size=32, intermediate_size=64, projection_dim=16, num_hidden_layers=2, num_attention_heads=4,
        num_channels=3, image_size=32, patch_size=8, hidden_act="quick_gelu", layer_norm_eps=1e-5, attention_dropout=0.0,
    )  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        clip = comfy.clip_vision.ClipVisionModel(file.name)
    tiny.fill(clip.model)
    return clip


def test_a_reward_of_a_third_pack(host, pack, weak):
    """The protocol is one method."""

    class Dark:
        def log_prob(self, x0):
            return -x0.flatten(1).mean(1) * 50

    values = dict(cfg=1.0, steps=6, batch=8, scheduler="karras")
    assert tiny.sample(weak, guide(pack, weak.patcher, Dark(), 1.0), **values).mean() < tiny.sample(weak, **values).mean() - 0.05


@pytest.mark.parametrize("bad,match", [(dict(scale=math.nan), "nan"), (dict(start=0.8, end=0.2), "0.8"), (dict(reward=object()), "log_prob")])
def test_bad_input_is_named(pack, weak, bad, match):
    with pytest.raises(ValueError, match=match):
        guide(pack, weak.patcher, **({"reward": digit(pack)} | bad))


def test_targets_that_do_not_fit_are_named(pack):
    latent = pack.nodes["REGRewardLatent"]
    with pytest.raises(ValueError, match=r"\[4\], the model's latents \[16\]"):
        latent.execute({"samples": torch.zeros(1, 4, 8, 8)}, "mean", 0.5).result[0].log_prob(torch.zeros(1, 16, 8, 8))
    with pytest.raises(ValueError, match=r"\[4, 8, 8\]"):
        latent.execute({"samples": torch.zeros(1, 4, 8, 8)}, "latent", 0.5).result[0].log_prob(torch.zeros(1, 4, 16, 16))
    for node, value, match in (("REGRewardLatent", ({"samples": torch.zeros(1, 4, 8, 8)}, "mean", 0.0), "0.0"), ("REGRewardDigit", (11,), "11")):
        with pytest.raises(ValueError, match=match):
            pack.nodes[node].execute(*value)


def test_the_reward_of_extending_guides(host, pack, weak):
    """The page's file as another pack of its name would bring it. Oracle: neighbours differ less than without it, at the same seed."""
    page = (REPO / "docs" / "extending.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "SmoothReward" in block)
    module = types.ModuleType("smooth_reward")
    sys.modules[module.__name__] = module  # dataclasses look there
    exec(code, vars(module))  # noqa: S102
    (node,) = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
    assert node.GET_SCHEMA().node_id == "SmoothReward"
    reward = node.execute(0.1).result[0]

    def roughness(model):
        x = tiny.sample(weak, model, cfg=1.0, steps=6, batch=20, sampler="euler", scheduler="karras")
        return sum(x.diff(dim=dim).square().mean().item() for dim in (-1, -2))

    plain, smooth = roughness(weak.patcher), roughness(guide(pack, weak.patcher, reward))
    assert smooth < 0.9 * plain, (plain, smooth)
