"""The run: order of evaluation, fallbacks, reuse, bad input. Oracles: counted calls and plain guidance."""

import logging
import math

import numpy as np
import oracles
import pytest
import torch

from reg_core import Branches, Guided, Rectifier, Settings, karras_sigmas, sample_euler, sample_heun, trace
from reg_core.measured import Call
from reg_core.trace import Row, Run

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.5, 1.5])


class Counted:
    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return self.f(x, sigma)


def pair():
    net = oracles.SmallNet(48, torch.float32)
    label = torch.ones(2, dtype=torch.long)
    return Counted(lambda x, s: net(x, s, label[: len(x)])), Counted(lambda x, s: net(x, s, 0 * label[: len(x)]))


@pytest.mark.parametrize(
    "form,engine,cond_calls",
    [
        ("row_sum", "auto", 2), ("scalar", "auto", 2), ("product", "auto", 2), ("schedule", "auto", 1),
        # derivatives: one self-check in the first call of a run, after that
        ("row_sum", "reverse", 1), ("scalar", "reverse", 1), ("product", "reverse", 1),
        ("row_sum", "forward", 1), ("scalar", "forward", 2), ("product", "forward", 2),
    ],
)  # fmt: skip
def test_model_calls(form, engine, cond_calls):
    cond, reference = pair()
    rectifier = Rectifier(Settings(form=form, engine=engine))
    rectifier(Branches(cond, reference), X, SIGMA)
    first = cond.calls, reference.calls
    rectifier(Branches(cond, reference), X, SIGMA)
    second = cond.calls - first[0], reference.calls - first[1]
    assert second == (cond_calls, 1)
    assert first == (cond_calls + (engine in ("reverse", "forward")), 1)
    assert rectifier.engine == ("finite_difference" if engine == "auto" else engine)
    rows = rectifier.run.rows
    assert sum(r.extra_rows for r in rows) == cond.calls - len(rows)


@pytest.mark.parametrize("settings", [Settings(strength=0), Settings(form="off")])
def test_off_is_plain_guidance_to_the_bit_without_extra_calls(settings):
    cond, reference = pair()
    sigmas = karras_sigmas(6, 0.1, 5.0)
    ours = sample_heun(Guided(cond, reference, 2.0, settings), X, sigmas)
    assert cond.calls == reference.calls == 11
    want = sample_heun(lambda x, s: cond.f(x, s) + 2.0 * (cond.f(x, s) - reference.f(x, s)), X, sigmas)
    assert torch.equal(ours, want.detach())


def test_weight_zero_skips_the_reference():
    cond, reference = pair()
    guided = Guided(cond, reference, lambda sigma: 2.0 if sigma < 1 else 0.0)
    sample_euler(guided, X, karras_sigmas(6, 0.1, 5.0))
    active = len(guided.trace.last.active)
    assert 0 < active < 6 and reference.calls == active
    assert [r.cfg for r in guided.trace.last.rows if not r.active] == [1.0] * (6 - active)


def test_sigma_bounds_are_closed():
    cond, reference = pair()
    sigmas = karras_sigmas(6, 0.1, 5.0)
    settings = Settings(sigma_start=float(sigmas[1]), sigma_end=float(sigmas[3]))
    guided = Guided(cond, reference, 2.0, settings)
    sample_euler(guided, X, sigmas)
    assert [r.active for r in guided.trace.last.rows] == [False, True, True, True, False, False]


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
def test_refresh_reuses_and_recomputes(form):
    cond, reference = pair()
    sigmas = karras_sigmas(7, 0.1, 5.0)
    guided = Guided(cond, reference, 2.0, Settings(form=form, refresh=3))
    sample_euler(guided, X, sigmas)
    assert [r.fresh for r in guided.trace.last.rows] == [True, False, False, True, False, False, True]
    assert cond.calls == 7 + 3
    again = Guided(cond, reference, 2.0, Settings(form=form, refresh=3))
    again(X, 0.1), again(X, 5.0)
    assert [r.fresh for r in again.trace.last.rows] == [True, True], "noise went up: a restart must not reuse"
    again(X[:1], 4.0)
    assert again.trace.last.rows[-1].fresh, "another batch size must not reuse"
    guided.reset()
    guided(X, 0.1)
    assert guided.trace.last.rows[0].fresh, "a new run must not reuse"


def test_refresh_of_product_is_exact_where_nothing_moved():
    cond, reference = pair()
    once = Rectifier(Settings(form="product", refresh=2))
    first, second = (once(Branches(cond, reference), X, SIGMA) for _ in range(2))
    assert not once.run.rows[1].fresh
    assert torch.allclose(first.rectified, second.rectified, atol=1e-5)


class NoDerivative(torch.autograd.Function):
    """An operation like a fused inference kernel: right values, no derivative of either kind."""

    @staticmethod
    def forward(x):
        return x * 1.5

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


