"""Every family against the two oracles of truth.py: at almost no strength REG is invisible, and the sampler's own pair is the truth."""

import comfy.model_management
import pytest
import torch

from . import reg, tiny, truth

ENGINES = ("finite_difference", "reverse")
INVISIBLE = [(form, "finite_difference") for form in truth.FORMS] + [("scalar", "reverse")]
CASES = [(family, batch) for family in tiny.FAMILIES for batch in tiny.batches(family)]


def built(family):
    if tiny.missing(family):
        pytest.skip(tiny.missing(family))
    comfy.model_management.current_loaded_models.clear()  # or ComfyUI collects garbage for each MODEL that is gone
    return tiny.build(family)


@pytest.mark.parametrize("family, batch", CASES)
def test_the_family_is_sound_without_reg(host, family, batch):
    """Or the oracles would say nothing: latents are finite and the same twice, and prompts make a difference."""
    t = built(family)
    latent = tiny.packed(tiny.sample(t, steps=2, batch=batch))
    assert torch.isfinite(latent).all()
    assert torch.equal(tiny.packed(tiny.sample(t, steps=2, batch=batch)), latent)

    plain = truth.Watched(t.patcher)
    cond, uncond = reg.inside(t, plain.pair, plain.model, batch=batch)
    assert 1e-3 < reg.relative(uncond, cond) < 2


@pytest.mark.parametrize("family, batch", CASES)
def test_reg_of_no_strength_is_invisible(host, pack, family, batch):
    t = built(family)

    def sample(model):
        # Two Euler steps, without Euler's differences of numbers as large as the noise, whose rounding would show.
        return tiny.packed(tiny.sample(t, model, steps=2, batch=batch, sampler="dpmpp_2m"))

    found = {key: truth.transparency(pack, sample, t.patcher, *key) for key in INVISIBLE}
    assert max(found.values()) <= truth.TRANSPARENT, found


@pytest.mark.parametrize("engine, bound", [("finite_difference", 5e-2), ("reverse", 1.5e-2)])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_pair_is_the_truth(host, pack, family, engine, bound):
    """Bounds: random networks curve within the step of either difference, REG's and the oracle's."""
    t = built(family)
    found = {form: truth.guided(pack, t, form, engine, batch=tiny.batches(family)[-1]) for form in truth.FORMS}
    assert max(seen.denoised for seen in found.values()) <= 1e-5, found
    for form, seen in found.items():
        coupled = tiny.RECIPES[family].frames and form == "scalar"  # a frame's v^T J v is not its v^T J^T v
        fell_back = "finite_difference" in {row.engine for row in seen.trace.last.active}
        assert seen.guidance <= (5e-2 if coupled or fell_back else bound), found
