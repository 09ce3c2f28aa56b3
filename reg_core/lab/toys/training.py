"""Training of a toy's two networks, and how much of the exact noise they learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ...space import VE, VP
from ..mixtures.mixture import Mixture
from ..mixtures.zoo import Pair
from .networks import EpsDenoiser, EpsNet, NetShape, Toy, ddpm_sigmas


@dataclass(frozen=True)
class ToyRecipe:
    """Training of one network: AdamW with a one-cycle rate on fresh draws, averaged weights."""

    steps: int = 3000
    batch: int = 512
    learning_rate: float = 3e-3
    shape: NetShape = field(default_factory=NetShape)


def train_toy(
    pair: Pair,
    recipe: ToyRecipe | None = None,
    sigmas: Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Toy:
    """Train cond and uncond on draws of the pair's mixtures.

    Deterministic by `seed`; torch's global generator stays as it is. Raises ValueError for another
    dimension."""
    recipe = recipe or ToyRecipe(shape=NetShape(pair.dim))
    sigmas = ddpm_sigmas() if sigmas is None else sigmas
    if recipe.shape.dim != pair.dim:
        raise ValueError(f"{pair.name} has dimension {pair.dim}, the network {recipe.shape.dim}")
    denoisers = []
    for i, (mixture, label) in enumerate(((pair.cond, 0), (pair.uncond, None))):
        title = f"{pair.name} {'cond' if i == 0 else 'uncond'}"
        steps = tqdm(range(recipe.steps), desc=title, mininterval=1.0, disable=not progress)
        net = _train(mixture, label, recipe, sigmas, seed + i, steps)
        denoisers.append(EpsDenoiser(net, sigmas, label))
    return Toy(pair, sigmas, *denoisers, f"trained, {recipe.steps} steps")


def _train(
    mixture: Mixture, label: int | None, recipe: ToyRecipe, sigmas: Tensor, seed: int, steps
) -> EpsNet:
    """Mean squared error of eps at timesteps drawn evenly (Ho et al. 2020, Eq. 14)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = EpsNet(recipe.shape)
    alpha, s = VP.alpha(sigmas).float(), VP.s(sigmas).float()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(net.parameters(), recipe.learning_rate)
    cycle = {"total_steps": recipe.steps, "pct_start": 0.1}
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, **cycle)
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


def explained(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    mixture: Mixture,
    sigmas: Tensor,
    dtype: torch.dtype = torch.float32,
    draws: int = 500,
) -> float:
    """Share of the exact eps that a denoiser explains, over the chain's levels alike.

    1 - mean |eps - eps*|^2 / mean |eps*|^2: 1 for the exact denoiser, 0 for eps = 0. eps* = E[noise | x] of
    the mixture, at draws of its noisy marginals."""
    miss, power = 0.0, 0.0
    for sigma in sigmas:
        x = mixture.noisy(draws, sigma, VE, torch.Generator().manual_seed(0))
        exact = -sigma * mixture.score(x, sigma, VE)
        with torch.no_grad():
            denoised = denoiser(x.to(dtype), sigma.to(dtype).expand(draws)).double()
        miss += float(((x - denoised) / sigma - exact).square().mean())
        power += float(exact.square().mean())
    return 1 - miss / power