class SilentZero(torch.autograd.Function):
    """Worse: a derivative that is silently wrong."""

    @staticmethod
    def forward(x):
        return x * 1.5

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 0 * grad

    @staticmethod
    def jvp(ctx, tangent):
        return 0 * tangent


@pytest.mark.parametrize("kernel,why", [(NoDerivative, "failed"), (SilentZero, "self-check")])
@pytest.mark.parametrize("engine", ["reverse", "forward"])
@pytest.mark.parametrize("form", ["row_sum", "product"])
def test_kernels_without_derivative_fall_back_loudly_and_once(kernel, why, engine, form, caplog):
    def branches():
        return Branches(lambda x, s: kernel.apply(x) + 0.1, lambda x, s: 0.5 * x)

    rectifier = Rectifier(Settings(form=form, engine=engine))
    with caplog.at_level(logging.WARNING):
        results = [rectifier(branches(), X, SIGMA) for _ in range(3)]
    for result in results:
        assert torch.allclose(result.rectified, 1.5 * (result.denoised - result.reference), rtol=1e-3, atol=1e-4)
    assert [r.engine for r in rectifier.run.rows] == ["finite_difference"] * 3
    assert len([m for m in caplog.messages if engine in m and why in m]) == 1
    assert len(rectifier.run.notes) == 1 and engine in rectifier.run.notes[0]
    assert rectifier.run.rows[0].note and not rectifier.run.rows[1].note


def test_a_hosts_cancel_is_never_caught():
    class Cancel(RuntimeError):
        pass

    calls = []

    def cond(x, s):
        calls.append(1)
        if len(calls) == 1:  # a fallback would go on
            raise Cancel
        return x

    rectifier = Rectifier(Settings(engine="reverse"), fatal=(Cancel,))
    with pytest.raises(Cancel):
        rectifier(Branches(cond, lambda x, s: x), X, SIGMA)
    assert len(calls) == 1


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_correction_leaves_plain_guidance_for_that_sample_only(form, value):
    calls = []

    def cond(x, s):
        calls.append(1)
        out = 0.5 * x
        if len(calls) > 1:  # the probe only
            out = out.clone()
            out[0, 0, 0, 0] = value
        return out

    rectifier = Rectifier(Settings(form=form))
    result = rectifier(Branches(cond, lambda x, s: 0.2 * x), X, SIGMA)
    v = result.denoised - result.reference
    assert torch.equal(result.rectified[0], v[0])
    assert torch.allclose(result.rectified[1], 0.5 * v[1], rtol=1e-2, atol=1e-3)
    row = rectifier.run.rows[0]
    assert row.nonfinite == 1 and "non-finite" in row.note
    assert math.isfinite(row.correction_mean)


@pytest.mark.parametrize(
    "bad,match",
    [
        (dict(form="rowsum"), "rowsum"), (dict(engine="jvp"), "jvp"), (dict(strength=math.nan), "nan"), (dict(strength=math.inf), "inf"),
        (dict(refresh=-1), "-1"), (dict(refresh=1.5), "1.5"), (dict(skip_below=-0.5), "-0.5"), (dict(skip_below=math.nan), "nan"),
            (dict(form="calibrated"), "none is given"), (dict(memory="huge"), "huge"),
        (dict(refresh="2"), "'2'"), (dict(refresh=math.inf), "inf"), (dict(strength=None), "strength.*None"),
        (dict(data_std=0.0), "0.0"), (dict(data_std=-2.0), "-2.0"),
        (dict(sigma_start=0.1, sigma_end=0.5), "0.5"), (dict(sigma_end=-1.0), "-1.0"),
    ],
)  # fmt: skip
def test_settings_refuse_bad_values_by_name(bad, match):
    with pytest.raises(ValueError, match=match):
        Settings(**bad)


@pytest.mark.parametrize(
    "bad,match",
    [
        (dict(weight=math.nan), "weight.*nan"), (dict(weight="2"), "weight.*'2'"), (dict(reference=None), "reference.*None"),
        (dict(settings="row_sum"), "Settings.*'row_sum'"), (dict(space="vp"), "space.*'vp'"),
    ],
)  # fmt: skip
def test_guided_refuses_bad_values_by_name(bad, match):
    with pytest.raises(ValueError, match=match):
        Guided(**(dict(cond=lambda x, s: x, reference=lambda x, s: x) | bad))


@pytest.mark.parametrize("name", ["cond", "reference"])
def test_predictions_of_another_shape_are_refused_not_broadcast(name):
    branches = {"cond": lambda x, s: 0.5 * x, "reference": lambda x, s: 0.2 * x} | {name: lambda x, s: x[:, :1]}
    with pytest.raises(ValueError, match=rf"{name} returned shape \(2, 1, 4, 4\) for x of shape \(2, 3, 4, 4\)"):
        Guided(**branches)(X, SIGMA)


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        Settings().form = "off"


