"""REG in samplers of other packs, and with prompts that are there in some steps only."""

import functools
import math

import comfy.samplers
import pytest
import torch

from . import features, formula, reg, standins, tiny, truth

DIFFERENCES, REVERSE = features.ENGINES
MIXED = [("row_sum", DIFFERENCES, 4), ("row_sum", REVERSE, 1), ("scalar", DIFFERENCES, 1), ("scalar", REVERSE, 4)]
SAMPLERS = {"deep copies": standins.deep_copying, "drops options": standins.dropping_options}
HALF = {torch.float16: 0.06, torch.bfloat16: 0.11}  # of R v, relative to v: forward differences over 0.1 to 0.2 of the noise reach it, central ones half of it
STEPS = 3


@functools.cache
def built():
    return tiny.build("sd3")


@pytest.fixture(autouse=True)
def nothing_loaded(host):
    yield
    host.model_management.unload_all_models()


def draw(model, sampler, kind=comfy.samplers.CFGGuider, positive=None, negative=None, batch=1):
    t = built()
    guider = kind(model)
    guider.set_conds(t.positive if positive is None else positive, t.negative if negative is None else negative)
    guider.set_cfg(4.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    return guider.sample(t.noise(batch), t.empty_latent(batch)["samples"], sampler, sigmas, disable_pbar=True, seed=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_do_not_see_reg(host, pack, name):
    sampler, t, found = SAMPLERS[name](), built(), {}
    plain = draw(t.patcher, sampler)
    for form, engine, refresh in MIXED:
        model, trace = reg.apply(pack, t.patcher, form, engine, refresh=refresh, strength=truth.INVISIBLE)
        found[form, engine, refresh] = reg.relative(draw(model, sampler), plain)
        assert len(trace.last.active) == STEPS, str(trace)
    assert max(found.values()) <= truth.TRANSPARENT, found


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("form,engine", [("row_sum", DIFFERENCES), ("scalar", REVERSE), ("product", DIFFERENCES)])
def test_samplers_get_rectified_guidance_and_the_trace_is_filled(host, pack, name, form, engine):
    sampler, t = SAMPLERS[name](), built()
    model, trace = reg.apply(pack, t.patcher, form, engine)
    found, plain = draw(model, sampler), draw(t.patcher, sampler)
    want = draw(t.patcher, sampler, formula.guider_class(comfy.samplers.CFGGuider, form))
    assert (found - want).norm() < 0.03 * (plain - want).norm(), str(trace)
    assert len(trace.last.active) == STEPS and {r.engine for r in trace.last.active} == {engine}, str(trace)


@pytest.mark.parametrize("name", SAMPLERS)
def test_refresh_works_in_them(host, pack, name):
    model, trace = reg.apply(pack, built().patcher, "scalar", refresh=2, start=0.01)  # the first step is flow's sigma 1
    draw(model, SAMPLERS[name]())
    assert [r.fresh for r in trace.last.active] == [True, False], str(trace)


def with_reg(pack, node, model):
    """`model` with one of REG's nodes."""
    nodes, t = pack.nodes, built()
    if node == "REGReferenceModel":
        return nodes[node].execute(model, t.patcher).result[0]
    if node == "REGScheduleLinear":
        return nodes[node].execute(model, 0.5, 2.0, "step").result[0]
    reward = nodes["REGRewardLatent"].execute({"samples": torch.full((1, *t.latent_shape), 0.7)}, "mean", 0.2).result[0]
    return nodes["REGRewardGuidance"].execute(model, reward, 1.0, True, 0.5, 1.0).result[0]


@pytest.mark.parametrize("node", ["REGGuidance", "REGReferenceModel", "REGScheduleLinear", "REGRewardGuidance"])
def test_a_sampler_that_copies_its_arguments_does_not_copy_the_model(host, pack, node):
    """Nothing in the call's arguments leads to a MODEL: no copy of its network, and the latents of a sampler that copies nothing."""
    t, copied = tiny.build("sd3"), []
    trace = None
    if node == "REGGuidance":
        model, trace = reg.apply(pack, t.patcher, "scalar", REVERSE)
    else:
        model = with_reg(pack, node, t.patcher)

    def refuse(memo):
        copied.append(1)
        return t.patcher.model

    want = draw(model, standins.euler())
    for each in (t, built()):
        for module in each.patcher.model.modules():
            object.__setattr__(module, "__deepcopy__", refuse)
    try:
        draw(t.patcher, standins.deep_copying())
        assert not copied, "ComfyUI's own arguments hold no model"
        found = draw(model, standins.deep_copying())
    finally:
        for module in built().patcher.model.modules():
            object.__delattr__(module, "__deepcopy__")
    assert not copied
    assert torch.allclose(found, want, atol=1e-5)
    if trace is not None:
        assert len(trace.runs) == 2 and len(trace.last.rows) == STEPS, "it is the node's own trace"


# x in half precision


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("form,engine", [("row_sum", DIFFERENCES), ("scalar", DIFFERENCES), ("product", DIFFERENCES), ("scalar", REVERSE)])
@pytest.mark.parametrize("at", [1, 2])
def test_guidance_where_x_is_kept_in_half_precision(host, pack, form, engine, dtype, at):
    """The network computes in float32, and x + h is rounded to x's dtype. Truth: the pair of the same x in float32."""
    t = built()
    model, trace = reg.apply(pack, t.patcher, form, engine)
    plain, ours = truth.Watched(t.patcher), truth.Watched(model)

    def expected(guider, x, sigma, options):
        return truth.Truth(plain, form, False, truth._rows, guider, x.to(dtype).float(), sigma, options)

    def seen(guider, x, sigma, options):
        return ours.pair(guider, x.to(dtype), sigma, options)

    want = reg.inside(t, expected, plain.model, batch=2, steps=4, at=at)
    cond, uncond = reg.inside(t, seen, ours.model, batch=2, steps=4, at=at)
    error = want.error(cond.float() - uncond.float())
    assert error < HALF[dtype], f"{error:.3f}, {trace}"
    assert trace.last.active and not trace.last.notes, str(trace)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_samplers_in_half_precision_do_not_see_reg(host, pack, dtype):
    """To the rounding of the dtype: cfg 4 lets through three times that of the pair."""
    sampler, t, found = standins.in_half(dtype), built(), {}
    plain = draw(t.patcher, sampler).float()
    for form, engine, refresh in MIXED:
        model = reg.apply(pack, t.patcher, form, engine, refresh=refresh, strength=truth.INVISIBLE)[0]
        found[form, engine, refresh] = reg.relative(draw(model, sampler).float(), plain)
    assert max(found.values()) <= 4 * torch.finfo(dtype).eps, found


# Prompts that are absent at some steps

RANGES = {"from the start": (0.0, 0.5), "until the end": (0.5, 1.0)}


def ranged(host, prompt, where):
    return host.nodes.ConditioningSetTimestepRange().set_range(prompt, *RANGES[where])[0]


def absent(which, where, host):
    t = built()
    prompts = dict(positive=t.positive, negative=t.negative)
    prompts[which] = ranged(host, prompts[which], where)
    return prompts


@pytest.mark.parametrize("which", ["positive", "negative"])
@pytest.mark.parametrize("where", RANGES)
@pytest.mark.parametrize("form,engine", [("row_sum", DIFFERENCES), ("row_sum", REVERSE), ("scalar", DIFFERENCES), ("scalar", REVERSE), ("schedule", "auto")])
def test_a_step_without_a_prompt_is_plain_and_the_others_are_rectified(host, pack, which, where, form, engine):
    """There is no guidance between a prompt and nothing. The engine stays: the next step has both prompts again."""
    t, prompts = built(), absent(which, where, host)
    model, trace = reg.apply(pack, t.patcher, form, engine)
    sigmas = comfy.samplers.calculate_sigmas(t.patcher.get_model_object("model_sampling"), "normal", 4)[1:4]
    found, plain, full = [], [], []

    def look(results):
        def ask(guider, x, sigma, options):
            for level in sigmas:
                results.append(guider(x * level / sigma.max(), level.expand(len(x)), model_options=options, seed=0).clone())

        return ask

    for results, using, conds in ((found, model, prompts), (plain, t.patcher, prompts), (full, t.patcher, {})):
        reg.inside(t, look(results), using, steps=4, **conds)
    missing = [not torch.equal(p, f) for p, f in zip(plain, full, strict=True)]
    assert any(missing) and not all(missing)
    assert [torch.equal(f, p) for f, p in zip(found, plain, strict=True)] == missing, str(trace)
    rows = trace.last.rows
    assert [not r.active for r in rows] == missing, str(trace)
    assert all(r.note for r, gone in zip(rows, missing, strict=True) if gone), str(trace)
    if engine != "auto":
        assert {r.engine for r in rows if r.active} == {engine}, str(trace)
    assert not [n for n in trace.last.notes if "failed" in n], str(trace)


@pytest.mark.parametrize("which", ["positive", "negative"])
@pytest.mark.parametrize("where", RANGES)
def test_prompts_that_come_and_go_do_not_see_reg(host, pack, which, where):
    t, prompts, found = built(), absent(which, where, host), {}
    sampler = comfy.samplers.sampler_object("euler")
    plain = draw(t.patcher, sampler, **prompts)
    for form, engine, refresh in MIXED:
        model = reg.apply(pack, t.patcher, form, engine, refresh=refresh, strength=truth.INVISIBLE)[0]
        found[form, engine, refresh] = reg.relative(draw(model, sampler, **prompts), plain)
    assert all(e <= truth.TRANSPARENT and math.isfinite(e) for e in found.values()), found
