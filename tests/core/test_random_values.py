"""Random values for Settings, tables and schedules: a result that gives finite numbers, or one short line. Oracle: arithmetic."""

import math

import torch
from anything import anything, drawn, numbers, outcome, tensors
from hypothesis import given
from hypothesis import strategies as st

from reg_core import FORMS, Band, Calibration, Cosine, Curve, Linear, Settings, Space, karras_sigmas
from reg_core.evaluation import template as templates
from reg_core.evaluation.plan import Plan, points
from reg_core.presets import COSINE_PRESETS, VARIABLES, CfgSchedule, Levels, cosine, interval, linear
from reg_core.schedule import AXES
from reg_core.settings import ENGINES

SIGMAS = torch.tensor([0.0, 1e-30, 1e-3, 1.0, 300.0, 1e20, 3e38, math.inf])
LEVELS = Levels((14.0, 3.0, 0.5, 0.03), 14.6, lambda sigma: 1 / (1 + sigma))
TABLE = Calibration(torch.ones(1), 0.5 * torch.ones(1), torch.zeros(1), "scalar")
words = st.sampled_from([*FORMS, *ENGINES, *AXES, *COSINE_PRESETS, *VARIABLES, "scale", ""])


def or_other(usual):
    """Usual values, and in between whatever there is."""
    return st.one_of(usual, usual, usual, usual, anything)


@drawn
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "form": or_other(st.sampled_from(FORMS)), "engine": or_other(st.sampled_from(ENGINES)), "gain": or_other(numbers), "strength": or_other(numbers),
            "refresh": or_other(st.integers(1, 99)), "skip_below": or_other(st.floats(0, 1)), "data_std": or_other(numbers), "sigma_start": or_other(numbers),
            "sigma_end": or_other(st.just(0.0)), "calibration": or_other(st.sampled_from([None, TABLE])),
        },
    )
)  # fmt: skip
def test_settings(values):
    settings = outcome(lambda: Settings(**values))
    if settings is not None:
        assert math.isfinite(settings.applied(1.0)) and "REG" in settings.title and isinstance(settings.why_plain(1.0, SIGMAS[3:4]), str)
        if settings.free:
            assert torch.isfinite(settings.free_factor(SIGMAS)).all()


@drawn
@given(st.lists(or_other(tensors()), min_size=3, max_size=3), or_other(words), st.fixed_dictionaries({}, optional={"prediction": anything, "notes": anything}))
def test_tables(parts, form, about):
    table = outcome(lambda: Calibration(*parts, form, **about))
    if table is not None:
        assert torch.isfinite(table(SIGMAS)).all() and "\n" not in table.summary()


@drawn
@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(-4, 5)), min_size=1, max_size=5, unique_by=lambda pair: round(pair[0], 3)))
def test_tables_near_the_usual_ones(pairs):
    sigma, factor = (torch.tensor(part) for part in zip(*sorted(pairs), strict=True))
    table = outcome(lambda: Calibration(sigma, factor, torch.zeros_like(sigma), "scalar"))
    assert (table is not None) == bool((factor - 0.5).abs().max() <= 2)
    if table is not None:
        assert torch.isfinite(table(SIGMAS)).all() and torch.allclose(table(sigma), factor, atol=1e-4)


@drawn
@given(or_other(words), anything, anything, st.lists(st.tuples(or_other(st.floats(0, 1)), or_other(numbers)), max_size=4), st.booleans())
def test_schedules(word, a, b, pairs, of_cfg):
    makers = [
        lambda: linear(word, a, b), lambda: cosine(word, a), lambda: interval(word, a, b), lambda: CfgSchedule(Linear(a, b), word, of_cfg),
        lambda: CfgSchedule(Cosine(a), "step"), lambda: CfgSchedule(Band(a, b), "sigma"), lambda: CfgSchedule(Curve(tuple(pairs)), "timestep"),
    ]  # fmt: skip
    for make in makers:
        schedule = outcome(make)
        if schedule is not None:
            assert all(math.isfinite(schedule.cfg(cfg, sigma, LEVELS)) for cfg in (0.0, 1.0, 100.0) for sigma in (14.6, 3.0, 0.03, 0.0))


@drawn
@given(st.text(alphabet="0123456789.:,;-+enaif \n", max_size=40))
def test_curves_as_text(text):
    curve = outcome(lambda: Curve.parse(text))
    assert curve is None or all(math.isfinite(curve(p)) for p in (0.0, 0.3, 1.0))


@drawn
@given(anything, anything, anything, anything)
def test_the_small_doors(a, b, c, d):
    for make in (lambda: Space(a), lambda: karras_sigmas(3, a, b, c), lambda: points(a, b), lambda: Plan.from_json(a), lambda: templates.resolve({}, a)):
        outcome(make)
    outcome(lambda: templates.check_api({"1": a, "2": {"class_type": b, "inputs": c, "_meta": d}}))
