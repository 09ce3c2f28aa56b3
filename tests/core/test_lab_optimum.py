"""The optimum of guidance on mixtures, and how near plain guidance and REG come to it.

Oracles: scipy's adaptive quadrature, importance sampling with its standard error, the closed form of Gaussian pairs (given to the
quadrature in two identical halves), finite differences of log E_t, scipy's wasserstein_distance.
"""

import math

import pytest
import torch
from mixture_errors import compare, rms

from reg_core import FLOW, VE, VP, Space
from reg_core.lab.mixtures.distances import sliced_wasserstein, wasserstein_1d
from reg_core.lab.mixtures.exact import difference, guided_denoiser
from reg_core.lab.mixtures.mixture import Mixture
from reg_core.lab.mixtures.optimum import Optimum, target_nodes
from reg_core.lab.mixtures.study import end_distance
from reg_core.lab.mixtures.zoo import Pair, digits, pair

SPACES = {
    "ve": lambda sigma: (1.0, sigma),
    "vp": lambda sigma: ((1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5),
    "flow": lambda sigma: (1 - sigma, sigma),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def toy_density(x0, cond):
    """The paper's toy by hand, up to a factor."""
    means, std = ((0.5, 1.5), 0.25) if cond else ((-2.0, 0.0), 0.5)
    return sum(math.exp(-0.5 * ((x0 - m) / std) ** 2) for m in means) / std


# grad_x log E_t


@pytest.mark.parametrize("space", SPACES)
def test_optimum_in_one_dimension_is_scipys(space):
    """E[x0 | x] under p(x0|y) R_0 and under p(x0|y), log E_t and its gradient, all from scipy.integrate.quad."""
    integrate = pytest.importorskip("scipy.integrate")
    for sigma, x, weight in ((0.1, 1.1, 1.0), (0.4, 0.2, 0.5), (0.8, 1.6, 4.0)):
        alpha, s = SPACES[space](sigma)
        x = alpha * x

        def posterior(x0, w, x=x, alpha=alpha, s=s):
            p = toy_density(x0, True)
            return p * (p / toy_density(x0, False)) ** w * math.exp(-0.5 * ((x - alpha * x0) / s) ** 2)

        def integral(w, power=0, x=x, alpha=alpha, s=s, posterior=posterior):
            breaks = [0.5, 1.5, x / alpha]
            return integrate.quad(lambda x0: x0**power * posterior(x0, w), -1.5, 3.5, points=breaks, limit=400, epsabs=0, epsrel=1e-11)[0]

        got = Optimum(pair("toy"), weight).evaluate(column(x), torch.tensor([sigma], dtype=torch.float64), Space(space))
        want = integral(weight, 1) / integral(weight)
        plain = integral(0.0, 1) / integral(0.0)
        assert abs(float(got.denoised) - want) < 1e-8
        assert abs(float(got.shift) - (want - plain)) < 1e-8
        assert abs(float(got.gradient) - alpha / s**2 * (want - plain)) < 1e-6
        assert abs(float(got.log_reward) - math.log(integral(weight) / integral(0.0))) < 1e-8


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name,weight", [("nested", 2.0), ("multimodal", 1.0), ("overlapping", 1.0), ("correlated_mirror", 1.5)])
def test_gradient_against_importance_sampling(name, weight, space):
    """grad log E_t = alpha/s^2 (E[R x0 | x] / E[R | x] - E[x0 | x]) from draws of p(x0|y) weighted by p(x | x0), within 5 standard errors."""
    made, draws = pair(name), 400_000
    x0 = made.cond.sample(draws, seeded(3))
    log_ratio = made.cond.log_prob(x0) - made.uncond.log_prob(x0)
    for sigma in (0.35, 0.8):
        alpha, s = SPACES[space](sigma)
        x = alpha * made.cond.sample(1, seeded(4)) + s * 0.3
        log_weight = -0.5 * ((x - alpha * x0) / s).square().sum(1)
        plain = torch.softmax(log_weight, 0)
        tilted = torch.softmax(log_weight + weight * log_ratio, 0)
        shift = tilted @ x0 - plain @ x0
        # linearised: both ratios are of the same draws
        influence = draws * (tilted[:, None] * (x0 - tilted @ x0) - plain[:, None] * (x0 - plain @ x0))
        standard_error = influence.std(0) / draws**0.5
        assert standard_error.max() < 0.02  # it is a test at all
        got = Optimum(made, weight).evaluate(x, torch.tensor([sigma], dtype=torch.float64), Space(space))
        assert ((got.shift[0] - shift).abs() < 5 * standard_error).all()
        assert ((got.gradient[0] - alpha / s**2 * shift).abs() < 5 * alpha / s**2 * standard_error).all()


def halves(p: Pair) -> Pair:
    """The same Gaussians, each in two identical halves: the quadrature does not know that it could be spared."""
    double = [Mixture.of([0.5, 0.5], m.means.expand(2, -1), m.covs.expand(2, -1, -1)) for m in (p.cond, p.uncond)]
    return Pair(p.name, *double)


@pytest.mark.parametrize("space", [VE, VP, FLOW], ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["correlated", "isotropic", "one"])
def test_quadrature_is_the_closed_form_within_its_stated_error(name, space):
    one = Pair("one", Mixture.of([1.0], [[0.4]], 0.09), Mixture.of([1.0], [[-0.5]], 1.0))
    made = one if name == "one" else pair(name)
    sigma = torch.tensor([0.01, 0.1, 0.5, 0.9, 1.0] if space == FLOW else [0.01, 0.1, 0.5, 3.0, 50.0], dtype=torch.float64)
    x = made.cond.noisy(5, sigma, space, seeded())
    for weight in (0.3, 1.0, 8.0):
        exact = Optimum(made, weight)
        numeric = Optimum(halves(made), weight)
        assert exact.closed and not numeric.closed
        want, got = exact.evaluate(x, sigma, space), numeric.evaluate(x, sigma, space)
        assert torch.isfinite(got.denoised).all() and want.error.max() == 0 and got.error.max() < 1e-5
        assert ((got.shift - want.shift).norm(dim=1) <= got.error).all()
        assert torch.allclose(got.log_reward, want.log_reward, atol=1e-8)
        assert torch.allclose(got.gradient, want.gradient, rtol=1e-5, atol=1e-5)


def test_gradient_is_that_of_log_reward():
    made = pair("overlapping")
    x, sigma = torch.tensor([[0.2, -0.3], [0.8, 0.5]], dtype=torch.float64), torch.tensor([0.3, 1.0], dtype=torch.float64)
    optimum, h = Optimum(made, 1.0, tolerance=1e-8), 1e-4
    want = optimum.evaluate(x, sigma, VP).gradient
    for i in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[i]
        slope = (optimum.evaluate(x + step, sigma, VP).log_reward - optimum.evaluate(x - step, sigma, VP).log_reward) / (2 * h)
        assert torch.allclose(slope, want[:, i], rtol=1e-5, atol=1e-6)


def test_limits_and_refusals():
    nested, x = pair("nested"), column(-0.4, 0.3, 1.2)
    optimum = Optimum(nested, 2.0)
    noise = optimum.evaluate(x, 1.0, FLOW)  # alpha = 0: the mean of the target, and nothing to see in x
    points, mass = target_nodes(optimum)
    assert torch.allclose(noise.denoised, (points[:, 0] @ mass).expand(3, 1), atol=1e-8) and noise.gradient.abs().max() == 0
    clean = optimum.evaluate(x, 0.0, VE)  # grad w log(p/q), by hand: p/q = 2 / (1 + exp(-5.6 x))
    assert torch.allclose(clean.gradient, 2 * 5.6 / (1 + (5.6 * x).exp()), rtol=1e-10) and clean.shift.abs().max() == 0
    near = optimum.evaluate(x, 1e-3, VE)
    assert torch.allclose(near.gradient, clean.gradient, rtol=1e-3)
    assert Optimum(nested, 0.0).evaluate(x, 0.5).shift.abs().max() < 1e-10  # no guidance, no shift
    image = optimum.evaluate(x.reshape(3, 1, 1, 1), 0.5)
    assert image.shift.shape == (3, 1, 1, 1) and torch.equal(image.shift.flatten(), optimum.evaluate(x, 0.5).shift.flatten())
    with pytest.raises(ValueError, match="normalised"):
        Optimum(Pair("narrow", nested.uncond, nested.cond), 30.0) and Optimum(Pair("wide", Mixture.of([1.0], [[0.0]], 2.0), nested.cond), 3.0)
    three = Mixture.of([0.5, 0.5], torch.eye(3)[:2], 1.0)
    with pytest.raises(ValueError, match="1-D and 2-D"):
        Optimum(Pair("three", three, three), 1.0).evaluate(torch.zeros(1, 3), 1.0)


# Distances between distributions


def test_wasserstein_distances_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    optimum = Optimum(pair("nested"), 1.0)
    points, mass = target_nodes(optimum, 40001)
    samples = pair("nested").uncond.sample(300, seeded())
    want = stats.wasserstein_distance(samples[:, 0].numpy(), points[:, 0].numpy(), None, mass.numpy())
    assert abs(wasserstein_1d(samples, points[:, 0], mass) - want) < 1e-4 * want
    points, mass = target_nodes(Optimum(pair("overlapping"), 1.0), 65)
    samples = pair("overlapping").uncond.sample(200, seeded())
    total = 0.0
    for i in range(4):
        angle = (i + 0.5) * math.pi / 4
        u, v = (m.numpy() @ [math.cos(angle), math.sin(angle)] for m in (samples, points))
        total += stats.wasserstein_distance(u, v, None, mass.numpy()) / 4
    assert abs(sliced_wasserstein(samples, points, mass, 4) - total) < 1e-9


def test_target_is_the_closed_form_tilt():
    """Product of Gaussian densities: precision (1+w)/C - w/U."""
    made, weight = pair("correlated"), 3.0
    optimum = Optimum(made, weight)
    c, u = made.cond.covs[0], made.uncond.covs[0]
    cov = ((1 + weight) * c.inverse() - weight * u.inverse()).inverse()
    mean = cov @ ((1 + weight) * c.inverse() @ made.cond.means[0] - weight * u.inverse() @ made.uncond.means[0])
    assert torch.allclose(optimum.envelope.covs[0], cov) and torch.allclose(optimum.envelope.means[0], mean)
    points, mass = target_nodes(Optimum(halves(made), weight))
    assert torch.allclose(mass @ points, mean, atol=1e-9)
    offset = points - mean
    assert torch.allclose((mass[:, None] * offset).T @ offset, cov, rtol=1e-8)


# REG against plain guidance: what was claimed, measured


@pytest.fixture(scope="module")
def toy_grid():
    """The paper's grid: every one of 20 DDPM steps (linear beta 1e-4 .. 0.02) times 300 points of x_t on [-1, 2]."""
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 20, dtype=torch.float64), 0)
    sigma = ((1 - abar) / abar).sqrt()
    assert abs(float(1 / (1 + sigma[-1] ** 2)) - 0.8168) < 1e-4  # abar at the last step: little noise, by the paper's own choice
    x = torch.linspace(-1, 2, 300, dtype=torch.float64)
    return x.repeat(20)[:, None], sigma.repeat_interleave(300)


