"""One sampling run with REG: which engine, in which order, when to reuse a correction, and what to do when one fails."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from . import jacobian, trace
from .economy import Economy
from .guidance import Branches
from .rectify import Settings, blend, rectify, rectify_by_factor, schedule_factor
from .space import VE, Space, as_batch, expand

log = logging.getLogger(__name__)

# A derivative is believed when v^T J v agrees with a finite difference to this much of v^T v plus this much of itself.
CHECK = {torch.float64: (1e-3, 0.02), torch.float32: (0.02, 0.10)}
CHECK_COARSE = (0.10, 0.25)
# ... and proves little where J is small (high noise; flow at sigma 1, where it is 0): below this it is checked again
# when sigma has halved.
CHECK_SMALL = 0.2


@dataclass(frozen=True)
class Prediction:
    """One guided model call: D_c, D_ref and the rectified difference R (D_c - D_ref), all [B, ...]."""

    denoised: Tensor
    reference: Tensor
    rectified: Tensor

    def guided(self, weight) -> Tensor:
        """D_c + w R (D_c - D_ref) in D_c's dtype; `weight` w = cfg - 1, a number or broadcastable."""
        return (self.denoised + weight * self.rectified).to(self.denoised.dtype)


class Rectifier:
    """The state of one sampling run. Call it once per model evaluation; make a new one for a new run.

    `settings`, `space`, `run` (a trace.Run to write into). `fatal`: exception types never to be caught (a host's
    cancel). `observe`: called as observe(sigma_ve [B], v, R v) with every correction computed afresh, at strength 1.
    Errors of an engine fall back to finite differences, logged once and kept in the trace.
    """

    def __init__(self, settings: Settings, space: Space = VE, run: trace.Run | None = None, fatal: tuple = (), observe=None):
        self.settings = settings
        self.space = space
        self.run = run if run is not None else trace.Run(settings.form, settings.engine, settings.strength)
        self.fatal = fatal
        self.engine = "finite_difference" if settings.engine == "auto" else settings.engine
        self._check_below = float("inf")  # sigma under which the next self-check is due
        self.observe = observe
        self.host = None  # what a host keeps for the length of the run
        self._economy = Economy(settings)
        self._product = ""  # that the correction kept was made of

    def __call__(
        self, branches: Branches, x: Tensor, sigma, weight=1.0, alpha: Tensor | None = None, s: Tensor | None = None, may_skip: bool = True
    ) -> Prediction:
        """Evaluate both branches at x [B, ...], sigma [B] and rectify their difference.

        `weight` (w = cfg - 1) goes into the trace and into `skip_below` only, R being linear. `alpha` and `s` [B]
        override the space's. `may_skip`: False where somebody needs the reference whatever it is multiplied by.
        """
        begin = time.perf_counter()
        sigma = as_batch(sigma, x)
        alpha = self.space.alpha(sigma) if alpha is None else alpha
        s = self.space.s(sigma) if s is None else s
        sigma_ve, cfg = s / alpha, 1 + _number(weight)
        economy, probed = self._economy, None
        level = economy.level(sigma_ve)
        if may_skip:
            skips = economy.skips(level, cfg - 1)
            if not skips and economy.unsure(level) and self.engine == "finite_difference" and not branches.cached:
                probed = self._probe(branches, x, sigma, alpha, s)  # J 1 needs no reference: where it is nothing, neither do we
                skips = economy.learns(level, probed[1], cfg - 1)
            if skips:
                denoised = branches.only(x, sigma) if probed is None else probed[0]
                note = "rectified weight negligible: no guidance"
                row = trace.Row(_sigma=sigma, cfg=cfg, skipped=True, extra_rows=-1 if probed is None else 0, note=note)
                row.seconds = time.perf_counter() - begin
                self.run.add(row)
                return Prediction(denoised, denoised, torch.zeros_like(denoised))
        row = trace.Row(cfg=cfg, fresh=True)
        denoised, reference, raw, moved = self._rectified(branches, x, sigma, alpha, s, sigma_ve, level, row, probed)
        v = denoised - reference
        economy.saw(level, v, cfg - 1)
        rectified = raw if self.settings.strength == 1 else blend(v.to(raw.vector.dtype), raw.vector, raw.factor, self.settings.strength)
        bad = raw.bad if rectified is raw else raw.bad | rectified.bad
        self.run.saw(row, trace.Call(sigma, v, rectified.vector, rectified.factor, bad, weight, moved, row._error))
        row.seconds = time.perf_counter() - begin
        self.run.add(row)
        return Prediction(denoised, reference, rectified.vector)

    def _rectified(self, branches, x, sigma, alpha, s, sigma_ve, level, row, probed=None):
        """(D_c, D_ref, R v at strength 1, how far a carried correction was off or None)."""
        form, economy = self.settings.form, self._economy
        if economy.free:
            denoised, reference = branches.both(x, sigma)
            factor = schedule_factor(sigma_ve, self.settings.data_std) if form == "schedule" else self.settings.calibration(sigma_ve)
            row.engine, row.product = "none needed", "c(sigma)" if form == "schedule" else "table"
            return denoised, reference, rectify_by_factor(denoised - reference, factor), None
        if probed is None and economy.reusable(x, level):
            denoised, reference = branches.both(x, sigma)
            row.engine, row.product, row.fresh = self.engine, self._product, False
            return denoised, reference, economy.reused(denoised - reference, sigma_ve), None
        if probed is None:
            denoised, reference, product = self._evaluate(branches, x, sigma, alpha, s, row)
        else:
            denoised, product, reference = *probed, branches.reference(x, sigma)
            row.engine, row.product, row.extra_rows = self.engine, "J 1", 1
        v = denoised - reference
        raw = rectify(form, v, product)
        self._product = row.product
        if self.observe is not None:
            self.observe(sigma_ve, v, raw.vector)
        return denoised, reference, raw, economy.keep(raw, v, sigma_ve, level)

    # Evaluation, with the way back to finite differences

    def _evaluate(self, branches, x, sigma, alpha, s, row):
        if self.engine == "finite_difference":
            return self._by_difference(branches, x, sigma, alpha, s, row)
        try:
            result = self._by_derivative(branches, x, sigma, alpha, s, row)
            if self._check_below and float(sigma.max()) <= self._check_below:
                self._self_check(branches, x, sigma, alpha, s, result, row)
            return result
        except self.fatal:
            raise
        except RuntimeError as error:  # NotImplementedError and out of memory are among them
            first_line = str(error).strip().split("\n")[0][:200]
            note = f"engine {self.engine} failed ({type(error).__name__}: {first_line}): finite differences from here on"
        self.engine = "finite_difference"
        if self.run.remark(note):
            log.warning("REG: %s", note)
        row.note = note
        if x.device.type == "cuda":
            torch.cuda.empty_cache()  # once a run, after the failure; what the failed pass held is free here
        return self._by_difference(branches, x, sigma, alpha, s, row)

    def _by_difference(self, branches, x, sigma, alpha, s, row):
        """Finite differences: `row_sum` in one batch of three, the others by a probe along v, one more row either way.

        `product` has no sum to average rounding away: in half precision it probes to both sides, one row more.
        """
        dtype = branches.compute_dtype(x)
        row.engine = "finite_difference"
        row.extra_rows += 1 + branches.cached
        if self.settings.form == "row_sum":
            row.product = "J 1"
            h = _ones_step(x, s, dtype)
            denoised, reference, probe = branches.both_and_probe(x, sigma, h)
            product = jacobian.difference(probe, denoised, h, alpha)
        else:
            row.product = "J v"
            denoised, reference = branches.both(x, sigma)
            central = self.settings.form == "product" and dtype in (torch.float16, torch.bfloat16)
            row.extra_rows += central
            v = denoised - reference
            relative = jacobian.probe_length(dtype, s, alpha, central)
            h = jacobian.probe_step(v.to(relative.dtype), s, relative) * (1 + central)
            at_x = None if branches.cached else denoised
            _, product = jacobian.finite_difference(branches.cond, x, sigma, alpha, v, s, at_x, relative, central)
        row._error = jacobian.difference_error(x, denoised, product, h, alpha, dtype).max()
        return denoised, reference, product

    def _probe(self, branches, x, sigma, alpha, s):
        """(D_c, J 1) by two rows."""
        h = _ones_step(x, s, branches.compute_dtype(x))
        denoised, probe = branches.only_and_probe(x, sigma, h)
        return denoised, jacobian.difference(probe, denoised, h, alpha)

    def _by_derivative(self, branches, x, sigma, alpha, s, row):
        row.engine = self.engine
        ones, forward = self.settings.form == "row_sum", self.engine == "forward"
        # From a cache the pair is taken together, as without us: one fresh and one remembered have no guidance between them.
        pair = branches.both(x, sigma) if branches.cached or (forward and not ones) else None
        row.extra_rows += pair is not None
        reference = branches.reference(x, sigma) if pair is None else pair[1]
        if forward:
            row.product = "J 1" if ones else "J v"
            with branches.differentiable("forward"):
                denoised, product = jacobian.forward(branches.cond, x, sigma, alpha, torch.ones_like(x) if ones else pair[0] - pair[1])
        else:
            row.product = "J^T 1" if ones else "J^T v"
            cotangent = torch.ones_like(x) if ones else (lambda denoised: denoised - reference) if pair is None else pair[0] - pair[1]
            denoised, product = branches.reverse(x, sigma, alpha, cotangent)
            new = [note for note in branches.notes if self.run.remark(note)]
            row.note = "; ".join(filter(None, [row.note, *new]))
        return denoised if pair is None else pair[0], reference, product

    def _self_check(self, branches, x, sigma, alpha, s, result, row) -> None:
        """v^T J v by the engine against a finite difference, once a run: a kernel without derivative can be silent."""
        denoised, reference, product = result
        wide = torch.promote_types(x.dtype, torch.float32)
        direction = torch.ones_like(x) if self.settings.form == "row_sum" else denoised - reference
        dtype = branches.compute_dtype(x)
        relative = 1e-3 if dtype == torch.float32 else None if dtype == torch.float64 else 0.1
        at_x = None if branches.cached else denoised
        _, difference = jacobian.finite_difference(branches.cond, x, sigma, alpha, direction, s, at_x, relative)
        direction = direction.to(wide)
        norm = (direction * direction).sum()
        engine, probe, norm = torch.stack([(direction * product.to(wide)).sum(), (direction * difference).sum(), norm]).tolist()
        row.extra_rows += 1 + branches.cached
        absolute, relative = CHECK.get(dtype, CHECK_COARSE)
        size = max(abs(engine), abs(probe))
        self._check_below = 0.0 if size >= CHECK_SMALL * norm else float(sigma.max()) / 2
        # Written so that a NaN on the engine's side fails; a probe that is no number itself proves nothing.
        if abs(probe) < float("inf") and not abs(engine - probe) <= absolute * norm + relative * size:
            raise jacobian.JacobianError(f"self-check: v^T J v is {engine:.5g} by {self.engine} mode but {probe:.5g} by finite differences")


def _ones_step(x: Tensor, s: Tensor, dtype: torch.dtype) -> Tensor:
    """Length [B, 1, ...] of a probe along the ones vector."""
    return expand(s.to(torch.promote_types(x.dtype, torch.float32)) * jacobian.PROBE_ONES.get(dtype, 0.4), x)


def _number(weight) -> float:
    """A scalar for the trace; a weight that differs between samples is recorded as its mean."""
    return float(weight.float().mean()) if isinstance(weight, Tensor) else float(weight)
