"""Reference samplers for any denoiser (x, sigma) -> D, in variance exploding or flow coordinates.

Euler and Heun integrate dx/dsigma = (x - D) / sigma, which holds for VE (Karras et al. 2022, Eq. 1) and for
rectified flow alike; the ancestral sampler is DDPM's posterior and needs VE coordinates."""

from collections.abc import Callable

import torch
from torch import Tensor


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """n noise levels from sigma_max to sigma_min, then 0: [n + 1] (Karras et al. 2022, Eq. 5)."""
    if n < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError(
            f"want n >= 1 and 0 < sigma_min <= sigma_max, got n={n}, sigma_min={sigma_min}, sigma_max={sigma_max}"
        )
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)]).float()


def flow_sigmas(n: int, shift: float = 1.0) -> Tensor:
    """n noise levels from 1, then 0: [n + 1], with SD3's resolution shift (Esser et al. 2024, Eq. 23)."""
    if n < 1 or not shift > 0:
        raise ValueError(f"want n >= 1 and shift > 0, got n={n}, shift={shift}")
    t = torch.linspace(1, 0, n + 1)
    return shift * t / (1 + (shift - 1) * t)


def sample_euler(denoiser, x: Tensor, sigmas: Tensor, callback: Callable | None = None) -> Tensor:
    """Euler steps along the probability flow. `callback(i, sigma, x, denoised)` after every model call."""
    for i, (sigma, next_sigma) in enumerate(_steps(sigmas)):
        denoised = _call(denoiser, x, sigma, i, callback)
        x = x + (next_sigma - sigma) * (x - denoised) / sigma
    return x


def sample_heun(denoiser, x: Tensor, sigmas: Tensor, callback: Callable | None = None) -> Tensor:
    """Heun's second order steps (Karras et al. 2022, Algorithm 1 without churn), Euler's to sigma = 0."""
    for i, (sigma, next_sigma) in enumerate(_steps(sigmas)):
        denoised = _call(denoiser, x, sigma, i, callback)
        slope = (x - denoised) / sigma
        ahead = x + (next_sigma - sigma) * slope
        if next_sigma > 0:
            denoised = _call(denoiser, ahead, next_sigma, i, callback)
            slope = (slope + (ahead - denoised) / next_sigma) / 2
        x = x + (next_sigma - sigma) * slope
    return x


def sample_ddpm(
    denoiser,
    x: Tensor,
    sigmas: Tensor,
    generator: torch.Generator | None = None,
    callback: Callable | None = None,
) -> Tensor:
    """Ancestral steps: DDPM's posterior q(x_next | x, x0 = D) in VE coordinates (Ho et al. 2020, Eqs.
    6-7)."""
    for i, (sigma, next_sigma) in enumerate(_steps(sigmas)):
        denoised = _call(denoiser, x, sigma, i, callback)
        ratio = (next_sigma / sigma) ** 2
        x = denoised + ratio * (x - denoised)
        if next_sigma > 0:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + next_sigma * (1 - ratio).clamp_min(0).sqrt() * noise
    return x


def _steps(sigmas):
    sigmas = torch.as_tensor(sigmas)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(
            f"sigmas must be a 1-d tensor of at least 2 noise levels, got shape {tuple(sigmas.shape)}"
        )
    if not (sigmas[1:] < sigmas[:-1]).all() or sigmas[-1] < 0:
        raise ValueError(f"sigmas must decrease to a level >= 0, got {sigmas.tolist()}")
    return zip(sigmas[:-1], sigmas[1:], strict=True)


def _call(denoiser, x, sigma, i, callback):
    denoised = denoiser(x, sigma.to(x.device).expand(x.shape[0]))
    if callback is not None:
        callback(i, sigma, x, denoised)
    return denoised
