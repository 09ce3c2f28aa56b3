"""Gaussian mixtures through noise against torch.distributions, autograd and brute force; and reg_core run on them.

Oracles: MultivariateNormal of the noisy marginal written out, its autograd score with Tweedie's formula, the full Jacobian by
autograd, Bayes' rule for the posterior.
"""

import subprocess
import sys

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from reg_core import Branches, Guided, Point, Rectifier, Settings, Space, forward
from reg_core.lab.mixtures.exact import difference, guided_denoiser
from reg_core.lab.mixtures.mixture import Mixture
from reg_core.lab.mixtures.zoo import ZOO, Pair, pair

SIGMAS = {"ve": [0.03, 0.4, 1.0, 15.0], "vp": [0.03, 0.4, 1.0, 15.0], "flow": [0.02, 0.4, 0.7, 0.99]}


def wild(n=3, k=4, seed=0):
    """A mixture with nothing in common between its components."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(k, n, n, generator=g, dtype=torch.float64)
    covs = factor @ factor.mT / n + 0.05 * torch.eye(n, dtype=torch.float64)
    weights, means = torch.rand(k, generator=g, dtype=torch.float64) + 0.1, torch.randn(k, n, generator=g, dtype=torch.float64)
    return Mixture.of(weights, means, covs), (weights / weights.sum(), means, covs)


def oracle_log_prob(parts, x, alpha, s):
    """log of sum_k pi_k N(x; alpha m_k, alpha^2 C_k + s^2 I), row by row."""
    weights, means, covs = parts
    noise = torch.eye(means.shape[1], dtype=torch.float64)
    rows = [
        MixtureSameFamily(Categorical(weights), MultivariateNormal(a * means, a**2 * covs + b**2 * noise)).log_prob(row)
        for row, a, b in zip(x, alpha.tolist(), s.tolist(), strict=True)
    ]
    return torch.stack(rows)


def points(space, n=3):
    """x, unequal sigma, and alpha and s written out."""
    sigma = torch.tensor(SIGMAS[space], dtype=torch.float64)
    alpha = {"ve": torch.ones_like(sigma), "vp": (1 + sigma**2) ** -0.5, "flow": 1 - sigma}[space]
    s = {"ve": sigma, "vp": sigma * alpha, "flow": sigma}[space]
    g = torch.Generator().manual_seed(7)
    x = alpha[:, None] * torch.randn(4, n, generator=g, dtype=torch.float64) + s[:, None] * torch.randn(4, n, generator=g, dtype=torch.float64)
    return x, sigma, alpha, s


@pytest.mark.parametrize("space", SIGMAS)
def test_marginal_score_and_denoiser(space):
    mixture, parts = wild()
    x, sigma, alpha, s = points(space)
    x.requires_grad_(True)
    want = oracle_log_prob(parts, x, alpha, s)
    (score,) = torch.autograd.grad(want.sum(), x)
    x = x.detach()
    assert torch.allclose(mixture.log_prob_at(x, sigma, Space(space)), want, rtol=1e-10)
    assert torch.allclose(mixture.score(x, sigma, Space(space)), score, rtol=1e-8, atol=1e-9)
    tweedie = (x + s[:, None] ** 2 * score) / alpha[:, None]
    assert torch.allclose(mixture.denoise(x, sigma, Space(space)), tweedie, rtol=1e-8, atol=1e-9)
    clean = oracle_log_prob(parts, x, torch.ones(4), torch.zeros(4))
    assert torch.allclose(mixture.log_prob(x), clean, rtol=1e-10)


@pytest.mark.parametrize("space", SIGMAS)
def test_jacobian_is_symmetric_and_is_autograds(space):
    mixture, _ = wild()
    x, sigma, alpha, s = points(space)
    jacobian = mixture.jacobian(x, sigma, Space(space))
    assert (jacobian - jacobian.mT).abs().max() < 1e-12
    full = torch.autograd.functional.jacobian(lambda z: mixture.denoise(z, sigma, Space(space)).sum(0), x)  # [n, B, n]
    assert torch.allclose(jacobian, alpha[:, None, None] * full.transpose(0, 1), rtol=1e-8, atol=1e-10)
    ve = (s / alpha)[:, None, None]
    assert torch.allclose(jacobian, mixture.posterior(x, sigma, Space(space)).cov / ve**2, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("space", SIGMAS)
def test_posterior_is_bayes_rule(space):
    mixture, parts = wild()
    x, sigma, alpha, s = points(space)
    posterior = mixture.posterior(x, sigma, Space(space))
    assert torch.allclose(posterior.mean, mixture.denoise(x, sigma, Space(space)), rtol=1e-9, atol=1e-10)
    evidence = oracle_log_prob(parts, x, alpha, s)
    for i in range(4):
        one = Mixture(*(part[i] for part in (posterior.log_weights, posterior.means, posterior.variances, posterior.axes)))
        x0 = one.sample(50, torch.Generator().manual_seed(i))
        prior = oracle_log_prob(parts, x0, torch.ones(50), torch.zeros(50))
        likelihood = torch.distributions.Normal(alpha[i] * x0, s[i]).log_prob(x[i]).sum(1)
        assert torch.allclose(one.log_prob(x0), prior + likelihood - evidence[i], rtol=1e-8, atol=1e-7)


def test_without_noise_and_without_signal():
    mixture, _ = wild()
    x = points("ve")[0]
    for space in SIGMAS:
        assert torch.allclose(mixture.denoise(x, 0.0, Space(space)), x, atol=1e-12)
        assert torch.allclose(mixture.jacobian(x, 0.0, Space(space)), torch.eye(3, dtype=torch.float64), atol=1e-12)
    flow = Space("flow")
    assert torch.allclose(mixture.denoise(x, 1.0, flow), mixture.mean, atol=1e-12)
    assert mixture.jacobian(x, 1.0, flow).abs().max() < 1e-12
    assert torch.allclose(mixture.score(x, 1.0, flow), -x, atol=1e-12)
    assert torch.allclose(mixture.posterior(x, 1.0, flow).cov, mixture.cov, atol=1e-12)


def test_shapes_dtype_and_samples():
    mixture, _ = wild(n=4)
    x, sigma, _, _ = points("ve", 4)
    image = mixture.denoise(x.reshape(4, 1, 2, 2).float(), sigma)
    assert image.shape == (4, 1, 2, 2) and image.dtype == torch.float32
    assert torch.allclose(image.flatten(1).double(), mixture.denoise(x, sigma), atol=1e-5)
    drawn = mixture.noisy(200_000, 0.5, Space("vp"), torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(0), mixture.mean * 1.25**-0.5, atol=0.01)
    assert torch.allclose(drawn.T.cov(), (mixture.cov + 0.25 * torch.eye(4)) / 1.25, atol=0.02)


@pytest.mark.parametrize("arguments", [([1.0, -1.0], [[0.0], [1.0]], 1.0), ([1.0], [0.0], 1.0), ([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]])])
def test_mixtures_that_are_none(arguments):
    with pytest.raises(ValueError):
        Mixture.of(*arguments)


def test_a_mixture_wants_its_own_dimension():
    with pytest.raises(ValueError, match="3 elements"):
        wild()[0].denoise(torch.zeros(2, 4), 1.0)
    with pytest.raises(ValueError, match="dimension"):
        Pair("odd", wild(2)[0], wild(3)[0])
    with pytest.raises(ValueError, match="nested"):
        pair("nobody")


@pytest.mark.parametrize("space", ["ve", "vp", "flow"])
@pytest.mark.parametrize("form", ["row_sum", "scalar", "product", "schedule"])
def test_a_run_of_reg_is_the_form_with_the_exact_jacobian(space, form):
    """Every engine differentiates the mixture to what its Jacobian is in closed form: signs, alpha, s and products, in every space."""
    made, space = pair("overlapping"), Space(space)
    sigma = torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=torch.float64)
    x = made.cond.noisy(4, sigma, space, torch.Generator().manual_seed(2))
    denoised, want = difference(made, x, sigma, form, space)
    std = made.cond.data_std
    for engine in ("reverse", "finite_difference"):
        rectifier = Rectifier(Settings(form=form, engine=engine, data_std=std))
        result = rectifier(Branches(made.cond.denoiser(space), made.uncond.denoiser(space)), Point.of(x, sigma, space))
        assert rectifier.run.rows[0].engine == (engine if form != "schedule" else "none needed")
        tolerance = 3e-4 if engine == "finite_difference" else 1e-9
        assert (result.rectified - want).abs().max() < tolerance, engine
    guided = Guided(made.cond.denoiser(space), made.uncond.denoiser(space), 2.5, Settings(form=form, engine="reverse", data_std=std), space)
    assert torch.allclose(guided(x, sigma), denoised + 2.5 * want, atol=1e-9)
    if space.name == "ve":
        assert torch.allclose(guided_denoiser(made, 2.5, form)(x, sigma), denoised + 2.5 * want, atol=1e-12)


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
def test_the_closed_form_of_each_form(form):
    """`difference` against formulas written out with autograd's Jacobian: (J 1) * v, (v J v / v v) v, J v."""
    made, space = pair("overlapping"), Space("vp")
    sigma = torch.tensor([0.3, 1.2], dtype=torch.float64)
    x = made.cond.noisy(2, sigma, space, torch.Generator().manual_seed(2))
    _, got = difference(made, x, sigma, form, space)
    for i in range(2):
        denoise = [lambda z, m=m: m.denoise(z[None], sigma[i], space)[0] for m in (made.cond, made.uncond)]  # noqa: B023
        jacobian = torch.autograd.functional.jacobian(denoise[0], x[i]) * (1 + sigma[i] ** 2) ** -0.5
        v = denoise[0](x[i]) - denoise[1](x[i])
        want = {"row_sum": jacobian.sum(0) * v, "scalar": (v @ jacobian @ v) / (v @ v) * v, "product": jacobian @ v}[form]
        assert torch.allclose(got[i], want, rtol=1e-8)


