"""The two oracles of truth.py, on the families that most tests run on."""

import pytest

from . import tiny, truth


@pytest.mark.parametrize("family", tiny.ARCHITECTURES)
@pytest.mark.parametrize("engine,bound", [("finite_difference", 5e-2), ("reverse", 1.5e-2)])
def test_the_pair_is_the_truth(host, pack, family, engine, bound):
    """Bounds: random networks curve within the step of either difference, REG's and the oracle's."""
    t = tiny.build(family)
    for form in truth.FORMS:
        found = truth.guided(pack, t, form, engine)
        assert {row.engine for row in found.trace.last.active} == {engine}
        assert found.denoised <= 1e-5 and found.guidance <= bound, (form, found)


@pytest.mark.parametrize("family", tiny.ARCHITECTURES)
def test_reg_of_no_strength_is_invisible(host, pack, family):
    t = tiny.build(family)
    for form in truth.FORMS:
        assert truth.transparency(pack, lambda model: tiny.sample(t, model), t.patcher, form) <= truth.TRANSPARENT, form
