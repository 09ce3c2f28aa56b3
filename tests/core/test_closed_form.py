"""For isotropic Gaussian data N(m, V I) the denoiser's Jacobian is c(sigma) I: every form and engine must give c g.

Oracle: linear regression written out in oracles.py, and c = V / (V + (s/alpha)^2).
"""

import itertools

import oracles
import pytest
import torch

from reg_core import FORMS, Branches, Guided, Point, Rectifier, Settings, Space, expand, forward, from_denoised, rectify, to_denoised

SHAPES = [(2, 8, 11), (3, 4, 6, 6), (2, 3, 2, 4, 4), (2, 1, 40)]  # audio, image, video, packed
SIGMAS = {"ve": [0.05, 0.7, 6.0], "flow": [0.05, 0.5, 0.95], "vp": [0.05, 0.7, 6.0]}
VARIANCE = 0.49


def setup(space, shape, dtype=torch.float64, prediction="x0"):
    """Cond and reference denoisers that go through the network output `prediction`, x, unequal sigmas."""
    g = torch.Generator().manual_seed(1)
    sigma = torch.tensor(SIGMAS[space][: shape[0]], dtype=torch.float64)
    x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def through_network(denoiser):
        def denoise(x, sigma):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            if prediction == "edm":  # Karras et al. 2022, table 1: D = c_skip x + c_out F, and F is what is coarse
                r = expand(sigma, x) ** 2 + 0.25
                skip, out = 0.25 * wide / r, 0.5 * expand(sigma, x) / r.sqrt()
                return (skip + out * ((denoiser(wide, sigma) - skip) / out).to(dtype).to(wide.dtype)).to(x.dtype)
            output = from_denoised(prediction, denoiser(wide, sigma), wide, sigma, Space(space)).to(dtype)  # the network's precision
            return to_denoised(prediction, output.to(wide.dtype), wide, sigma, Space(space)).to(x.dtype)

        return denoise

    cond = through_network(oracles.gaussian_denoiser(0.3, VARIANCE, space))
    reference = through_network(oracles.gaussian_denoiser(-0.5, 1.7, space))
    return cond, reference, x, sigma


@pytest.mark.parametrize("space,prediction", [("ve", "eps"), ("ve", "v"), ("ve", "x0"), ("ve", "edm"), ("vp", "eps"), ("vp", "v"), ("flow", "flow")])
@pytest.mark.parametrize("form", ["row_sum", "scalar", "product", "schedule"])
@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}d" + "-packed" * (s[1:2] == (1,)))
def test_all_forms_and_engines_equal_c_times_g(space, prediction, form, engine, shape):
    cond, reference, x, sigma = setup(space, shape, prediction=prediction)
    settings = Settings(form=form, engine=engine, data_std=VARIANCE**0.5)
    with torch.inference_mode():
        result = Rectifier(settings)(Branches(cond, reference), Point.of(x, sigma, Space(space)))
        v = cond(x, sigma) - reference(x, sigma)
    want = expand(oracles.shrinkage(VARIANCE, sigma, space), x) * v
    assert (result.rectified - want).abs().max() / v.abs().max() < 1e-5


@pytest.mark.parametrize("space,prediction", [("ve", "eps"), ("vp", "v"), ("flow", "flow")])
@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
def test_forward_mode_gives_the_same(space, prediction, form):
    """`jacobian.forward` is no engine, but a product of it makes every form."""
    cond, reference, x, sigma = setup(space, (3, 4, 6, 6), prediction=prediction)
    v = cond(x, sigma) - reference(x, sigma)
    direction = torch.ones_like(v) if form == "row_sum" else v
    denoised, product = forward(cond, Point.of(x, sigma, Space(space)), direction)
    assert torch.allclose(denoised, cond(x, sigma))
    want = expand(oracles.shrinkage(VARIANCE, sigma, space), x) * v
    assert (rectify(form, v, product).vector - want).abs().max() / v.abs().max() < 1e-9


