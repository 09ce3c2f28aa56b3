"""REG with guiders and sampling functions of all kinds: each is rectified by D_c + R (D - D_c), the formula in formula.py."""

import functools
import logging
from contextlib import nullcontext

import comfy.samplers
import pytest
import torch

from . import feature_guiders, features, formula, reg, standins, tiny, tiny_av, truth

DIFFERENCES, REVERSE = features.ENGINES
CLOSE = 0.03  # of the guidance, relative to D - D_c
STD = 0.8  # data_std of `schedule`
FORMS = [("row_sum", DIFFERENCES), ("scalar", DIFFERENCES), ("scalar", REVERSE), ("product", DIFFERENCES), ("schedule", "auto")]
IDS = [f"{form}-{engine}" for form, engine in FORMS]
MIXED = [("row_sum", DIFFERENCES, 4), ("row_sum", REVERSE, 1), ("scalar", DIFFERENCES, 1), ("scalar", REVERSE, 4)]
RIVAL = "rival_pack.sampling"


@functools.cache
def built(seed=0):
    return tiny.build("sd3", seed=seed)


@pytest.fixture(autouse=True)
def nothing_loaded(host):
    yield
    host.model_management.unload_all_models()


def of(kind, t=None, cfg=4.0, **prompts):
    """make(model): a guider of this class."""
    t = built() if t is None else t

    def make(model, kind=kind):
        guider = kind(model)
        guider.set_conds(t.positive, t.negative, **prompts)
        guider.set_cfg(cfg)
        return guider

    return make


def by_node(w, name):
    """make(model): ComfyUI's guider of this name, on sd3."""
    t = built()
    made = {
        "DualCFGGuider": functools.partial(feature_guiders._dual_cfg, "regular"),
        "DualCFGGuider nested": functools.partial(feature_guiders._dual_cfg, "nested"),
        "PerpNegGuider": feature_guiders.perp_neg_guider,
    }
    if name == "DualModelGuider":
        other = built(1).patcher
        return lambda model: feature_guiders._node(
            w, name, model=model, model_negative=other, positive=t.positive, negative=t.negative, cfg=4.0
        )  # fmt: skip
    return functools.partial(made[name], w, t)


CORE = ["DualCFGGuider", "DualCFGGuider nested", "PerpNegGuider", "DualModelGuider"]
# name: (class, context around every run)
OTHERS = {
    "CFGGuider": (comfy.samplers.CFGGuider, nullcontext),
    "a global sampling_function": (comfy.samplers.CFGGuider, functools.partial(standins.global_sampling_function, RIVAL)),
    "a list for cfg": (standins.ListGuider, nullcontext),
    "cfg is not the scale": (standins.OtherScaleGuider, nullcontext),
    "its own __call__": (standins.CallGuider, nullcontext),
    "three prompts": (standins.ThirdCondGuider, nullcontext),
}


@pytest.fixture
def party(host, pack, all_nodes, request):
    """(make, context) of a guider by name."""
    if request.param in OTHERS:
        kind, context = OTHERS[request.param]
        more = {"third": built().conditioning("third")} if kind is standins.ThirdCondGuider else {}
        return of(kind, **more), context
    try:
        make = by_node(features.world(host, pack, all_nodes), request.param)
        make(built().patcher)
    except features.Missing:
        pytest.skip(f"ComfyUI {host.version} has no {request.param}")
    return make, nullcontext


everyone = pytest.mark.parametrize("party", [*OTHERS, *CORE], indirect=True)


def draw(make, model, t=None, steps=3, sampler=None, context=nullcontext):
    t = built() if t is None else t
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    sampler = comfy.samplers.sampler_object("euler") if sampler is None else sampler
    with context():
        return make(model).sample(t.noise(), t.empty_latent()["samples"], sampler, sigmas, disable_pbar=True, seed=0)


# What it computes


