"""Products with J against torch's own full Jacobian, the adjoint identity, and the convergence order of differences."""

import oracles
import pytest
import torch

from reg_core import Branches, JacobianError, Rectifier, Settings, finite_difference, forward, reverse
from reg_core.jacobian import difference_error, probe_length, probe_step

SIGMA = torch.tensor([0.3, 2.0], dtype=torch.float64)
ALPHA = torch.tensor([0.9, 0.4], dtype=torch.float64)
Y = torch.tensor([1, 0])


def problem(shape=(2, 3, 4), seed=0):
    net = oracles.SmallNet(12, seed=seed)
    g = torch.Generator().manual_seed(seed + 10)
    x, u, v = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    return (lambda z, s: net(z, s, Y)), x, u, v


def full_jacobian(denoiser, x, row):
    def one(z):
        return denoiser(torch.stack([z if i == row else x[i] for i in range(len(x))]), SIGMA)[row].flatten()

    return torch.autograd.functional.jacobian(one, x[row]).reshape(12, 12) * ALPHA[row]


def test_products_equal_the_full_jacobian():
    denoiser, x, u, v = problem()
    _, jt_u = reverse(denoiser, x, SIGMA, ALPHA, u)
    _, j_v = forward(denoiser, x, SIGMA, ALPHA, v)
    for row in range(2):
        jacobian = full_jacobian(denoiser, x, row)
        assert torch.allclose(jt_u[row].flatten(), jacobian.T @ u[row].flatten(), atol=1e-12)
        assert torch.allclose(j_v[row].flatten(), jacobian @ v[row].flatten(), atol=1e-12)


def test_dot_test_between_engines():
    denoiser, x, u, v = problem(seed=4)
    _, jt_u = reverse(denoiser, x, SIGMA, ALPHA, u)
    _, j_v = forward(denoiser, x, SIGMA, ALPHA, v)
    assert torch.allclose((u * j_v).sum(), (jt_u * v).sum(), rtol=1e-12)


def test_finite_difference_converges_to_first_order():
    denoiser, x, _, v = problem(seed=5)
    _, exact = forward(denoiser, x, SIGMA, ALPHA, v)
    errors = [(finite_difference(denoiser, x, SIGMA, ALPHA, v, SIGMA, relative=h)[1] - exact).norm() / exact.norm() for h in (1e-2, 1e-3, 1e-4)]
    assert errors[0] < 0.02
    assert 7 < errors[0] / errors[1] < 13 and 7 < errors[1] / errors[2] < 13


def test_central_difference_converges_to_second_order():
    denoiser, x, _, v = problem(seed=5)
    _, exact = forward(denoiser, x, SIGMA, ALPHA, v)
    errors = [(finite_difference(denoiser, x, SIGMA, ALPHA, v, SIGMA, relative=h, central=True)[1] - exact).norm() / exact.norm() for h in (1e-1, 1e-2)]
    assert errors[0] < 0.02 and 70 < errors[0] / errors[1] < 130


def test_probe_has_the_length_asked_for_in_every_row():
    v = torch.randn(2, 3, 4, dtype=torch.float64) * torch.tensor([1e-3, 1e3], dtype=torch.float64)[:, None, None]
    h = probe_step(v, SIGMA, 0.05)
    assert torch.allclose((h * v).flatten(1).norm(dim=1), 0.05 * SIGMA * 12**0.5)
    assert torch.isfinite(probe_step(0 * v, SIGMA, 0.05) * 0).all()


def test_zero_direction_gives_zero():
    denoiser, x, _, v = problem()
    assert (finite_difference(denoiser, x, SIGMA, ALPHA, 0 * v, SIGMA)[1] == 0).all()


def test_cotangent_may_depend_on_the_prediction():
    denoiser, x, _, v = problem()
    denoised, product = reverse(denoiser, x, SIGMA, ALPHA, lambda d: d - v)
    _, want = reverse(denoiser, x, SIGMA, ALPHA, denoiser(x, SIGMA).detach() - v)
    assert torch.equal(product, want) and torch.equal(denoised, denoiser(x, SIGMA).detach())


@pytest.mark.parametrize("engine", [reverse, forward])
def test_inside_inference_mode_with_ordinary_weights(engine):
    denoiser, x, u, _ = problem()
    want = engine(denoiser, x, SIGMA, ALPHA, u)[1]
    with torch.inference_mode():
        got = engine(denoiser, x.clone(), SIGMA.clone(), ALPHA.clone(), u.clone())[1]
    assert torch.equal(got, want)


@pytest.mark.parametrize("engine", [reverse, forward])
def test_the_network_is_differentiated_outside_of_inference_mode(engine):
    """PyTorch before 2.12 or 2.13 gives tangents of zero within it, and no error. So does a tensor made there."""
    denoiser, x, u, _ = problem()
    seen = []

    def watched(z, sigma):
        seen.append(torch.is_inference_mode_enabled() or sigma.is_inference())
        return denoiser(z, sigma)

    with torch.inference_mode():
        engine(watched, x.clone(), SIGMA.clone(), ALPHA.clone(), u.clone())
    assert seen == [False]


