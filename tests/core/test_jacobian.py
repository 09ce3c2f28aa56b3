"""Products with J against torch's own full Jacobian, the adjoint identity, and the convergence order of differences."""

import oracles
import pytest
import torch

from reg_core import JacobianError, finite_difference, forward, reverse
from reg_core.jacobian import probe_step

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
    errors = [
        (finite_difference(denoiser, x, SIGMA, ALPHA, v, SIGMA, relative=h, central=True)[1] - exact).norm() / exact.norm() for h in (1e-1, 1e-2)
    ]
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
