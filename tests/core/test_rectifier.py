"""The run: order of evaluation, fallbacks, bad input. Oracles: counted calls, plain guidance, exact products."""

import logging
import math

import pytest
import torch
from oracles import counted_pair
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reg_core import Branches, Guided, Point, Rectifier, Settings, expand, karras_sigmas, sample_euler, sample_heun

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.5, 1.5])
POINT = Point.of(X, SIGMA)


@pytest.mark.parametrize(
    "form,engine,cond_calls",
    [
        ("row_sum", "auto", 2), ("scalar", "auto", 2), ("product", "auto", 2), ("schedule", "auto", 1),
        # derivatives: a self-check along four directions in the first call of a run, after that
        ("row_sum", "reverse", 1), ("scalar", "reverse", 1), ("product", "reverse", 1),
    ],
)  # fmt: skip
def test_model_calls(form, engine, cond_calls):
    cond, reference = counted_pair()
    rectifier = Rectifier(Settings(form=form, engine=engine))
    rectifier(Branches(cond, reference), POINT)
    first = cond.calls, reference.calls
    rectifier(Branches(cond, reference), POINT)
    second = cond.calls - first[0], reference.calls - first[1]
    assert second == (cond_calls, 1)
    assert first == (cond_calls + 4 * (engine == "reverse"), 1)
    rows = rectifier.run.rows
    used = "none needed" if form == "schedule" else "finite_difference" if engine == "auto" else engine
    assert {r.engine for r in rows} == {used}
    assert sum(r.extra_rows for r in rows) == cond.calls - len(rows)


class Remembered(Branches):
    """A host that answers `both` from a cache: predictions of this call's pair are not those of a fresh pass."""

    stale = True

    def both(self, point):
        return 0.9 * self._cond.f(point.x, point.sigma), 0.9 * self._reference.f(point.x, point.sigma)

    def apart(self, point):
        return False


