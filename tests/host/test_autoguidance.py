"""Autoguidance and reference models in real runs. Oracles: the library on the same two denoisers, and plain host calls."""

import math
from contextlib import nullcontext

import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch

from . import reg, tiny


@pytest.fixture(scope="module")
def digits(pack):
    def run(name, **values):
        return pack.nodes[name].execute(**values).result[0]

    prompt, anything = (run("REGDemoPrompt", digit=d) for d in ("all ten in turn", "no prompt"))
    return tiny.Tiny("digits", run("REGDemoModel", variant="digits"), (1, 8, 8), prompt, anything)


@pytest.fixture
def weak(pack):
    return pack.nodes["REGDemoModel"].execute(variant="digits_weak").result[0]


def guide(pack, model, weak, positive, scale, negative=None, cfg=1.0):
    return pack.nodes["REGAutoguidance"].execute(model, weak, positive, scale, negative, cfg).result[0]


def run(guider, t, batch=20, steps=8, sampler="heun", seed=0):
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "karras", steps)
    latent = t.empty_latent(batch)["samples"]
    return guider.sample(t.noise(batch, seed), latent, comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True, seed=seed)


def library(pack, batch, steps, cond, reference, weight, form, seed=0):
    """The same run without ComfyUI."""
    core, digits = pack.import_("reg_core"), pack.import_("reg_core.demo_models.data").DIGITS
    noise = comfy.sample.prepare_noise(torch.zeros(batch, 1, 8, 8), seed)
    guided = core.Guided(cond, reference, weight, core.Settings(form=form))
    sigmas = core.karras_sigmas(steps, digits.sigma_min, digits.sigma_max)
    return core.sample_heun(guided, noise * (1 + digits.sigma_max**2) ** 0.5, sigmas)


@pytest.mark.parametrize("form", ["off", "row_sum", "scalar", "product", "schedule"])
def test_autoguidance_equals_the_library(host, pack, digits, weak, form):
    load = pack.import_("reg_core.demo_models.loading").load_model
    strong_net, weak_net, labels = load("digits"), load("digits_weak"), torch.arange(20) % 10
    model, trace = reg.apply(pack, digits.patcher, form)
    out = run(guide(pack, model, weak, digits.positive, 3.0), digits)
    want = library(pack, 20, 8, lambda x, s: strong_net(x, s, labels), lambda x, s: weak_net(x, s, labels), 2.0, form)
    assert (out - want).abs().max() < 5e-3
    if form != "off":
        assert len(trace.last.active) == len(trace.last.rows) == 15
        assert {round(r.cfg, 4) for r in trace.last.rows} == {3.0}


@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
def test_every_engine_rectifies_autoguidance(host, pack, digits, weak, engine):
    model, trace = reg.apply(pack, digits.patcher, "scalar", engine)
    out = run(guide(pack, model, weak, digits.positive, 3.0), digits, batch=4)
    reference = run(guide(pack, reg.apply(pack, digits.patcher, "scalar", "reverse")[0], weak, digits.positive, 3.0), digits, batch=4)
    assert {r.engine for r in trace.last.rows} == {engine} and not trace.last.notes
    assert reg.relative(out, reference) < 0.02


def test_together_with_cfg(host, pack, digits, weak):
    """D_c + 2 (D_c - D_weak) + 3 (D_c - D_u), the unconditional on the strong model."""
    load = pack.import_("reg_core.demo_models.loading").load_model
    strong, bad, labels = load("digits"), load("digits_weak"), torch.arange(20) % 10
    out = run(guide(pack, digits.patcher, weak, digits.positive, 3.0, digits.negative, 4.0), digits)

    def denoise(x, s):
        d = strong(x, s, labels)
        return d + 2 * (d - bad(x, s, labels)) + 3 * (d - strong(x, s))

    core, digits = pack.import_("reg_core"), pack.import_("reg_core.demo_models.data").DIGITS
    noise = comfy.sample.prepare_noise(torch.zeros(20, 1, 8, 8), 0) * (1 + digits.sigma_max**2) ** 0.5
    want = core.sample_heun(denoise, noise, core.karras_sigmas(8, digits.sigma_min, digits.sigma_max))
    assert (out - want).abs().max() < 5e-3


def test_scale_one_runs_the_strong_model_only(host, pack, digits, weak):
    with reg.counted(weak) as rows:
        out = run(guide(pack, digits.patcher, weak, digits.positive, 1.0), digits, batch=4)
    assert rows["rows"] == 0
    assert torch.equal(out, tiny.sample(digits, cfg=1.0, steps=8, batch=4, sampler="heun", scheduler="karras"))


