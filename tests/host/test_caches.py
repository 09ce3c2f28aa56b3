"""EasyCache and LazyCache while they really skip: their private state and their decisions must not know that REG is there.

Oracle: the same cache without REG. With a strength of nothing REG samples the same latents, so that the states can be compared.
"""

import comfy.patcher_extension
import pytest
import torch

from . import reg, tiny

STEPS = 8
CACHES = ["EasyCache", "LazyCache"]
ENGINES = [("row_sum", "finite_difference"), ("scalar", "finite_difference"), ("scalar", "reverse"), ("row_sum", "reverse")]
NOTHING = 1e-9  # strength: every pass of REG, none of its effect


@pytest.fixture(scope="module")
def flux():  # EasyCache lives in the network's own wrappers, which SD3's network does not have
    return tiny.build("flux")


def cached(all_nodes, name, model, threshold):
    return all_nodes[name].execute(model=model, reuse_threshold=threshold, start_percent=0.0, end_percent=1.0, verbose=False).result[0]


def watched(t, model):
    """(latent, the cache's state before each model call). The spy is outermost: it sees what the last step left."""
    states = []

    def spy(executor, x, timestep, model_options=None, seed=None):
        states.append(numbers(model_options["transformer_options"]["easycache"]))
        return executor(x, timestep, model_options, seed)

    model = model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "spy", spy)
    by_key = model.wrappers[comfy.patcher_extension.WrappersMP.PREDICT_NOISE]
    model.wrappers[comfy.patcher_extension.WrappersMP.PREDICT_NOISE] = {"spy": by_key.pop("spy"), **by_key}
    return tiny.sample(t, model, steps=STEPS), states


def numbers(holder):
    """All that the cache remembers, as name -> number."""
    found = {}
    for name, value in vars(holder).items():
        if isinstance(value, dict):  # by the id of a prompt, which is new in every run
            found |= {f"{name}/{i}": size for i, size in enumerate(sorted(float(v.norm()) for v in value.values()))}
        elif isinstance(value, torch.Tensor):
            found[name] = float(value.double().norm())
        elif isinstance(value, (bool, int, float)):
            found[name] = float(value)
    return found


def skips(states):
    """Which steps but the last the cache left out."""
    skipped = [s["total_steps_skipped"] for s in states]
    return [b > a for a, b in zip(skipped, skipped[1:], strict=False)]


@pytest.fixture(scope="module")
def thresholds(flux, all_nodes):
    """One that skips nearly always, and one between, from what the cache itself measured."""
    found = {}
    for name in CACHES:
        for threshold in (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 1e4, 1e9):
            pattern = skips(watched(flux, cached(all_nodes, name, flux.patcher, threshold))[1])
            if any(pattern) and "some" not in found.get(name, {}):
                found.setdefault(name, {})["some"] = threshold
        found[name]["most"] = 1e9
    return found


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("which", ["some", "most"])
@pytest.mark.parametrize(("form", "engine"), ENGINES)
def test_the_caches_state_and_decisions_do_not_know_of_reg(host, pack, all_nodes, flux, thresholds, name, which, form, engine):
    model = cached(all_nodes, name, flux.patcher, thresholds[name][which])
    plain, want = watched(flux, model)
    assert any(skips(want)), "the cache must skip"
    patched, trace = reg.apply(pack, model, form, engine, strength=NOTHING)
    out, states = watched(flux, patched)
    assert skips(states) == skips(want)
    for ours, theirs in zip(states, want, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert reg.relative(out, plain) < 1e-4
    assert {r.engine for r in trace.last.active} == {engine} and not trace.last.notes, trace


def guided_calls(t, model) -> int:
    """Calls in which ComfyUI's own pair differs. EasyCache of 0.3.64 answers both prompts alike: no guidance is left there."""
    sizes = []
    model = model.clone()
    model.set_model_sampler_cfg_function(lambda args: (sizes.append(float((args["cond"] - args["uncond"]).norm())), args["cond"])[1])
    watched(t, model)
    return sum(size > 0 for size in sizes)


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("first", ["cache", "reg"])
def test_reg_beside_a_skipping_cache_in_either_order(host, pack, all_nodes, flux, name, first):
    """What is skipped: with EasyCache passes within a step, whose guidance REG goes on rectifying; with LazyCache whole steps."""
    if first == "cache":
        model, trace = reg.apply(pack, cached(all_nodes, name, flux.patcher, 1e9))
    else:
        model, trace = reg.apply(pack, flux.patcher)
        model = cached(all_nodes, name, model, 1e9)
    with reg.counted(flux.patcher) as seen:
        out, states = watched(flux, model)
    skipped = sum(skips(states)) + skips(states)[-1]  # the last step goes as the one before
    assert torch.isfinite(out).all() and skipped >= STEPS - 3
    rows = trace.last.rows
    if name == "EasyCache":
        calls = guided_calls(flux, cached(all_nodes, name, flux.patcher, 1e9))
        assert len(trace.last.active) == calls >= 2
        if calls == STEPS:  # a cached pass too enters the network, whose wrapper answers: cond, uncond, two probes
            assert seen["rows"] == 4 * STEPS + 1  # and once the prompt alone, to compare
    else:
        assert len(trace.last.active) == STEPS - skipped
        assert len(rows) == STEPS - skipped
    assert all(-3 < r.correction_mean < 3 for r in trace.last.active), trace
    assert not torch.equal(out, tiny.sample(flux, cached(all_nodes, name, flux.patcher, 1e9), steps=STEPS))


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize(("form", "engine"), ENGINES[:3])
def test_a_threshold_never_reached_changes_nothing(host, pack, all_nodes, flux, name, form, engine):
    values = dict(steps=STEPS)
    never = tiny.sample(flux, reg.apply(pack, cached(all_nodes, name, flux.patcher, 0.0), form, engine)[0], **values)
    assert reg.relative(never, tiny.sample(flux, reg.apply(pack, flux.patcher, form, engine)[0], **values)) < 0.01
