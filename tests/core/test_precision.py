"""The doors for libraries with half precision, autocast, compiled denoisers and, where there is one, a GPU.

Oracle: D_c + w (J 1) (D_c - D_u) of the same network in float64, with J 1 by torch.func.jvp, or J^T 1 by torch.func.vjp.
"""

import copy

import pytest
import torch
from torch import amp

import reg_core
from reg_core.integrations.k_diffusion import CFGDenoiser

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
HALF = [torch.bfloat16, torch.float16]
WEIGHT, SIGMA = 4.0, 2.0


class Network(torch.nn.Module):
    """A denoiser of EDM's kind: (x, sigma, label) -> c_skip x + c_out F(c_in x), F in the precision of its weights."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last, self.labels = (
            torch.nn.Parameter(0.7 * torch.randn(shape, generator=generator) / torch.Size(shape[1:]).numel() ** 0.5)
            for shape in ((16, 3, 3, 3), (3, 16, 3, 3), (2, 16))
        )

    def forward(self, x, sigma, cond):
        s = sigma.reshape(-1, 1, 1, 1).to(x.dtype)
        inner = (x / (1 + s**2).sqrt()).to(self.first.dtype)
        label = self.labels[cond].reshape(1, -1, 1, 1).to(inner)
        hidden = torch.sin(torch.nn.functional.conv2d(inner, self.first, padding=1) + label)
        out = torch.nn.functional.conv2d(hidden, self.last, padding=1).to(x.dtype)
        return x / (1 + s**2) + s / (1 + s**2).sqrt() * out


@pytest.fixture(scope="module")
def case():
    """(network, x, {engine: REG's D}, plain D), float64 on the CPU."""
    network = Network().double().requires_grad_(False)
    x = (1 + SIGMA**2) ** 0.5 * torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = torch.full((2,), SIGMA, dtype=torch.float64)
    cond, product = torch.func.jvp(lambda z: network(z, sigma, 1), (x,), (torch.ones_like(x),))
    (transposed,) = torch.func.vjp(lambda z: network(z, sigma, 1), x)[1](torch.ones_like(x))
    v = cond - network(x, sigma, 0)
    exact = {"finite_difference": cond + WEIGHT * product * v, "reverse": cond + WEIGHT * transposed * v}
    return network, x, exact, cond + WEIGHT * v


def guided(network, **more):
    """Both doors as (x, sigma) -> D."""
    plain = reg_core.Guided(lambda x, sigma: network(x, sigma, 1), lambda x, sigma: network(x, sigma, 0), WEIGHT, **more)
    wrapped = CFGDenoiser(network, **more)
    return {"guided": plain, "k-diffusion": lambda x, sigma: wrapped(x, sigma, cond=1, uncond=0, cond_scale=1 + WEIGHT)}


def error(result, case, engine="finite_difference"):
    """Relative to what REG changes."""
    exact, plain = case[2][engine], case[3]
    return float((result.double().cpu() - exact).norm() / (exact - plain).norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
@pytest.mark.parametrize("door", ["guided", "k-diffusion"])
def test_float32(case, door, engine, device):
    network, x = copy.deepcopy(case[0]).float().to(device), case[1].float().to(device)
    result = guided(network, settings=reg_core.Settings(engine=engine))[door](x, SIGMA)
    assert result.device.type == device and result.dtype == torch.float32
    assert error(result, case, engine) < (0.01 if engine == "finite_difference" else 1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("door", ["guided", "k-diffusion"])
def test_half_precision_of_everything(case, door, dtype, engine, device):
    network, x = copy.deepcopy(case[0]).to(device, dtype), case[1].to(device, dtype)
    result = guided(network, settings=reg_core.Settings(engine=engine))[door](x, SIGMA)
    assert result.dtype == dtype
    assert error(result, case, engine) < 0.15


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", ["row_sum", "product"])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("door", ["guided", "k-diffusion"])
def test_a_network_of_half_precision_behind_a_wide_x(case, door, dtype, form, device):
    """As EDM2 and ComfyUI run them. The difference has to be as long as the network's precision wants it, which is said."""
    network, x = copy.deepcopy(case[0]).to(device, dtype), case[1].float().to(device)
    exact = guided(case[0], settings=reg_core.Settings(form=form))[door](case[1], SIGMA)
    settings = reg_core.Settings(form=form)
    told = guided(network, settings=settings, dtype=dtype)[door](x, SIGMA)
    untold = guided(network, settings=settings)[door](x, SIGMA)
    errors = [float((out.double().cpu() - exact).norm() / (exact - case[3]).norm()) for out in (told, untold)]
    assert told.dtype == torch.float32
    assert errors[0] < (0.06 if dtype == torch.bfloat16 else 0.02)
    assert dtype == torch.float16 or errors[0] < errors[1] / 2  # else nothing is gained by telling


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("door", ["guided", "k-diffusion"])
def test_autocast_is_seen(case, door, device):
    network, x = copy.deepcopy(case[0]).float().to(device), case[1].float().to(device)
    with amp.autocast(device, torch.bfloat16):
        result = guided(network)[door](x, SIGMA)
    told = guided(copy.deepcopy(network).bfloat16(), dtype=torch.bfloat16)[door](x, SIGMA)
    assert error(result, case) < 0.06
    assert float((result - told).norm() / told.norm()) < 0.05


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
@pytest.mark.parametrize("door", ["guided", "k-diffusion"])
def test_compiled_denoisers(case, door, engine, device):
    network, x = copy.deepcopy(case[0]).to(device), case[1].to(device)
    compiled = torch.compile(network, backend="aot_eager" if device == "cpu" else "inductor")
    model = guided(compiled, settings=reg_core.Settings(engine=engine))[door]
    for _ in range(2):  # compiled, then cached
        assert error(model(x, SIGMA), case, engine) < 1e-3
    with torch.inference_mode():
        assert error(model(x.clone(), SIGMA), case, engine) < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_over_all_noise_levels_in_half_precision(case, device):
    """Oracle: the same run in float64. Samplers that hold x in half precision lose digits at the start, and REG no more."""
    network, sigmas = case[0], reg_core.karras_sigmas(8, 0.05, 20.0)
    noise = 20.0 * torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    half = copy.deepcopy(network).to(device, torch.bfloat16)
    errors = {}
    for form in ("row_sum", "off"):
        settings = reg_core.Settings(form=form)
        exact = reg_core.sample_heun(guided(network, settings=settings)["guided"], noise, sigmas)
        rough = reg_core.sample_heun(guided(half, settings=settings, dtype=torch.bfloat16)["guided"], noise.float().to(device), sigmas)
        errors[form] = float((rough.double().cpu() - exact).norm() / exact.norm())
    assert errors["row_sum"] < max(0.1, 2 * errors["off"]), errors


def test_a_wrong_dtype_is_named():
    with pytest.raises(ValueError, match="dtype must be a floating dtype of torch, got 'half'"):
        CFGDenoiser(Network(), dtype="half")
    with pytest.raises(ValueError, match="got torch.int64"):
        reg_core.Guided(Network(), Network(), dtype=torch.int64)
