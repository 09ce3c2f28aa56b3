"""The paper's Eq. 21 computed straight from its VP notation, against reg_core in VP and in VE coordinates."""

import oracles
import torch

from reg_core import VE, VP, Branches, Point, Rectifier, Settings, expand, forward, to_denoised

SHAPE = (3, 2, 4, 4)


def paper_guidance(net, x_t, abar, y, w):
    """w * (1 - sqrt(1 - abar) d(1^T eps_c)/dx_t) * (eps_c - eps_u), by one backward pass; eps(x_t) as in the paper."""
    sigma = ((1 - abar) / abar).sqrt()
    x_t = x_t.detach().clone().requires_grad_(True)
    eps_c = net(x_t, sigma, y)
    (row_sums,) = torch.autograd.grad(eps_c.sum(), x_t)
    eps_u = net(x_t, sigma, torch.zeros_like(y))
    return (w * (1 - (1 - abar).sqrt().reshape(-1, 1, 1, 1) * row_sums) * (eps_c - eps_u)).detach()


def test_row_sum_reverse_is_the_papers_formula():
    net = oracles.SmallNet(32, torch.float32)
    abar = torch.tensor([0.95, 0.5, 0.02])
    sigma = ((1 - abar) / abar).sqrt()
    x_t = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([1, 1, 1])
    want = paper_guidance(net, x_t, abar, y, w=2.5)  # of eps; D differs by -s / alpha

    branches = Branches(
        lambda x, s: to_denoised("eps", net(x, s, y), x, s, VP),
        lambda x, s: to_denoised("eps", net(x, s, torch.zeros_like(y)), x, s, VP),
    )
    result = Rectifier(Settings(form="row_sum", engine="reverse"))(branches, Point.of(x_t, sigma, VP))
    ours = -2.5 * result.rectified / expand(sigma, x_t)
    assert (ours - want).norm() / want.norm() < 1e-6

    # the same network asked in ComfyUI's coordinates, x = x_t / sqrt(abar)
    branches = Branches(
        lambda x, s: to_denoised("eps", net(x * torch.rsqrt(1 + expand(s, x) ** 2), s, y), x, s, VE),
        lambda x, s: to_denoised("eps", net(x * torch.rsqrt(1 + expand(s, x) ** 2), s, torch.zeros_like(y)), x, s, VE),
    )
    x = x_t / abar.sqrt().reshape(-1, 1, 1, 1)
    result = Rectifier(Settings(form="row_sum", engine="reverse"))(branches, Point.of(x, sigma, VE))
    ours = -2.5 * result.rectified / expand(sigma, x_t)
    assert (ours - want).norm() / want.norm() < 1e-6


def test_finite_difference_row_sum_is_j_one_not_jt_one():
    """The documented difference: on a network without symmetry the two are unrelated, and each is what it is called."""
    net = oracles.SmallNet(32)
    y, sigma = torch.ones(1, dtype=torch.long), torch.tensor([0.8], dtype=torch.float64)
    x = torch.randn((1, 2, 4, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: net(z, sigma, y).flatten(), x).reshape(32, 32)
    branches = Branches(lambda z, s: net(z, s, y), lambda z, s: net(z, s, 0 * y))
    point = Point.of(x, sigma)
    v = (branches.cond(x, sigma) - branches.reference(point)).detach()
    assert torch.allclose(forward(branches.cond, point, torch.ones_like(x))[1].flatten(), jacobian.sum(1), atol=1e-10)
    for engine, factor in (("reverse", jacobian.T.sum(1)), ("finite_difference", jacobian.sum(1))):
        rectifier = Rectifier(Settings(form="row_sum", engine=engine))
        result = rectifier(branches, point)
        assert torch.allclose(result.rectified.flatten(), factor * v.flatten(), rtol=2e-3, atol=1e-6), engine
        assert rectifier.run.rows[0].product == ("J^T 1" if engine == "reverse" else "J 1")
        assert rectifier.run.rows[0].engine == engine  # no silent fallback
    assert not torch.allclose(jacobian.sum(0), jacobian.sum(1), rtol=0.1)