def test_a_prediction_without_gradient_is_refused_by_name():
    _, x, u, _ = problem()
    with pytest.raises(JacobianError, match="not connected to its input"):
        reverse(lambda z, s: z.detach() * 2, x, SIGMA, ALPHA, u)


def test_attention_in_forward_mode():
    """The fused kernels have no tangent; the engine must pick the one that has."""
    g = torch.Generator().manual_seed(0)
    x, v = (torch.randn(2, 4, 8, 16, generator=g) for _ in range(2))

    def attend(z, s):
        return torch.nn.functional.scaled_dot_product_attention(z, z, z)

    ones = torch.ones(2)
    _, product = forward(attend, x, ones, ones, v)
    _, want = finite_difference(lambda z, s: attend(z.double(), s), x.double(), ones.double(), ones.double(), v.double(), ones.double(), relative=1e-6)
    assert torch.allclose(product.double(), want, atol=1e-4)


@pytest.mark.parametrize(("central", "order"), [(False, 2), (True, 4)])
def test_richardson_gains_an_order(central, order):
    denoiser, x, _, v = problem(seed=5)
    _, exact = forward(denoiser, x, SIGMA, ALPHA, v)
    steps = (0.2, 0.02)
    errors = [
        (finite_difference(denoiser, x, SIGMA, ALPHA, v, SIGMA, relative=h, central=central, richardson=True)[1] - exact).norm() / exact.norm() for h in steps
    ]
    assert errors[0] < 0.05 and 0.6 < torch.log10(errors[0] / errors[1]) / order < 1.3


def half(dtype, seed=6):
    """A network that computes in `dtype`, D = x - s net(x), and the same in float64 of the same rounded weights."""
    g = torch.Generator().manual_seed(seed)
    weights = [(torch.randn(64, 64, generator=g) / 8).to(dtype) for _ in range(2)]

    def denoiser(z, s, to=dtype):
        first, second = (w.to(to) for w in weights)
        inner = (z / (1 + s[:, None] ** 2).sqrt()).to(to)
        return z - s[:, None] * (torch.tanh(inner @ first) @ second).to(z.dtype)

    return denoiser, lambda z, s: denoiser(z, s, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", [0.3, 3.0, 30.0])
def test_error_estimate_by_rounding(dtype, level):
    """Within a factor of three of the true error of J 1 against float64, where the step is too short for curvature to matter."""
    denoiser, exact = half(dtype)
    s, alpha = torch.full((16,), level), torch.full((16,), 0.8)
    x = level * torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    ones = torch.ones_like(x)
    for relative in (0.003, 0.03):
        denoised, product = finite_difference(denoiser, x, s, alpha, ones, s, relative=relative)
        want = forward(exact, x.double(), s.double(), alpha.double(), ones.double())[1]
        estimate = difference_error(x, denoised, product, probe_step(ones, s, relative), alpha, dtype)
        error = (product - want).norm(dim=1) / product.norm(dim=1)
        assert 1 / 3 < (error / estimate).mean() < 3, (relative, error.mean(), estimate.mean())


def test_step_is_longer_in_half_precision_and_at_low_noise():
    s, alpha = torch.tensor([0.1, 0.5, 1.0, 50.0]), torch.ones(4)
    assert torch.equal(probe_length(torch.float32, s, alpha), torch.full((4,), 0.01))
    lengths = probe_length(torch.bfloat16, s, alpha)
    assert lengths[0] == 2 * lengths[2] == 2 * lengths[3] and lengths[0] > lengths[1] > lengths[2] > 0.05


@pytest.mark.parametrize("central", [False, True])
def test_no_overflow_in_float16(central):
    """x near the end of float16, and a direction whose norm is beyond it: the step is cut to what can be represented."""
    x = torch.full((2, 64), 65000.0, dtype=torch.float16)
    x[1] = -3.0
    v = torch.full_like(x, 60000.0)
    s, alpha = torch.tensor([60000.0, 1.0], dtype=torch.float16), torch.ones(2, dtype=torch.float16)
    _, product = finite_difference(lambda z, sigma: z * 0.5, x, s, alpha, v, s, relative=0.1, central=central)
    assert product.dtype == torch.float32 and torch.isfinite(product).all()
    assert torch.allclose(product, 0.5 * v.float(), rtol=0.1)


def test_a_probe_beyond_float16_costs_one_sample_its_rectification_only():
    """D(x + h v) is inf in one sample: plain guidance there, finite, and the trace says so; the others are rectified."""

    def cond(z, sigma):
        return torch.where(z.amax(1, keepdim=True) > 3, torch.inf, 0.5 * z.float()).half()

    x = torch.full((2, 64), 1.0, dtype=torch.float16)
    x[1] = 2.99
    rectifier = Rectifier(Settings("row_sum"))
    prediction = rectifier(Branches(cond, lambda z, sigma: 0.25 * z), x, 1.0)
    assert torch.isfinite(prediction.guided(3.0)).all()
    plain = (prediction.denoised - prediction.reference).float()
    assert torch.equal(prediction.rectified[1], plain[1]) and torch.allclose(prediction.rectified[0], 0.5 * plain[0], rtol=0.02)
    assert rectifier.run.rows[0].nonfinite == 1
