"""What a run leaves behind. Oracles: the call's own tensors by hand, NumPy in float64."""

import math

import numpy as np
import pytest
import torch
from oracles import counted_pair

from reg_core import Branches, Calibration, Guided, Point, Rectified, Rectifier, Row, Run, Settings, Trace, karras_sigmas, sample_heun
from reg_core.trace import WINDOW, mean_share

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
POINT = Point.of(X, torch.tensor([0.5, 1.5]))


def test_numbers_are_those_of_the_call():
    cond, reference = counted_pair()
    rectifier = Rectifier(Settings(form="row_sum"))
    result = rectifier(Branches(cond, reference), POINT, weight=4.0)
    (row,) = rectifier.run.rows
    v = result.denoised - result.reference
    factor = result.rectified / v
    assert row.sigma == pytest.approx(1.5) and row.cfg == 5.0 and row.fresh and not row.skipped
    assert row.guidance_norm == pytest.approx(4 * v.square().mean().sqrt().item(), rel=1e-5)
    assert row.rectified_norm == pytest.approx(4 * result.rectified.square().mean().sqrt().item(), rel=1e-5)
    assert row.correction_mean == pytest.approx(factor.mean().item(), rel=1e-3)
    assert row.correction_max == pytest.approx(factor.max().item(), rel=1e-3)
    assert row.share == pytest.approx(float((v * result.rectified).sum() / (v * v).sum()), rel=1e-4) and row.sigma_ve == 1.5
    assert rectifier.run.share == row.share and rectifier.run.estimated_gain == pytest.approx(1 / row.share)
    assert 0 < row.seconds < 60 and rectifier.run.seconds == row.seconds
    assert not any(isinstance(value, torch.Tensor) for value in vars(row).values()), "no tensor stays behind once read"
    assert "row_sum" in rectifier.run.summary() and "J 1" in rectifier.run.table()


def calls(count, elementwise, seed=0, shape=(2, 3, 4, 5)):
    """(sigma, v, Rectified, weight, error)."""
    g = torch.Generator().manual_seed(seed)
    for i in range(count):
        v = torch.randn(shape, generator=g)
        factor = torch.rand(shape if elementwise else (shape[0], *[1] * (len(shape) - 1)), generator=g)
        bad = torch.tensor([False, i == 1])
        error = torch.tensor(0.25) if i % 2 else None
        yield torch.tensor([1.0 + i, 0.5]), v, Rectified(factor * v, factor, bad), -2.0 - i, error


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 7), (2,)])
def test_rows_read_at_the_end_are_those_of_each_call(shape):
    """Oracle: float64 by NumPy, a call at a time."""
    run, seen = Run(Settings()), [*calls(3, True, shape=shape), *calls(2, False, 1, shape), *calls(2, True, 2, shape)]
    for sigma, v, rectified, weight, error in seen:
        run.rectified(Row(cfg=1 + weight, engine="finite_difference"), Point.of(v, sigma), v, rectified, rectified, error)
    for row, (sigma, v, rectified, weight, error) in zip(run.rows, seen, strict=True):
        v, moved, factor = (t.double().numpy() for t in (v, rectified.vector, rectified.factor))
        want = dict(sigma=float(sigma.max()), guidance_norm=abs(weight) * (v**2).mean() ** 0.5, correction_mean=factor.mean())
        want |= dict(rectified_norm=abs(weight) * (moved**2).mean() ** 0.5, correction_min=factor.min(), correction_max=factor.max())
        want |= dict(nonfinite=float(rectified.bad.sum()), error=math.nan if error is None else 0.25, cfg=1 + weight)
        assert {name: getattr(row, name) for name in want} == pytest.approx(want, rel=1e-5, nan_ok=True)
        near = [abs(row.correction_low - np.quantile(factor, 0.05)), abs(row.correction_high - np.quantile(factor, 0.95))]
        assert max(near) < 0.05 or factor.size < 50
        assert ("non-finite correction in 1" in row.note) == bool(rectified.bad.any())
    elementwise = [rectified.factor.mean(1) for _, _, rectified, _, _ in seen if rectified.factor.ndim > 2 and rectified.factor.numel() > 2]
    if elementwise:
        assert torch.allclose(run.heat, sum(elementwise) / 5, atol=1e-6)
    else:
        assert run.heat is None, "a number a sample, or a row of numbers, is no image"