def test_reverse_is_transposed_and_forward_is_not():
    """A denoiser spoilt by a matrix that is not symmetric, as trained networks are: J = M J_exact in closed form."""
    made = pair("overlapping")
    spoil = torch.tensor([[1.0, 0.6], [-0.3, 0.8]], dtype=torch.float64)
    x, sigma = torch.tensor([[0.3, -0.2], [0.9, 0.4]], dtype=torch.float64), torch.tensor([0.3, 0.8], dtype=torch.float64)
    branches = Branches(lambda x, s: made.cond.denoise(x, s) @ spoil.T, made.uncond.denoiser())
    point = Point.of(x, sigma)
    v = branches.cond(x, sigma) - branches.reference(point)
    jacobian = spoil @ made.cond.jacobian(x, sigma)
    assert torch.allclose(forward(branches.cond, point, v)[1], (jacobian @ v[..., None])[..., 0], atol=1e-9)
    for engine, matrix in (("reverse", jacobian.mT), ("finite_difference", jacobian)):
        for form, want in (("product", (matrix @ v[..., None])[..., 0]), ("row_sum", matrix.sum(2) * v)):
            got = Rectifier(Settings(form=form, engine=engine))(branches, point).rectified
            assert (got - want).abs().max() < 3e-4, (engine, form)


