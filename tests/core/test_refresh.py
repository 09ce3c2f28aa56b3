"""Corrections that are kept. Oracles: Gaussian data, for which J is known at every noise level, and call counts."""

import math

import pytest
import torch
from oracles import Gaussian, counted_pair

from reg_core import FLOW, VE, Branches, Guided, Point, Rectifier, Settings, carry, expand, karras_sigmas, sample_euler, sample_heun
from reg_core.demo_models.loading import load_model
from reg_core.refresh import LONGEST, TOLERANCE

VARIANCE = torch.linspace(0.05, 2.0, 2 * 3 * 3).reshape(1, 2, 3, 3).double()  # of every element
ONE = torch.ones_like(VARIANCE)
SIGMAS = karras_sigmas(18, 0.02, 20.0).double()


def run(settings, cond=None, uncond=None, sigmas=SIGMAS):
    cond, uncond = cond or Gaussian(0.7, VARIANCE), uncond or Gaussian(-0.3, VARIANCE)
    guided = Guided(cond, uncond, 2.0, settings)
    noise = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sample_heun(guided, sigmas[0] * noise, sigmas), guided.trace.last


def called_at(settings, sigmas, variance=VARIANCE):
    """[fresh, ...] of a Rectifier that is called at these noise levels."""
    rectifier = Rectifier(settings)
    branches = Branches(Gaussian(0.7, variance), Gaussian(-0.3, variance))
    for sigma in sigmas:
        rectifier(branches, Point.of(torch.ones(2, 2, 3, 3).double(), sigma), 2.0)
    return [row.fresh for row in rectifier.run.rows]


def test_carry_is_the_law_of_gaussian_data():
    there, here = torch.tensor([0.3, 5.0]).double(), torch.tensor([2.0, 0.1]).double()
    moved = carry(VARIANCE / (VARIANCE + expand(here, VARIANCE.expand(2, -1, -1, -1)) ** 2), there / here)
    torch.testing.assert_close(moved, VARIANCE / (VARIANCE + there.reshape(2, 1, 1, 1) ** 2))


def test_carry_leaves_what_no_gaussian_has():
    odd = torch.tensor([[-0.2, 0.0, 1.0, 1.4]])
    assert torch.equal(carry(odd, torch.tensor([0.5])), odd)


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
def test_a_carried_correction_is_exact_for_gaussian_data(form):
    # `scalar` and `product` carry one number a sample: exact where all elements have one variance
    variance = VARIANCE if form == "row_sum" else 0.6 * ONE
    pair = Gaussian(0.7, variance), Gaussian(-0.3, variance)
    fresh, _ = run(Settings(form=form, engine="reverse"), *pair)
    carried, trace = run(Settings(form=form, engine="reverse", refresh=4), *pair)
    assert sum(r.fresh for r in trace.rows) <= 9 < len(trace.rows)
    torch.testing.assert_close(carried, fresh, rtol=1e-9, atol=1e-9)


def test_strength_applies_to_what_is_carried():
    fresh, _ = run(Settings(engine="reverse", strength=0.4))
    carried, _ = run(Settings(engine="reverse", strength=0.4, refresh=6))
    torch.testing.assert_close(carried, fresh, rtol=1e-9, atol=1e-9)


def test_refresh_counts_calls_until_the_correction_has_come_to_1():
    """Oracle: a Gaussian of one variance, whose correction is 1 / (1 + sigma^2) whenever it is looked at."""
    pair = Gaussian(0.7, ONE), Gaussian(-0.3, ONE)
    _, trace = run(Settings(engine="reverse", refresh=4), *pair, sigmas=karras_sigmas(24, 0.002, 20.0).double())
    fresh, age = [], math.inf
    for i, row in enumerate(trace.rows):
        settled = row.sigma**2 / (1 + row.sigma**2) <= TOLERANCE
        age = 0 if age >= (LONGEST if settled else 4) - 1 else age + 1
        if age == 0:
            fresh.append(i)
    assert [i for i, r in enumerate(trace.rows) if r.fresh] == fresh and 6 < len(fresh) < 11