def test_toy_errors_by_hand(toy_grid):
    """The paper's Figure 1 quantities in eps, from scipy and finite differences alone, at a dozen points of the grid."""
    integrate = pytest.importorskip("scipy.integrate")
    pick = torch.arange(150, 6000, 517)
    x, sigma = (t[pick] for t in toy_grid)
    cfg_errors, reg_errors = [], []
    for xi, si in zip(x[:, 0].tolist(), sigma.tolist(), strict=True):
        alpha, s = SPACES["vp"](si)

        def moment(x_t, r, power, alpha=alpha, s=s):
            def f(x0):
                p, q = toy_density(x0, True), toy_density(x0, False)
                return x0**power * (p, q, p * p / q)[r] * math.exp(-0.5 * ((x_t - alpha * x0) / s) ** 2)

            at = x_t / alpha
            return integrate.quad(f, at - 9 * s / alpha, at + 9 * s / alpha, points=[at, 0.5, 1.5], limit=400, epsabs=0, epsrel=1e-11)[0]

        def eps(x_t, r, alpha=alpha, s=s, moment=moment):
            return (x_t - alpha * moment(x_t, r, 1) / moment(x_t, r, 0)) / s

        h = 1e-3 * s
        slope = (eps(xi + h, 0) - eps(xi - h, 0)) / (2 * h)
        guidance, golden = eps(xi, 0) - eps(xi, 1), eps(xi, 2) - eps(xi, 0)
        cfg_errors.append(abs(guidance - golden))
        reg_errors.append(abs((1 - s * slope) * guidance - golden))  # Eq. 21
    cfg, reg = torch.tensor(cfg_errors, dtype=torch.float64), torch.tensor(reg_errors, dtype=torch.float64)
    got = compare(pair("toy"), 1.0, x, sigma, VP, ["off", "row_sum"], units="eps")
    assert abs(got["off"].rms - rms(cfg)) < 1e-6 * rms(cfg)
    assert abs(got["row_sum"].rms - rms(reg)) < 1e-4 * rms(reg)
    assert abs(got["row_sum"].mean_ratio - float(reg.mean() / cfg.mean())) < 1e-4
    assert got["row_sum"].win == float((reg < cfg).double().mean())


