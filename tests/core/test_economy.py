"""Refresh, automatic refresh and skipping. Oracles: Gaussian data, for which J is known at every noise level, and call counts."""

import math

import pytest
import torch

from reg_core import Guided, Settings, carry, expand, karras_sigmas, sample_heun
from reg_core.economy import LONGEST, REACH, TOLERANCE

VARIANCE = torch.linspace(0.05, 2.0, 2 * 3 * 3).reshape(1, 2, 3, 3).double()  # of every element
SIGMAS = karras_sigmas(18, 0.02, 20.0).double()
CALLS = [s for pair in zip(SIGMAS[:-2], SIGMAS[1:-1], strict=True) for s in pair] + [SIGMAS[-2]]  # of Heun's method


class Gaussian:
    """The exact denoiser of N(mean, diag variance), counting its rows."""

    def __init__(self, mean, variance=VARIANCE):
        self.mean, self.variance, self.rows = mean, variance, 0

    def __call__(self, x, sigma):
        self.rows += x.shape[0]
        return self.mean + (x - self.mean) * self.variance / (self.variance + expand(sigma, x) ** 2)


def mixture(x, sigma):
    """The exact denoiser of 1/2 N(-1, 0.1^2) + 1/2 N(1, 0.1^2) in each element: J peaks where a mode is chosen."""
    total = 0.01 + expand(sigma, x) ** 2
    share = torch.sigmoid(2 * x / total)
    return share * (1 + (x - 1) * 0.01 / total) + (1 - share) * (-1 + (x + 1) * 0.01 / total)


