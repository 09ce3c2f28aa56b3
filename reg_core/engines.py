"""Both predictions and a product with J = alpha dD_c/dx, by a difference or by a backward pass."""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import jacobian
from .branches import Branches
from .jacobian import HALF, JacobianError
from .point import Point
from .space import expand

log = logging.getLogger(__name__)

# A derivative is believed when v^T J v is a finite difference to this much of v^T v plus this much of itself.
CHECK = {torch.float64: (1e-3, 0.02), torch.float32: (0.02, 0.10)}
CHECK_HALF = (0.10, 0.25)
CHECK_SMALL = 0.2  # v^T J v / v^T v below which agreement proves little: checked again at half the noise


@dataclass(frozen=True, eq=False)
class Evaluated:
    """D_c, D_ref and the product with J [B, ...]; `product_name` as in "J^T 1".

    `extra_rows`: model rows beyond plain guidance. `error`: of the product by rounding, relative, 0-d.
    """

    denoised: Tensor
    reference: Tensor
    product: Tensor
    product_name: str
    extra_rows: int
    error: Tensor | None = None


class Difference:
    """J 1 or J v by a finite difference: one more model row, any network.

    `row_sum` evaluates three rows together. In half precision that of `product` is central, one row more.
    """

    def product(self, branches: Branches, point: Point, form: str) -> Evaluated:
        dtype = branches.compute_dtype(point.x)
        extra = 1 + branches.cached
        if form == "row_sum":
            h = expand(point.s * jacobian.PROBE_ONES.get(dtype, 0.4), point.x)
            denoised, reference, probe = branches.both_and_probe(point, h)
            product, name = jacobian.difference(probe, denoised, h, point), "J 1"
        else:
            denoised, reference = branches.both(point)
            v = denoised - reference
            central = form == "product" and dtype in HALF
            relative = jacobian.probe_length(dtype, point, central)
            h = jacobian.probe_step(v.to(relative.dtype), point, relative) * (1 + central)
            at_x = None if branches.cached else denoised
            _, product = jacobian.finite_difference(branches.cond, point, v, at_x, relative, central)
            extra, name = extra + central, "J v"
        error = jacobian.rounding_error(point, denoised, product, h, dtype).max()
        return Evaluated(denoised, reference, product, name, extra, error)


class Reverse:
    """J^T 1 or J^T v by a backward pass. A wrong derivative can be silent: the first products are checked."""

    def __init__(self):
        self._check_below = math.inf  # sigma under which the next check is due; 0: all is well

    def product(self, branches: Branches, point: Point, form: str) -> Evaluated:
        # A fresh and a remembered prediction have no difference: from a cache both are taken together.
        pair = branches.both(point) if branches.cached else None
        reference = branches.reference(point.x, point.sigma) if pair is None else pair[1]
        if form == "row_sum":
            cotangent, name = torch.ones_like(point.x), "J^T 1"
        elif pair is None:
            cotangent, name = lambda denoised: denoised - reference, "J^T v"
        else:
            cotangent, name = pair[0] - reference, "J^T v"
        denoised, product = branches.reverse(point, cotangent)
        denoised = denoised if pair is None else pair[0]
        checked = self._check_below > 0 and float(point.sigma.max()) <= self._check_below
        if checked:
            direction = torch.ones_like(point.x) if form == "row_sum" else denoised - reference
            self._check(branches, point, denoised, direction, product)
        extra = (pair is not None) + checked * (1 + branches.cached)
        return Evaluated(denoised, reference, product, name, extra)

    def _check(self, branches, point, denoised, direction, product) -> None:
        """Raises JacobianError where d^T J^T d is not d^T J d by a finite difference."""
        dtype = branches.compute_dtype(point.x)
        length = {torch.float32: 1e-3, torch.float64: None}.get(dtype, 0.1)
        at_x = None if branches.cached else denoised
        _, difference = jacobian.finite_difference(branches.cond, point, direction, at_x, length)
        direction = direction.to(difference.dtype)
        sums = [(direction * t.to(direction.dtype)).sum() for t in (product, difference, direction)]
        ours, probe, norm = torch.stack(sums).tolist()
        absolute, relative = CHECK.get(dtype, CHECK_HALF)
        size = max(abs(ours), abs(probe))
        self._check_below = 0.0 if size >= CHECK_SMALL * norm else float(point.sigma.max()) / 2
        # A nan of ours fails. A probe that is no number itself proves nothing.
        if abs(probe) < math.inf and not abs(ours - probe) <= absolute * norm + relative * size:
            values = f"{ours:.5g} by reverse mode but {probe:.5g} by finite differences"
            raise JacobianError(f"self-check: v^T J v is {values}")


class FallBack:
    """The engine of one run: reverse mode until it fails once, finite differences from then on.

    `engine`: Settings.engine. `fatal`: exceptions that are nobody's to catch, as a host's cancel.
    """

    def __init__(self, engine: str, fatal: tuple = ()):
        self.engine = "finite_difference" if engine == "auto" else engine
        self.fatal = fatal
        self.notes: list[str] = []

    def __call__(self, exact, approximate):
        """exact(), or approximate() after a failure; `notes` say why."""
        if self.engine == "reverse":
            try:
                return exact()
            except self.fatal:
                raise
            except RuntimeError as error:  # out of memory is one of them
                said, _, _ = str(error).strip().partition("\n")
                said = f"{type(error).__name__}: {said[:200]}"
                reason = f"engine reverse failed ({said}): finite differences from here on"
            self.engine = "finite_difference"
            log.warning("REG: %s", reason)
            self.notes.append(reason)
        return approximate()
