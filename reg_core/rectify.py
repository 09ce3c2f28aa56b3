"""REG: the settings, and the forms of the rectified guidance R g (Rectified Gradient Guidance, arXiv 2501.18865).

Scaling a conditional model by p(y | x)^w is valid for the joint of the whole chain, not for the marginal of each
noise level. The guidance that belongs to the joint is grad log E_t of the reward at x0, and by the chain rule the
familiar difference g = w (D_c - D_ref) has to pass through J = alpha dD_c/dx (section 3, Theorem 3.1 and Eq. 21).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .calibration import Calibration
from .schedule import within
from .space import expand

FORMS = ("row_sum", "scalar", "product", "schedule", "calibrated", "off")
FREE_FORMS = ("schedule", "calibrated")  # known before the model is called
ENGINES = ("auto", "finite_difference", "forward", "reverse")
MEMORY = ("auto", "resident", "checkpoint")


@dataclass(frozen=True)
class Settings:
    """What to rectify and how; checked once, here.

    - `form`: `row_sum` (J^T 1) * g, the paper's Eq. 21; `product` J^T g; `scalar` (v^T J v / v^T v) g with
      v = D_c - D_ref; `schedule` c(sigma) g with c = V / (V + sigma_ve^2), no model call; `calibrated` c(sigma) g with c
      from a table measured once; `off`.
    - `engine`: how products with J are computed. `auto` takes finite differences: one more model row, any model.
    - `strength`: 0 = plain guidance, 1 = REG, linear between and beyond.
    - `refresh`: compute the correction at every k-th model call and carry it along in between; 0 lets the run choose k
      from how far the carried correction was off the last time. Once the one carried is within 5 % of plain guidance,
      as at low noise, it is carried for up to 16 calls; 1 is always fresh.
    - `skip_below`: no guidance at all, one model row instead of two or three, where what |R g| still does to the image is
      below this share of the largest |g| of the run so far: in noise, where c of it is left and passed on by sqrt(c), and
      where guidance has faded at the end. 0 never skips.
    - `data_std`: sqrt(V) of `schedule`, in the units of the sampler's latents.
    - `calibration`: the table of `calibrated`.
    - `memory`: what reverse mode keeps for the backward pass: all activations (`resident`), those between blocks
      (`checkpoint`), or what fits (`auto`).
    - `sigma_start` >= sigma >= `sigma_end`: where to rectify (closed, rounded to float32).
    Raises ValueError with the offending value.
    """

    form: str = "row_sum"
    engine: str = "auto"
    strength: float = 1.0
    refresh: int = 1
    skip_below: float = 0.0
    data_std: float = 1.0
    sigma_start: float = math.inf
    sigma_end: float = 0.0
    calibration: Calibration | None = field(default=None, repr=False, compare=False)
    memory: str = "auto"

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.memory not in MEMORY:
            raise ValueError(f"memory must be one of {', '.join(MEMORY)}, got {self.memory!r}")
        if (self.form == "calibrated") != (self.calibration is not None):
            have = "none is given" if self.calibration is None else f"form is {self.form!r}"
            raise ValueError(f"form 'calibrated' and a calibration table go together, but {have}")
        for name in ("strength", "refresh", "skip_below", "data_std", "sigma_start", "sigma_end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not math.isfinite(self.strength):
            raise ValueError(f"strength must be finite, got {self.strength}")
        if not math.isfinite(self.refresh) or int(self.refresh) != self.refresh or self.refresh < 0:
            raise ValueError(f"refresh must be a whole number >= 0, got {self.refresh}")
        if not 0 <= self.skip_below <= 1:
            raise ValueError(f"skip_below must be between 0 and 1, got {self.skip_below}")
        if not (math.isfinite(self.data_std) and self.data_std > 0):
            raise ValueError(f"data_std must be finite and > 0, got {self.data_std}")
        if not self.sigma_start >= self.sigma_end >= 0:
            raise ValueError(f"want sigma_start >= sigma_end >= 0, got sigma_start={self.sigma_start}, sigma_end={self.sigma_end}")

    @property
    def enabled(self) -> bool:
        """False when guidance stays what it was."""
        return self.form != "off" and self.strength != 0

    @property
    def bounded(self) -> bool:
        """True when sigma decides whether a call is rectified (asking costs a device synchronisation)."""
        return self.sigma_start != math.inf or self.sigma_end != 0

    def covers(self, sigma: float) -> bool:
        """True when a call at `sigma` is to be rectified."""
        return not self.bounded or within(sigma, self.sigma_end, self.sigma_start)


@dataclass(frozen=True)
class Rectified:
    """R v beside v = D_c - D_ref. `factor`: what R multiplies by, elementwise [B, ...] or per sample [B, 1, ...]."""

    vector: Tensor
    factor: Tensor
    bad: Tensor  # [B] bool: samples left unrectified because their correction was no finite number


def rectify(form: str, v: Tensor, product: Tensor, strength: float = 1.0) -> Rectified:
    """R v from v = D_c - D_ref and a product with J, both [B, ...]: of the ones vector for `row_sum`, of v otherwise.

    R is linear, so R g = w R v for every weight. Samples whose product is not finite keep plain guidance (R = 1).
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    v, product = v.to(wide), product.to(wide)
    if form == "row_sum":  # Eq. 21: (J^T 1) * g
        return blend(v, product * v, product, strength)
    dot = per_sample(v * product)
    norm = per_sample(v * v)
    ratio = torch.where(norm > 0, dot / norm, 1)  # v^T J v / v^T v
    if form == "scalar":
        return blend(v, ratio * v, ratio, strength)
    if form == "product":  # the chain rule itself: J^T g
        return blend(v, product, ratio, strength)
    raise ValueError(f"form {form!r} takes no product with J; want row_sum, scalar or product")