def test_a_correction_that_no_gaussian_has_does_not_count_as_come_to_1():
    """Factors outside (0, 1) are carried as they are, so they stay as far from 1 as they were."""

    def over(x, sigma):  # J is 1.2 in one element of two, and 1 / (1 + sigma^2) in the others, at every level
        half = (torch.arange(18).reshape(2, 3, 3) % 2).double()
        return x * (half * 1.2 + (1 - half) / (1 + expand(sigma, x) ** 2))

    _, trace = run(Settings(engine="reverse", refresh=4), over, lambda x, sigma: over(x, sigma) - 1, sigmas=karras_sigmas(24, 0.02, 20.0).double())
    assert [i for i, r in enumerate(trace.rows) if r.fresh] == list(range(0, 47, 4))


def test_always_fresh_stays_always_fresh():
    _, trace = run(Settings(engine="reverse", refresh=1))
    assert all(r.fresh for r in trace.rows)


def test_more_noise_is_computed_afresh():
    assert called_at(Settings(engine="reverse", refresh=10), (5.0, 4.0, 3.0, 9.0, 8.0)) == [True, False, False, True, False]


def test_another_batch_size_is_computed_afresh():
    rectifier = Rectifier(Settings(engine="reverse", refresh=10))
    branches = Branches(Gaussian(0.7, VARIANCE), Gaussian(-0.3, VARIANCE))
    for batch in (2, 2, 3):
        rectifier(branches, Point.of(torch.ones(batch, 2, 3, 3).double(), 1.0))
    assert [r.fresh for r in rectifier.run.rows] == [True, False, True]


def test_another_latent_size_is_computed_afresh_where_the_factor_has_its_shape():
    def of_any_size(mean):
        return Gaussian(mean, torch.tensor(0.6).double())

    for form, again in (("row_sum", True), ("scalar", False)):
        rectifier = Rectifier(Settings(form=form, engine="reverse", refresh=10))
        for side in (3, 4):
            rectifier(Branches(of_any_size(0.7), of_any_size(-0.3)), Point.of(torch.ones(2, 2, side, side).double(), 1.0))
        assert rectifier.run.rows[1].fresh == again, form


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
def test_the_probe_is_spared_between_refreshes(form):
    cond, reference = counted_pair()
    guided = Guided(cond, reference, 2.0, Settings(form=form, refresh=3))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    sample_euler(guided, x, karras_sigmas(7, 1.0, 5.0))
    assert [r.fresh for r in guided.trace.last.rows] == [True, False, False, True, False, False, True]
    assert cond.calls == 7 + 3 and reference.calls == 7


def test_a_kept_factor_is_exact_where_nothing_moved():
    """Oracle: the call that computed it."""
    cond, reference = counted_pair()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    once = Rectifier(Settings(form="scalar", refresh=2))
    first, second = (once(Branches(cond, reference), Point.of(x, torch.tensor([0.5, 1.5]))) for _ in range(2))
    assert not once.run.rows[1].fresh
    assert torch.allclose(first.rectified, second.rectified, atol=1e-5)


def test_flow_that_starts_without_any_signal():
    guided = Guided(Gaussian(0.7, VARIANCE), Gaussian(-0.3, VARIANCE), 2.0, Settings(engine="reverse", refresh=3, skip_below=0.2), FLOW)
    for sigma in (1.0, 1.0, 0.9, 0.5, 0.1):
        assert torch.isfinite(guided(torch.ones(2, 2, 3, 3).double(), sigma)).all()
    assert [r.nonfinite for r in guided.trace.last.rows] == [0.0] * 5


# Against a correction computed at every call: fresh ones at the same points


def flow_sigmas(steps, shift=3.0, first=1.0):
    t = torch.linspace(1, 0, steps + 1)
    sigmas = shift * t / (1 + (shift - 1) * t)
    sigmas[0] = first
    return sigmas