def test_quantiles_of_a_large_factor():
    """They are taken of some of the elements. Oracle: the quantiles of all."""
    factor = torch.rand(2, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    v = torch.ones_like(factor)
    run, whole = Run(Settings()), Rectified(factor * v, factor, torch.zeros(2, dtype=torch.bool))
    run.rectified(Row(cfg=2.0), Point.of(v, torch.ones(2)), v, whole, whole)
    (row,) = run.rows
    assert (row.correction_low, row.correction_high) == pytest.approx((0.05, 0.95), abs=0.02)


def test_plain_calls_stand_in_the_trace_with_their_reason():
    run = Run(Settings())
    row = run.plain(torch.tensor([2.0, 3.0]), 1.0, "cfg 1: no guidance to rectify")
    assert row is run.rows[0] and (row.sigma, row.cfg, row.active) == (3.0, 1.0, False) and math.isnan(row.guidance_norm)
    run.plain(torch.tensor([1.0]), 4.0, "negligible", skipped=True, extra_rows=-1)
    assert [r.skipped for r in run.rows] == [False, True] and run.extra_rows == -1 and not run.active and math.isnan(run.share)
    assert run.summary() == "form row_sum: did nothing in 2 model calls"
    assert "[cfg 1: no guidance to rectify]" in str(run)


def test_time_stands_only_where_it_was_measured():
    """A clock of a GPU would tell when kernels were launched: such rows have none."""
    run = Run(Settings(), _rows=[Row(cfg=2.0, engine="reverse", guidance_norm=1.0, rectified_norm=0.5, correction_mean=0.5, seconds=math.nan)])
    assert math.isnan(run.seconds) and not run.summary().endswith(" s")
    run = Run(Settings(), _rows=[Row(cfg=2.0, seconds=0.5, engine="reverse", guidance_norm=1.0, rectified_norm=0.5)])
    assert run.seconds == 0.5 and run.summary().endswith("0.50 s")


def test_a_trace_keeps_the_newest_runs():
    trace = Trace(keep=3)
    assert trace.last is None and "nothing has been sampled" in str(trace)
    runs = [trace.start(Run()) for _ in range(5)]
    assert list(map(id, trace.runs)) == list(map(id, runs[2:])) and trace.last is runs[4]


def test_remarks_are_made_once():
    run = Run()
    assert run.remark("a") and not run.remark("a") and run.notes == ["a"]


def test_a_heat_map_for_each_latent_that_a_host_packs_into_one():
    """Oracle: the maps of both parts by themselves."""
    video, sound = torch.rand(2, 3, 2, 4, 4), torch.rand(2, 1, 5)
    factor = torch.cat([video.reshape(2, 1, -1), sound.reshape(2, 1, -1)], 2)
    run, whole = Run(Settings(), shapes=[video.shape, sound.shape]), Rectified(factor * factor, factor)
    run.rectified(Row(cfg=2.0), Point.of(factor, torch.ones(2)), factor, whole, whole)
    for got, want in zip(run.heats, (video.mean(1), sound.mean(1)), strict=True):
        assert torch.allclose(got, want)
    assert len(Run(Settings()).heats) == 0


SIGMAS = karras_sigmas(20, 0.05, 40.0)


def sampled(settings, data_std=0.7):
    """The trace of one Heun run on Gaussian data with that standard deviation, where R is c(sigma)."""

    def denoiser(mean):
        return lambda x, sigma: mean + (x - mean) * data_std**2 / (data_std**2 + sigma.reshape(-1, 1) ** 2)

    x = 40 * torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    guided = Guided(denoiser(1.0), denoiser(-1.0), 3.0, settings)
    sample_heun(guided, x, SIGMAS.double())
    return guided.trace.last


def mean_of_c(data_std, low, high, count=20001):
    """Mean of V / (V + sigma^2) over log sigma, by the midpoint rule."""
    place = np.log(low) + (np.arange(count) + 0.5) / count * np.log(high / low)
    return float(np.mean(data_std**2 / (data_std**2 + np.exp(2 * place))))


@pytest.mark.parametrize("form", ["row_sum", "scalar", "schedule"])
def test_the_share_is_a_mean_over_log_sigma(form):
    """Oracle: the integral for Gaussian data. Neither refresh nor skipping moves it by more than 5 %."""
    same = {"form": form, "data_std": 0.7}
    want = mean_of_c(0.7, *(0.7 * bound for bound in WINDOW))
    shares = [sampled(Settings(**same, **more)).share for more in ({}, {"refresh": 8}, {"skip_below": 0.05})]
    assert shares == pytest.approx([want] * 3, rel=0.05)
    assert any(row.skipped for row in sampled(Settings(**same, skip_below=0.05)).rows)


def test_gain_and_strength_are_in_the_share_and_not_in_the_estimate():
    plain = sampled(Settings(form="schedule", data_std=0.7))
    more = sampled(Settings(form="schedule", data_std=0.7, gain=2.5, strength=0.5))
    assert more.estimated_gain == pytest.approx(plain.estimated_gain, rel=1e-4) == 1 / plain.share
    assert more.share == pytest.approx(1 + 0.5 * (2.5 * plain.share - 1), rel=1e-4)
    assert f"{100 * more.share:.0f} % of plain guidance, estimated gain {more.estimated_gain:.1f}" in more.summary()


def test_noise_levels_outside_of_the_window_are_used_where_there_are_no_others():
    assert mean_share([100.0, 50.0], [0.2, 0.4], 1.0) == pytest.approx(0.3)
    assert mean_share([100.0], [0.2], 1.0) == pytest.approx(0.2)


def test_equal_prompts_leave_nothing_to_measure():
    run = Rectifier(Settings(form="schedule"))
    run(Branches(lambda x, sigma: x / 2, lambda x, sigma: x / 2), POINT)
    assert math.isnan(run.run.share) and "did nothing in 1 model calls" in run.run.summary()
    assert run.run.active == [] and "both prompts give the same prediction" in run.run.rows[0].note


def test_the_estimated_gain_of_a_free_form_does_not_depend_on_skip_below():
    """A table of another slope than Gaussian data has. Oracle: the mean of its formula over log sigma."""
    sigma = torch.logspace(-2, 2, 200)
    table = Calibration(sigma, (1 / (1 + sigma**2)).sqrt(), torch.zeros(200), "scalar")
    runs = [sampled(Settings(form="calibrated", calibration=table, skip_below=share)) for share in (0.0, 0.05, 0.5)]
    gains, skipped = [run.estimated_gain for run in runs], [sum(row.skipped for row in run.rows) for run in runs]
    assert skipped[0] == 0 < skipped[1] < skipped[2] < len(runs[2].rows)
    levels = np.geomspace(*WINDOW, 20001)
    assert gains == pytest.approx([1 / np.mean((1 + levels**2) ** -0.5)] * 3, rel=0.02)
    assert gains[1:] == pytest.approx(gains[:1] * 2, rel=1e-4)
