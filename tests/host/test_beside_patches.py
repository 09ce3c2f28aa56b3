"""REG beside guidance and model patches, ComfyUI's and stand-ins for those of other packs: transparency, and the pair as truth."""

import functools

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
            error = died
        if not (isinstance(error, float) and error <= tolerance):
            found[form, engine, refresh] = error if isinstance(error, Exception) else f"{error:.1e}"
    return found


def mistaken(pack, t, model, runs, tolerance, **where):
    """{run: errors of D_c and R v, or what it died of}, of the runs in which guidance is not that of the sampler's own pair."""
    found = {}
    for form, engine in runs:
        try:
            errors = truth.guided(pack, t, form, engine, model, **where)
        except Exception as died:
            found[form, engine] = died
            continue
        if not (errors.denoised <= truth.TRANSPARENT and errors.guidance <= tolerance):
            found[form, engine] = f"D_c {errors.denoised:.1e}, R v {errors.guidance:.1e}, {errors.trace.last.notes}"
    return found


PAIRS = [("row_sum", DIFFERENCES), ("row_sum", REVERSE), ("scalar", DIFFERENCES), ("product", REVERSE)]
ALL_PAIRS = [*PAIRS, ("scalar", REVERSE), ("product", DIFFERENCES)]
CLOSE = 0.03  # of R v, relative to v


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
