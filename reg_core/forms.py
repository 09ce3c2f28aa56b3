"""REG on one page: the forms of the rectified guidance R g (Rectified Gradient Guidance, arXiv 2501.18865).

Scaling a conditional model by p(y | x)^w is valid for the joint of the whole chain, not for the marginal of
each noise level. The guidance of the joint is grad log E_t of the reward at x0. By the chain rule the
familiar difference g = w (D_c - D_ref) then has to pass through J = alpha dD_c/dx (Eq. 21). R
is linear: this file rectifies v = D_c - D_ref, and R g = w R v for every weight w.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import shortened
from .space import expand, flat

PRODUCT_FORMS = ("row_sum", "scalar", "product")  # need a product with J


@dataclass(frozen=True, eq=False)
class Rectified:
    """R v [B, ...] and its `factor`: what v is multiplied by, [B, ...] or one number a sample [B, 1, ...].

    For `product`, which is no multiple of v, it is <R v, v> / <v, v>. `bad` [B]: samples whose correction was
    no finite number; they keep plain guidance, R = 1. None: there can be none.
    """

    vector: Tensor
    factor: Tensor
    bad: Tensor | None = None


def rectify(form: str, v: Tensor, product: Tensor) -> Rectified:
    """R v from v [B, ...] and a product with J [B, ...]: J 1 for `row_sum`, J v for `scalar` and `product`.

    Raises ValueError for a form that takes no product.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    v, product = v.to(wide), product.to(wide)
    if form == "row_sum":
        vector, factor = product * v, product  # (J^T 1) * g: Eq. 21
    elif form == "scalar":
        factor = projection(product, v)
        vector = factor * v  # (v^T J v / v^T v) g: the size of the chain rule, the direction of g
    elif form == "product":
        vector, factor = product, projection(product, v)  # J^T g: the chain rule itself
    else:
        raise ValueError(f"only {', '.join(PRODUCT_FORMS)} take a product with J, got {shortened(form)}")
    bad = ~torch.isfinite(flat(vector)).all(1)  # on the device: nothing waits, and no image turns black
    vector = torch.where(expand(bad, v), v, vector)
    return Rectified(vector, torch.where(expand(bad, v), 1, factor), bad)


def rectify_by_factor(v: Tensor, factor: Tensor) -> Rectified:
    """R v = factor v for a known and finite factor [B]: the free forms."""
    wide = torch.promote_types(v.dtype, torch.float32)
    factor = expand(factor.to(wide), v)
    return Rectified(factor * v.to(wide), factor)


def schedule_factor(sigma_ve: Tensor, data_std: float) -> Tensor:
    """c = V / (V + sigma_ve^2) [B], V = data_std^2: J of isotropic Gaussian data (0 at sigma_ve infinite)."""
    return data_std**2 / (data_std**2 + sigma_ve**2)


FORMULAS = {"schedule": schedule_factor}  # form -> c [B] of sigma_ve [B] and data_std
FREE_FORMS = (*FORMULAS, "calibrated")  # known before the model is called
FORMS = (*PRODUCT_FORMS, *FREE_FORMS, "off")


def blend(v: Tensor, full: Rectified, strength: float, gain: float = 1.0) -> Rectified:
    """v + strength (gain R v - v): plain guidance at strength 0, REG at 1. Bad samples keep v."""
    if strength == 1 == gain:
        return full
    v = v.to(full.vector.dtype)
    if full.bad is not None:
        gain = torch.where(expand(full.bad, v), 1, gain)
    vector, factor = gain * full.vector, gain * full.factor
    return Rectified(v + strength * (vector - v), 1 + strength * (factor - 1), full.bad)


def carry(factor: Tensor, ratio: Tensor) -> Tensor:
    """The factor at another noise level, whose sigma_ve is `ratio` [B] times the one it was taken at.

    J of Gaussian data is c = V / (V + sigma_ve^2), so its odds c / (1 - c) go as 1 / sigma_ve^2. A factor
    outside (0, 1), which no Gaussian has, stays what it is.
    """
    square = expand(ratio.to(factor.dtype).square(), factor)
    moved = factor / torch.lerp(square, torch.ones_like(square), factor)  # c / (c + (1 - c) ratio^2)
    return torch.where(carries(factor), moved, factor)


def carried_share(share: float, ratio: float) -> float:
    """`carry` of one number."""
    return share / (share + (1 - share) * ratio * ratio) if 0 < share < 1 else share


def carries(factor: Tensor) -> Tensor:
    """True where `carry` moves a factor."""
    return (factor > 0) & (factor < 1)


def projection(a: Tensor, v: Tensor) -> Tensor:
    """<a, v> / <v, v> per sample [B, 1, ...]; 1 where v is 0."""
    dot, norm = (expand(flat(t).sum(1), v) for t in (v * a, v * v))
    return torch.where(norm > 0, dot / norm, 1)
