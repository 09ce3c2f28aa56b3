"""Schedules against their formulas written out, and bad input by value."""

import math

import pytest
import torch

from reg_core import Constant, Cosine, Curve, Interval, Linear, SigmaInterval, sigma_position, step_position
from reg_core.schedule import Drawn, TimestepInterval, within


def test_formulas():
    assert Constant()(0.3) == 1
    assert [Linear(0.5, 2.5)(p) for p in (0, 0.25, 1)] == [0.5, 1.0, 2.5]
    assert Cosine(1)(0.5) == pytest.approx(0.5) and Cosine(1)(0) == 0 and Cosine(1)(1) == pytest.approx(1)
    assert Cosine(2)(0.5) == pytest.approx((1 - math.cos(math.pi * 0.25)) / 2)
    assert sum(Linear()(i / 999) for i in range(1000)) / 1000 == pytest.approx(1), "the default keeps the mean weight"


def test_intervals_are_closed_in_float32():
    assert [Interval(0.2, 0.8)(p) for p in (0.1999, 0.2, 0.8, 0.8001)] == [0, 1, 1, 0]
    sigma = torch.tensor(0.28).item()  # not 0.28 in double
    assert sigma != 0.28
    assert SigmaInterval(2.9, 0.28)(sigma) == 1 and SigmaInterval(0.28)(sigma) == 1
    assert not within(float(torch.nextafter(torch.tensor(0.28), torch.tensor(1.0))), 0.0, 0.28)


def test_curve():
    curve = Curve.parse("0.2:1, 0.6:3;1:0")
    assert [curve(p) for p in (0, 0.2, 0.4, 0.6, 0.8, 1)] == pytest.approx([1, 1, 2, 3, 1.5, 0])


def test_intervals_in_training_steps_forgive_what_float32_sigmas_lose():
    dit = TimestepInterval(502, 205)
    assert [dit(t) for t in (502.5, 502.0001, 502, 204.9999, 204.99)] == [0, 1, 1, 1, 0]


def test_drawn_curves_are_asked_at_the_position_and_must_be_finite():
    assert Drawn(lambda p: p * p)(0.5) == 0.25
    with pytest.raises(ValueError, match="multiplier must be finite, got inf"):
        Drawn(lambda p: math.inf)(0.5)


@pytest.mark.parametrize(
    "make,match",
    [
        (lambda: Curve.parse("0:1, x:2"), "x:2"), (lambda: Curve.parse("0.5:1, 0.4:2"), "0.4"), (lambda: Curve.parse("0:1, 1.5:2"), "1.5"),
        (lambda: Curve.parse("0:nan"), "nan"), (lambda: Curve.parse(" "), "at least one point"), (lambda: Cosine(0), "0"), (lambda: Cosine(math.nan), "nan"),
        (lambda: Interval(0.8, 0.2), "0.8"), (lambda: Interval(0, 1.2), "1.2"), (lambda: SigmaInterval(0.1, 0.5), "0.5"), (lambda: Linear(math.inf, 1), "inf"),
        (lambda: TimestepInterval(200, 300), "300"),
    ],
)  # fmt: skip
def test_bad_values_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_positions():
    sigmas = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0])
    assert [step_position(s, sigmas) for s in (20, 10, 5, 3.5, 2, 1, 0.5)] == pytest.approx([0, 0, 1 / 3, 0.5, 2 / 3, 1, 1])
    assert step_position(3.0, torch.tensor([3.0, 0.0])) == 0
    assert [sigma_position(s, 80.0) for s in (100, 80, 40, 0)] == [0, 0, 0.5, 1]