def test_trace_numbers_are_those_of_the_call():
    cond, reference = pair()
    rectifier = Rectifier(Settings(form="row_sum"))
    result = rectifier(Branches(cond, reference), X, SIGMA, weight=4.0)
    row = rectifier.run.rows[0]
    v = result.denoised - result.reference
    factor = result.rectified / v
    assert row.sigma == pytest.approx(1.5) and row.cfg == 5.0
    assert row.guidance_norm == pytest.approx(4 * v.square().mean().sqrt().item(), rel=1e-5)
    assert row.rectified_norm == pytest.approx(4 * result.rectified.square().mean().sqrt().item(), rel=1e-5)
    assert row.correction_mean == pytest.approx(factor.mean().item(), rel=1e-3)
    assert row.correction_max == pytest.approx(factor.max().item(), rel=1e-3)
    assert rectifier.run.effective_cfg == pytest.approx(1 + 4 * row.rectified_norm / row.guidance_norm, rel=1e-5)
    assert not any(isinstance(value, torch.Tensor) for value in vars(row).values()), "no tensor stays behind once read"
    assert not rectifier.run._calls and not rectifier.run._measured
    assert "row_sum" in rectifier.run.summary() and "J 1" in rectifier.run.table()


def _calls(count, elementwise, seed=0, shape=(2, 3, 4, 5)):
    g = torch.Generator().manual_seed(seed)
    for i in range(count):
        v = torch.randn(shape, generator=g)
        factor = torch.rand(shape if elementwise else (shape[0], 1, 1, 1), generator=g)
        bad = torch.tensor([False, i == 1])
        known = {"moved": torch.tensor(0.5 * i), "error": torch.tensor(0.25)} if i % 2 else {}
        yield Call(torch.tensor([1.0 + i, 0.5]), v, factor * v, factor, bad, weight=-2.0 - i, **known)


@pytest.mark.parametrize("held", [0, 3000, 10**9])
def test_numbers_made_later_are_those_of_each_call(monkeypatch, held):
    """Oracle: float64 by NumPy, a call at a time. `held`: each call by itself, some together, all at the end."""
    monkeypatch.setitem(trace.HELD, "cpu", held)
    run = Run("row_sum")
    calls = [*_calls(3, True), *_calls(2, False, 1), *_calls(2, True, 2)]
    for call in calls:
        run.saw(run.add(Row(engine="finite_difference")), call)
    assert (len(run._calls), len(run._measured)) == {0: (0, 7), 3000: (1, 3), 10**9: (7, 0)}[held]
    for row, call in zip(run.rows, calls, strict=True):
        v, rectified, factor = (t.double().numpy() for t in (call.vector, call.rectified, call.factor))
        want = dict(sigma=float(call.sigma.max()), guidance_norm=abs(call.weight) * (v**2).mean() ** 0.5, correction_mean=factor.mean())
        want |= dict(rectified_norm=abs(call.weight) * (rectified**2).mean() ** 0.5, correction_min=factor.min(), correction_max=factor.max())
        want |= dict(nonfinite=float(call.bad.sum()), moved=math.nan if call.moved is None else float(call.moved))
        want |= dict(error=math.nan if call.error is None else 0.25)
        assert {name: getattr(row, name) for name in want} == pytest.approx(want, rel=1e-5, nan_ok=True)
        assert abs(row.correction_low - np.quantile(factor, 0.05)) < 0.05 and abs(row.correction_high - np.quantile(factor, 0.95)) < 0.05 or factor.size == 2
        assert ("non-finite correction in 1" in row.note) == bool(call.bad.any())
    heat = sum(call.factor.mean(1) for call in calls if call.factor.numel() > 2) / 5
    assert torch.allclose(run.heat, heat, atol=1e-6) and not run._calls and not run._measured


def test_a_run_that_nobody_read_lets_go_of_its_tensors():
    """At the next run at the latest. Its numbers stay."""
    kept = trace.Trace()
    first = kept.start(Run("row_sum"))
    (call,) = _calls(1, True)
    first.saw(first.add(Row(engine="finite_difference")), call)
    assert len(first._calls) == 1
    kept.start(Run("row_sum"))
    assert not first._calls and first.rows[0].correction_mean == pytest.approx(float(call.factor.mean()))


def test_numbers_of_large_calls_are_not_put_off():
    """What calls may hold is bounded by their bytes: three tensors of 4 MB each are over it, and of 200 KB on a CPU."""
    for shape in ((2, 8, 256, 256), (2, 1, 160, 160)):
        run = Run("row_sum")
        run.saw(run.add(Row()), next(_calls(1, True, shape=shape)))
        assert not run._calls and len(run._measured) == 1
