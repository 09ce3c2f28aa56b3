"""Small networks that predict noise, on the zoo's 1-D and 2-D pairs (REG, section 5.1, has the 1-D one).

A trained pair is a `Toy`: two denoisers in variance exploding coordinates at the noise levels of a DDPM
chain. In these coordinates (x_ve = x_t / alpha) DDPM's ancestral step is reg_core.sample_ddpm, and every form
of REG reads as anywhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Linear, functional

from ...jacobian import Denoiser
from ...space import VE, VP, expand, to_denoised
from ..mixtures.zoo import Pair

INPUT_SCALE = 25.0  # of the coordinates before their sinusoids; timesteps 0 .. T-1 go in as they are


@dataclass(frozen=True)
class NetShape:
    """Size of an `EpsNet`: `dim` coordinates, `layers` residual layers of `hidden` units, `classes` labels.

    `emb`: sinusoids per number, even."""

    dim: int = 1
    hidden: int = 64
    layers: int = 3
    emb: int = 32
    classes: int = 1


class EpsNet(nn.Module):
    """eps(x_t, t): an MLP with residual GELU layers on sinusoids of every coordinate and of t.

    The label is added to the sinusoids of t."""

    def __init__(self, shape: NetShape):
        super().__init__()
        self.shape = shape
        self.label = nn.Parameter(torch.randn(shape.classes, shape.emb))
        self.enter = Linear((shape.dim + 1) * shape.emb, shape.hidden)
        self.blocks = nn.ModuleList(Linear(shape.hidden, shape.hidden) for _ in range(shape.layers))
        self.leave = Linear(shape.hidden, shape.dim)

    def forward(self, x: Tensor, t: Tensor, label: int | None) -> Tensor:
        """x [B, n] at timesteps t [B] -> eps [B, n]; `label` None leaves the label out (unconditional)."""
        time = sinusoids(t.to(x.dtype), self.shape.emb)
        if label is not None:
            time = time + self.label[label]
        place = sinusoids(INPUT_SCALE * x, self.shape.emb).flatten(1)
        h = functional.gelu(self.enter(torch.cat([place, time], 1)))
        for block in self.blocks:
            h = h + functional.gelu(block(h))
        return self.leave(h)


def sinusoids(values: Tensor, size: int) -> Tensor:
    """[...] -> [..., size]: sines, then cosines, of size/2 frequencies from 1 down to 1e-4 in even ratios."""
    half = size // 2
    frequencies = torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half, dtype=values.dtype))
    angles = values[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


@dataclass(frozen=True)
class EpsDenoiser:
    """(x_ve, sigma) -> D of a network that predicts noise from x_t = x_ve / sqrt(1 + sigma^2).

    `sigmas` [T], rising: the levels it knows. Raises ValueError for a sigma [B] that is none of them."""

    net: EpsNet
    sigmas: Tensor
    label: int | None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigmas = self.sigmas.to(sigma.dtype)
        between = (sigmas[1:] * sigmas[:-1]).sqrt()  # nearest in the logarithm
        t = torch.searchsorted(between, sigma.contiguous())
        if not torch.allclose(sigmas[t], sigma, rtol=1e-3):
            wrong = sigma[~torch.isclose(sigmas[t], sigma, rtol=1e-3)][0]
            levels = f"{len(sigmas)} levels {float(sigmas[0]):.4g} .. {float(sigmas[-1]):.4g}"
            raise ValueError(f"sigma {float(wrong):.6g} is none of the chain's {levels}")
        eps = self.net(expand(VP.alpha(sigma), x).to(x.dtype) * x, t, self.label)
        return to_denoised("eps", eps, x, sigma, VE).to(x.dtype)


@dataclass(frozen=True)
class Toy:
    """Two denoisers of `pair`'s mixtures, with the noise levels [T] (rising, VE) of their chain.

    `origin`: what they are, for reports. `dtype`: what they compute in."""

    pair: Pair
    sigmas: Tensor
    cond: Denoiser
    uncond: Denoiser
    origin: str
    dtype: torch.dtype = torch.float32


def ddpm_sigmas(steps: int = 20, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Noise levels sqrt((1 - abar) / abar) [steps], rising, of betas in even steps (Ho et al. 2020).

    The defaults are those of the REG paper's 1-D toy."""
    abar = torch.cumprod(1 - torch.linspace(beta_start, beta_end, steps, dtype=torch.float64), 0)
    return ((1 - abar) / abar).sqrt()