@everyone
@pytest.mark.parametrize("form,engine", FORMS, ids=IDS)
def test_rectified_by_the_formula(host, pack, party, form, engine):
    make, context = party
    model, trace = reg.apply(pack, built().patcher, form, engine, data_std=STD)

    def ask(guider, x, sigma, options):
        return guider(x, sigma, model_options=options, seed=0).clone()

    def expected(guider, x, sigma, options):
        return formula.rectified(guider, lambda x: ask(guider, x, sigma, options), form, x, sigma, STD)

    with context():
        want, plain, positive = reg.inside(built(), expected, make=make, batch=2)
        found = reg.inside(built(), lambda *call: [ask(*call) for _ in range(2)], model, make=make, batch=2)
    size = (plain - positive).norm()
    assert (want - plain).norm() > 0.1 * size, "the formula acts"
    errors = [float((result - want).norm() / size) for result in found]
    assert max(errors) < CLOSE, f"{errors} of |D - D_c|; untouched it is {float((plain - want).norm() / size):.2f}; {trace}"
    assert len(trace.last.active) == 2, str(trace)


@everyone
def test_nobody_sees_reg_at_strength_1e_6(host, pack, party):
    make, context = party
    plain, found = draw(make, built().patcher, context=context), {}
    for form, engine, refresh in MIXED:
        model, trace = reg.apply(pack, built().patcher, form, engine, refresh=refresh, strength=truth.INVISIBLE)
        found[form, engine, refresh] = reg.relative(draw(make, model, context=context), plain)
        assert len(trace.last.active) == 3, str(trace)  # else it is invisible because it does nothing
    assert max(found.values()) <= truth.TRANSPARENT, found


@pytest.mark.parametrize("form,engine", FORMS, ids=IDS)
def test_audio_and_video_with_scales_of_their_own(host, pack, all_nodes, form, engine):
    """LTX-AV's guider: g is not a multiple of D_c - D_u, and J mixes both parts."""
    if not tiny_av.known():
        pytest.skip(f"ComfyUI {host.version} has no LTXAV")
    t = tiny_av.build()
    node_class = comfy_guider("comfy_extras.nodes_lt", "Guider_LTXAVDualCFG")

    def make(model, kind=node_class):
        guider = kind(model)
        guider.set_conds(t.positive, t.negative)
        guider.set_cfg(3.0, 7.0)
        return guider

    levels = (0.8, 0.4, 0.0)
    model, trace = reg.apply(pack, t.patcher, form, engine, data_std=STD)
    plain = tiny_av.draw(make, t.patcher, levels)
    want = tiny_av.draw(functools.partial(make, kind=formula.guider_class(node_class, form, STD)), t.patcher, levels)
    found = tiny_av.draw(make, model, levels)
    assert (found - want).norm() < CLOSE * (plain - want).norm(), (float((found - want).norm() / (plain - want).norm()), str(trace))


def comfy_guider(module, name):
    import importlib

    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("order", ["first", "second", "none"])
def test_nothing_of_a_pack_that_came_and_went_survives(host, pack, order):
    """One MODEL with REG, sampled under one pack's sampling function, then another's, then none: each run as if it were the first."""
    contexts = {
        "first": functools.partial(standins.global_sampling_function, RIVAL),
        "second": functools.partial(standins.global_sampling_function, "other_pack.sampling", scale=0.6),
        "none": nullcontext,
    }
    make, own = of(comfy.samplers.CFGGuider), comfy.samplers.sampling_function
    oracle = functools.partial(make, kind=formula.guider_class(comfy.samplers.CFGGuider, "scalar"))
    model, trace = reg.apply(pack, built().patcher, "scalar")
    for name, context in contexts.items():
        found = draw(make, model, context=context)
        assert comfy.samplers.sampling_function is own
        if name == order:
            want, plain = draw(oracle, built().patcher, context=context), draw(make, built().patcher, context=context)
            assert (found - want).norm() < CLOSE * (plain - want).norm(), str(trace)
            return


