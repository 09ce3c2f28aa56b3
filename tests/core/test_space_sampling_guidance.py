"""Conversions against definitions, samplers against exact flows, classifier guidance against the Gaussian posterior."""

import oracles
import pytest
import torch

from reg_core import (
    FLOW,
    VE,
    VP,
    Guided,
    Point,
    Space,
    as_batch,
    classifier_guidance,
    from_denoised,
    karras_sigmas,
    sample_ddpm,
    sample_euler,
    sample_heun,
    to_denoised,
)

G = torch.Generator().manual_seed(0)
X0, NOISE = torch.randn(3, 2, 5, 5, generator=G, dtype=torch.float64), torch.randn(3, 2, 5, 5, generator=G, dtype=torch.float64)


@pytest.mark.parametrize("space", ["ve", "vp", "flow"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_a_perfect_network_gives_back_the_clean_sample(space, prediction):
    """Targets by definition: eps = noise, v = alpha' noise - s' x0 (unit circle), flow = noise - x0."""
    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha_of, s_of = oracles.SPACES[space]
    a, s = (torch.tensor([f(v) for v in sigma.tolist()], dtype=torch.float64).reshape(-1, 1, 1, 1) for f in (alpha_of, s_of))
    x = a * X0 + s * NOISE
    r = (a**2 + s**2).sqrt()
    target = {"eps": NOISE, "v": (a * NOISE - s * X0) / r, "x0": X0, "flow": NOISE - X0}[prediction]
    if prediction != "x0":
        assert torch.allclose(from_denoised(prediction, X0, x, sigma, Space(space)), target)
    assert torch.allclose(to_denoised(prediction, target, x, sigma, Space(space)), X0)


def test_bad_names_and_sizes_are_named():
    with pytest.raises(ValueError, match="vx"):
        Space("vx")
    with pytest.raises(ValueError, match="velocity"):
        to_denoised("velocity", X0, X0, torch.ones(3))
    with pytest.raises(ValueError, match="2 values for a batch of 3"):
        as_batch(torch.ones(2), X0)
    assert as_batch(0.5, X0.float()).tolist() == [0.5] * 3
    assert as_batch(0.7, X0).tolist() == [0.7] * 3, "not rounded through float32"
    for bad in (lambda: karras_sigmas(0, 0.1, 1), lambda: karras_sigmas(5, 2.0, 1.0)):
        with pytest.raises(ValueError, match="got"):
            bad()
    with pytest.raises(ValueError, match=r"\(1,\)"):
        sample_euler(lambda x, s: x, X0, torch.ones(1))
    with pytest.raises(ValueError, match="must decrease"):
        sample_heun(lambda x, s: x, X0, [0.1, 1.0, 0.0])


def test_sigma_lists():
    sigmas = karras_sigmas(10, 0.02, 80.0)
    assert len(sigmas) == 11 and sigmas[0] == 80 and sigmas[-1] == 0 and sigmas[-2] == pytest.approx(0.02)
    assert karras_sigmas(18, 0.002, 80.0)[1].item() == pytest.approx(57.586, abs=1e-3)  # of EDM's own table


@pytest.mark.parametrize("space,start,order", [("ve", 20.0, 2), ("flow", 0.9, 2)])
def test_deterministic_samplers_follow_the_exact_flow(space, start, order):
    """For N(m, V I) the probability flow is affine: (x - alpha m) scales with the marginal standard deviation."""
    mean, variance = 0.4, 0.3
    denoiser = oracles.gaussian_denoiser(mean, variance, space)
    alpha_of, s_of = oracles.SPACES[space]
    scale = (alpha_of(start) ** 2 * variance + s_of(start) ** 2) ** 0.5
    want = mean + variance**0.5 / scale * (NOISE * scale)
    errors = {}
    for sampler in (sample_euler, sample_heun):
        for n in (40, 80):
            sigmas = karras_sigmas(n, 0.01, start).double() if space == "ve" else torch.linspace(start, 0, n + 1, dtype=torch.float64)
            errors[sampler, n] = (sampler(denoiser, alpha_of(start) * mean + scale * NOISE, sigmas) - want).abs().max().item()
    assert 1.7 < errors[sample_euler, 40] / errors[sample_euler, 80] < 2.4
    assert errors[sample_heun, 80] < errors[sample_euler, 80] / 10


def test_ddpm_reaches_the_gaussian():
    denoiser = oracles.gaussian_denoiser(0.4, 0.3, "ve")
    x = 20.0 * torch.randn(1, 1, 20000, generator=torch.Generator().manual_seed(1))
    out = sample_ddpm(denoiser, x, karras_sigmas(200, 0.01, 20.0), generator=torch.Generator().manual_seed(2))
    assert out.mean().item() == pytest.approx(0.4, abs=0.02) and out.var().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("space", [VE, VP, FLOW], ids=lambda s: s.name)
def test_classifier_guidance_on_a_gaussian(space):
    """x0 ~ N(m, V), log p(y|x0) = -(x0 - t)^2 / (2 S): the chain rule through the posterior mean, differentiated by hand."""
    mean, variance, target, spread, w = 0.2, 0.5, 1.5, 2.0, 3.0
    sigma = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    alpha_of, s_of = oracles.SPACES[space.name]
    denoiser = oracles.gaussian_denoiser(mean, variance, space.name)

    def log_prob(x0):
        return -((x0 - target) ** 2).flatten(1).sum(1) / (2 * spread)

    d, g = classifier_guidance(denoiser, log_prob, Point.of(X0, sigma, space), w)
    _, plain = classifier_guidance(denoiser, log_prob, Point.of(X0, sigma, space), w, rectified=False)
    gradient = -(d - target) / spread
    a, s = (torch.tensor([f(v) for v in sigma.tolist()], dtype=torch.float64).reshape(-1, 1, 1, 1) for f in (alpha_of, s_of))
    # the score's shift is w grad_x log p(y | D(x)); in x0 units it is multiplied by s^2 / alpha
    slope = variance * a / (a * a * variance + s * s)  # dD/dx
    assert torch.allclose(g, w * s * s / a * slope * gradient)
    assert torch.allclose(plain, w * (s / a) ** 2 * gradient)
    with torch.inference_mode():
        inside = classifier_guidance(denoiser, log_prob, Point.of(X0.clone(), sigma.clone(), space), w)[1]
    assert torch.equal(inside, g)


def test_classifier_guidance_at_pure_noise_is_finite():
    denoiser = oracles.gaussian_denoiser(0.2, 0.5, "flow")
    for rectified in (True, False):
        _, g = classifier_guidance(denoiser, lambda x0: -(x0**2).flatten(1).sum(1), Point.of(X0, 1.0, FLOW), rectified=rectified)
        assert torch.isfinite(g).all()


@pytest.mark.parametrize(
    ("sample", "space", "known"),
    [(sample_heun, VP, "ve or flow"), (sample_euler, VP, "ve or flow"), (sample_ddpm, VP, "ve"), (sample_ddpm, FLOW, "ve")],
)
def test_a_sampler_refuses_a_denoiser_of_another_space(sample, space, known):
    """Such a run gave wrong pictures without a word."""
    guided = Guided(lambda x, sigma: x, lambda x, sigma: x, space=space)
    with pytest.raises(ValueError, match=f"in the space {known}, got a denoiser in {space.name}"):
        sample(guided, torch.ones(1, 2), [0.5, 0.0])
