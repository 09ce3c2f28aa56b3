"""The authors' schedules: oracle, their formulas written out per code base in their own variables (weights w0, w1; t, sigma)."""

import math

import pytest
import torch

from reg_core import presets

SIGMAS = torch.tensor([80.0, 33.0, 7.0, 0.9, 0.05, 0.002, 0.0])
TIMES = [951, 801, 702, 399, 203, 0]  # of a run of six steps
LEVELS = torch.tensor([float(t + 1) for t in TIMES] + [0.0])  # a model whose sigma is t + 1


def percent(sigma):
    return 1 - (sigma - 1) / 999


def scheduled(plan, w, sigma, sigmas):
    """The cfg, for weight w = cfg - 1."""
    return plan.scheduled(w + 1, plan.schedule(presets.position(plan.axis, sigma, sigmas, 1000.0, percent)))


def half_cosine(p, s):
    return 0.5 - 0.5 * math.cos(math.pi * p**s)


@pytest.mark.parametrize(("w0", "w1"), [(0.4, 2.5), (3.0, 0.5), (1.0, 1.0)])
def test_edm2(w0, w1):
    for sigma in SIGMAS[:-1].tolist():
        slope = (w0 - w1) / (80 - 0.002)
        want = w0 + slope * (sigma - 80)
        assert scheduled(presets.linear("edm2", w0 / 2, w1 / 2), 2.0, sigma, SIGMAS) == pytest.approx(1 + want, abs=1e-5)
        assert scheduled(presets.cosine("edm2", 1.7), w0, sigma, SIGMAS) == pytest.approx(1 + w0 * half_cosine(1 - sigma / 80, 1.7), abs=1e-5)


@pytest.mark.parametrize(("w0", "w1"), [(0.4, 2.5), (3.0, 0.5)])
def test_dit(w0, w1):
    seen = []
    for t, sigma in zip(TIMES, LEVELS.tolist(), strict=False):
        k = (w1 - w0) / (0 - 1000)
        seen.append(scheduled(presets.linear("dit", w0, w1), 1.0, sigma, LEVELS) - 1)
        assert seen[-1] == pytest.approx(t * k + w0)
        cosine = half_cosine(1 - t / 1000, 2.0)
        assert scheduled(presets.cosine("dit", 2.0), w0, sigma, LEVELS) == pytest.approx(1 + w0 * cosine)
        assert scheduled(presets.cosine("dit_plain", 2.0), w0, sigma, LEVELS) == pytest.approx((w0 + 1) * cosine)
    assert seen[-1] == pytest.approx(w0), "at t = 0 it is the start, not the end"
    assert presets.linear("dit", w0, w1).schedule(0.0) == pytest.approx(2 * w0 - w1)


@pytest.mark.parametrize(("w0", "w1"), [(0.4, 2.5), (3.0, 0.5)])
def test_t2i(w0, w1):
    first, last = TIMES[0], TIMES[-1]
    for t, sigma in zip(TIMES, LEVELS.tolist(), strict=False):
        k = (w1 - w0) / (last - first)
        assert scheduled(presets.linear("t2i", w0, w1), 1.0, sigma, LEVELS) == pytest.approx(1 + k * (t - first) + w0)
        assert scheduled(presets.linear("t2i_plain", w0, w1), 0.0, sigma, LEVELS) == pytest.approx(k * (t - first) + w0)
        cosine = half_cosine((t - first) / (last - first), 0.5)
        assert scheduled(presets.cosine("t2i", 0.5), w0, sigma, LEVELS) == pytest.approx(1 + w0 * cosine)
        assert scheduled(presets.cosine("t2i_plain", 0.5), w0, sigma, LEVELS) == pytest.approx((w0 + 1) * cosine)


def test_intervals():
    dit = presets.interval("dit", 702, 203)
    assert [scheduled(dit, 2.0, sigma, LEVELS) for sigma in LEVELS[:-1].tolist()] == [1, 1, 3, 3, 3, 1]
    assert scheduled(dit, 2.0, 703.02, LEVELS) == 1, "t = 702.02 is outside"
    edm2 = presets.interval("edm2", 7.0, 0.05)
    assert [scheduled(edm2, 2.0, sigma, SIGMAS) for sigma in SIGMAS[:-1].tolist()] == [1, 1, 3, 3, 3, 1]


@pytest.mark.parametrize("axis", ["run_sigma", "first_sigma", "run_time", "step"])
def test_positions_without_a_known_run_take_the_models_range(axis):
    """A guider driven by hand. And a run of one step, whose first level is its last, divides by nothing."""
    ends = [presets.position(axis, sigma, None, 1000.0, percent) for sigma in (1000.0, 1.0)]
    assert ends == pytest.approx([0, 1], abs=2e-3)
    assert presets.position(axis, 5.0, torch.tensor([5.0, 0.0]), 1000.0, percent) == 0
    assert presets.position(axis, 2000.0, LEVELS, 1000.0, percent) in (0.0, pytest.approx(0.0))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: presets.linear("edm3", 1, 2), "edm3"), (lambda: presets.linear("dit_plain", 1, 2), "dit_plain"),
        (lambda: presets.cosine("edm2_plain", 1), "edm2_plain"), (lambda: presets.cosine("dit", -1), "-1"),
        (lambda: presets.interval("t2i", 2, 1), "t2i"), (lambda: presets.interval("dit", 200, 300), "300"),
        (lambda: presets.interval("edm2", math.nan, 0), "nan"),
    ],
)  # fmt: skip
def test_bad_values_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
