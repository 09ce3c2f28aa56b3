"""Golden gradients of a toy's chain and every form's distance to them, step by step.

A form is nearer than CFG where the golden gradient lies on its side of the hyperplane halfway between the
two. The distance to that plane is linear in the golden gradient, so it has an exact standard error. Points
within two of them are undecided. So are those with fewer than ENOUGH effective draws. Where fewer than ENOUGH
draws make the gradient, the error is widened to match. Errors are in the units of eps, as in the paper:
sigma |grad_{x_ve} ...|."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm import tqdm

from ... import jacobian
from ...forms import rectify, rectify_by_factor, schedule_factor
from ...point import Point
from ...space import VP
from ..mixtures.exact import MIXTURE_FORMS
from .golden import Golden, draw, golden
from .networks import Toy
from .training import explained

WEIGHTS = (0.5, 1.0, 2.0, 4.0)  # w = cfg - 1
SURE = 2.0  # standard errors
ENOUGH = 20.0  # effective draws; below, a point is undecided
KEYS = ("win", "win_decided", "decided", "trusted", "error", "error_ratio", "relative_rms")


def toy_grid(toy: Toy, side: int) -> Tensor:
    """Points of x_t [G, n]: the paper's [-1, 2] for its toy, else cond's mean -+ 2.5 standard deviations."""
    cond = toy.pair.cond
    if toy.pair.name.startswith("toy"):
        return torch.linspace(-1, 2, side, dtype=torch.float64)[:, None]
    reach = 2.5 * cond.cov.diagonal().sqrt()
    ends = ((float(m - r), float(m + r)) for m, r in zip(cond.mean, reach, strict=True))
    ramps = [torch.linspace(*end, side, dtype=torch.float64) for end in ends]
    return torch.cartesian_prod(*ramps).reshape(-1, toy.pair.dim)


def measure(
    toy: Toy, grid: Tensor, steps, draws: int, weights=WEIGHTS, seed: int = 0, progress: bool = False
) -> dict:
    """A dict for json.dump, the same for the same seed.

    `grid` [G, n] of x_t, `steps` out of 0 .. T-1, `draws` chains a point. For every w and form it holds lists
    over the steps:

    - `win`: share of grid points nearer to golden than CFG (ties are none). `win_decided`: the same among
      decided points (None if there are none), which are the share `decided`.
    - `error`: mean |guidance - golden| in eps; `error_ratio`: over CFG's. `relative_rms`: root mean square
      error over CFG's, the Monte Carlo noise subtracted (None if nothing is left). All points count, though
      only the share `trusted` has ENOUGH effective draws: those left out would be the valleys between modes,
      where guidance is strongest and REG weakest.
    - `overall`: these for all points and steps together.

    Beside them the golden gradient's mean `standard_error` in eps and median number of `effective_draws` by
    step, `explained` (see training.explained), and `curves`, four steps for plots. Raises ValueError for
    weights that are not > 0."""
    if not weights or not all(math.isfinite(w) and w > 0 for w in weights):
        raise ValueError(f"want weights > 0, got {list(weights)}")
    tables = {w: {form: {k: [] for k in KEYS} for form in MIXTURE_FORMS} for w in weights}
    pooled = {w: {form: [] for form in MIXTURE_FORMS} for w in weights}
    noise = {w: {"standard_error": [], "effective_draws": []} for w in weights}
    shown, curves = set(steps[:: max(1, len(steps) // 4)][-4:]), []
    for t in tqdm(steps, desc="golden gradient", mininterval=1.0, disable=not progress):
        sigma = toy.sigmas[t]
        x = (grid / VP.alpha(sigma)).to(toy.dtype)
        levels = torch.cat([toy.sigmas[: t + 1].flip(0), torch.zeros(1, dtype=torch.float64)])
        sample = draw(toy.cond, toy.pair, x, levels, draws, torch.Generator().manual_seed(1000 * seed + t))
        rectified = differences(toy, x, sigma)
        for w in weights:
            best = golden(sample, w)
            noise[w]["standard_error"].append(float((sigma * best.standard_error).mean()))
            noise[w]["effective_draws"].append(float(best.effective.median()))
            for form in tables[w]:
                rows = compare(best, *(w * rectified[f] / sigma**2 for f in (form, "off")), sigma)
                pooled[w][form].append(rows)
                for key, value in _summary(rows).items():
                    tables[w][form][key].append(value)
            if t in shown and w == (1.0 if 1.0 in weights else weights[0]):
                curves.append(_curve(t, sigma, w, best, rectified))
    for w in weights:
        for form in tables[w]:
            tables[w][form]["overall"] = _summary(torch.cat(pooled[w][form], 1))
    p, shares = toy.pair, {}
    for name, denoiser, mixture in (("cond", toy.cond, p.cond), ("uncond", toy.uncond, p.uncond)):
        shares[name] = explained(denoiser, mixture, toy.sigmas, toy.dtype)
    about = {"pair": p.name, "dim": p.dim, "origin": toy.origin, "seed": seed, "draws": draws}
    levels = {"steps": [t + 1 for t in steps], "sigmas": toy.sigmas[list(steps)].tolist()}
    rows = [{"weight": w, "forms": tables[w], **noise[w]} for w in weights]
    return about | {"grid": grid.tolist(), "explained": shares} | levels | {"weights": rows, "curves": curves}


def differences(toy: Toy, x: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """R (D_c - D_u) of every form at x [G, n] (VE) in float64, with exact derivatives of the network.

    `schedule` knows the variance of cond."""
    point = Point.of(x, sigma.to(x.dtype))
    with torch.no_grad():
        v = toy.cond(x, point.sigma) - toy.uncond(x, point.sigma)
    factor = schedule_factor(point.sigma, toy.pair.cond.data_std)
    rows = {"off": v, "schedule": rectify_by_factor(v, factor).vector}
    for form, direction in (("row_sum", torch.ones_like(v)), ("scalar", v), ("product", v)):
        rows[form] = rectify(form, v, jacobian.reverse(toy.cond, point, direction)[1]).vector
    return {form: rows[form].double() for form in MIXTURE_FORMS}


def compare(best: Golden, form: Tensor, cfg: Tensor, sigma: Tensor) -> Tensor:
    """Rows [6, G] from gradients [G, n]: nearer, decided, trusted (0 or 1), and three numbers in eps.

    These are the errors of the form and of CFG, and the Monte Carlo variance."""
    apart = form - cfg
    length = apart.norm(dim=1)
    normal = apart / length.clamp_min(1e-300)[:, None]
    side = ((best.gradient - (form + cfg) / 2) * normal).sum(1)  # > 0: golden is on the form's side
    doubt = torch.einsum("gi,gij,gj->g", normal, best.covariance, normal).clamp_min(0).sqrt()
    doubt = doubt * (ENOUGH / best.influential).clamp_min(1).sqrt()
    trusted = best.effective >= ENOUGH
    decided = (side.abs() > SURE * doubt) & trusted & (length > 0)
    errors = [sigma * (v - best.gradient).norm(dim=1) for v in (form, cfg)]
    nearer = (side > 0) & (length > 0)
    variance = (sigma * best.standard_error) ** 2
    return torch.stack([*(flag.double() for flag in (nearer, decided, trusted)), *errors, variance])


def _summary(rows: Tensor) -> dict:
    """What `measure` says of rows [6, G] of `compare`."""
    nearer, decided, trusted = rows[:3]
    sure, (error, plain, variance) = decided > 0, rows[3:]
    square, plain_square = ((e.square() - variance).mean().clamp_min(0) for e in (error, plain))
    return {
        "win": float(nearer.mean()),
        "win_decided": float(nearer[sure].mean()) if bool(sure.any()) else None,
        "decided": float(decided.mean()),
        "trusted": float(trusted.mean()),
        "error": float(error.mean()),
        "error_ratio": float(error.mean() / plain.mean()),
        "relative_rms": float((square / plain_square).sqrt()) if plain_square > 0 else None,
    }


def _curve(t: int, sigma: Tensor, w: float, best: Golden, rectified: dict[str, Tensor]) -> dict:
    """One step's guidance in eps at every grid point, for plots. 2-D: its distance to golden."""
    guidance = {form: -w * v / sigma for form, v in rectified.items()}
    truth = -sigma * best.gradient
    one = truth.shape[1] == 1
    rows = {form: g[:, 0] if one else (g - truth).norm(dim=1) for form, g in guidance.items()}
    rows["golden"] = truth[:, 0] if one else truth.norm(dim=1)
    rows["standard_error"] = sigma * best.standard_error
    short = {name: [float(f"{v:.5g}") for v in values.tolist()] for name, values in rows.items()}
    return {"step": t + 1, "weight": w} | short
