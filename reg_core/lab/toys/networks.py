"""Small noise-prediction networks on the zoo's 1-D and 2-D pairs, and their training (REG, section 5.1, has the 1-D one).

A trained pair is a `Toy`: two denoisers in variance exploding coordinates at the noise levels of a DDPM chain. In these
coordinates (x_ve = x_t / alpha) DDPM's ancestral step is reg_core.sample_ddpm, and every form of REG reads as anywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import Linear, functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..jacobian import Denoiser
from ..space import VE, VP, expand, to_denoised
from .error import ddpm_sigmas
from .mixtures import Mixture
from .zoo import Pair

INPUT_SCALE = 25.0  # of the coordinates before their sinusoids; timesteps 0 .. T-1 go in as they are


@dataclass(frozen=True)
class NetShape:
    """Size of an `EpsNet`: `dim` coordinates, `layers` residual layers of `hidden` units, `emb` (even) sinusoids per number, `classes` labels."""

    dim: int = 1
    hidden: int = 64
    layers: int = 3
    emb: int = 32
    classes: int = 1


class EpsNet(nn.Module):
    """eps(x_t, t): sinusoids of every coordinate and of t, a label added to the latter, an MLP with residual GELU layers."""

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
        h = functional.gelu(self.enter(torch.cat([sinusoids(INPUT_SCALE * x, self.shape.emb).flatten(1), time], 1)))
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
    """(x_ve, sigma) -> D of a network that predicts noise from x_t = x_ve / sqrt(1 + sigma^2) at the levels `sigmas` [T], rising.

    Raises ValueError for a sigma [B] that is none of them: the network has no answer there.
    """

    net: EpsNet
    sigmas: Tensor
    label: int | None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigmas = self.sigmas.to(sigma.dtype)
        t = torch.searchsorted((sigmas[1:] * sigmas[:-1]).sqrt(), sigma.contiguous())  # nearest in the logarithm
        if not torch.allclose(sigmas[t], sigma, rtol=1e-3):
            wrong = sigma[~torch.isclose(sigmas[t], sigma, rtol=1e-3)][0]
            raise ValueError(f"sigma {float(wrong):.6g} is none of the chain's {len(sigmas)} levels {float(sigmas[0]):.4g} .. {float(sigmas[-1]):.4g}")
        eps = self.net(expand(VP.alpha(sigma), x).to(x.dtype) * x, t, self.label)
        return to_denoised("eps", eps, x, sigma, VE).to(x.dtype)


@dataclass(frozen=True)
class Toy:
    """Two denoisers of `pair`'s mixtures, with the noise levels [T] (rising, VE) of the chain they were made for.

    `origin` says what they are, for reports; `dtype` is what they compute in.
    """

    pair: Pair
    sigmas: Tensor
    cond: Denoiser
    uncond: Denoiser
    origin: str
    dtype: torch.dtype = torch.float32


def exact_toy(pair: Pair, sigmas: Tensor | None = None) -> Toy:
    """The exact denoisers of a pair in place of networks."""
    return Toy(pair, ddpm_sigmas() if sigmas is None else sigmas, pair.cond.denoiser(), pair.uncond.denoiser(), "exact", torch.float64)


@dataclass(frozen=True)
class Recipe:
    """Training of one network: AdamW with a one-cycle rate on fresh draws, averaged weights."""

    steps: int = 3000
    batch: int = 512
    learning_rate: float = 3e-3
    shape: NetShape = field(default_factory=NetShape)


def train_toy(pair: Pair, recipe: Recipe | None = None, sigmas: Tensor | None = None, seed: int = 0, progress: bool = False) -> Toy:
    """Train cond and uncond on draws of the pair's mixtures. Deterministic by `seed`; leaves torch's global generator alone."""
    recipe, sigmas = recipe or Recipe(shape=NetShape(pair.dim)), ddpm_sigmas() if sigmas is None else sigmas
    if recipe.shape.dim != pair.dim:
        raise ValueError(f"{pair.name} has dimension {pair.dim}, the network {recipe.shape.dim}")
    denoisers = []
    for i, (mixture, label) in enumerate(((pair.cond, 0), (pair.uncond, None))):
        title = f"{pair.name} {'cond' if i == 0 else 'uncond'}"
        net = _train(mixture, label, recipe, sigmas, seed + i, tqdm(range(recipe.steps), desc=title, mininterval=1.0, disable=not progress))
        denoisers.append(EpsDenoiser(net, sigmas, label))
    return Toy(pair, sigmas, *denoisers, f"trained, {recipe.steps} steps")


def _train(mixture: Mixture, label: int | None, recipe: Recipe, sigmas: Tensor, seed: int, steps) -> EpsNet:
    """Mean squared error of eps at timesteps drawn evenly (Ho et al. 2020, Eq. 14)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = EpsNet(recipe.shape)
    alpha, s = VP.alpha(sigmas).float(), VP.s(sigmas).float()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(net.parameters(), recipe.learning_rate)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1)
    for _ in steps:
        x0 = mixture.sample(recipe.batch, generator).float()
        t = torch.randint(len(sigmas), (recipe.batch,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        loss = functional.mse_loss(net(alpha[t, None] * x0 + s[t, None] * noise, t, label), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average.update_parameters(net)
    return average.module.eval().requires_grad_(False)


def fit(denoiser: Callable[[Tensor, Tensor], Tensor], mixture: Mixture, sigmas: Tensor, dtype=torch.float32, draws: int = 500, seed: int = 0) -> float:
    """Share of the exact eps that a denoiser explains: 1 - mean |eps - eps*|^2 / mean |eps*|^2, over the chain's levels alike.

    1 for the exact denoiser, 0 for eps = 0. eps* = E[noise | x] of the mixture, at draws of its own noisy marginals.
    """
    miss, power = 0.0, 0.0
    for sigma in sigmas:
        x = mixture.noisy(draws, sigma, VE, torch.Generator().manual_seed(seed))
        exact = -sigma * mixture.score(x, sigma, VE)
        with torch.no_grad():
            denoised = denoiser(x.to(dtype), sigma.to(dtype).expand(draws)).double()
        miss += float(((x - denoised) / sigma - exact).square().mean())
        power += float(exact.square().mean())
    return 1 - miss / power