def test_reference_model_door_for_ksampler(host, pack, digits, weak):
    """KSampler with the same prompt twice on two models is autoguidance; with a reference on its own negative it is EDM2's CFG."""
    node = pack.nodes["REGReferenceModel"]
    model, trace = reg.apply(pack, node.execute(digits.patcher, weak).result[0])
    out = tiny.sample(digits, model, cfg=3.0, steps=8, batch=20, sampler="heun", scheduler="karras", negative=digits.positive)
    want = run(guide(pack, reg.apply(pack, digits.patcher)[0], weak, digits.positive, 3.0), digits)
    assert torch.allclose(out, want, atol=1e-5) and len(trace.last.active) == 15
    after = node.execute(reg.apply(pack, digits.patcher)[0], weak).result[0]
    assert torch.equal(out, tiny.sample(digits, after, cfg=3.0, steps=8, batch=20, sampler="heun", scheduler="karras", negative=digits.positive))
    load = pack.import_("reg_core.demo_models.loading").load_model
    strong, small, labels = load("digits"), load("digits_weak"), torch.arange(20) % 10
    out = tiny.sample(digits, node.execute(digits.patcher, weak).result[0], cfg=3.0, steps=8, batch=20, sampler="heun", scheduler="karras")
    want = library(pack, 20, 8, lambda x, s: strong(x, s, labels), lambda x, s: small(x, s), 2.0, "off")
    assert (out - want).abs().max() < 5e-3


def test_real_architectures_both_loaded_for_the_whole_run(host, pack):
    """Two tiny SD3 models with conds of their own; loaded once; oracle: a cfg function that calls the second model itself."""
    strong, second = tiny.build("sd3"), tiny.build("sd3", seed=1)
    model = pack.nodes["REGReferenceModel"].execute(strong.patcher, second.patcher).result[0]
    loads = []
    original = host.model_management.load_models_gpu

    def spy(models, *args, **kwargs):
        loads.append([m.model for m in models])
        return original(models, *args, **kwargs)

    host.model_management.load_models_gpu = spy
    try:
        out = tiny.sample(strong, model, batch=2)
    finally:
        host.model_management.load_models_gpu = original
    assert second.patcher.model.current_patcher is None and strong.patcher.model.current_patcher is None, "both are let go after the run"
    assert len(loads) == 1 and second.patcher.model in loads[0] and strong.patcher.model in loads[0]

    def noting(found):
        return lambda args: (found.append((args["cond_denoised"].clone(), args["uncond_denoised"].clone())), args["denoised"])[1]

    seen = []
    probe = strong.patcher.clone()
    probe = pack.nodes["REGReferenceModel"].execute(probe, second.patcher).result[0]
    probe.set_model_sampler_post_cfg_function(noting(seen))
    tiny.sample(strong, probe, batch=2)
    own, theirs = [], []
    for t, found in ((strong, own), (second, theirs)):
        spy_model = t.patcher.clone()
        spy_model.set_model_sampler_post_cfg_function(noting(found))
        tiny.sample(t, spy_model, batch=2)
    # the first call of all runs is at the same x: prediction by prediction
    assert torch.allclose(seen[0][0], own[0][0], atol=1e-5) and torch.allclose(seen[0][1], theirs[0][1], atol=1e-5)
    assert torch.isfinite(out).all()


def test_the_second_model_is_let_go_when_a_run_fails(host, pack):
    """After success ComfyUI cleans up additional models itself; after an error only we do."""
    strong, second = tiny.build("sd3"), tiny.build("sd3", seed=1)
    model = pack.nodes["REGReferenceModel"].execute(strong.patcher, second.patcher).result[0]
    want = tiny.sample(strong, model)

    def fail(args):
        raise ValueError("on purpose")

    broken = model.clone()
    broken.set_model_sampler_post_cfg_function(fail)
    with pytest.raises(ValueError, match="on purpose"):
        tiny.sample(strong, broken)
    assert second.patcher.model.current_patcher is None
    assert torch.equal(tiny.sample(strong, model), want)


@pytest.mark.parametrize("fails", [False, True])
def test_the_reference_is_taken_out_again(host, pack, digits, weak, fails):
    """After a run, and after one that fails, the guider asks for its pair as before."""
    first, seen = digits.patcher.clone(), []

    def outer_sample(executor, *args, **kwargs):
        before = executor.class_obj.model_options
        try:
            return executor(*args, **kwargs)
        finally:
            after = executor.class_obj.model_options
            seen.append(after is before and "sampler_calc_cond_batch_function" not in after)

    def post_cfg(args):
        assert not fails, "on purpose"
        return args["denoised"]

    first.add_wrapper(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, outer_sample)
    first.set_model_sampler_post_cfg_function(post_cfg)
    model = pack.nodes["REGReferenceModel"].execute(first, weak).result[0]
    with pytest.raises(AssertionError, match="on purpose") if fails else nullcontext():
        tiny.sample(digits, model, steps=2)
    assert seen == [True]


