"""Reverse mode within bounds: recomputed blocks, chunks of the batch, running out of memory. Oracle: the pass that keeps everything."""

import pytest
import torch

from . import reg, tiny
from .test_engines import fixture as engine_fixture

CASES = [*tiny.FAMILIES, "controlnet"]
ADD_IN_PLACE = ("flux", "chroma", "hunyuan_video", "controlnet", "ltxv")  # LTXV only to the arguments of its blocks
_built = {}


def fixture(case):
    if case in ("controlnet", *tiny.ARCHITECTURES):
        return engine_fixture(case)
    if case not in _built:
        t = tiny.build(case)
        _built[case] = t, t.positive, t.negative
    return _built[case]


def reverse(pack, t, positive, negative, bounds, batch=2, model=None, watch=None, at=1, **values):
    """(D, J^T u) inside a real sampling run by ModelBranches.reverse, and the passes it took."""
    host, checkpoint = pack.import_("nodes.host"), pack.import_("nodes.checkpoint")
    passes = []

    class Seen(checkpoint.Recompute):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            passes.append(self)

    def look(guider, x, sigma, options):
        branches = host.ModelBranches(guider.inner_model, [guider.conds["positive"], guider.conds["negative"]], options, bounds)
        alpha, _ = host.alpha_and_s(guider.inner_model.model_sampling, sigma, x)
        u = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        if watch is not None:
            watch(branches)
        return branches.reverse(x, sigma, alpha, u)

    host.Recompute, kept = Seen, host.Recompute
    try:
        result = reg.inside(t, look, model=model, batch=batch, positive=positive, negative=negative, at=at, **values)
    finally:
        host.Recompute = kept
    return *result, passes


def bounds(pack, kind):
    """Everything kept, nothing kept, attention kept, or half the blocks."""
    memory = pack.import_("nodes.memory")

    class Fixed(memory.ReverseMemory):
        def _plan(self, free, required, weights, cast, rows):
            return {"resident": memory.Plan(False), "nothing": memory.Plan(True), "attention": memory.Plan(True, 0, 1e9),
                    "some": memory.Plan(True, 2e5, 4e5)}[kind]  # fmt: skip

    return Fixed()


@pytest.mark.parametrize("case", CASES)
def test_recomputed_blocks_give_the_resident_product(host, pack, case):
    t, positive, negative = fixture(case)
    before = reg.fingerprint(t.patcher)
    d, want, passes = reverse(pack, t, positive, negative, bounds(pack, "resident"))
    assert not passes
    for kind in ("nothing", "attention", "some"):
        state = bounds(pack, kind)
        d_again, got, passes = reverse(pack, t, positive, negative, state)
        assert reg.relative(d_again, d) < 1e-6 and reg.relative(got, want) < 1e-5, kind
        assert passes[-1].recomputed > 0 and not state.notes, (kind, state.notes)
        assert state.copies == (case in ADD_IN_PLACE), case
    assert reg.fingerprint(t.patcher) == before
    assert not any("forward" in vars(m) for m in t.patcher.model.modules())
