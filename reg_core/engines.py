"""Both predictions and a product with J = alpha dD_c/dx, by a difference or by a backward pass."""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import jacobian
from .branches import Branches
from .checks import cut
from .jacobian import HALF, JacobianError
from .point import Point
from .space import expand

log = logging.getLogger(__name__)

# J^T w is believed where <J^T w, u> is <w, J u> by finite differences, both over |u|, to this much of |w| and
# this much of the number. For a random u the error is taken as a vector, and may be this much of what J^T w
# has beside w. That is the network's own part; most of the rest is the way around it.
CHECK = {torch.float64: (1e-3, 0.02), torch.float32: (0.02, 0.10)}
CHECK_HALF = (0.10, 0.25)
CHECK_RANDOM, RANDOM_LENGTH = (0.002, 0.03), 3e-3
CHECK_SMALL = 0.2  # <J^T w, w> over <w, w> below which agreement proves little: again at half the noise


@dataclass(frozen=True, eq=False)
class Evaluated:
    """D_c, D_ref and the product with J [B, ...]; `product_name` as in "J^T 1".

    `error`: of the product by rounding, relative to the vector it is of, 0-d.
    """

    denoised: Tensor
    reference: Tensor
    product: Tensor
    product_name: str
    error: Tensor


class Difference:
    """J 1 or J v by a finite difference: one more model row, any network.

    `row_sum` evaluates three rows together where that changes nothing. In half precision the difference of
    `product` is central, one row more.
    """

    def product(self, branches: Branches, point: Point, form: str) -> Evaluated:
        dtype = branches.compute_dtype(point.x)
        if form == "row_sum":
            length, name = jacobian.PROBE_ONES.get(dtype, 0.4), "J 1"
            h = expand(point.s * length, point.x)
            denoised, reference, probe = branches.both_and_probe(point, h)
            product = jacobian.difference(probe, denoised, h, point)
        else:
            denoised, reference = branches.both(point)
            v, central, name = denoised - reference, form == "product" and dtype in HALF, "J v"
            relative = jacobian.probe_length(dtype, point, central)
            at_x = None if branches.stale else denoised
            probe = lambda x, sigma: branches.probe(point, x)  # noqa: E731
            _, product = jacobian.finite_difference(probe, point, v, at_x, relative, central)
            length = relative * (1 + central)
        error = jacobian.rounding_error(point, denoised, length, dtype).max()
        if form == "scalar":  # a mean over all elements
            error = error / denoised[0].numel() ** 0.5
        return Evaluated(denoised, reference, product, name, error)


