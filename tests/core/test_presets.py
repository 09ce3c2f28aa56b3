"""The authors' schedules: oracle, their formulas written out per code base in their own variables (weights w0, w1; t, sigma)."""

import math

import pytest

from reg_core import Band, presets
from reg_core.presets import CfgSchedule, Levels

SIGMAS = (80.0, 33.0, 7.0, 0.9, 0.05, 0.002)
TIMES = (951, 801, 702, 399, 203, 0)  # of a run of six steps
LEVELS = tuple(float(t + 1) for t in TIMES)  # a model whose sigma is t + 1


def percent(sigma):
    return 1 - (sigma - 1) / 999


def scheduled(schedule, w, sigma, sigmas):
    """The cfg, for weight w = cfg - 1."""
    return schedule.cfg(w + 1, sigma, Levels(sigmas, 1000.0, percent))


def half_cosine(p, s):
    return 0.5 - 0.5 * math.cos(math.pi * p**s)


@pytest.mark.parametrize(("w0", "w1"), [(0.4, 2.5), (3.0, 0.5), (1.0, 1.0)])
def test_edm2(w0, w1):
    for sigma in SIGMAS:
        slope = (w0 - w1) / (80 - 0.002)
        want = w0 + slope * (sigma - 80)
        assert scheduled(presets.linear("edm2", w0 / 2, w1 / 2), 2.0, sigma, SIGMAS) == pytest.approx(1 + want, abs=1e-5)
        assert scheduled(presets.cosine("edm2", 1.7), w0, sigma, SIGMAS) == pytest.approx(1 + w0 * half_cosine(1 - sigma / 80, 1.7), abs=1e-5)


@pytest.mark.parametrize(("w0", "w1"), [(0.4, 2.5), (3.0, 0.5)])
def test_dit(w0, w1):
    seen = []
    for t, sigma in zip(TIMES, LEVELS, strict=True):
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
    for t, sigma in zip(TIMES, LEVELS, strict=True):
        k = (w1 - w0) / (last - first)
        assert scheduled(presets.linear("t2i", w0, w1), 1.0, sigma, LEVELS) == pytest.approx(1 + k * (t - first) + w0)
        assert scheduled(presets.linear("t2i_plain", w0, w1), 0.0, sigma, LEVELS) == pytest.approx(k * (t - first) + w0)
        cosine = half_cosine((t - first) / (last - first), 0.5)
        assert scheduled(presets.cosine("t2i", 0.5), w0, sigma, LEVELS) == pytest.approx(1 + w0 * cosine)
        assert scheduled(presets.cosine("t2i_plain", 0.5), w0, sigma, LEVELS) == pytest.approx((w0 + 1) * cosine)


def test_intervals():
    dit = presets.interval("dit", 702, 203)
    assert [scheduled(dit, 2.0, sigma, LEVELS) for sigma in LEVELS] == [1, 1, 3, 3, 3, 1]
    assert scheduled(dit, 2.0, 703.02, LEVELS) == 1, "t = 702.02 is outside"
    edm2 = presets.interval("edm2", 7.0, 0.05)
    assert [scheduled(edm2, 2.0, sigma, SIGMAS) for sigma in SIGMAS] == [1, 1, 3, 3, 3, 1]


@pytest.mark.parametrize(("t", "inside"), [(502.5, False), (502.0001, True), (502, True), (205, True), (204.9999, True), (204.99, False)])
def test_intervals_in_training_steps_forgive_what_float32_sigmas_lose(t, inside):
    assert scheduled(presets.interval("dit", 502, 205), 2.0, t + 1, LEVELS) == (3 if inside else 1)


def test_the_users_axes():
    """Oracles: the index in the run, the model's time, and sigma over the model's largest, by hand."""
    for axis, want in (("step", [0, 0.2, 0.4, 0.6, 0.8, 1]), ("timestep", [1 - t / 999 for t in TIMES]), ("sigma", [1 - s / 1000 for s in LEVELS])):
        line = presets.linear(axis, 0.0, 1.0)
        assert [scheduled(line, 1.0, s, LEVELS) - 1 for s in LEVELS] == pytest.approx(want), axis
        assert [scheduled(presets.cosine(axis, 2.0), 1.0, s, LEVELS) - 1 for s in LEVELS] == pytest.approx([half_cosine(p, 2.0) for p in want])
    assert [scheduled(presets.interval("step", 0.2, 0.6), 2.0, s, LEVELS) for s in LEVELS] == [1, 3, 3, 3, 1, 1]
    assert [scheduled(presets.interval("timestep", 0.1, 0.3), 2.0, s, LEVELS) for s in LEVELS] == [1, 3, 3, 1, 1, 1]
    assert [scheduled(presets.interval("sigma", 703.0, 204.0), 2.0, s, LEVELS) for s in LEVELS] == [1, 1, 3, 3, 3, 1]


def test_a_multiplier_must_be_finite():
    with pytest.raises(ValueError, match="multiplier must be finite, got inf at sigma 7"):
        CfgSchedule(lambda p: math.inf, "step").cfg(3.0, 7.0, Levels(SIGMAS, 80.0, percent))
    assert CfgSchedule(Band(), "step").cfg(3.0, 7.0, Levels(SIGMAS, 80.0, percent)) == 3.0


@pytest.mark.parametrize("make", [lambda axis: presets.linear(axis, 0, 1), lambda axis: presets.cosine(axis, 1.0)])
@pytest.mark.parametrize("axis", ["edm2", "t2i", "step", "timestep", "sigma"])
def test_positions_without_a_known_run_take_the_models_range(make, axis):
    """A guider driven by hand: 0 at pure noise and 1 when clean. And a run of one step, whose first level is its last, divides by nothing."""
    schedule = make(axis)
    ends = [schedule.cfg(2.0, sigma, Levels((), 1000.0, percent)) - 1 for sigma in (1000.0, 1.0)]
    assert ends == pytest.approx([0, 1], abs=2e-3)
    if axis not in ("timestep", "sigma"):
        assert schedule.cfg(2.0, 5.0, Levels((5.0,), 1000.0, percent)) == 1
    if axis != "timestep":  # which is the model's own function
        assert schedule.cfg(2.0, 2000.0, Levels(LEVELS, 1000.0, percent)) == 1, "noise beyond the first level"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: presets.linear("edm3", 1, 2), "edm3"), (lambda: presets.linear("dit_plain", 1, 2), "dit_plain"),
        (lambda: presets.linear("step_plain", 1, 2), "step_plain"), (lambda: presets.cosine("edm2_plain", 1), "edm2_plain"),
        (lambda: presets.cosine("dit", -1), "-1"), (lambda: presets.interval("t2i", 2, 1), "t2i"),
        (lambda: presets.interval("dit", 200, 300), "300"), (lambda: presets.interval("edm2", math.nan, 0), "nan"),
        (lambda: presets.interval("step", 0.8, 0.2), "0.8"), (lambda: presets.interval("timestep", 0, 1.2), "1.2"),
        (lambda: presets.interval("sigma", 0.1, 0.5), "0.5"), (lambda: presets.interval("step", math.nan, 1), "nan"),
    ],
)  # fmt: skip
def test_bad_values_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