def off(cond, uncond, sigmas, space, form, refresh, x, dtype=torch.float32):
    """(largest error of R v relative to v at a call, error over the run, fresh calls) of a run that reuses corrections."""
    always, sometimes = (Rectifier(Settings(form=form, refresh=k)) for k in (1, refresh))
    errors, sizes = [], []
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        point = Point.of(x, sigma.to(dtype), space)
        want, got = (r(Branches(cond, uncond), point, 3.0) for r in (always, sometimes))
        v = want.denoised - want.reference
        errors.append(float((want.rectified - got.rectified).norm()))
        sizes.append(float(v.norm()))
        x = x + (x - want.guided(3.0)) / sigma * (following - sigma)
    per_call = [e / s for e, s in zip(errors, sizes, strict=True) if s]
    return max(per_call), math.hypot(*errors) / math.hypot(*sizes), sum(r.fresh for r in sometimes.run.rows)


class FlowGaussian:
    """D of N(mean, 1) in flow coordinates, x = (1 - sigma) x0 + sigma noise."""

    def __init__(self, mean):
        self.mean = mean

    def __call__(self, x, sigma):
        a, s = expand(1 - sigma, x), expand(sigma, x)
        return self.mean + a / (a * a + s * s) * (x - a * self.mean)


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
@pytest.mark.parametrize("refresh", [2, 4, 8])
@pytest.mark.parametrize("steps", [4, 8, 20])
@pytest.mark.parametrize("kind", ["flow", "flow from just below 1", "zero SNR"])
def test_nothing_is_reused_from_pure_noise(kind, steps, refresh, form):
    """J is 0 at flow's sigma 1 and lost in rounding at sigma 4518. Oracle: J at every call, which is a closed form here."""
    g = torch.Generator().manual_seed(1)
    if kind == "zero SNR":
        sigmas = torch.cat([torch.linspace(4518**0.2, 0.05**0.2, steps) ** 5, torch.zeros(1)])
        cond, uncond, space = Gaussian(0.7, torch.ones(2, 3, 3)), Gaussian(-0.3, torch.ones(2, 3, 3)), VE
    else:
        sigmas = flow_sigmas(steps, first=1.0 if kind == "flow" else 1 - 6e-8)
        cond, uncond, space = FlowGaussian(0.7), FlowGaussian(-0.3), FLOW
    x = sigmas[0] * torch.randn(2, 2, 3, 3, generator=g)
    worst, _, fresh = off(cond, uncond, sigmas, space, form, refresh, x)
    assert worst < 0.05 and fresh >= 2


@pytest.mark.parametrize("form,bound", [("row_sum", 0.05), ("scalar", 0.05), ("product", 0.09)])
@pytest.mark.parametrize("refresh", [2, 4, 8])
@pytest.mark.parametrize("name", ["digits", "digits_weak"])
def test_a_trained_model_is_guided_as_by_fresh_corrections(name, refresh, form, bound):
    """Oracle: J at every call of the same run. `product` loses what it has beside v."""
    net, label = load_model(name), torch.arange(20) % 10
    sigmas = karras_sigmas(20, 0.02, 20.0)
    x = sigmas[0] * torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, over_the_run, fresh = off(lambda x, s: net(x, s, label), net, sigmas, VE, form, refresh, x)
    assert over_the_run < bound and fresh <= 10


def test_an_error_by_rounding_is_not_carried_on():
    """bfloat16's rounding is 3 % of v at sigma 20, more than the correction: carried to sigma 7 it would be 24 %."""

    class Coarse(Branches):
        def compute_dtype(self, x):
            return torch.bfloat16

    for kind, reused in ((Branches, True), (Coarse, False)):
        rectifier = Rectifier(Settings(refresh=4))
        for sigma in (20.0, 7.0):
            x = sigma * torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
            rectifier(kind(Gaussian(0.7, torch.ones(2, 3, 3)), Gaussian(-0.3, torch.ones(2, 3, 3))), Point.of(x, sigma), 3.0)
        assert rectifier.run.rows[1].fresh != reused
