"""One sampling run with REG, call by call: skip guidance, reuse a correction, or compute one."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .branches import Branches
from .engines import Difference, Evaluated, FallBack, Reverse
from .forms import Rectified, blend, rectify, rectify_by_factor
from .point import Point
from .refresh import Refresh
from .settings import Settings
from .skipping import Skipping
from .trace import NONE_NEEDED, Row, Run


@dataclass(frozen=True, eq=False)
class Prediction:
    """One guided model call: D_c, D_ref and the rectified difference R (D_c - D_ref), all [B, ...]."""

    denoised: Tensor
    reference: Tensor
    rectified: Tensor
    row: Row

    def guided(self, weight: float) -> Tensor:
        """D_c + w R (D_c - D_ref) in D_c's dtype, w = cfg - 1."""
        return (self.denoised + weight * self.rectified).to(self.denoised.dtype)


class Rectifier:
    """The state of one sampling run. Call it once a model evaluation; make a new one for a new run.

    `run`: the trace.Run to write into. `fatal`: exceptions that are never caught (a host's cancel).
    `observe`: called as observe(sigma_ve [B], v, R v) with every correction that is computed.
    """

    def __init__(self, settings: Settings, run: Run | None = None, fatal: tuple = (), observe=None):
        self.settings = settings
        self.run = Run(settings) if run is None else run
        self.observe = observe
        self._fall_back = FallBack(settings.engine, fatal)
        self._reverse, self._difference = Reverse(), Difference()
        self._refresh, self._skipping = Refresh(settings), Skipping(settings)
        self._needs_level = settings.skip_below > 0 or not settings.free
        self._call = 0

    def __call__(self, branches: Branches, point: Point, weight: float = 1.0, may_skip=True) -> Prediction:
        """Evaluate both branches at `point` and rectify their difference.

        `weight` (w = cfg - 1) is for the trace and for skipping. `may_skip`: nobody else needs D_ref.
        """
        begin, rows, self._call = time.perf_counter(), branches.rows, self._call + 1
        level = float(point.sigma_ve.max()) if self._needs_level else math.nan
        if may_skip and self._skipping.skips(level, weight) and branches.apart(point):
            denoised = branches.only(point)
            note = "hardly any guidance left: no negative pass"
            row = self.run.plain(point.sigma, 1 + weight, note, skipped=True, sigma_ve=level)
            prediction = Prediction(denoised, denoised, torch.zeros_like(denoised), row)
        else:
            row = Row(cfg=1 + weight)
            denoised, reference, full, error = self._full(branches, point, level, row)
            v = denoised - reference
            if may_skip:
                self._skipping.saw(level, weight, v, full.vector if row.fresh else None)
            rectified = full
            if row.active:  # else no engine is left, and guidance stays plain
                rectified = blend(v, full, self.settings.strength, self.settings.gain)
            self.run.rectified(row, point, v, full, rectified, error)
            prediction = Prediction(denoised, reference, rectified.vector, row)
        row.extra_rows = branches.rows - rows - 2
        row.seconds = time.perf_counter() - begin if point.x.device.type == "cpu" else math.nan
        return prediction

    def _full(self, branches, point, level, row) -> tuple[Tensor, Tensor, Rectified, Tensor | None]:
        """(D_c, D_ref, R v, error of the product or None)."""
        if self.settings.free:
            row.engine, row.fresh = NONE_NEEDED, True
            denoised, reference = branches.both(point)
            factor = self.settings.free_factor(point.sigma_ve)
            return denoised, reference, rectify_by_factor(denoised - reference, factor), None
        if self._refresh.usable(self._call, point.x, level):
            row.engine, row.product = self._fall_back.engine, self._refresh.kept.product_name
            denoised, reference = branches.both(point)
            return denoised, reference, self._refresh.reused(denoised - reference, point.sigma_ve), None
        return self._computed(branches, point, level, row)

    def _computed(self, branches, point, level, row):
        form, fall_back = self.settings.form, self._fall_back
        if level == math.inf:  # pure noise: J = alpha dD/dx is 0
            found = Evaluated(*branches.both(point), torch.zeros_like(point.x), "0", point.s.new_zeros(()))
        else:
            found = fall_back(
                reverse=lambda: self._reverse.product(branches, point, form),
                finite_difference=lambda: self._difference.product(branches, point, form),
                none=lambda: None,
            )
        row.note = "; ".join(n for n in [*fall_back.notes, *branches.notes] if self.run.remark(n))
        if found is None:
            denoised, reference = branches.both(point)
            return (
                denoised,
                reference,
                rectify_by_factor(denoised - reference, torch.ones_like(point.s)),
                None,
            )
        row.engine, row.product, row.fresh = fall_back.engine, found.product_name, True
        v = found.denoised - found.reference
        full = rectify(form, v, found.product)
        if self.observe is not None:
            self.observe(point.sigma_ve, v, full.vector)
        self._refresh.keep(self._call, point, v, full, found.error, found.product_name)
        return found.denoised, found.reference, full, found.error