def test_two_packs_in_one_another(host, pack):
    """A pack that replaces the sampling function in the middle of a run, and keeps it: ComfyUI asks the newest one."""
    make, calls = of(comfy.samplers.CFGGuider), []

    def late(model, x, sigma, extra):
        calls.append(1)
        if len(calls) == 2:
            comfy.samplers.sampling_function = standins.sampling_function_of("other_pack.sampling", scale=0.6)
        return model(x, sigma, **extra)

    def run(make, model):
        calls.clear()
        before = comfy.samplers.sampling_function
        try:
            out = draw(make, model, sampler=standins.euler(call=late))
            assert comfy.samplers.sampling_function.__module__ == "other_pack.sampling", "REG put another one back"
            return out
        finally:
            comfy.samplers.sampling_function = before

    oracle = functools.partial(make, kind=formula.guider_class(comfy.samplers.CFGGuider, "scalar"))
    want, plain = run(oracle, built().patcher), run(make, built().patcher)
    found = run(make, reg.apply(pack, built().patcher, "scalar")[0])
    assert (found - want).norm() < CLOSE * (plain - want).norm()


@pytest.mark.parametrize("patch", [standins.one_row_of_each, standins.uncond_first, standins.mixes_the_halves, standins.fixed_batch_engine(2)])
@pytest.mark.parametrize("form,engine", [("row_sum", DIFFERENCES), ("scalar", REVERSE), ("product", DIFFERENCES)])
def test_a_global_sampling_function_beside_patches_that_need_the_pair(host, pack, patch, form, engine):
    """Both at once: probes are pairs, as that pack asks for them."""
    make, context = of(comfy.samplers.CFGGuider), functools.partial(standins.global_sampling_function, RIVAL)
    patched = patch(built().patcher)
    want = draw(functools.partial(make, kind=formula.guider_class(comfy.samplers.CFGGuider, form)), patched, context=context)
    plain, (model, trace) = draw(make, patched, context=context), reg.apply(pack, patched, form, engine)
    found = draw(make, model, context=context)
    assert (found - want).norm() < CLOSE * (plain - want).norm(), str(trace)


@pytest.mark.parametrize("name", ["CFGGuider", "DualCFGGuider", "DualModelGuider"])
def test_no_guidance_costs_nothing(host, pack, all_nodes, name):
    """At scale 1 D is D_c to the last bit: nothing to rectify, no further pass, and no number that is none."""
    t, w = built(), features.world(host, pack, all_nodes)
    if name not in all_nodes:
        pytest.skip(f"ComfyUI {host.version} has no {name}")
    prompts = dict(positive=t.positive, cond1=t.positive, cond2=t.conditioning("middle"), negative=t.negative, style="regular")

    def make(model):
        return feature_guiders._node(w, name, model=model, model_negative=built(1).patcher, cfg=1.0, cfg_conds=1.0, cfg_cond2_negative=1.0, **prompts)

    with reg.counted(t.patcher) as rows:
        plain = draw(make, t.patcher)
    model, trace = reg.apply(pack, t.patcher, "scalar")
    with reg.counted(t.patcher) as ours:
        found = draw(make, model)
    assert torch.equal(found, plain) and ours == rows and not trace.last.active, str(trace)


@pytest.mark.parametrize("party", ["CFGGuider", "a global sampling_function", "PerpNegGuider"], indirect=True)
def test_start_and_end_hold_for_every_door(host, pack, party):
    """Outside of them a call is plain: the last of three steps is, the second is not."""
    make, context = party
    model, trace = reg.apply(pack, built().patcher, "schedule", end=0.8)
    draw(make, model, context=context)
    assert [r.active for r in trace.last.rows] == [True, True, False], str(trace)


# The reference model


def reference_oracle(weights):
    """The pair's own formula from two plain runs of two models, at noise level 1: (D_c, D_reference, x)."""

    def look(guider, x, sigma, options):
        conds = [guider.conds["positive"], guider.conds["negative"]]
        return [p.clone() for p in comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, sigma, options)]

    cond, uncond = reg.inside(built(), look)
    weak_cond, weak_uncond = reg.inside(built(), look, built(1).patcher)
    if weights is None:
        return cond, weak_uncond
    w_weak, w_own = weights
    return cond, (w_weak * weak_cond + w_own * uncond) / (w_weak + w_own)


