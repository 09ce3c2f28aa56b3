"""Products with J against torch's own full Jacobian, the adjoint identity, and the convergence order of differences."""

import oracles
import pytest
import torch
import torch.nn.functional as F

from reg_core import Branches, JacobianError, Point, Rectifier, Settings, finite_difference, forward, reverse
from reg_core.jacobian import probe_length, probe_step, rounding_error

SIGMA = torch.tensor([0.3, 2.0], dtype=torch.float64)
ALPHA = torch.tensor([0.9, 0.4], dtype=torch.float64)
Y = torch.tensor([1, 0])


def problem(shape=(2, 3, 4), seed=0):
    """(denoiser, point, u, v). The scales of the point belong to no space: every factor shows."""
    net = oracles.SmallNet(12, seed=seed)
    g = torch.Generator().manual_seed(seed + 10)
    x, u, v = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    return (lambda z, s: net(z, s, Y)), Point(x, SIGMA, ALPHA, SIGMA), u, v


def full_jacobian(denoiser, x, row):
    def one(z):
        return denoiser(torch.stack([z if i == row else x[i] for i in range(len(x))]), SIGMA)[row].flatten()

    return torch.autograd.functional.jacobian(one, x[row]).reshape(12, 12) * ALPHA[row]


def exact(denoiser, point, v):
    """J v by the full Jacobian."""
    rows = [full_jacobian(denoiser, point.x, row) @ v[row].flatten() for row in range(2)]
    return torch.stack(rows).reshape(v.shape)


def test_products_equal_the_full_jacobian():
    denoiser, point, u, v = problem()
    d_u, jt_u = reverse(denoiser, point, u)
    d_v, j_v = forward(denoiser, point, v)
    assert torch.allclose(d_u, denoiser(point.x, SIGMA)) and torch.allclose(d_v, d_u)
    assert torch.allclose(j_v, exact(denoiser, point, v), atol=1e-12)
    for row in range(2):
        jacobian = full_jacobian(denoiser, point.x, row)
        assert torch.allclose(jt_u[row].flatten(), jacobian.T @ u[row].flatten(), atol=1e-12)


def test_dot_test_between_directions():
    denoiser, point, u, v = problem(seed=4)
    _, jt_u = reverse(denoiser, point, u)
    _, j_v = forward(denoiser, point, v)
    assert torch.allclose((u * j_v).sum(), (jt_u * v).sum(), rtol=1e-12)


def test_finite_difference_converges_to_first_order():
    denoiser, point, _, v = problem(seed=5)
    want = exact(denoiser, point, v)
    errors = [(finite_difference(denoiser, point, v, relative=h)[1] - want).norm() / want.norm() for h in (1e-2, 1e-3, 1e-4)]
    assert errors[0] < 0.02
    assert 7 < errors[0] / errors[1] < 13 and 7 < errors[1] / errors[2] < 13


def test_central_difference_converges_to_second_order():
    denoiser, point, _, v = problem(seed=5)
    want = exact(denoiser, point, v)
    errors = [(finite_difference(denoiser, point, v, relative=h, central=True)[1] - want).norm() / want.norm() for h in (1e-1, 1e-2)]
    assert errors[0] < 0.02 and 70 < errors[0] / errors[1] < 130


def test_a_prediction_that_is_known_is_not_made_again():
    denoiser, point, _, v = problem(seed=5)
    asked = []

    def counted(z, s):
        asked.append(1)
        return denoiser(z, s)

    known = denoiser(point.x, SIGMA).detach()
    denoised, product = finite_difference(counted, point, v, known)
    assert denoised is known and len(asked) == 1
    assert torch.equal(product, finite_difference(denoiser, point, v)[1])


def test_probe_has_the_length_asked_for_in_every_row_or_over_the_rows_of_one_level():
    v = torch.randn(2, 3, 4, dtype=torch.float64) * torch.tensor([1e-3, 1e3], dtype=torch.float64)[:, None, None]
    point = Point(v, SIGMA, ALPHA, SIGMA)
    h = probe_step(v, point, 0.05)
    assert torch.allclose((h * v).flatten(1).norm(dim=1), 0.05 * SIGMA * 12**0.5)
    same = Point(v, *(t[:1].expand(2) for t in (SIGMA, ALPHA, SIGMA)))
    h = probe_step(v, same, 0.05)
    assert h[0] == h[1] and torch.allclose((h * v).norm(), 0.05 * SIGMA[0] * 24**0.5)
    assert torch.isfinite(probe_step(0 * v, point, 0.05) * 0).all()


def test_zero_direction_gives_zero():
    denoiser, point, _, v = problem()
    assert (finite_difference(denoiser, point, 0 * v)[1] == 0).all()


def test_cotangent_may_depend_on_the_prediction():
    denoiser, point, _, v = problem()
    denoised, product = reverse(denoiser, point, lambda d: d - v)
    known = denoiser(point.x, SIGMA).detach()
    assert torch.equal(product, reverse(denoiser, point, known - v)[1]) and torch.equal(denoised, known)


