"""REG beside guidance and model patches, ComfyUI's and stand-ins for those of other packs: transparency, and the pair as truth."""

import functools

import comfy.samplers
import pytest
import torch

from . import features, reg, standins, tiny, truth
from .feature_neighbours import AUDIO_VIDEO, CACHES, FRAMES

DIFFERENCES, REVERSE = features.ENGINES
RUNS = [(form, engine, refresh) for form in ("row_sum", "scalar") for engine in features.ENGINES for refresh in (1, 4)]
EACH_ONCE = [("row_sum", DIFFERENCES, 4), ("row_sum", REVERSE, 1), ("scalar", DIFFERENCES, 1), ("scalar", REVERSE, 4)]
NEIGHBOURS = [name for _, name in features.names("neighbour")]
# name: (architecture, patch, batch). At batch 1 a lone pass is odd; at batch 2 it is even, and still no pair.
STANDINS = {
    "one_row_of_each": ("sd3", standins.one_row_of_each, 1),
    "uncond_first": ("sd3", standins.uncond_first, 1),
    "reads_the_neighbour": ("sd15", standins.reads_the_neighbour, 1),
    "even_batch_only": ("sd3", standins.even_batch_only, 1),
    "mixes_the_halves": ("sd3", standins.mixes_the_halves, 1),
    "swaps_the_halves": ("sd3", standins.swaps_the_halves, 2),
    "never_reusing_cache": ("sd3", standins.never_reusing_cache, 1),
    "fixed_batch_engine": ("sd3", standins.fixed_batch_engine(2), 1),
}
ROWWISE = "even_batch_only", "swaps_the_halves", "never_reusing_cache", "fixed_batch_engine"  # they change nothing of the pair
# Post-cfg patches that ask the network again leave the pair alone; HyperTile and token merging draw, so no two calls are equal.
NO_PAIR = (*CACHES, *AUDIO_VIDEO, "HyperTile", "TomePatchModel")


@functools.cache
def built(arch):
    return tiny.build(arch)


@pytest.fixture(autouse=True)
def nothing_loaded(host):
    """ComfyUI goes through all loaded models before each run."""
    yield
    host.model_management.unload_all_models()


def neighbour(host, pack, all_nodes, name):
    try:
        return features.build("neighbour", name, features.world(host, pack, all_nodes))
    except features.Missing:
        pytest.skip(f"ComfyUI {host.version} has no {name}")


def seeded(sample):
    """Some patches draw."""

    def draw(model):
        torch.manual_seed(0)
        return sample(model)

    return draw


def visible(pack, sample, model, runs=RUNS, tolerance=truth.TRANSPARENT):
    """{run: how far REG at strength 1e-6 moved the latents, or what it died of}, of the runs in which it is not invisible."""
    plain, found = seeded(sample)(model), {}
    assert torch.isfinite(plain).all()
    for form, engine, refresh in runs:
        try:
            ours = reg.apply(pack, model, form, engine, refresh=refresh, strength=truth.INVISIBLE)[0]
            error = reg.relative(seeded(sample)(ours), plain)
        except Exception as died:  # reported with the other runs
            found[form, engine, refresh] = f"{type(died).__name__}: {died}"  # its frames would keep the models
            continue
        if not error <= tolerance:
            found[form, engine, refresh] = f"{error:.1e}"
    return found


def mistaken(pack, t, model, runs, tolerance, **where):
    """{run: errors of D_c and R v, or what it died of}, of the runs in which guidance is not that of the sampler's own pair."""
    found = {}
    for form, engine in runs:
        try:
            errors = truth.guided(pack, t, form, engine, model, calls=1 + (engine == DIFFERENCES), **where)
        except Exception as died:
            found[form, engine] = f"{type(died).__name__}: {died}"
            continue
        if not (errors.denoised <= truth.TRANSPARENT and errors.guidance <= tolerance):
            found[form, engine] = f"D_c {errors.denoised:.1e}, R v {errors.guidance:.1e}, {errors.trace.last.notes}"
    return found


PAIRS = [("row_sum", DIFFERENCES), ("scalar", DIFFERENCES), ("product", REVERSE)]
ALL_PAIRS = [*PAIRS, ("row_sum", REVERSE), ("scalar", REVERSE), ("product", DIFFERENCES)]
CLOSE = 0.05  # of R v, relative to v: forward differences of a network as curved as a random one


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_core_neighbours_do_not_see_reg(host, pack, all_nodes, name):
    setup = neighbour(host, pack, all_nodes, name)
    setup.values = setup.values | dict(steps=8 if name in CACHES else 2)
    assert not visible(pack, setup.sample, setup.model, EACH_ONCE)


@pytest.mark.parametrize("name", [n for n in NEIGHBOURS if n not in NO_PAIR])
def test_guidance_beside_core_neighbours(host, pack, all_nodes, name):
    setup = neighbour(host, pack, all_nodes, name)
    assert not mistaken(pack, setup.t, setup.model, PAIRS, CLOSE, batch=FRAMES.get(name, 1))


@pytest.mark.parametrize("name", STANDINS)
def test_standins_do_not_see_reg(host, pack, name):
    arch, patch, batch = STANDINS[name]
    t = built(arch)
    model, sample = patch(t.patcher), functools.partial(tiny.sample, t, steps=3, batch=batch)
    assert torch.allclose(sample(model), sample(), atol=1e-4) == (name in ROWWISE), "what the stand-in does without REG"
    assert not visible(pack, sample, model)


@pytest.mark.parametrize("name", STANDINS)
def test_guidance_beside_standins(host, pack, name):
    arch, patch, batch = STANDINS[name]
    assert not mistaken(pack, built(arch), patch(built(arch).patcher), ALL_PAIRS, CLOSE, batch=batch)