def run(settings, cond=None, uncond=None, weight=2.0, batch=2, sigmas=SIGMAS):
    cond, uncond = cond or Gaussian(0.7), uncond or Gaussian(-0.3)
    guided = Guided(cond, uncond, weight, settings)
    noise = torch.randn(batch, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sample_heun(guided, sigmas[0] * noise, sigmas), guided.trace.last


def test_carry_is_the_law_of_gaussian_data():
    there, here = torch.tensor([0.3, 5.0]).double(), torch.tensor([2.0, 0.1]).double()
    moved = carry(VARIANCE / (VARIANCE + expand(here, VARIANCE.expand(2, -1, -1, -1)) ** 2), there / here)
    torch.testing.assert_close(moved, VARIANCE / (VARIANCE + there.reshape(2, 1, 1, 1) ** 2))


def test_carry_leaves_what_no_gaussian_has():
    odd = torch.tensor([[-0.2, 0.0, 1.0, 1.4]])
    assert torch.equal(carry(odd, torch.tensor([0.5])), odd)


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
@pytest.mark.parametrize("refresh", [4, 0])
def test_a_carried_correction_is_exact_for_gaussian_data(form, refresh):
    # `scalar` and `product` carry one number a sample: exact where all elements have one variance
    variance = VARIANCE if form == "row_sum" else torch.full_like(VARIANCE, 0.6)
    pair = Gaussian(0.7, variance), Gaussian(-0.3, variance)
    fresh, _ = run(Settings(form=form, engine="reverse"), *pair)
    carried, trace = run(Settings(form=form, engine="reverse", refresh=refresh), *pair)
    assert sum(r.fresh for r in trace.rows) <= 9 < len(trace.rows)
    torch.testing.assert_close(carried, fresh, rtol=1e-9, atol=1e-9)


def test_strength_applies_to_what_is_carried():
    fresh, _ = run(Settings(engine="reverse", strength=0.4))
    carried, _ = run(Settings(engine="reverse", strength=0.4, refresh=6))
    torch.testing.assert_close(carried, fresh, rtol=1e-9, atol=1e-9)


def test_refresh_counts_calls_until_the_correction_has_come_to_1():
    """Oracle: a Gaussian of one variance, whose correction is 1 / (1 + sigma^2) whenever it is looked at."""
    pair = Gaussian(0.7, torch.ones_like(VARIANCE)), Gaussian(-0.3, torch.ones_like(VARIANCE))
    _, trace = run(Settings(engine="reverse", refresh=4), *pair, sigmas=karras_sigmas(24, 0.002, 20.0).double())
    fresh, age = [], math.inf
    for i, row in enumerate(trace.rows):
        settled = row.sigma**2 / (1 + row.sigma**2) <= TOLERANCE
        age = 0 if age >= (LONGEST if settled else 4) - 1 else age + 1
        if age == 0:
            fresh.append(i)
    assert [i for i, r in enumerate(trace.rows) if r.fresh] == fresh and 6 < len(fresh) < 11
    assert [math.isnan(r.moved) for r in trace.rows if r.fresh] == [True] + [False] * (len(fresh) - 1)


def test_a_correction_that_no_gaussian_has_does_not_count_as_come_to_1():
    """Factors outside (0, 1) are carried as they are, so they stay as far from 1 as they were."""

    def over(x, sigma):  # J is 1.2 in one element of two, and 1 / (1 + sigma^2) in the others, at every level
        half = (torch.arange(18).reshape(2, 3, 3) % 2).double()
        return x * (half * 1.2 + (1 - half) / (1 + expand(sigma, x) ** 2))

    _, trace = run(Settings(engine="reverse", refresh=4), over, lambda x, sigma: over(x, sigma) - 1, sigmas=karras_sigmas(24, 0.002, 20.0).double())
    assert [i for i, r in enumerate(trace.rows) if r.fresh] == list(range(0, 47, 4))


def test_always_fresh_stays_always_fresh():
    _, trace = run(Settings(engine="reverse", refresh=1))
    assert all(r.fresh for r in trace.rows)


def test_automatic_refresh_doubles_its_interval_while_nothing_moves():
    _, trace = run(Settings(engine="reverse", refresh=0))
    assert [i for i, r in enumerate(trace.rows) if r.fresh] == [0, 1, 3, 7, 15, 31]


def test_automatic_refresh_looks_again_where_the_correction_moves():
    def uncond(x, sigma):
        return x / (1 + expand(sigma, x) ** 2)

    exact, _ = run(Settings(engine="reverse"), mixture, uncond)
    automatic, trace = run(Settings(engine="reverse", refresh=0), mixture, uncond)
    rare, seldom = run(Settings(engine="reverse", refresh=16), mixture, uncond)
    fresh = [i for i, r in enumerate(trace.rows) if r.fresh]
    moved = [r.moved for r in trace.rows if r.fresh]
    assert max(m for m in moved if not math.isnan(m)) > TOLERANCE  # it had something to react to
    gaps = [b - a for a, b in zip(fresh, fresh[1:], strict=False)]
    assert min(gaps[3:]) < max(gaps) and 6 < len(fresh) < 35
    assert (automatic - exact).norm() < 0.5 * (rare - exact).norm()


def test_a_restart_is_computed_afresh():
    guided = Guided(Gaussian(0.7), Gaussian(-0.3), 2.0, Settings(engine="reverse", refresh=10))
    x = torch.ones(2, 2, 3, 3).double()
    for sigma in (5.0, 4.0, 3.0, 9.0, 8.0):
        guided(x, sigma)
    assert [r.fresh for r in guided.trace.last.rows] == [True, False, False, True, False]


def test_a_device_that_must_not_be_waited_for_learns_of_a_restart_a_call_later(monkeypatch):
    from reg_core.economy import Economy

    _, at_once = run(Settings(engine="reverse", refresh=4))
    monkeypatch.setattr(Economy, "late_devices", ("cpu",))
    fresh, _ = run(Settings(engine="reverse"))
    carried, trace = run(Settings(engine="reverse", refresh=4))
    assert [r.fresh for r in trace.rows] == [r.fresh for r in at_once.rows]
    torch.testing.assert_close(carried, fresh, rtol=1e-9, atol=1e-9)
    guided = Guided(Gaussian(0.7), Gaussian(-0.3), 2.0, Settings(engine="reverse", refresh=4))
    for sigma in (9.0, 5.0, 4.0, 3.0, 2.0, 1.0, 9.0, 8.0, 7.0):
        guided(torch.ones(2, 2, 3, 3).double(), sigma)
    assert [r.fresh for r in guided.trace.last.rows] == [True, False, False, False, True, False, False, True, False]


def test_another_batch_size_is_computed_afresh():
    guided = Guided(Gaussian(0.7), Gaussian(-0.3), 2.0, Settings(engine="reverse", refresh=10))
    for batch in (2, 2, 3):
        guided(torch.ones(batch, 2, 3, 3).double(), 1.0)
    assert [r.fresh for r in guided.trace.last.rows] == [True, False, True]


@pytest.mark.parametrize("engine", ["reverse", "finite_difference"])
@pytest.mark.parametrize("form", ["row_sum", "scalar", "schedule"])
def test_skipping_leaves_out_what_is_negligible(form, engine):
    below = 0.08
    # Gaussians of one variance: v is 1 / (1 / sigma^2 + 1), largest in noise, c = 1 / (1 + sigma^2), passed on times sqrt(c).
    cond, uncond = (Gaussian(mean, torch.ones_like(VARIANCE)) for mean in (0.7, -0.3))
    skipping, trace = run(Settings(form=form, engine=engine, skip_below=below), cond, uncond)
    rows, calls = uncond.rows, cond.rows
    full, _ = run(Settings(form=form, engine="reverse"), cond, uncond)
    # What has to be measured is measured again where the last measurement no longer reaches.
    measured = seen = math.inf  # levels of the last product, and of the last v
    largest, size, expected = 0.0, 0.0, []
    for sigma in (float(s) for s in CALLS):
        c, v = 1 / (1 + sigma**2), sigma**2 / (1 + sigma**2)
        known = form == "schedule" or (sigma <= measured * 1.0001 and (sigma >= measured / REACH or c >= 0.5))
        size_now = min(1.0, size / largest) if sigma <= seen * 1.0001 and largest else 1.0  # v only falls
        faded = not known and size_now < below  # whatever c is
        probes = not known and not faded and form == "row_sum" and engine == "finite_difference"  # J 1 needs no uncond: by two rows
        if probes:
            measured = sigma
        skipped = faded or ((known or probes) and c**1.5 * size_now < below)
        if not skipped:
            largest, size, seen, measured = max(largest, v), v, sigma, sigma
        expected.append(skipped)
    assert [r.skipped for r in trace.rows] == expected
    assert 5 < sum(expected[:20]) and 3 < sum(expected[20:]) and sum(expected) < 30, "in noise, and at the end"
    assert rows == 2 * (35 - sum(expected))
    left_out = [r.extra_rows for r in trace.rows if r.skipped]
    assert set(left_out) <= {-1, 0} and (left_out.count(0) > 0) == (form == "row_sum" and engine == "finite_difference")
    if engine == "finite_difference":
        assert calls + rows == 2 * (2 * 35 + trace.extra_rows)
    assert f"{sum(expected)} skipped" in trace.summary()
    # Guidance displaces the mean by about one: what is left out may not matter much, and may not be nothing either
    assert 1e-6 < (skipping - full).abs().max() < 0.15


@pytest.mark.parametrize(("measured", "again"), [(0.6, False), (40.0, True)])
def test_far_below_a_measured_share_only_what_is_still_far_from_1_is_looked_at_again(measured, again):
    """c is 1 / (1 + sigma^2): from 0.6 down it is near 1 wherever it is, at 2.5 it is 0.14 and what was seen at 40 says little."""
    from reg_core.economy import Economy

    economy = Economy(Settings(skip_below=0.05))
    economy.learns(measured, torch.full((1, 1, 4, 4), 1 / (1 + measured**2)), 2.0)
    assert not economy.unsure(measured / (REACH - 1)) and economy.unsure(2 * measured), "within reach; and after a restart"
    assert economy.unsure(measured / (2 * REACH)) == again


def test_what_is_skipped_does_not_depend_on_cfg():
    runs = [run(Settings(engine="reverse", skip_below=0.1), weight=weight)[1] for weight in (0.5, 2.0, 20.0)]
    patterns = [[r.skipped for r in trace.rows] for trace in runs]
    assert patterns[0] == patterns[1] == patterns[2] and any(patterns[0]) and not all(patterns[0])


def test_a_schedule_of_the_weight_counts():
    """Guidance whose weight falls to a hundredth is skipped where constant guidance is not."""
    constant = run(Settings(form="schedule", skip_below=0.1))[1]
    falling = run(Settings(form="schedule", skip_below=0.1), weight=lambda sigma: 2.0 if sigma > 1 else 0.02)[1]
    below = [(a.skipped, b.skipped) for a, b in zip(constant.rows, falling.rows, strict=True) if 0.5 < a.sigma < 1]
    assert below and all(pair == (False, True) for pair in below)


def test_a_restart_forgets_that_guidance_had_faded():
    guided = Guided(Gaussian(0.7), Gaussian(-0.3), 2.0, Settings(form="schedule", skip_below=0.2))
    for sigma in (1.0, 0.5, 0.1, 0.09, 0.9):
        guided(torch.ones(2, 2, 3, 3).double(), sigma)
    assert [r.skipped for r in guided.trace.last.rows] == [False, False, False, True, False]


def test_a_calibrated_run_skips_by_its_table():
    from reg_core import Calibration

    table = Calibration(torch.tensor([0.01, 20.0]), torch.tensor([1.0, 0.0]), torch.zeros(2), "scalar")  # a straight line in log sigma
    cond = Gaussian(0.7)
    _, trace = run(Settings(form="calibrated", calibration=table, skip_below=0.5), cond, lambda x, sigma: cond(x, sigma) - 1)  # v is 1
    border = 0.01 * 2000 ** (1 - 0.5 ** (2 / 3))  # c^1.5 is a half there
    assert all(r.skipped == (r.sigma > border) for r in trace.rows) and 0 < trace.skipped < 35


def test_nothing_is_skipped_where_weak_strength_leaves_guidance():
    _, trace = run(Settings(form="schedule", strength=0.5, skip_below=0.3))  # half of it stays at any noise
    assert not any(r.skipped for r in trace.rows if r.sigma > 1)


def test_no_level_is_read_when_nothing_depends_on_it():
    from reg_core.economy import Economy

    assert not Economy(Settings()).needs_level and not Economy(Settings(form="schedule", refresh=4)).needs_level
    assert Economy(Settings(refresh=0)).needs_level and Economy(Settings(skip_below=0.1)).needs_level


def test_flow_that_starts_without_any_signal():
    from reg_core import FLOW

    guided = Guided(Gaussian(0.7), Gaussian(-0.3), 2.0, Settings(engine="reverse", refresh=3, skip_below=0.2), FLOW)
    for sigma in (1.0, 1.0, 0.9, 0.5, 0.1):
        assert torch.isfinite(guided(torch.ones(2, 2, 3, 3).double(), sigma)).all()
    assert [r.nonfinite for r in guided.trace.last.rows] == [0.0] * 5


def test_the_trace_tells_how_far_rounding_may_have_moved_a_difference():
    """Oracle: a probe in float32 against the same in float64; the estimate is of that size, and the exact engine has none."""
    errors = {}
    for dtype in (torch.float32, torch.float64):
        guided = Guided(Gaussian(0.7), Gaussian(-0.3), 2.0, Settings())
        x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        guided(x.to(dtype), 1.0)
        errors[dtype] = guided.trace.last.rows[0].error
    assert 1e-12 < errors[torch.float64] < 1e-8 < errors[torch.float32] < 1e-3
    guided = Guided(Gaussian(0.7), Gaussian(-0.3), 2.0, Settings(engine="forward"))
    guided(x, 1.0)
    assert math.isnan(guided.trace.last.rows[0].error)