class Reverse:
    """J^T 1 or J^T v by a backward pass. A wrong derivative can be silent: the first products are checked."""

    def __init__(self):
        self._check_below = math.inf  # sigma under which the next check is due; 0: all is well
        self._generator = torch.Generator().manual_seed(0)

    def product(self, branches: Branches, point: Point, form: str) -> Evaluated:
        denoised, name = None, "J^T 1" if form == "row_sum" else "J^T v"
        if branches.apart(point):
            reference = branches.reference(point)
        else:
            denoised, reference = branches.both(point)
        cotangent = (
            torch.ones_like(point.x) if form == "row_sum" else lambda seen: _or(denoised, seen) - reference
        )
        seen, product = branches.reverse(point, cotangent)
        denoised = _or(denoised, seen)
        due = self._check_below > 0 and float(point.sigma.max()) <= self._check_below
        if due and torch.isfinite(denoised - reference).all():  # else the model itself is wrong
            w = torch.ones_like(point.x) if form == "row_sum" else denoised - reference
            self._check(branches, point, None if branches.stale else denoised, w, product)
        error = jacobian.rounding_error(point, denoised, 1.0, branches.compute_dtype(point.x)).max()
        return Evaluated(denoised, reference, product, name, error)

    @torch.no_grad()
    def _check(self, branches, point, known, w, product) -> None:
        """Raises JacobianError where <J^T w, u> is not <w, J u> by a finite difference."""
        dtype = branches.compute_dtype(point.x)
        length = {torch.float32: 1e-3, torch.float64: 1e-5}.get(dtype, 0.1)
        last_digit = float(torch.finfo(point.x.dtype).eps * point.x.abs().max() / point.s.max())
        if last_digit > 0.1 * length:  # of x, over the noise: all that a difference would show is rounding
            return
        wide = torch.promote_types(product.dtype, torch.float32)
        w, product = w.to(wide), product.to(wide)

        def difference(u, length=length, central=False):
            nonlocal known
            nearby = lambda x, sigma: branches.probe(point, x)  # noqa: E731
            known, probe = jacobian.finite_difference(nearby, point, u, known, length, central)
            return probe.to(wide)

        def gap(u, probe):
            """(<J^T w, u> - <w, J u>) / |u|, and the larger of both."""
            ours, theirs = torch.stack([(product * u).sum(), (w * probe).sum()]).div(u.norm()).tolist()
            # A nan of ours fails. A probe that is no number itself proves nothing.
            return (ours - theirs, max(abs(ours), abs(theirs))) if math.isfinite(theirs) else (0.0, 0.0)

        across, size = difference(w), float(w.norm())
        structured = [gap(w, across)]
        if float(_beside(across, w).norm()) > 1e-6 * size:
            u = _beside(across, w)
            structured.append(gap(u, difference(u)))
        of_w, of_number = CHECK.get(dtype, CHECK_HALF)
        wrong = [abs(g) for g, number in structured if not abs(g) <= of_w * size + of_number * number]
        coarse = dtype in HALF or (w.is_cuda and torch.backends.cudnn.allow_tf32)
        if not (coarse or last_digit > 1e-2 * RANDOM_LENGTH):  # where rounding does not hide it
            u = _beside(torch.randn(w.shape, generator=self._generator).to(w), w)
            error = abs(gap(u, difference(u, RANDOM_LENGTH, central=True))[0]) * w.numel() ** 0.5
            of_w, of_network = CHECK_RANDOM
            allowed = of_w * size + of_network * float(_beside(product, w).norm())
            wrong += [error] if not error <= allowed else []
        self._check_below = 0.0 if structured[0][1] >= CHECK_SMALL * size else float(point.sigma.max()) / 2
        if wrong:
            share = f"{100 * max(wrong) / max(float(product.norm()), 1e-30):.3g} %"
            raise JacobianError(f"self-check: reverse mode differs from finite differences by {share}")


def _beside(a: Tensor, w: Tensor) -> Tensor:
    """The part of a that is orthogonal to w."""
    return a - (a * w).sum() / (w * w).sum().clamp_min(1e-30) * w


def _or(known: Tensor | None, seen: Tensor) -> Tensor:
    return seen if known is None else known


class FallBack:
    """The way in which one run computes its products: reverse mode, finite differences, none.

    A way that fails once is left for the next, for the rest of the run. `engine`: Settings.engine. `fatal`:
    exceptions that are nobody's to catch, as a host's cancel.
    """

    NEXT = {"reverse": "finite_difference", "finite_difference": "none"}
    WORDS = {"finite_difference": "finite differences", "none": "plain guidance"}

    def __init__(self, engine: str, fatal: tuple = ()):
        self.engine = "finite_difference" if engine == "auto" else engine
        self.fatal = fatal
        self.notes: list[str] = []

    def __call__(self, **ways):
        """ways[engine]() of the first engine that does not fail; `notes` say why others did.

        Where none is left the error of the last one is raised, and nothing else is said.
        """
        failed = []
        while True:
            try:
                found = ways[self.engine]()
                break
            except self.fatal:
                raise
            except Exception as error:
                if self.engine not in self.NEXT:
                    raise
                said = f"{type(error).__name__}: {cut(error)}"
                failed.append(f"engine {self.engine.replace('_', ' ')} failed ({said})")
                self.engine = self.NEXT[self.engine]
        if failed:
            reason = f"{' and '.join(failed)}: {self.WORDS[self.engine]} from here on"
            log.warning("REG: %s", reason)
            self.notes.append(reason)
        return found