@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
def test_a_cached_pair_is_taken_together_and_a_difference_is_of_fresh_predictions(form, engine):
    """Oracle: the exact J of the network itself, which the cache does not change."""
    cond, reference = counted_pair()
    branches = Remembered(cond, reference)
    result = Rectifier(Settings(form=form, engine=engine))(branches, POINT)
    denoised, uncond = branches.both(POINT)
    assert torch.equal(result.denoised, denoised) and torch.equal(result.reference, uncond)
    if form == "row_sum" and engine == "finite_difference":
        return  # its three rows are one batch: a host that caches says there what it does
    v = denoised - uncond
    direction = torch.ones_like(v) if form == "row_sum" else v
    x = X.clone().requires_grad_(True)
    if engine == "reverse":
        (product,) = torch.autograd.grad(cond.f(x, SIGMA), x, direction)
    else:
        product = torch.func.jvp(lambda z: cond.f(z, SIGMA), (X,), (direction,))[1]
    ratio = (product * v).sum((1, 2, 3), keepdim=True) / (v * v).sum((1, 2, 3), keepdim=True)
    want = {"row_sum": product * v, "scalar": ratio * v, "product": product}[form]
    assert torch.allclose(result.rectified, want, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("settings", [Settings(strength=0), Settings(form="off")])
def test_off_is_plain_guidance_to_the_bit_without_extra_calls(settings):
    cond, reference = counted_pair()
    sigmas = karras_sigmas(6, 0.1, 5.0)
    ours = sample_heun(Guided(cond, reference, 2.0, settings), X, sigmas)
    assert cond.calls == reference.calls == 11
    want = sample_heun(lambda x, s: cond.f(x, s) + 2.0 * (cond.f(x, s) - reference.f(x, s)), X, sigmas)
    assert torch.equal(ours, want.detach())


def test_weight_zero_skips_the_reference():
    cond, reference = counted_pair()
    guided = Guided(cond, reference, lambda sigma: 2.0 if sigma < 1 else 0.0)
    sample_euler(guided, X, karras_sigmas(6, 0.1, 5.0))
    active = len(guided.trace.last.active)
    assert 0 < active < 6 and reference.calls == active
    assert [r.cfg for r in guided.trace.last.rows if not r.active] == [1.0] * (6 - active)


def test_sigma_bounds_are_closed():
    cond, reference = counted_pair()
    sigmas = karras_sigmas(6, 0.1, 5.0)
    settings = Settings(sigma_start=float(sigmas[1]), sigma_end=float(sigmas[3]))
    guided = Guided(cond, reference, 2.0, settings)
    sample_euler(guided, X, sigmas)
    assert [r.active for r in guided.trace.last.rows] == [False, True, True, True, False, False]


class NoDerivative(torch.autograd.Function):
    """An operation like a fused inference kernel: right values, no derivative."""

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


@pytest.mark.parametrize("kernel,why", [(NoDerivative, "failed"), (SilentZero, "self-check")])
@pytest.mark.parametrize("form", ["row_sum", "product"])
def test_kernels_without_derivative_fall_back_loudly_and_once(kernel, why, form, caplog):
    def branches():
        return Branches(lambda x, s: kernel.apply(x) + 0.1, lambda x, s: 0.5 * x)

    rectifier = Rectifier(Settings(form=form, engine="reverse"))
    with caplog.at_level(logging.WARNING):
        results = [rectifier(branches(), POINT) for _ in range(3)]
    for result in results:
        assert torch.allclose(result.rectified, 1.5 * (result.denoised - result.reference), rtol=1e-3, atol=1e-4)
    assert [r.engine for r in rectifier.run.rows] == ["finite_difference"] * 3
    assert len([m for m in caplog.messages if "engine reverse" in m and why in m]) == 1
    assert len(rectifier.run.notes) == 1 and "reverse" in rectifier.run.notes[0]
    assert rectifier.run.rows[0].note and not rectifier.run.rows[1].note


def test_no_gain_where_no_engine_is_left():
    """Then guidance is plain, as strong as the user's cfg."""

    def cond(x, s):
        if x.requires_grad or not torch.equal(x, POINT.x):
            raise RuntimeError("no further pass")
        return 0.5 * x

    rectifier = Rectifier(Settings(engine="reverse", gain=4.0))
    result = rectifier(Branches(cond, lambda x, s: 0.2 * x), POINT)
    assert torch.equal(result.rectified, result.denoised - result.reference) and not rectifier.run.active


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
        rectifier(Branches(cond, lambda x, s: x), POINT)
    assert len(calls) == 1


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
@pytest.mark.parametrize("value,gain", [(math.nan, 1.0), (math.inf, 3.0)])
def test_non_finite_correction_leaves_plain_guidance_for_that_sample_only(form, value, gain):
    calls = []

    def cond(x, s):
        calls.append(1)
        out = 0.5 * x
        if len(calls) > 1:  # the probe only
            out = out.clone()
            out[0, 0, 0, 0] = value
        return out

    rectifier = Rectifier(Settings(form=form, gain=gain))
    result = rectifier(Branches(cond, lambda x, s: 0.2 * x), POINT)
    v = result.denoised - result.reference
    assert torch.equal(result.rectified[0], v[0])
    assert torch.allclose(result.rectified[1], gain * 0.5 * v[1], rtol=1e-2, atol=1e-3)
    row = rectifier.run.rows[0]
    assert row.nonfinite == 1 and "non-finite" in row.note
    assert math.isfinite(row.correction_mean)


@pytest.mark.parametrize(
    "bad,match",
    [
        (dict(form="rowsum"), "rowsum"), (dict(engine="forward"), "forward"),
        (dict(gain=0.0), "gain.*0.0"), (dict(gain=math.inf), "gain.*inf"), (dict(strength=math.nan), "nan"), (dict(strength=math.inf), "inf"),
        (dict(refresh=-1), "-1"), (dict(refresh=0), "0"), (dict(refresh=1.5), "1.5"), (dict(skip_below=-0.5), "-0.5"), (dict(skip_below=math.nan), "nan"),
        (dict(skip_below=1.5), "1.5"), (dict(skip_below=True), "True"), (dict(form="calibrated"), "none is given"),
        (dict(refresh="2"), "'2'"), (dict(refresh=math.inf), "inf"), (dict(strength=None), "strength.*None"),
        (dict(data_std=0.0), "0.0"), (dict(data_std=-2.0), "-2.0"),
        (dict(sigma_start=0.1, sigma_end=0.5), "0.5"), (dict(sigma_end=-1.0), "-1.0"),
    ],
)  # fmt: skip
def test_settings_refuse_bad_values_by_name(bad, match):
    with pytest.raises(ValueError, match=match):
        Settings(**bad)


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        Settings().form = "off"


class Lost(torch.autograd.Function):
    """A part of a network without a gradient, as under `no_grad`: its value is right, its derivative is 0."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
@pytest.mark.parametrize("share", [0.07, 0.15, 0.34])
def test_a_gradient_that_is_lost_in_a_part_of_the_network_is_noticed(form, share):
    """Most of J is the way around the network, where all is well. Oracle: the same network with its gradient."""
    mix = torch.randn(48, 48, generator=torch.Generator().manual_seed(1)) / 48**0.5

    def network(lose):
        def cond(x, sigma):
            part = Lost.apply(x) if lose else x
            return x / (1 + expand(sigma, x) ** 2) ** 0.5 + share * (part.flatten(1) @ mix).reshape(x.shape)

        return cond

    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for lose in (False, True):
        rectifier = Rectifier(Settings(form=form, engine="reverse"))
        rectifier(Branches(network(lose), lambda x, sigma: 0.5 * x.roll(1, 2)), Point.of(x, 0.7), 2.0)
        (row,) = rectifier.run.rows
        assert (row.engine == "finite_difference" and "self-check" in row.note) == lose, row


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product", "schedule"])
@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
def test_nothing_is_float64_where_latents_are_float32(form, engine):
    """Devices without float64 exist (MPS)."""

    class NoDouble(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            assert not any(getattr(t, "dtype", None) == torch.float64 for t in tree_leaves(out)), func
            return out

    cond, uncond = (lambda x, s: x.tanh(), lambda x, s: 0.5 * x)
    rectifier = Rectifier(Settings(form=form, engine=engine, refresh=2, skip_below=0.01))
    with NoDouble():
        for sigma in (2.0, 1.5, 0.5):
            rectifier(Branches(cond, uncond), Point.of(torch.ones(2, 3, 4, 4) * sigma, torch.tensor(sigma)), 2.0)
        assert len(rectifier.run.active) == 3 and not rectifier.run.notes