@pytest.mark.parametrize("replaced", [False, True], ids=["", "global sampling_function"])
@pytest.mark.parametrize("rectified", [False, True], ids=["plain", "schedule"])
@pytest.mark.parametrize("kind", ["reference", "autoguidance", "autoguidance with cfg"])
def test_a_reference_model(host, pack, kind, rectified, replaced):
    t, weak = built(), built(1).patcher
    weights = {"reference": None, "autoguidance": (2.0, 0.0), "autoguidance with cfg": (2.0, 1.0)}[kind]
    model = reg.apply(pack, t.patcher, "schedule", data_std=STD)[0] if rectified else t.patcher
    if kind == "reference":
        make, scale = of(comfy.samplers.CFGGuider), 4.0
        model = pack.nodes["REGReferenceModel"].execute(model, weak).result[0]
    else:
        scale, more = 1 + sum(weights), {} if weights[1] == 0 else dict(negative=t.negative, cfg=1 + weights[1])

        def make(model):
            return pack.nodes["REGAutoguidance"].execute(model, weak, t.positive, 1 + weights[0], **more).result[0]

    def look(guider, x, sigma, options):
        alpha, s = (guider.inner_model.model_sampling.noise_scaling(sigma.max(), torch.tensor(1.0 - a), torch.tensor(a)) for a in (1.0, 0.0))
        return guider(x, sigma, model_options=options, seed=0).clone(), STD**2 / (STD**2 + (s / alpha) ** 2)

    cond, reference = reference_oracle(weights)
    with standins.global_sampling_function(RIVAL) if replaced else nullcontext():
        found, factor = reg.inside(t, look, model, make=make)
    guidance = (scale - 1) * (cond - reference)
    want = cond + (factor if rectified else 1) * guidance
    assert (found - want).norm() < 1e-4 * guidance.norm(), float((found - want).norm() / guidance.norm())


# cfg


def handed(model):
    """A clone of `model`, and the list of (sigma, cond_scale) that its pre-cfg functions are handed."""
    model, seen = model.clone(), []
    model.set_model_sampler_pre_cfg_function(lambda args: (seen.append((float(args["sigma"].max()), args["cond_scale"])), args["conds_out"])[1])
    return model, seen


@pytest.mark.parametrize("patched", ["", "CFGOverride", "REGScheduleLinear"])
@pytest.mark.parametrize("kind", [comfy.samplers.CFGGuider, standins.ListGuider, standins.OtherScaleGuider, standins.CallGuider], ids=lambda k: k.__name__)
def test_the_trace_has_the_scale_that_pre_cfg_functions_are_handed(host, pack, all_nodes, kind, patched):
    model = built().patcher
    if patched == "CFGOverride":
        if patched not in all_nodes:
            pytest.skip(f"ComfyUI {host.version} has no {patched}")
        if kind is standins.ListGuider:
            pytest.skip("CFGOverride puts a number where this guider reads a list: the run dies without REG too")
        model = all_nodes[patched].execute(model, 2.5, 0.0, 0.6).result[0]
    elif patched:
        model = pack.nodes[patched].execute(model, 0.5, 2.0, "step").result[0]
    model, seen = handed(model)
    rectified, trace = reg.apply(pack, model)
    draw(of(kind), rectified)
    assert [(round(r.sigma, 4), round(r.cfg, 4)) for r in trace.last.rows] == [(round(s, 4), round(c, 4)) for s, c in seen], str(trace)
    assert len(seen) == 3


SCHEDULES = {
    "REGScheduleLinear": (0.0, 2.0, "step"), "REGScheduleCosine": (1.0, "step"), "REGScheduleInterval": (0.2, 0.8, "step"),
}  # fmt: skip


@pytest.mark.parametrize("node", SCHEDULES)
@everyone
def test_a_schedule_acts_or_says_that_it_cannot(host, pack, party, node, caplog):
    """A guider whose scale is elsewhere is not to be scheduled in silence: latents change, or one warning names the guider."""
    make, context = party
    model = pack.nodes[node].execute(built().patcher, *SCHEDULES[node]).result[0]
    plain, name = draw(make, built().patcher, context=context), type(make(built().patcher)).__name__
    with caplog.at_level(logging.WARNING):
        found = draw(make, model, context=context)
    assert torch.isfinite(found).all()
    warned = [m for m in caplog.messages if "REG" in m and name in m]
    assert bool(warned) == torch.equal(found, plain) and len(warned) < 2, caplog.messages


