"""The doors for libraries: weights, runs, latents of any rank. Oracles: closed forms, fresh objects, counted calls."""

import math

import numpy as np
import oracles
import pytest
import torch

from reg_core import FLOW, FORMS, VE, VP, Branches, Guidance, Guided, Point, Settings, expand, karras_sigmas, sample_ddpm, sample_euler, sample_heun
from reg_core.integrations.k_diffusion import CFGDenoiser

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def identity(x, sigma):
    return x


# Weights


@pytest.mark.parametrize("weight", [2, 2.0, np.float32(2), np.float64(2), np.int64(2), torch.tensor(2.0), torch.tensor([2]), torch.tensor(2.0).double()])
def test_one_number_of_any_kind_is_a_weight(weight):
    """Oracle: D_c + 2 (D_c - D_u) = 0.5 x + 2 (0.3 x)."""
    for given in (weight, lambda sigma: weight):
        guided = Guided(lambda x, s: 0.5 * x, lambda x, s: 0.2 * x, given, Settings(form="off"))
        assert torch.allclose(guided(X, 1.0), 1.1 * X, atol=1e-6)
    model = CFGDenoiser(lambda x, s, cond: cond * x, Settings(form="off"))
    assert torch.allclose(model(X, 1.0, cond=0.5, uncond=0.2, cond_scale=weight), 0.8 * X, atol=1e-6)


@pytest.mark.parametrize(
    "weight", [True, np.bool_(True), torch.tensor(True), "2", None, math.nan, math.inf, 1j, [2.0], np.ones(2), torch.ones(2), torch.tensor(math.nan)]
)
def test_anything_else_is_refused_by_value(weight):
    match = "weight .one for the whole batch. must be a number from .* got "
    with pytest.raises(ValueError, match=match):
        Guided(identity, identity, weight)
    with pytest.raises(ValueError, match=match):
        Guided(identity, identity, lambda sigma: weight)(X, 1.0)
    with pytest.raises(ValueError, match=match):
        CFGDenoiser(lambda x, s, cond: x)(X, 1.0, cond_scale=weight)