def test_a_clone_with_other_options_shares_the_weights(host, pack, all_nodes):
    """A weak model made of attention patches costs no memory: same network, its own options."""
    t = tiny.build("sd15")
    weak = t.patcher.clone()
    weak.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    model = pack.nodes["REGReferenceModel"].execute(t.patcher, weak).result[0]
    with reg.counted(t.patcher) as rows:
        out = tiny.sample(t, model, negative=t.positive)
    assert rows["rows"] == 6 + 2  # in the first step also this model's own pair, to compare with
    assert not torch.equal(out, tiny.sample(t, cfg=1.0))
    plain = pack.nodes["REGReferenceModel"].execute(t.patcher, t.patcher.clone()).result[0]
    assert torch.allclose(tiny.sample(t, plain, negative=t.positive), tiny.sample(t, cfg=1.0), rtol=1e-4, atol=1e-3), "no difference, no guidance"


def test_weak_model_damps_blocks_for_the_pass_only(host, pack, digits, weak):
    """Oracle: a second network whose block weights are scaled by hand."""
    node = pack.nodes["REGWeakModel"]
    before = reg.fingerprint(weak)
    damped = node.execute(weak, 0.3).result[0]
    by_hand = pack.nodes["REGDemoModel"].execute(variant="digits_weak").result[0]
    for name, w in by_hand.model.diffusion_model.named_parameters():
        if w.ndim >= 2 and any(f"{part}." in name for part in ("down", "middle", "up")):
            w.mul_(0.7)
    values = dict(cfg=1.0, steps=6, batch=4, scheduler="karras")
    assert torch.allclose(tiny.sample(digits, damped, **values), tiny.sample(digits, by_hand, **values), atol=1e-3)
    assert reg.fingerprint(weak) == before
    assert torch.equal(tiny.sample(digits, node.execute(weak, 0.0).result[0], **values), tiny.sample(digits, weak, **values))
    assert not any(m._forward_hooks for m in weak.model.modules())
    for name in ("sd15", "sd3", "flux", "wan"):
        t = tiny.build(name)
        layers = list(pack.import_("nodes.hooks.damped")._block_layers(t.patcher.model.diffusion_model))
        assert len(layers) == len({id(layer) for layer in layers}) > 10, "nested lists must not damp twice"
        out = tiny.sample(t, node.execute(t.patcher, 0.2).result[0], batch=2)
        assert torch.isfinite(out).all() and not torch.equal(out, tiny.sample(t, batch=2))


@pytest.mark.parametrize("rectified", [False, True])
def test_autoguidance_raises_accuracy(host, pack, digits, weak, rectified):
    """On the smaller model, whose unguided samples leave something to mend; its weak partner is itself, damped."""
    classifier = pack.import_("reg_core.demo_models.loading").load_judge("digits")
    labels = torch.arange(300) % 10

    def accuracy(latents):
        return (classifier(latents).argmax(1) == labels).float().mean().item()

    worse = pack.nodes["REGWeakModel"].execute(weak, 0.3).result[0]
    unguided = accuracy(tiny.sample(tiny.dataclasses.replace(digits, patcher=weak), cfg=1.0, steps=12, batch=300, sampler="heun", scheduler="karras"))
    model = reg.apply(pack, weak, "row_sum")[0] if rectified else weak
    guided = accuracy(run(guide(pack, model, worse, digits.positive, 4.0 if rectified else 2.5), digits, batch=300, steps=12))
    print(f"\nautoguidance from itself damped, rectified={rectified}: accuracy {unguided:.3f} -> {guided:.3f}")
    assert guided > unguided + 0.02


@pytest.mark.parametrize("values,match", [(dict(scale=2.0, cfg=0.0), "cancel"), (dict(scale=math.nan), "nan")])
def test_bad_scales_are_named(pack, digits, weak, values, match):
    with pytest.raises(ValueError, match=match):
        guide(pack, digits.patcher, weak, digits.positive, negative=digits.negative, **({"scale": 2.0} | values))


def test_models_that_do_not_fit_are_refused(pack, digits):
    sd15, sd3 = tiny.build("sd15"), tiny.build("sd3")
    node = pack.nodes["REGReferenceModel"]
    with pytest.raises(ValueError, match="different coordinates"):
        node.execute(sd15.patcher, sd3.patcher)
    with pytest.raises(ValueError, match="different latents"):
        node.execute(sd15.patcher, digits.patcher)
    lora = sd15.patcher.clone()
    key = next(k for k in sd15.patcher.model.state_dict() if k.endswith("attn1.to_q.weight"))
    lora.add_patches({key: ("diff", (torch.zeros_like(sd15.patcher.model.state_dict()[key]),))})
    with pytest.raises(ValueError, match="second loader"):
        node.execute(sd15.patcher, lora)
    with pytest.raises(ValueError, match="1.5"):
        pack.nodes["REGWeakModel"].execute(sd15.patcher, 1.5)
