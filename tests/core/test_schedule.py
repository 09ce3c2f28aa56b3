"""Schedules against their formulas written out, and bad input by value."""

import math

import pytest
import torch

from reg_core import Band, Cosine, Curve, Linear, sigma_position, step_position
from reg_core.schedule import within


def test_formulas():
    assert [Linear(0.5, 2.5)(p) for p in (0, 0.25, 1)] == [0.5, 1.0, 2.5]
    assert Cosine(1)(0.5) == pytest.approx(0.5) and Cosine(1)(0) == 0 and Cosine(1)(1) == pytest.approx(1)
    assert Cosine(2)(0.5) == pytest.approx((1 - math.cos(math.pi * 0.25)) / 2)
    assert sum(Linear()(i / 999) for i in range(1000)) / 1000 == pytest.approx(1), "the default keeps the mean weight"


def test_bands_are_closed_in_float32():
    assert [Band()(p) for p in (0.0, 0.3, 1.0)] == [1, 1, 1]
    assert [Band(0.2, 0.8)(p) for p in (0.1999, 0.2, 0.8, 0.8001)] == [0, 1, 1, 0]
    sigma = torch.tensor(0.28).item()  # not 0.28 in double
    assert sigma != 0.28
    assert Band(0.28, 2.9)(sigma) == 1 and Band(0.0, 0.28)(sigma) == 1
    assert not within(float(torch.nextafter(torch.tensor(0.28), torch.tensor(1.0))), 0.0, 0.28)
    assert Band(0.5, math.inf)(1e30) == 1


def test_curve():
    curve = Curve.parse("0.2:1, 0.6:3;1:0")
    assert [curve(p) for p in (0, 0.2, 0.4, 0.6, 0.8, 1)] == pytest.approx([1, 1, 2, 3, 1.5, 0])


@pytest.mark.parametrize(
    "make,match",
    [
        (lambda: Curve.parse("0:1, x:2"), "x:2"), (lambda: Curve.parse("0.5:1, 0.4:2"), "0.4"), (lambda: Curve.parse("0:1, 1.5:2"), "1.5"),
        (lambda: Curve.parse("0:nan"), "nan"), (lambda: Curve.parse(" "), "one or more pairs"), (lambda: Cosine(0), "0"), (lambda: Cosine(math.nan), "nan"),
        (lambda: Band(0.8, 0.2), "0.8"), (lambda: Band(-0.1, 0.5), "-0.1"), (lambda: Band(0.1, math.nan), "nan"), (lambda: Band(math.nan, 1.0), "nan"),
        (lambda: Linear(math.inf, 1), "inf"),
    ],
)  # fmt: skip
def test_bad_values_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_positions():
    sigmas = [10.0, 5.0, 2.0, 1.0, 0.0]
    assert [step_position(s, sigmas) for s in (20, 10, 5, 3.5, 2, 1, 0.5)] == pytest.approx([0, 0, 1 / 3, 0.5, 2 / 3, 1, 1])
    assert [step_position(s, sigmas[:-1]) for s in (20, 3.5, 0.5)] == pytest.approx([0, 0.5, 1]), "a closing 0 does not count"
    assert step_position(3.0, [3.0, 0.0]) == 0 and step_position(3.0, []) == 0
    assert [sigma_position(s, 80.0) for s in (100, 80, 40, 0)] == [0, 0, 0.5, 1]