# The zoo


def test_zoo_mixtures_are_what_they_are_called():
    toy, script, nested, over = (pair(name) for name in ("toy", "toy_script", "nested", "overlapping"))
    assert toy.cond.means.flatten().tolist() == [0.5, 1.5] and torch.allclose(toy.cond.covs, torch.tensor(0.25**2).double())
    assert toy.uncond.means.flatten().tolist() == [-2.0, 0.0] and script.uncond.means.flatten().tolist() == [-1.0, 1.0]
    assert torch.allclose(toy.uncond.covs, torch.tensor(0.25).double())
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    other = MultivariateNormal(torch.tensor([-0.7]).double(), torch.tensor([[0.25]]).double())
    assert torch.allclose(nested.uncond.log_prob(x).exp(), 0.5 * nested.cond.log_prob(x).exp() + 0.5 * other.log_prob(x).exp())
    assert torch.allclose(over.uncond.weights, torch.tensor([0.2, 0.2, 0.3, 0.3]).double())
    assert torch.allclose(over.uncond.covs, 0.25 * torch.tensor([[1, 0.9], [0.9, 1]]).double())
    one, mirror = pair("correlated"), pair("correlated_mirror")
    assert torch.allclose(mirror.cond.covs[0], one.cond.covs[0] * torch.tensor([[1, -1], [-1, 1]]))
    assert torch.allclose(mirror.cond.means, one.cond.means * torch.tensor([-1, 1]))
    assert pair("multimodal").dim == 1 and pair("isotropic").dim == 2


def test_zoo_from_data_sets():
    numpy, sklearn = pytest.importorskip("numpy"), pytest.importorskip("sklearn.datasets")
    raw = sklearn.load_digits()
    pixels, digits = raw.data / 8 - 1, pair("digits")
    within = sum(numpy.cov(pixels[raw.target == k].T, bias=True) * (raw.target == k).mean() for k in range(10))
    for mixture, cov in ((digits.cond, within), (digits.uncond, numpy.cov(pixels.T, bias=True))):
        assert numpy.allclose(mixture.covs[0].numpy(), cov + 0.01 * numpy.eye(64), atol=1e-12)
    assert numpy.allclose(digits.cond.means[0].numpy(), pixels[raw.target == 3].mean(0))
    assert numpy.allclose(digits.uncond.means[0].numpy(), pixels.mean(0))
    for name, points in (("moons", sklearn.make_moons(400, noise=0.05, random_state=1)), ("circles", sklearn.make_circles(400, factor=0.5, random_state=1))):
        made = pair(name)
        gain = made.cond.log_prob(torch.from_numpy(points[0])) - made.uncond.log_prob(torch.from_numpy(points[0]))
        inside = torch.from_numpy(points[1]) == (1 if name == "circles" else 0)
        assert gain[inside].mean() > 0.5 and gain[~inside].mean() < -2  # the class is where the data set says
    assert set(ZOO) >= {"moons", "circles", "swiss_roll", "digits"} and pair("swiss_roll").dim == 2


def test_the_zoo_needs_scikit_learn_only_for_its_data_sets():
    code = "import sys; from reg_core.lab.mixtures import study, zoo; zoo.pair('toy'); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
