"""REG beside the other guidance and model patches of ComfyUI's core: once a step, in any order. Oracle: the other order."""

import pytest
import torch

from . import features, reg, tiny
from .feature_neighbours import DIT, UNET, patch

NO_EFFECT = ("TomePatchModel",)  # on latents as small as these
PAIRS = [("sd15", n) for n in UNET] + [("sd3", n) for n in [*DIT, "APG", "CFGNorm", "FreSca"]]
_tiny = {}


def built(arch):
    return _tiny.setdefault(arch, tiny.build(arch))


@pytest.mark.parametrize("arch,name", PAIRS)
@pytest.mark.parametrize("form", ["row_sum", "scalar"])
def test_once_a_step_in_any_order(host, pack, all_nodes, arch, name, form):
    if name not in all_nodes:
        pytest.skip(f"this ComfyUI has no {name}")
    t = built(arch)

    def sample(model):
        torch.manual_seed(0)  # HyperTile and token merging draw
        return tiny.sample(t, model, steps=4)

    before, trace = reg.apply(pack, patch(all_nodes, name, t.patcher), form)
    out = sample(before)
    after, other_trace = reg.apply(pack, t.patcher, form)
    assert torch.allclose(out, sample(patch(all_nodes, name, after)), rtol=1e-4, atol=1e-4)
    for run in (trace.last, other_trace.last):
        assert len(run.rows) == 4
        assert len(run.active) == (4 if name != "CFGOverride" else len([r for r in run.rows if r.cfg > 1])), run.table()
    assert torch.isfinite(out).all()
    if name not in NO_EFFECT:
        assert not torch.equal(out, sample(reg.apply(pack, t.patcher, form)[0])), "the other patch must act"
    assert not torch.equal(out, sample(patch(all_nodes, name, t.patcher))), "REG must act"


def test_cfg_override_is_what_the_trace_reports(host, pack, all_nodes):
    if "CFGOverride" not in all_nodes:
        pytest.skip("this ComfyUI has no CFGOverride")
    t = built("sd15")
    model, trace = reg.apply(pack, patch(all_nodes, "CFGOverride", t.patcher))
    tiny.sample(t, model, steps=6, cfg=4.0)
    assert {round(r.cfg, 3) for r in trace.last.rows} == {2.5, 4.0}


# Networks that draw


class Chance:
    """An attention patch that scales by what it draws: anew at every use, or (`kept`) once for each noise level and layer."""

    def __init__(self, kept):
        self.kept = {} if kept else None
        self.level = self.layer = 0

    def model(self, patcher):
        model = patcher.clone()
        model.set_model_attn1_output_patch(lambda out, extra: out * self.draw())
        model.set_model_unet_function_wrapper(self.enter)
        return model

    def enter(self, apply_model, args):
        self.level, self.layer = float(args["timestep"][0]), 0
        return apply_model(args["input"], args["timestep"], **args["c"])

    def draw(self):
        if self.kept is None:
            return 0.5 + float(torch.rand(()))
        self.layer += 1
        place = self.level, self.layer
        if place not in self.kept:
            self.kept[place] = 0.5 + float(torch.rand(()))  # a tensor kept from inference mode could not be differentiated by
        return self.kept[place]


@pytest.mark.parametrize("engine", features.ENGINES)
@pytest.mark.parametrize("form", ["row_sum", "scalar"])
def test_networks_that_draw_random_numbers_draw_the_same_in_all_our_passes(host, pack, form, engine):
    """Oracle: the draws kept by hand. And the generators stand where they stand without REG: they are the sampler's noise too."""
    t = built("sd15")

    def sample(model):
        torch.manual_seed(3)
        return tiny.sample(t, model), torch.get_rng_state()

    _, state = sample(Chance(kept=False).model(t.patcher))
    model, trace = reg.apply(pack, Chance(kept=False).model(t.patcher), form, engine)
    out, after = sample(model)
    assert {r.engine for r in trace.last.rows} == {engine} and not trace.last.notes, trace
    assert torch.equal(after, state)
    assert torch.equal(out, sample(reg.apply(pack, Chance(kept=True).model(t.patcher), form, engine)[0])[0])


@pytest.mark.parametrize("form", ["row_sum", "scalar"])
def test_tiles_of_the_queries_alone(host, pack, all_nodes, form):
    """HyperTile rearranges q only; ComfyUI's attention reads k and v by q's batch. Oracle: differences of ComfyUI's own passes."""
    t = built("sd15")
    model, trace = reg.apply(pack, patch(all_nodes, "HyperTile", t.patcher), form, "reverse")
    tiny.sample(t, model, batch=2)
    assert {r.engine for r in trace.last.rows} == {"reverse"} and not trace.last.notes, trace
