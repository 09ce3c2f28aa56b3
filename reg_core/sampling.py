"""Reference samplers for any denoiser (x, sigma) -> D, in variance exploding or flow coordinates.

Euler and Heun integrate dx/dsigma = (x - D) / sigma, which holds for both (Karras et al. 2022, Eq. 1). Of a
denoiser with a `space`, such as Guided, they raise ValueError for another one.
"""

import torch
from torch import Tensor

from .checks import SMALLEST, number, shortened, whole
from .space import FLOW, VE


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """n noise levels from sigma_max to sigma_min, then 0: [n + 1] (Karras et al. 2022, Eq. 5)."""
    whole("n", n, 1)
    number("rho", rho, SMALLEST)
    number("sigma_min", sigma_min)
    number("sigma_max", sigma_max)
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"want 0 < sigma_min <= sigma_max, got {sigma_min=}, {sigma_max=}")
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)]).float()


def sample_euler(denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler steps along the probability flow."""
    for sigma, next_sigma in _steps(denoiser, sigmas, x, VE, FLOW):
        x = x + (next_sigma - sigma) * (x - denoiser(x, sigma.expand(len(x)))) / sigma
    return x


def sample_heun(denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun's second order steps (Karras et al. 2022, Algorithm 1 without churn), Euler's to sigma = 0."""
    for sigma, next_sigma in _steps(denoiser, sigmas, x, VE, FLOW):
        slope = (x - denoiser(x, sigma.expand(len(x)))) / sigma
        if next_sigma > 0:
            ahead = x + (next_sigma - sigma) * slope
            slope = (slope + (ahead - denoiser(ahead, next_sigma.expand(len(x)))) / next_sigma) / 2
        x = x + (next_sigma - sigma) * slope
    return x


def sample_ddpm(denoiser, x: Tensor, sigmas: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Ancestral steps in VE coordinates: DDPM's posterior q(x_next | x, x0 = D) (Ho et al. 2020, Eq. 6)."""
    for sigma, next_sigma in _steps(denoiser, sigmas, x, VE):
        denoised = denoiser(x, sigma.expand(len(x)))
        ratio = (next_sigma / sigma) ** 2
        x = denoised + ratio * (x - denoised)
        if next_sigma > 0:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + next_sigma * (1 - ratio).clamp_min(0).sqrt() * noise
    return x


def _steps(denoiser, sigmas, x, *spaces):
    space = getattr(denoiser, "space", VE)
    if space not in spaces:
        known = " or ".join(known.name for known in spaces)
        raise ValueError(f"this sampler steps in the space {known}, got a denoiser in {space.name}")
    sigmas = torch.as_tensor(sigmas, device=x.device)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas must be 2 noise levels or more in a row, got shape {tuple(sigmas.shape)}")
    if not (sigmas[1:] < sigmas[:-1]).all() or sigmas[-1] < 0:
        raise ValueError(f"sigmas must decrease to a level >= 0, got {shortened(sigmas.tolist())}")
    return zip(sigmas[:-1], sigmas[1:], strict=True)
