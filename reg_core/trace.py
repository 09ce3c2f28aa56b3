"""What one sampling run did, a row a model call.

While the run goes on a call leaves references to its tensors and nothing else: its numbers take some thirty small kernels,
which a fast GPU notices. They are made for many calls at once, and become floats when somebody reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby

from torch import Tensor

from .measured import NUMBERS, Call, numbers

# Bytes that calls whose numbers are not yet made may hold: the fewer, the more often a GPU is given many small things to do.
HELD = {"cpu": 2**19}
HELD_GPU = 8 * 2**20


@dataclass
class Row:
    """One model call. `guidance_norm` and `rectified_norm` are root mean squares per element, |g| and |R g|.

    The correction is the factor R of the form (elementwise for row_sum, a number per sample for the others; for
    `product` it is <R g, g> / <g, g>); low and high are its 5 % and 95 % quantiles; `nonfinite` counts samples whose
    correction was no number and was left out. `moved`: |R v - what was carried along| / |v| where both are known.
    `error`: of a finite difference by rounding, relative (jacobian.difference_error).
    `extra_rows` is -1 where the reference was not evaluated.
    """

    sigma: float = math.nan
    cfg: float = math.nan
    engine: str = "none"
    product: str = ""
    fresh: bool = False
    guidance_norm: float = math.nan
    rectified_norm: float = math.nan
    correction_mean: float = math.nan
    correction_min: float = math.nan
    correction_max: float = math.nan
    correction_low: float = math.nan
    correction_high: float = math.nan
    moved: float = math.nan
    error: float = math.nan
    nonfinite: float = 0.0
    extra_rows: int = 0
    seconds: float = 0.0
    skipped: bool = False
    note: str = ""
    _sigma: Tensor | None = field(default=None, repr=False)
    _error: Tensor | None = field(default=None, repr=False)
    _weight: float | Tensor | None = field(default=None, repr=False)

    @property
    def active(self) -> bool:
        """True where guidance was rectified."""
        return self.engine != "none"

    def settle(self, values: list[float] | None = None) -> Row:
        """Take the numbers of a guided call, once; without `values` the noise level of one that was not, from the device."""
        if values is not None:
            for name, value in zip(NUMBERS, values, strict=True):
                setattr(self, name, value)
            weight = float(self._weight.abs().float().mean()) if isinstance(self._weight, Tensor) else abs(self._weight)
            self.guidance_norm, self.rectified_norm = self.guidance_norm * weight, self.rectified_norm * weight
            self._sigma = self._error = self._weight = None
            if self.nonfinite:
                self.note = _join(self.note, f"non-finite correction in {self.nonfinite:.0f} of the batch: plain guidance there")
        elif self._sigma is not None:
            self.sigma = float(self._sigma.max())
            self._sigma = None
        return self


@dataclass
class Run:
    """The rows of one sampling run and what was remarked about the run as a whole."""

    form: str = "off"
    engine: str = "auto"
    strength: float = 1.0
    _rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _heat: Tensor | None = field(default=None, repr=False)
    _heated: int = 0
    _calls: list[tuple[Row, Call]] = field(default_factory=list, repr=False)
    _measured: list[tuple[list[Row], Tensor]] = field(default_factory=list, repr=False)

    def add(self, row: Row) -> Row:
        self._rows.append(row)
        return row

    def saw(self, row: Row, call: Call) -> None:
        """A guided call, whose tensors nobody will write to; its numbers are put off until many can be made at once."""
        row._weight = call.weight
        self._calls.append((row, call))
        if sum(call.size for _, call in self._calls) > HELD.get(call.vector.device.type, HELD_GPU):
            self._measure()

    def _measure(self) -> None:
        """The numbers of the calls put off, on the device, and their place in the heat map."""
        for _, group in groupby(self._calls, key=lambda pair: pair[1].kind):
            rows, calls = zip(*group, strict=True)
            self._measured.append((rows, numbers(calls)))
            self._warm([call.factor for call in calls])
        self._calls.clear()

    def _warm(self, factors: list[Tensor]) -> None:
        """Add elementwise factors [B, C, *spatial] to the heat map; factors per sample leave it alone."""
        if factors[0].ndim < 3 or factors[0][0, 0].numel() == 1:
            return
        layer = sum(factor.mean(1).float() for factor in factors)
        same = self._heat is not None and self._heat.shape == layer.shape
        self._heat, self._heated = (self._heat + layer, self._heated + len(factors)) if same else (layer, len(factors))

    @property
    def heat(self) -> Tensor | None:
        """Mean factor over the active calls and the channels [B, *spatial], or None if none was elementwise."""
        self._measure()
        return None if self._heat is None else self._heat / self._heated

    @property
    def skipped(self) -> int:
        """Calls that ran without guidance because its rectified weight was negligible."""
        return sum(row.skipped for row in self._rows)

    def remark(self, note: str) -> bool:
        """Keep a note about the run; True the first time, so that it is logged once."""
        if note in self.notes:
            return False
        self.notes.append(note)
        return True

    @property
    def rows(self) -> list[Row]:
        self._measure()
        for rows, found in self._measured:
            for row, values in zip(rows, found.tolist(), strict=True):
                row.settle(values)
        self._measured.clear()
        for row in self._rows:
            row.settle()
        return self._rows

    @property
    def active(self) -> list[Row]:
        return [row for row in self.rows if row.active]

    @property
    def effective_cfg(self) -> float:
        """1 + (cfg - 1) |R g| / |g|, averaged over the active calls with the weight |g|: cfg of equal strength without REG.

        Calls without guidance (skipped, cfg 1) are not in the mean: their |g| was never computed.
        """
        rows = [r for r in self.active if math.isfinite(r.cfg) and r.guidance_norm > 0]
        total = sum(r.guidance_norm for r in rows)
        return sum(r.guidance_norm + (r.cfg - 1) * r.rectified_norm for r in rows) / total if total else math.nan

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self._rows)

    @property
    def extra_rows(self) -> int:
        """Model rows evaluated beyond those of plain guidance, per sample."""
        return sum(row.extra_rows for row in self._rows)

    def summary(self) -> str:
        """One line: form, engine, active calls of total, mean correction, effective cfg, seconds."""
        rows, active = self.rows, self.active
        if not rows:
            return f"form {self.form}: nothing sampled yet"
        if not active:
            return f"form {self.form}: did nothing in {len(rows)} model calls"
        engines = "+".join(dict.fromkeys(f"{r.engine} ({r.product})" if r.product else r.engine for r in active))
        mean = sum(r.correction_mean for r in active) / len(active)
        return (
            f"form {self.form}, engine {engines}, active in {len(active)} of {len(rows)} model calls, mean correction {mean:.3f}, "
            f"effective cfg {self.effective_cfg:.2f}, {f'{self.skipped} skipped, ' if self.skipped else ''}"
            f"{self._error_text()}"
            f"{self.extra_rows} extra rows, {self.seconds:.2f} s"
        )

    def _error_text(self) -> str:
        worst = max((r.error for r in self.active if math.isfinite(r.error)), default=0.0)
        return f"probe error up to {100 * worst:.0f} %, " if worst > 0.1 else ""

    def table(self) -> str:
        """The rows as aligned text: |g| and |Rg| before and after, mean, min and max of the factor, extra model rows, seconds."""
        head = f"{'call':>4} {'sigma':>9} {'cfg':>6} {'|g|':>9} {'|Rg|':>9} {'mean':>7} {'min':>7} {'max':>7} {'rows':>4} {'s':>6}  engine"
        lines = [head]
        for i, r in enumerate(self.rows):
            engine = r.engine + (f" {r.product}" if r.product else "") + ("" if r.fresh or not r.active else " reused")
            lines.append(
                f"{i:>4} {r.sigma:>9.4g} {r.cfg:>6.3g} {r.guidance_norm:>9.3g} {r.rectified_norm:>9.3g} {r.correction_mean:>7.3f} "
                f"{r.correction_min:>7.3f} {r.correction_max:>7.3f} {r.extra_rows:>4} {r.seconds:>6.3f}  {engine}" + (f"  [{r.note}]" if r.note else "")
            )
        return "\n".join(lines)


@dataclass
class Trace:
    """The runs of one patched model, newest last; the oldest are dropped beyond `keep`."""

    runs: list[Run] = field(default_factory=list)
    keep: int = 16

    def start(self, run: Run) -> Run:
        if self.runs:
            self.runs[-1]._measure()  # a run that nobody read holds its calls' tensors no longer
        self.runs.append(run)
        del self.runs[: -self.keep]
        return run

    @property
    def last(self) -> Run | None:
        return self.runs[-1] if self.runs else None

    def __str__(self) -> str:
        if self.last is None:
            return "REG: nothing has been sampled with this model yet"
        run = self.last
        return "\n".join([run.summary(), run.table(), *(f"note: {note}" for note in run.notes)])


def _join(a: str, b: str) -> str:
    return f"{a}; {b}" if a else b