def copied(point):
    return Point(*(value.clone() for value in (point.x, point.sigma, point.alpha, point.s)))


@pytest.mark.parametrize("product", [reverse, forward])
def test_inside_inference_mode_with_ordinary_weights(product):
    denoiser, point, u, _ = problem()
    want = product(denoiser, point, u)[1]
    with torch.inference_mode():
        got = product(denoiser, copied(point), u.clone())[1]
    assert torch.equal(got, want)


@pytest.mark.parametrize("product", [reverse, forward])
def test_the_network_is_differentiated_outside_of_inference_mode(product):
    """PyTorch before 2.12 or 2.13 gives tangents of zero within it, and no error. So does a tensor made there."""
    denoiser, point, u, _ = problem()
    seen = []

    def watched(z, sigma):
        seen.append(torch.is_inference_mode_enabled() or sigma.is_inference())
        return denoiser(z, sigma)

    with torch.inference_mode():
        product(watched, copied(point), u.clone())
    assert seen == [False]


def test_a_prediction_without_gradient_is_refused_by_name():
    _, point, u, _ = problem()
    with pytest.raises(JacobianError, match="not connected to its input"):
        reverse(lambda z, s: z.detach() * 2, point, u)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(JacobianError, match="does not depend on its input"):
        reverse(lambda z, s: weight * torch.ones_like(z), point, u)