@pytest.mark.parametrize(
    "bad,match",
    [
        (dict(reference=None), "reference.*None"), (dict(cond=3), "cond.*3"),
        (dict(settings="row_sum"), "Settings.*'row_sum'"), (dict(space="vp"), "Space.*'vp'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(bad, match):
    with pytest.raises(ValueError, match=match):
        Guided(**(dict(cond=identity, reference=identity) | bad))


@pytest.mark.parametrize("name", ["cond", "reference"])
def test_predictions_of_another_shape_are_refused_not_broadcast(name):
    branches = {"cond": lambda x, s: 0.5 * x, "reference": lambda x, s: 0.2 * x} | {name: lambda x, s: x[:, :1]}
    with pytest.raises(ValueError, match=rf"{name} returned shape \(2, 1, 4, 4\) for x of shape \(2, 3, 4, 4\)"):
        Guided(**branches)(X, 1.0)


def test_plain_calls_have_their_reason_in_the_trace():
    """One decision for hosts and libraries: off, weight 0, and outside of the bounds, which are closed."""
    settings = Settings(form="schedule", sigma_start=2.0, sigma_end=1.0)
    guided = Guided(lambda x, s: 0.5 * x, lambda x, s: 0.2 * x, lambda sigma: 0.0 if sigma == 1.5 else 1.0, settings)
    outputs = {sigma: guided(X, sigma) for sigma in (3.0, 2.0, 1.5, 1.0, 0.5)}
    rows = guided.trace.last.rows
    notes = ["outside start and end", "", "cfg 1: no guidance to rectify", "", "outside start and end"]
    assert [(r.sigma, r.active, r.note) for r in rows] == [(s, not n, n) for s, n in zip(outputs, notes, strict=True)]
    want = {3.0: 0.8, 2.0: 0.5 + 0.3 / 5, 1.5: 0.5, 1.0: 0.5 + 0.3 / 2, 0.5: 0.8}
    for sigma, output in outputs.items():
        assert torch.allclose(output, want[sigma] * X, atol=1e-6), sigma
    for off in (Settings(form="off"), Settings(strength=0.0)):
        guided = Guided(lambda x, s: 0.5 * x, lambda x, s: 0.2 * x, 1.0, off)
        assert torch.allclose(guided(X, 2.0), 0.8 * X) and guided.trace.last.rows[0].note == "REG is off"


# Latents


@pytest.mark.parametrize("space", [VE, VP, FLOW], ids=lambda s: s.name)
@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "calibrated"])
def test_latents_may_be_numbers(form, engine, space):
    """x of shape [B]. Oracle: the linear denoiser of N(0.3, 0.49), whose J is c = V / (V + (s / alpha)^2)."""
    cond, reference = (oracles.gaussian_denoiser(mean, 0.49, space.name) for mean in (0.3, -0.5))
    sigma, x = torch.tensor([0.1, 0.5, 0.9]).double(), torch.tensor([0.4, -1.0, 2.0]).double()
    settings = Settings(form=form, engine=engine, data_std=0.7, refresh=2, skip_below=1e-6)
    guided = Guided(cond, reference, 2.0, settings, space)
    c = torch.ones(3) if form == "off" else oracles.shrinkage(0.49, sigma, space.name)
    want = cond(x, sigma) + 2 * c * (cond(x, sigma) - reference(x, sigma))
    for _ in range(2):  # computed, then reused
        assert torch.allclose(guided(x, sigma), want, rtol=1e-6)
    assert guided.trace.last.heat is None and math.isfinite(guided.trace.last.rows[0].sigma)


# Runs


def tanh_pair():
    """Denoisers without symmetry: what is kept from another run shows in the last bits."""
    net = oracles.SmallNet(48)
    labels = torch.ones(2, dtype=torch.long)
    return lambda x, s: net(x, s, labels), lambda x, s: net(x, s, 0 * labels)


def guided_door(settings):
    return Guided(*tanh_pair(), 3.0, settings)


def k_diffusion_door(settings):
    cond, uncond = tanh_pair()
    model = CFGDenoiser(lambda x, s, cond: cond(x, s), settings)

    class Bound:
        trace = model.trace

        def __call__(self, x, sigma):
            return model(x, sigma, cond=cond, uncond=uncond, cond_scale=4.0)

    return Bound()


@pytest.mark.parametrize("door", [guided_door, k_diffusion_door])
@pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
@pytest.mark.parametrize("steps", [2, 12])
def test_sampling_again_is_a_new_run(door, sampler, steps):
    """Without reset(). Oracle: a fresh door for each run, bit for bit."""
    settings, sigmas = Settings(refresh=4, skip_below=0.01), karras_sigmas(steps, 0.1, 10.0).double()
    noises = [10.0 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (1, 2, 3)]
    model = door(settings)
    again = [sampler(model, noise, sigmas) for noise in noises]
    fresh = [sampler(door(settings), noise, sigmas) for noise in noises]
    assert all(torch.equal(a, b) for a, b in zip(again, fresh, strict=True))
    calls = steps if sampler is sample_euler else 2 * steps - 1
    assert [len(run.rows) for run in model.trace.runs if run.rows] == [calls] * 3
    kept = any(not row.fresh for row in model.trace.last.rows)
    assert kept or (steps, sampler) == (2, sample_euler), "something was kept that could have leaked"


@pytest.mark.parametrize("steps", [4, 12])
def test_noise_that_is_added_between_steps_is_the_same_run(steps):
    """An ancestral sampler's levels fall; restart-like ones go up by a step and down again."""
    settings, sigmas = Settings(refresh=4), karras_sigmas(steps, 0.1, 10.0).double()
    model = guided_door(settings)
    sample_ddpm(model, 10.0 * torch.randn(2, 3, 4, 4).double(), sigmas, torch.Generator().manual_seed(0))
    assert len(model.trace.runs) == 1 and len(model.trace.last.rows) == steps
    model = guided_door(settings)
    for level, up in zip(sigmas[1:-1], sigmas[:-2], strict=True):
        for sigma in (up, level, up, level) if up < sigmas[0] else (up, level):
            model(X.double(), float(sigma))
    assert len([run for run in model.trace.runs if run.rows]) == 1


@pytest.mark.parametrize(
    ("levels", "runs"),
    [
        ((10.0, 5.0, 1.0, 10.0, 5.0), [3, 2]),
        ((10.0, 5.0, 1.0, 8.0, 4.0), [3, 2]),  # image to image: from the middle
        ((10.0, 5.0, 10.0, 5.0), [2, 2]),
        ((10.0, 10.0, 5.0, 5.0, 1.0), [5]),  # Heun and the like ask twice
        ((10.0, 5.0, 1.0, 5.0, 1.0, 0.5), [6]),  # up by a step
        ((1.0, 1.0), [2]),  # nothing tells two runs of one step apart
    ],
)
def test_where_a_run_ends(levels, runs):
    model = guided_door(Settings(refresh=4))
    for level in levels:
        model(X.double(), level)
    assert [len(run.rows) for run in model.trace.runs if run.rows] == runs


def test_reset_begins_a_run_in_place():
    model = guided_door(Settings(refresh=4))
    model(X.double(), 1.0)
    model.reset()
    model(X.double(), 0.9)
    assert [[row.fresh for row in run.rows] for run in model.trace.runs] == [[True], [True]]


def test_branches_of_ones_own_go_through_the_same_door():
    """Oracle: counted rows of a network that is asked for all its rows at once."""
    asked = []

    class Batched(Branches):
        def __init__(self):
            pass

        def network(self, xs, point):
            asked.append(len(xs))
            labels = torch.tensor([0.5, 0.2, 0.5])[: len(xs)].double()
            return [label * x / (1 + expand(point.sigma, x) ** 2) for label, x in zip(labels, xs, strict=True)]

        def both(self, point):
            return self.network([point.x] * 2, point)

        def only(self, point):
            return self.network([point.x], point)[0]

        def both_and_probe(self, point, step):
            return self.network([point.x, point.x, point.shifted(step).x], point)

    door, point = Guidance(Settings()), Point.of(X.double(), 2.0)
    result = door.guide(Batched(), point, 3.0)
    assert torch.allclose(result, (0.5 / 5 + 3 * (0.5 / 5) * (0.3 / 5)) * X.double(), rtol=1e-6)
    assert torch.allclose(door.guide(Batched(), point, 0.0), 0.5 * X.double() / 5)
    assert asked == [3, 1]
