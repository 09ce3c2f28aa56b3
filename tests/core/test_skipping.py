"""Calls without guidance. Oracles: Gaussian data, for which the share of guidance is known at every level, and call counts."""

import math

import pytest
import torch
from oracles import Gaussian

from reg_core import Branches, Calibration, Guided, Point, Rectifier, Settings, karras_sigmas, sample_heun
from reg_core.jacobian import PROBE_ONES
from reg_core.skipping import REACH

ONE = torch.ones(1, 2, 3, 3).double()
X = torch.ones(2, 2, 3, 3).double()
SIGMAS = karras_sigmas(18, 0.02, 20.0).double()
CALLS = [s for pair in zip(SIGMAS[:-2], SIGMAS[1:-1], strict=True) for s in pair] + [SIGMAS[-2]]  # of Heun's method


def pair(variance=ONE):
    return Gaussian(0.7, variance), Gaussian(-0.3, variance)


def run(settings, cond=None, uncond=None, weight=2.0):
    cond, uncond = (cond, uncond) if cond else pair()
    guided = Guided(cond, uncond, weight, settings)
    noise = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sample_heun(guided, SIGMAS[0] * noise, SIGMAS), guided.trace.last


def called_at(settings, sigmas, may_skip=lambda i: True):
    """The rows of a Rectifier that is called at these noise levels."""
    rectifier = Rectifier(settings)
    for i, sigma in enumerate(sigmas):
        rectifier(Branches(*pair()), Point.of(X, sigma), 2.0, may_skip(i))
    return rectifier.run.rows


@pytest.mark.parametrize("engine", ["reverse", "finite_difference"])
@pytest.mark.parametrize("form", ["row_sum", "scalar", "schedule"])
def test_skipping_leaves_out_what_is_negligible(form, engine):
    below = 0.08
    # Gaussians of one variance: v is sigma^2 / (1 + sigma^2), largest in noise, c = 1 / (1 + sigma^2), passed on times sqrt(c).
    cond, uncond = pair()
    skipping, trace = run(Settings(form=form, engine=engine, skip_below=below), cond, uncond)
    rows, calls = uncond.rows, cond.rows
    full, _ = run(Settings(form=form, engine="reverse"))
    # What has to be measured is measured again where the last measurement no longer reaches.
    measured = seen = math.inf  # levels of the last product, and of the last v
    largest, size, expected = 0.0, 0.0, []
    for sigma in (float(s) for s in CALLS):
        c, v = 1 / (1 + sigma**2), sigma**2 / (1 + sigma**2)
        known = form == "schedule" or (sigma <= measured * 1.0001 and (sigma >= measured / REACH or c >= 0.5))
        size_now = min(1.0, size / largest) if sigma <= seen * 1.0001 and largest else 1.0  # v only falls
        skipped = (min(c**1.5, c) if known else 1.0) * size_now < below
        if not skipped:
            largest, size, seen, measured = max(largest, v), v, sigma, sigma
        expected.append(skipped)
    assert [r.skipped for r in trace.rows] == expected
    assert 5 < sum(expected[:20]) and 3 < sum(expected[20:]) and sum(expected) < 30, "in noise, and at the end"
    assert rows == 2 * (35 - sum(expected)) and {r.extra_rows for r in trace.rows if r.skipped} == {-1}
    if engine == "finite_difference":
        assert calls + rows == 2 * (2 * 35 + trace.extra_rows)
    assert f"{sum(expected)} skipped" in trace.summary()
    # Guidance displaces the mean by about one: what is left out may not matter much, and may not be nothing either
    assert 1e-6 < (skipping - full).abs().max() < 0.15


@pytest.mark.parametrize(("measured", "skipped"), [(10.0, True), (40.0, False)])
def test_a_share_that_was_measured_far_away_is_measured_again(measured, skipped):
    """At 2.5 c is 0.14, and passed on 0.05: below 0.2. But a look at 40, sixteen times the noise, says little of that."""
    assert (measured / 2.5 < REACH) == skipped
    settings = Settings(engine="reverse", skip_below=0.2)
    assert called_at(settings, (measured, 2.5))[1].skipped == skipped
    assert called_at(settings, (measured, measured / (REACH - 1)))[1].skipped, "within reach: c is below 0.33 there"
    assert not called_at(settings, (measured, 2 * measured))[1].skipped, "more noise: a restart"


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


def test_more_noise_forgets_that_guidance_had_faded():
    rows = called_at(Settings(form="schedule", skip_below=0.2), (1.0, 0.5, 0.1, 0.09, 0.9))
    assert [r.skipped for r in rows] == [False, False, False, True, False]


def test_where_a_call_may_not_be_skipped_nothing_is_kept_for_later():
    """Guidance has faded at 0.09 (see above). Calls whose reference somebody needs anyway do not count."""
    kept = called_at(Settings(form="schedule", skip_below=0.2), (1.0, 0.5, 0.1, 0.09))
    never = called_at(Settings(form="schedule", skip_below=0.2), (1.0, 0.5, 0.1, 0.09), may_skip=lambda i: False)
    last = called_at(Settings(form="schedule", skip_below=0.2), (1.0, 0.5, 0.1, 0.09), may_skip=lambda i: i == 3)
    assert [rows[3].skipped for rows in (kept, never, last)] == [True, False, False]
    # The same of a share that was measured: c^1.5 is 0.03 at 3.
    measured = [called_at(Settings(engine="reverse", skip_below=0.2), (4.0, 3.0), lambda i, ok=ok: i == 1 or ok)[1].skipped for ok in (True, False)]
    assert measured == [True, False]


def test_a_calibrated_run_skips_by_its_table():
    table = Calibration(torch.tensor([0.01, 20.0]), torch.tensor([1.0, 0.0]), torch.zeros(2), "scalar")  # a straight line in log sigma
    cond = Gaussian(0.7, ONE)
    _, trace = run(Settings(form="calibrated", calibration=table, skip_below=0.5), cond, lambda x, sigma: cond(x, sigma) - 1)  # v is 1
    border = 0.01 * 2000 ** (1 - 0.5 ** (2 / 3))  # c^1.5 is a half there
    assert all(r.skipped == (r.sigma > border) for r in trace.rows) and 0 < sum(r.skipped for r in trace.rows) < 35


def test_nothing_is_skipped_where_weak_strength_leaves_guidance():
    _, trace = run(Settings(form="schedule", strength=0.5, skip_below=0.3))  # half of it stays at any noise
    assert not any(r.skipped for r in trace.rows if r.sigma > 1)


def test_the_probe_has_an_error_in_calls_that_may_skip():
    """Oracle: the estimate by hand, for D = mean + c (x - mean): sqrt(2) eps rms(x - D) / h, the largest of the batch."""
    sigma, x = 1.5, torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    rectifier = Rectifier(Settings(skip_below=0.05))
    rectifier(Branches(*pair(ONE.float())), Point.of(x, sigma), 2.0)
    (row,) = rectifier.run.rows
    c = 1 / (1 + sigma**2)
    away = (1 - c) * (x - 0.7).flatten(1).square().mean(1).sqrt()
    h = sigma * PROBE_ONES[torch.float32]
    assert not row.skipped and row.error == pytest.approx(float((2**0.5 * 2.0**-23 * away / h).max()), rel=1e-3)
    assert all(math.isfinite(r.error) for r in run(Settings(skip_below=0.05))[1].active)