@pytest.mark.parametrize("space,prediction", [("ve", "eps"), ("ve", "v"), ("ve", "edm"), ("flow", "flow")])
@pytest.mark.parametrize("form", ["row_sum", "scalar", "product"])
def test_finite_differences_in_bfloat16(space, prediction, form):
    """The network works in bf16, the sampler in float32, as in ComfyUI. Error relative to the guidance itself."""
    cond, reference, x, sigma = setup(space, (3, 4, 16, 16), torch.bfloat16, prediction)

    class Coarse(Branches):
        def compute_dtype(self, x):
            return torch.bfloat16

    x = x.float()
    result = Rectifier(Settings(form=form))(Coarse(cond, reference), Point.of(x, sigma, Space(space)))
    want = expand(oracles.shrinkage(VARIANCE, sigma, space), x) * (result.denoised - result.reference)
    exact = oracles.gaussian_denoiser(0.3, VARIANCE, space)(x.double(), sigma)
    assert 1e-5 < (exact - result.denoised).abs().max() < 0.1  # it is that denoiser, and it is coarse
    v = result.denoised - result.reference
    per_sample = (result.rectified - want).flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)
    assert per_sample.max() < 1e-2, per_sample


@pytest.mark.parametrize("dtype,bound", [(torch.float32, 2e-3), (torch.float16, 0.02), (torch.bfloat16, 0.05)])
def test_low_precision_latents_stay_finite_and_close(dtype, bound):
    cond, reference, x, sigma = setup("ve", (3, 4, 6, 6), dtype)
    for form in ("row_sum", "scalar", "product"):
        result = Rectifier(Settings(form=form))(Branches(cond, reference), Point.of(x, sigma))
        assert result.guided(2.0).dtype == dtype
        want = expand(oracles.shrinkage(VARIANCE, sigma, "ve"), x) * (result.denoised - result.reference).double()
        assert (result.rectified - want).abs().max() < bound * 3


def test_strength_interpolates_linearly():
    cond, reference, x, sigma = setup("ve", (3, 4, 6, 6))
    c = expand(oracles.shrinkage(VARIANCE, sigma, "ve"), x)
    for strength, gain in itertools.product((0.25, 1.0, 1.5, -1.0), (1.0, 3.0)):
        rectifier = Rectifier(Settings(form="scalar", engine="reverse", strength=strength, gain=gain))
        result = rectifier(Branches(cond, reference), Point.of(x, sigma))
        v = result.denoised - result.reference
        assert torch.allclose(result.rectified, (1 + strength * (gain * c - 1)) * v, atol=1e-9)
        assert torch.allclose(result.denoised, cond(x, sigma), atol=1e-12), "no gain on D_c"
        assert torch.allclose(result.guided(2.0), result.denoised + 2 * (1 + strength * (gain * c - 1)) * v, atol=1e-9)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("off", "calibrated")])
@pytest.mark.parametrize("refresh", [1, 4])
def test_gain_is_the_same_as_a_larger_weight(form, refresh):
    """Oracle: w R g is linear in w, so gain 2.5 at w is gain 1 at 2.5 w. In every form, fresh and carried."""
    cond, reference, x, _ = setup("ve", (2, 4, 6, 6))
    one, more = (Guided(cond, reference, w, Settings(form=form, gain=g, refresh=refresh)) for g, w in ((1, 5.0), (2.5, 2.0)))
    for sigma in (4.0, 3.0, 2.5):
        assert torch.allclose(one(x, torch.tensor(sigma)), more(x, torch.tensor(sigma)), atol=1e-9)


def test_flow_at_pure_noise_is_unguided_and_finite():
    cond, reference, x, _ = setup("flow", (2, 4, 6, 6))
    sigma = torch.ones(2, dtype=torch.float64)
    for form in ("row_sum", "scalar", "product", "schedule"):
        for engine in ("finite_difference", "reverse"):
            result = Rectifier(Settings(form=form, engine=engine))(Branches(cond, reference), Point.of(x, sigma, Space("flow")))
            assert result.rectified.abs().max() < 1e-9