def test_a_schedule_on_scales_of_audio_and_video(host, pack, all_nodes, caplog):
    """LTX-AV's guider has two scales, and `cfg` is neither of them."""
    if not tiny_av.known():
        pytest.skip(f"ComfyUI {host.version} has no LTXAV")
    t = tiny_av.build()
    make = functools.partial(feature_guiders.ltxv_dual_cfg_guider, features.world(host, pack, all_nodes), t)
    plain = tiny_av.draw(make, t.patcher)
    with caplog.at_level(logging.WARNING):
        found = tiny_av.draw(make, pack.nodes["REGScheduleLinear"].execute(t.patcher, 0.0, 2.0, "step").result[0])
    warned = [m for m in caplog.messages if "REG" in m and "Guider_LTXAVDualCFG" in m]
    assert bool(warned) == torch.equal(found, plain), caplog.messages


# What it says


OUT_OF_REACH = {
    "sampling_function": ("rival_pack", lambda: standins.global_sampling_function(RIVAL, reachable=False)),
    "predict_noise": ("rival_pack", lambda: standins.in_place_of(comfy.samplers.CFGGuider, "predict_noise", out_of_reach_method())),
}


def out_of_reach_method():
    """A pack's own CFGGuider.predict_noise."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        return standins.OutOfReachGuider.predict_noise(self, x, timestep, model_options, seed)

    predict_noise.__module__ = RIVAL
    return predict_noise


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_who_is_in_the_way_is_named(host, pack, name, caplog):
    """Plain latents, one warning, in the log and in the trace, that names the pack and not ComfyUI's guider."""
    party, context = OUT_OF_REACH[name]
    make = of(comfy.samplers.CFGGuider)
    plain = draw(make, built().patcher, context=context)
    model, trace = reg.apply(pack, built().patcher)
    with caplog.at_level(logging.WARNING):
        found = draw(make, model, context=context)
    assert torch.equal(found, plain)
    warned = [m for m in caplog.messages if "did nothing" in m]
    assert len(warned) == 1 and party in warned[0] and name in warned[0], caplog.messages
    assert party in str(trace) and len(trace.last.rows) == 3, str(trace)
    assert "CFGGuider does not ask" not in warned[0] and "never called" not in warned[0]


def test_a_guider_that_asks_the_network_itself_is_named(host, pack, caplog):
    make = of(standins.OutOfReachGuider)
    model, trace = reg.apply(pack, built().patcher)
    with caplog.at_level(logging.WARNING):
        found = draw(make, model)
    assert torch.equal(found, draw(make, built().patcher))
    warned = [m for m in caplog.messages if "did nothing" in m]
    assert len(warned) == 1 and "OutOfReachGuider" in warned[0] and "OutOfReachGuider" in str(trace), caplog.messages


def test_a_guider_with_its_own_call_under_a_global_sampling_function(host, pack, caplog):
    """Neither the slot nor a wrapper is asked. It is rectified by the formula, or left as it is with a warning that names the pack or the guider."""
    make, context = of(standins.CallGuider), functools.partial(standins.global_sampling_function, RIVAL)
    model, trace = reg.apply(pack, built().patcher, "scalar")
    plain = draw(make, built().patcher, context=context)
    want = draw(functools.partial(make, kind=formula.guider_class(standins.CallGuider, "scalar")), built().patcher, context=context)
    with caplog.at_level(logging.WARNING):
        found = draw(make, model, context=context)
    assert len(trace.last.rows) == 3, str(trace)
    if torch.equal(found, plain):
        warned = [m for m in caplog.messages if "did nothing" in m]
        assert len(warned) == 1 and ("rival_pack" in warned[0] or "CallGuider" in warned[0]) and "never called" not in warned[0], caplog.messages
    else:
        assert (found - want).norm() < CLOSE * (plain - want).norm(), str(trace)