@pytest.mark.parametrize("weight,win,ratio", [(0.25, 0.7, 0.7), (0.5, 0.7, 0.7), (1.0, 0.8, 0.45), (2.0, 0.7, 0.7), (4.0, 0.7, 0.7), (8.0, 0.7, 0.7)])
def test_row_sum_wins_on_the_papers_toy(toy_grid, weight, win, ratio):
    x, sigma = toy_grid
    for units in ("x0", "eps"):
        row = compare(pair("toy"), weight, x, sigma, VP, ["row_sum"], units=units)["row_sum"]
        assert row.win >= win and row.mean_ratio <= ratio, row


def ended(made, weight, forms, steps, starts, sigma_max=20.0):
    """{form: distance of Euler samples to the tilted target}."""
    optimum = Optimum(made, weight, 1e-3)
    denoisers = {form: optimum.denoiser() if form == "optimum" else guided_denoiser(made, weight, form) for form in forms}
    return {form: end_distance(denoiser, target_nodes(optimum), steps, starts, sigma_max) for form, denoiser in denoisers.items()}


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_row_sum_samples_the_nested_pairs_target(weight):
    rows = ended(pair("nested"), weight, ["off", "row_sum"], 60, 1000)
    assert rows["row_sum"] <= 0.4 * rows["off"], rows