@pytest.mark.parametrize("engine", features.ENGINES)
def test_the_pair_is_rectified_where_a_lone_pass_is_another_network(host, pack, engine):
    """REG does not stand aside: where only pairs are possible it takes the derivative of the pair."""
    model, trace = reg.apply(pack, standins.uncond_first(built("sd3").patcher), "scalar", engine)
    tiny.sample(built("sd3"), model)
    assert len(trace.last.active) == 3 and len(trace.last.rows) == 3


# Caches that keep the last answer of each row


@pytest.mark.parametrize("form,engine", [(form, engine) for form in ("row_sum", "scalar") for engine in features.ENGINES])
def test_a_cache_of_rows(host, pack, form, engine):
    """No pass of ours can be hidden from a cache that we do not know: it keeps the last one that it saw. What can be demanded:

    - Nothing dies, and latents are finite, at full strength too.
    - One call is one pair at x first: the first call's result is the same without REG.
    - At strength 1e-6 REG moves the latents by no more than the cache itself does. A pair of ours at x + h makes it answer from
      there, or forget: tried by hand, with h of 0 to 0.4 of the noise, that moved them by 0 to 1.0 of it.
    """
    t = built("sd3")

    def sample(steps, strength=None, cached=True):
        cache = standins.RowCache(0.25)
        model = cache(t.patcher) if cached else t.patcher
        if strength is not None:
            model = reg.apply(pack, model, form, engine, strength=strength)[0]
        return tiny.sample(t, model, steps=steps, scheduler="simple"), cache.reused

    plain, reused = sample(12)
    assert 2 <= reused <= 9, "the cache acts"
    assert torch.isfinite(sample(12, 1.0)[0]).all()
    assert reg.relative(sample(1, truth.INVISIBLE)[0], sample(1)[0]) <= truth.TRANSPARENT
    cost = reg.relative(plain, sample(12, cached=False)[0])
    assert reg.relative(sample(12, truth.INVISIBLE)[0], plain) <= 1.02 * cost


# What can only be asked once, and what REG's other nodes do there


@pytest.mark.parametrize("engine", features.ENGINES)
@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
@pytest.mark.parametrize("error", [RuntimeError, KeyError, AssertionError, torch.cuda.OutOfMemoryError])
def test_one_call_a_level_is_enough_to_go_on(host, pack, form, engine, error):
    """Where no further pass is possible REG steps aside with the pair that it has, and says why."""
    t, patch = built("sd3"), standins.once_a_level(error)
    model, trace = reg.apply(pack, patch(t.patcher), form, engine)
    found, plain = tiny.sample(t, model, steps=4), tiny.sample(t, steps=4)
    assert torch.isfinite(found).all()
    if not trace.last.active:  # a backward pass of the one call is possible
        assert reg.relative(found, plain) <= truth.TRANSPARENT, str(trace)
        assert "called twice" in str(trace) and len(trace.last.rows) == 4, str(trace)


ONE_PAIR_ONLY = ["one_row_of_each", "uncond_first", "even_batch_only", "fixed_batch_engine"]


@pytest.mark.parametrize("name", ONE_PAIR_ONLY)
@pytest.mark.parametrize("rectified", [False, True], ids=["plain", "schedule"])
def test_a_reference_model_beside_them(host, pack, name, rectified):
    """Only a pair goes through them: D_c is that of the model's own pair. The reference is a model without the patch."""
    t, second = built("sd3"), tiny.build("sd3", seed=1)
    patched = STANDINS[name][1](t.patcher)

    def look(guider, x, sigma, options):
        conds = [guider.conds["positive"], guider.conds["negative"]]
        return [p.clone() for p in comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, sigma, options)]

    cond, reference = reg.inside(t, look, patched)[0], reg.inside(t, look, second.patcher)[1]
    model = reg.apply(pack, patched, "schedule")[0] if rectified else patched
    model = pack.nodes["REGReferenceModel"].execute(model, second.patcher).result[0]
    found, sigma = reg.inside(t, lambda g, x, s, o: (g(x, s, model_options=o, seed=0).clone(), float(s.max())), model)
    factor = 1 / (1 + (sigma / (1 - sigma)) ** 2) if rectified else 1.0
    guidance = 3 * (cond - reference)
    assert float((found - cond - factor * guidance).norm() / guidance.norm()) < 1e-4


@pytest.mark.parametrize("name", ONE_PAIR_ONLY)
def test_rewards_and_calibration_beside_them(host, pack, name):
    """Both are made of products with J: they take those of the pair, or say that there are none. Sampling does not die."""
    t, patch = built("sd3"), STANDINS[name][1]
    reward = pack.nodes["REGRewardLatent"].execute({"samples": torch.full((1, *t.latent_shape), 0.7)}, "mean", 0.2).result[0]
    model = pack.nodes["REGRewardGuidance"].execute(patch(t.patcher), reward, 1.0, True, 0.5, 1.0).result[0]
    found = tiny.sample(t, model, steps=4)
    assert torch.isfinite(found).all() and not torch.equal(found, tiny.sample(t, patch(t.patcher), steps=4))
    table, text, _ = pack.nodes["REGCalibrate"].execute(
        model=patch(t.patcher), positive=t.positive, negative=t.negative, latent_image=t.empty_latent(1), form="scalar", cfg=4.0, steps=4,
        runs=1, seed=0, filename_prefix="", sampler_name="euler", scheduler="simple",
    ).result  # fmt: skip
    assert torch.isfinite(table.factor).all(), text