@pytest.mark.parametrize("kind", ["reference", "autoguidance"])
def test_a_reference_model_that_cannot_act_says_so(host, pack, kind, caplog):
    """Not in silence: the latents are plain guidance's, or cond's, and the warning names the pack."""
    t, weak = built(), built(1).patcher
    if kind == "reference":
        model, make = pack.nodes["REGReferenceModel"].execute(t.patcher, weak).result[0], of(comfy.samplers.CFGGuider)
    else:
        model = t.patcher

        def make(model):
            return pack.nodes["REGAutoguidance"].execute(model, weak, t.positive, 3.0).result[0]

    with caplog.at_level(logging.WARNING):
        found = draw(make, model, context=functools.partial(standins.global_sampling_function, RIVAL, reachable=False))
    assert torch.isfinite(found).all()
    assert [m for m in caplog.messages if "REG" in m and "rival_pack" in m], caplog.messages


# Cancel


class Cancel:
    """Presses cancel at the `at`-th use of a layer in the middle of the network, in whichever pass that is."""

    def __init__(self, host, model, at):
        self.error, self.at, self.uses = host.model_management.InterruptProcessingException, at, 0
        layers = list(model.model.diffusion_model.children())
        self.layer = next(m for m in model.model.diffusion_model.joint_blocks) if hasattr(model.model.diffusion_model, "joint_blocks") else layers[0]

    def __enter__(self):
        self.handle = self.layer.register_forward_pre_hook(self.use, with_kwargs=True)
        return self

    def __exit__(self, *args):
        self.handle.remove()

    def use(self, *args):
        self.uses += 1
        if self.uses == self.at:
            raise self.error()


@pytest.mark.parametrize("party", ["CFGGuider", "a global sampling_function", "its own __call__", "PerpNegGuider", "DualCFGGuider"], indirect=True)
@pytest.mark.parametrize("form,engine", [("row_sum", DIFFERENCES), ("scalar", DIFFERENCES), ("row_sum", REVERSE), ("scalar", REVERSE)])
def test_cancel_goes_through_from_every_pass(host, pack, party, form, engine):
    """Nothing is computed any more after it, whichever pass it comes in."""
    make, context = party
    model = reg.apply(pack, built().patcher, form, engine)[0]
    with Cancel(host, model, at=-1) as whole:
        draw(make, model, steps=2, context=context)
    for at in range(1, whole.uses + 1):
        with Cancel(host, model, at) as cancel, pytest.raises(cancel.error):
            draw(make, model, steps=2, context=context)
        assert cancel.uses == at, "it went on"
    assert torch.isfinite(draw(make, model, steps=2, context=context)).all()


BESIDE = {
    "a patch that needs the pair": lambda pack: reg.apply(pack, standins.uncond_first(built().patcher), "scalar", REVERSE)[0],
    "a reference model": lambda pack: reg.apply(pack, pack.nodes["REGReferenceModel"].execute(built().patcher, built(1).patcher).result[0], "scalar")[0],
    "a reward": lambda pack: pack.nodes["REGRewardGuidance"].execute(built().patcher, reward(pack), 1.0, True, 0.0, 1.0).result[0],
}


def reward(pack):
    return pack.nodes["REGRewardLatent"].execute({"samples": torch.full((1, *built().latent_shape), 0.7)}, "mean", 0.2).result[0]


@pytest.mark.parametrize("name", BESIDE)
def test_cancel_goes_through_beside(host, pack, name):
    """As above, where passes of ours may fail and are tried in another way: a cancel is no failure."""
    make, model = of(comfy.samplers.CFGGuider), BESIDE[name](pack)
    with Cancel(host, model, at=-1) as whole:
        draw(make, model, steps=2)
    for at in range(1, whole.uses + 1):
        with Cancel(host, model, at) as cancel, pytest.raises(cancel.error):
            draw(make, model, steps=2)
        assert cancel.uses == at, "it went on"