# Forward mode


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 3, 5, 4), (2, 2, 3, 5, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_has_a_tangent(shape, causal):
    """PyTorch's fused kernels have none. Oracle: autograd's full Jacobian of attention written out."""
    g = torch.Generator().manual_seed(0)
    x, v = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(4, 4, generator=g, dtype=torch.float64)

    def attend(z, sigma):
        return F.scaled_dot_product_attention(z @ weight, z, z.flip(-1), is_causal=causal)

    def written_out(z):
        scores = (z @ weight) @ z.transpose(-1, -2) / 2
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
        return torch.softmax(scores, -1) @ z.flip(-1)

    if len(shape) == 2:  # a batch of single rows
        x, v = x[None], v[None]
    ones = torch.ones(len(x), dtype=torch.float64)
    denoised, product = forward(attend, Point(x, ones, ones, ones), v)
    jacobian = torch.autograd.functional.jacobian(written_out, x).reshape(x.numel(), x.numel())
    assert torch.allclose(denoised, written_out(x), atol=1e-12)
    assert torch.allclose(product.flatten(), jacobian @ v.flatten(), atol=1e-12)


def linear_layers():
    g = torch.Generator().manual_seed(0)
    for layer, shape in ((F.linear, (4, 4)), (F.conv1d, (4, 4, 3)), (F.conv2d, (4, 4, 3, 3)), (F.conv3d, (4, 4, 3, 3, 3))):
        weight, bias = torch.randn(shape, generator=g, dtype=torch.float64), torch.randn(4, generator=g, dtype=torch.float64)
        x, v = (torch.randn(2, 4, *[5] * (len(shape) - 2), generator=g, dtype=torch.float64) for _ in range(2))
        yield pytest.param(layer, weight, bias, x, v, id=layer.__name__)


@pytest.mark.parametrize(("layer", "weight", "bias", "x", "v"), linear_layers())
def test_a_linear_layer_is_its_own_derivative(layer, weight, bias, x, v):
    """Oracle: J v of W x + b is W v."""
    ones, padding = torch.ones(2, dtype=torch.float64), {} if layer is F.linear else {"padding": 1}
    denoised, product = forward(lambda z, s: layer(z, weight, bias, **padding), Point(x, ones, ones, ones), v)
    assert torch.allclose(denoised, layer(x, weight, bias, **padding), atol=1e-12)
    assert torch.allclose(product, layer(v, weight, **padding), atol=1e-12)


@pytest.mark.parametrize("norm", ["group", "layer", "rms"])
def test_normalisation(norm):
    """Oracle: autograd's full Jacobian."""
    g = torch.Generator().manual_seed(0)
    x, v = (2 + torch.randn(2, 6, 3, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(6 if norm == "group" else 3, generator=g, dtype=torch.float64)

    def normalised(z, sigma=None):
        if norm == "group":
            return F.group_norm(z, 3, weight)
        return F.layer_norm(z, (3,), weight) if norm == "layer" else F.rms_norm(z, (3,), weight, 1e-3)

    ones = torch.ones(2, dtype=torch.float64)
    _, product = forward(normalised, Point(x, ones, ones, ones), v)
    jacobian = torch.autograd.functional.jacobian(normalised, x).reshape(x.numel(), x.numel())
    assert torch.allclose(product.flatten(), jacobian @ v.flatten(), atol=1e-10)


@pytest.fixture(scope="module")
def fused():
    """An operator of somebody's library, without a derivative: PyTorch loses its tangent and says nothing."""

    @torch.library.custom_op("reg_tests::fused_scale", mutates_args=())
    def fused_scale(x: torch.Tensor) -> torch.Tensor:
        return 1.5 * x

    return fused_scale


@pytest.mark.parametrize("inference", [False, True])
def test_an_operator_outside_of_aten_is_named(fused, inference):
    denoiser, point, _, v = problem()
    with torch.inference_mode(inference):
        point, v = copied(point), v.clone()
        with pytest.raises(JacobianError, match="reg_tests.fused_scale"):
            forward(lambda z, s: denoiser(fused(z), s), point, v)
        assert torch.equal(fused(point.x), 1.5 * point.x), "it works where no derivative is asked for"


def test_an_operator_outside_of_aten_that_the_point_does_not_pass_is_named_as_well(fused):
    """It cannot be seen what it is given, so it is refused: never a silent loss."""
    _, point, _, v = problem()
    with pytest.raises(JacobianError, match="reg_tests.fused_scale"):
        forward(lambda z, s: z * fused(s)[:, None, None], point, v)


class Quantised(torch.Tensor):
    """A weight that stands for another, as quantised ones do: operations are given the one it stands for."""

    @staticmethod
    def __new__(cls, stored):
        return torch.Tensor._make_wrapper_subclass(cls, stored.shape, dtype=stored.dtype)

    def __init__(self, stored):
        self.stored = stored

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(a.stored if isinstance(a, cls) else a for a in args), **(kwargs or {}))


@pytest.mark.parametrize("inference", [False, True])
def test_quantised_weights_are_constants(inference):
    """ComfyUI 0.33 has such weights. Oracle: J v of a linear layer is the layer of v."""
    with torch.inference_mode(inference):
        weight, x, v = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        one = torch.ones(4, dtype=torch.float64)
        quantised = Quantised(weight)
        denoised, product = forward(lambda z, s: F.linear(z, quantised, one), Point(x, one, one, one), v)
    assert torch.allclose(denoised, x @ weight.T + 1) and torch.allclose(product, v @ weight.T)


# Precision


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
    denoiser, precise = half(dtype)
    s, alpha = torch.full((16,), level), torch.full((16,), 0.8)
    x = level * torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    point, wide = Point(x, s, alpha, s), Point(*(t.double() for t in (x, s, alpha, s)))
    ones = torch.ones_like(x)
    for relative in (0.003, 0.03):
        denoised, product = finite_difference(denoiser, point, ones, relative=relative)
        want = forward(precise, wide, ones.double())[1]
        estimate = rounding_error(point, denoised, relative, dtype)
        error = (product - want).norm(dim=1) / ones.norm(dim=1)
        assert 1 / 3 < (error / estimate).mean() < 3, (relative, error.mean(), estimate.mean())


def test_step_is_longer_in_half_precision_and_at_low_noise():
    s = torch.tensor([0.1, 0.5, 1.0, 50.0])
    point = Point(torch.zeros(4, 1), s, torch.ones(4), s)
    assert torch.equal(probe_length(torch.float32, point), torch.full((4,), 0.01))
    lengths = probe_length(torch.bfloat16, point)
    assert lengths[0] == 2 * lengths[2] == 2 * lengths[3] and lengths[0] > lengths[1] > lengths[2] > 0.05


@pytest.mark.parametrize("central", [False, True])
def test_no_overflow_in_float16(central):
    """A direction whose norm is beyond the end of float16."""
    x = torch.full((2, 64), -3.0, dtype=torch.float16)
    v = torch.full_like(x, 60000.0)
    s, alpha = torch.tensor([6000.0, 1.0], dtype=torch.float16), torch.ones(2, dtype=torch.float16)
    _, product = finite_difference(lambda z, sigma: z * 0.5, Point(x, s, alpha, s), v, relative=0.1, central=central)
    assert product.dtype == torch.float32 and torch.isfinite(product).all()
    assert torch.allclose(product, 0.5 * v.float(), rtol=0.1)


def test_a_probe_beyond_float16_costs_one_sample_its_rectification_only():
    """D(x + h v) is inf in one sample: plain guidance there, finite, and the trace says so; the others are rectified."""

    def cond(z, sigma):
        return torch.where(z.amax(1, keepdim=True) > 3, torch.inf, 0.5 * z.float()).half()

    x = torch.full((2, 64), 1.0, dtype=torch.float16)
    x[1] = 2.99
    rectifier = Rectifier(Settings("row_sum"))
    prediction = rectifier(Branches(cond, lambda z, sigma: 0.25 * z), Point.of(x, 1.0))
    assert torch.isfinite(prediction.guided(3.0)).all()
    plain = (prediction.denoised - prediction.reference).float()
    assert torch.equal(prediction.rectified[1], plain[1]) and torch.allclose(prediction.rectified[0], 0.5 * plain[0], rtol=0.02)
    assert rectifier.run.rows[0].nonfinite == 1