def test_digits_in_64_dimensions():
    """All ten classes and sigma 0.2 .. 20 taken together; per level the ratio of row_sum passes 0.4 below sigma 0.5, see the last lines."""
    pytest.importorskip("sklearn")
    levels = torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0], dtype=torch.float64)
    sigma = levels.repeat_interleave(100)
    squares, wins = {form: torch.zeros(7, dtype=torch.float64) for form in ("off", "row_sum", "scalar")}, {"row_sum": [], "scalar": []}
    for digit in range(10):
        made = digits(digit)
        x = made.cond.noisy(len(sigma), sigma, VE, seeded(digit))
        want = Optimum(made, 1.0).evaluate(x, sigma).shift
        errors = {form: (difference(made, x, sigma, form)[1] - want).norm(dim=1) for form in squares}
        for form, e in errors.items():
            squares[form] += e.square().reshape(7, 100).sum(1)
        for form, share in wins.items():
            share.append(float((errors[form] < errors["off"]).double().mean()))
    assert min(wins["row_sum"]) >= 0.97 and min(wins["scalar"]) >= 0.97, wins
    ratio = {form: float((squares[form].sum() / squares["off"].sum()).sqrt()) for form in wins}
    assert ratio["row_sum"] <= 0.4 and ratio["scalar"] <= 0.25, ratio
    per_level = {form: (squares[form] / squares["off"]).sqrt() for form in wins}
    assert per_level["row_sum"][1:].max() <= 0.4 and 0.4 < per_level["row_sum"][0] < 0.7, per_level
    assert per_level["scalar"][1:].max() <= 0.25 and per_level["scalar"][0] < 0.27, per_level