def schedule_factor(sigma_ve: Tensor, data_std: float) -> Tensor:
    """c = V / (V + sigma_ve^2) [B]: J of isotropic Gaussian data of variance V at sigma_ve = s / alpha (0 at infinity)."""
    return data_std**2 / (data_std**2 + sigma_ve**2)


def rectify_by_factor(v: Tensor, factor: Tensor, strength: float = 1.0) -> Rectified:
    """R v = factor v for a known and finite factor, [B], [B, C] or in v's rank: `schedule`, tables."""
    wide = torch.promote_types(v.dtype, torch.float32)
    v, factor = v.to(wide), factor.to(wide)
    factor = factor.reshape(*factor.shape, *(1,) * (v.ndim - factor.ndim))
    if strength != 1:
        factor = 1 + strength * (factor - 1)
    return Rectified(factor * v, factor, torch.zeros(v.shape[0], dtype=torch.bool, device=v.device))


def carries(factor: Tensor) -> Tensor:
    """Where a factor is one that Gaussian data can have: in (0, 1)."""
    return (factor > 0) & (factor < 1)


def carry(factor: Tensor, ratio: Tensor, moves: Tensor | None = None) -> Tensor:
    """The factor at another noise level: sigma_ve there is `ratio` [B] times what it was.

    J of Gaussian data is c = V / (V + sigma_ve^2), so its odds c / (1 - c) go as 1 / sigma_ve^2. Factors outside
    (0, 1), which no Gaussian has, stay what they are. `moves`: `carries(factor)`, where it is known.
    """
    square = expand(ratio.to(factor.dtype).square(), factor)
    moved = factor / torch.lerp(square, torch.ones_like(square), factor)  # c + (1 - c) ratio^2
    return torch.where(carries(factor) if moves is None else moves, moved, factor)


def blend(v: Tensor, rectified: Tensor, factor: Tensor, strength: float) -> Rectified:
    """v + strength (R v - v), and plain v for samples in which anything is not finite."""
    if strength != 1:
        rectified = v + strength * (rectified - v)
        factor = 1 + strength * (factor - 1)
    # Decided on the device: no synchronisation, and never a black image.
    bad = ~torch.isfinite(rectified).flatten(1).all(1)
    rectified = torch.where(expand(bad, v), v, rectified)
    factor = torch.where(expand(bad, v), 1, factor)
    return Rectified(rectified, factor, bad)


def per_sample(t: Tensor) -> Tensor:
    """Sum over everything but the batch: [B, ...] -> [B, 1, ...]."""
    return expand(t.flatten(1).sum(1), t)