def test_all_forms_coincide_for_isotropic_data():
    made = pair("isotropic")
    sigma = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64)
    for space in (VE, VP):
        x = made.cond.noisy(4, sigma, space, seeded())
        rows = compare(made, 1.0, x, sigma, space)
        for form in ("row_sum", "scalar", "product", "schedule"):
            assert abs(rows[form].rms - rows["schedule"].rms) < 1e-12
        assert rows["row_sum"].relative_rms < 0.7


def test_reflecting_an_axis_changes_row_sum_and_no_other_form():
    for name in ("correlated", "overlapping"):
        made, flip = pair(name), torch.tensor([-1.0, 1.0], dtype=torch.float64)
        sigma = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64).repeat(20)
        x = made.cond.noisy(60, sigma, VE, seeded())
        here, there = compare(made, 1.0, x, sigma), compare(made.mirrored(), 1.0, x * flip, sigma)
        for form in ("off", "scalar", "product", "schedule"):
            assert abs(here[form].rms / there[form].rms - 1) < 1e-6, form
        assert abs(here["row_sum"].rms / there["row_sum"].rms - 1) > 0.2, name


@pytest.mark.parametrize(
    "name,weight,steps,count", [("nested", 2.0, 60, 400), ("multimodal", 1.0, 60, 200), ("correlated", 2.0, 60, 512), ("overlapping", 2.0, 30, 64)]
)
def test_the_golden_gradient_samples_the_target(name, weight, steps, count):
    """As near to the tilted target as unguided sampling, with the same steps and starts, comes to p(x0 | y): that is the floor."""
    made = pair(name)
    floor = ended(Pair("unguided", made.cond, made.cond), 1.0, ["off"], steps, count)["off"]
    rows = ended(made, weight, ["off", "optimum"], steps, count)
    assert rows["optimum"] < 1.15 * floor, (rows, floor)
    assert rows["optimum"] < 0.6 * rows["off"]


def test_the_golden_gradient_has_no_floor_of_its_own():
    """More steps from more noise: what is left goes to nothing (from 0.02 in the test above)."""
    rows = ended(pair("nested"), 2.0, ["off", "row_sum", "optimum"], 300, 200, 200.0)
    assert rows["optimum"] < 0.008 and rows["row_sum"] > 0.03 and rows["off"] > 0.3, rows


# Negative controls: where REG is worse than plain guidance. They must stay true, or the arithmetic changed.


@pytest.mark.parametrize("name,weight,levels", [("toy", 0.5, (0.7, 1.0, 1.5, 2.0)), ("overlapping", 1.0, (2.0, 5.0, 20.0))])
def test_reg_can_be_worse(name, weight, levels):
    made = pair(name)
    for sigma in levels:
        row = compare(made, weight, made.cond.noisy(64, sigma, VE, seeded()), sigma, forms=["row_sum"])["row_sum"]
        assert row.relative_rms > 1.3 and row.win < 0.5, (sigma, row)
