"""What a sampling run did, a row a model call.

Each call leaves a small tensor of numbers on its device; it becomes floats when somebody reads the rows.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .forms import Rectified, carried_share
from .point import Point
from .settings import Settings

NONE_NEEDED = "none needed"  # the engine of free forms
EQUAL = "both prompts give the same prediction: no guidance to rectify"
QUANTILES = (0.05, 0.95)
NO_PREDICTION = "the model's prediction is not finite"
FEW = 16  # factors that are looked at when somebody reads them: more take less time at once
SAMPLE = 1 << 12  # elements that quantiles are taken of: sorting a whole latent takes too long
WINDOW = (0.3, 11.0)  # sigma_ve in units of data_std: where guidance decides how strongly a picture is guided


@dataclass
class Row:
    """One model call.

    - `share`: <R v, v> / <v, v>, the part of plain guidance that R keeps, at gain and strength 1.
    - `guidance_norm`, `rectified_norm`: of guidance and of what it became, root mean square per element.
    - `correction_*`: mean, minimum, maximum, 5 % and 95 % quantile of R's factor (forms.Rectified).
    - `nonfinite`: samples without a finite correction. `error`: of R g by rounding, relative to g.
    - `fresh`: the correction was computed in this call, not reused. `skipped`: there was no guidance.
    - `cfg`: the scale in force; nan where a guider has one that we are not told; norms are then those of v.
    - `extra_rows`: model rows beyond plain guidance, per sample; -1 where the reference was not evaluated.
    - `seconds`: of a rectified call; nan on a GPU, where a clock only tells when kernels were launched.
    """

    sigma: float = math.nan
    sigma_ve: float = math.nan
    share: float = math.nan
    guidance_norm: float = math.nan
    rectified_norm: float = math.nan
    correction_mean: float = math.nan
    correction_min: float = math.nan
    correction_max: float = math.nan
    correction_low: float = math.nan
    correction_high: float = math.nan
    nonfinite: float = 0.0
    error: float = math.nan
    # Until here as `measured` puts them, the last two where there are any.
    cfg: float = math.nan
    engine: str = "none"
    product: str = ""
    fresh: bool = False
    extra_rows: int = 0
    seconds: float = 0.0
    skipped: bool = False
    note: str = ""
    _numbers: Tensor | None = field(default=None, repr=False)
    _few: int = 0  # factors among the numbers, in place of their mean and so on

    @property
    def active(self) -> bool:
        """True where guidance was rectified."""
        return self.engine != "none"

    @property
    def how(self) -> str:
        """How the correction was found, in words."""
        if self.engine == NONE_NEEDED:
            return "no engine needed"
        return f"engine {self.engine}" + (f" ({self.product})" if self.product else "")

    def read(self) -> "Row":
        """Take the numbers from the device, once."""
        if self._numbers is not None:
            numbers, self._numbers = self._numbers.tolist(), None
            if n := self._few:
                few = sorted(numbers[5 : 5 + n])
                numbers[5 : 5 + n] = sum(few) / n, *(few[round(q * (n - 1))] for q in (0, 1, *QUANTILES))
            for name, value in zip(Row.__dataclass_fields__, numbers, strict=False):
                setattr(self, name, value)
            if self.active and self.guidance_norm == 0:
                self.engine, self.product, self.fresh, self.note = "none", "", False, EQUAL
            weight = 1.0 if math.isnan(self.cfg) else abs(self.cfg - 1)
            self.guidance_norm, self.rectified_norm = (
                weight * self.guidance_norm,
                weight * self.rectified_norm,
            )
            bad = ""
            if self.active and not math.isfinite(self.guidance_norm):
                bad = NO_PREDICTION
            elif self.nonfinite:
                bad = f"non-finite correction in {self.nonfinite:.0f} of the batch: plain guidance there"
            self.note = "; ".join(filter(None, [self.note, bad]))
        return self


def measured(point: Point, v: Tensor, full: Rectified, rectified: Rectified, error: Tensor | None):
    """The numbers of a call as in Row, and Row._few; norms are those of v. `full`: at gain and strength 1."""
    wide = torch.promote_types(v.dtype, torch.float32)
    factor, scale = rectified.factor.flatten(), v.numel() ** -0.5
    flat, kept = v.flatten().to(wide), full.vector.flatten().to(wide)
    share = kept.dot(flat) / flat.dot(flat)
    norms = [scale * torch.linalg.vector_norm(t, dtype=wide) for t in (v, rectified.vector)]
    few = len(factor) if len(factor) <= FEW else 0
    numbers = factor[:few].unbind()
    if not few:
        ranked = factor[:: -(-len(factor) // SAMPLE)].sort().values
        numbers = factor.mean(), *factor.aminmax(), *(ranked[round(q * (len(ranked) - 1))] for q in QUANTILES)
    more = [] if rectified.bad is None else [rectified.bad.sum(), error]  # only a fresh one has either
    levels = point.sigma.max(), point.sigma_ve.max()
    return torch.stack([*levels, share, *norms, *numbers, *(t for t in more if t is not None)]), few


@dataclass
class Run:
    """The rows of one sampling run, and what was remarked about the run as a whole."""

    settings: Settings = field(default_factory=lambda: Settings(form="off"))
    _rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _heat: Tensor | None = field(default=None, repr=False)
    _heated: int = 0
    shapes: list = field(default_factory=list)  # [B, ...] of the latents that a host packed into one

    def plain(self, sigma: Tensor, cfg: float, note: str, **more) -> Row:
        """Add a call whose guidance was not rectified, and why."""
        self._rows.append(Row(cfg=cfg, note=note, _numbers=sigma.detach().max()[None], **more))
        return self._rows[-1]

    def rectified(self, row: Row, point: Point, v: Tensor, full: Rectified, rectified: Rectified, error=None):
        """Add a call whose guidance v [B, ...] became `rectified`, with gain and strength; `full` is without.

        `row.cfg` is the scale in force.
        """
        row._numbers, row._few = measured(point, v, full, rectified, error)
        self._rows.append(row)
        factor = rectified.factor
        if factor.shape[2:].numel() > 1:  # a number a sample has no place in the image
            layer = factor.mean(1).float()
            same = self._heat is not None and self._heat.shape == layer.shape
            self._heat, self._heated = (self._heat + layer, self._heated + 1) if same else (layer, 1)

    def remark(self, note: str) -> bool:
        """Keep a note about the run; True the first time, so that it is logged once."""
        if note in self.notes:
            return False
        self.notes.append(note)
        return True

    @property
    def rows(self) -> list[Row]:
        return [row.read() for row in self._rows]

    @property
    def active(self) -> list[Row]:
        return [row for row in self.rows if row.active]

    def not_finite(self) -> str:
        """Words for what was no finite number in rectified calls: the model's prediction or corrections."""
        active = self.active
        of_model = sum(not math.isfinite(row.guidance_norm) for row in active)
        of_ours = sum(math.isfinite(row.guidance_norm) and row.nonfinite > 0 for row in active)
        said = [f"{NO_PREDICTION} in {of_model} of {len(active)} active calls"] if of_model else []
        if of_ours:
            said.append(
                f"non-finite correction in {of_ours} of {len(active)} active calls: plain guidance there"
            )
        return "; ".join(said)

    @property
    def heat(self) -> Tensor | None:
        """Mean factor over active calls and channels [B, *spatial], or None if none was elementwise."""
        return None if self._heat is None else self._heat / self._heated

    @property
    def heats(self) -> list[Tensor]:
        """`heat` of each latent: one, or those that a host has packed into one (video and audio)."""
        if self.heat is None or len(self.shapes) < 2:
            return [] if self.heat is None else [self.heat]
        parts = self.heat.split([shape[1:].numel() for shape in self.shapes], dim=1)
        return [p.reshape(-1, *shape[1:]).mean(1) for p, shape in zip(parts, self.shapes, strict=True)]

    @property
    def share(self) -> float:
        """The part of plain guidance that was used where REG acted, gain and strength included.

        A mean over the log of sigma_ve within WINDOW. Skipped calls count as what their neighbours tell.
        """
        return self.settings.applied(self._share)

    @property
    def estimated_gain(self) -> float:
        """The gain with which REG guides about as strongly as plain guidance. See docs/evidence.md."""
        return 1 / self._share if self._share > 0 else math.nan

    @property
    def _share(self) -> float:
        known = {r.sigma_ve: r.share for r in self.active if math.isfinite(r.share) and r.sigma_ve > 0}
        known.pop(math.inf, None)
        if not known:
            return math.nan
        for row in self.rows:
            if row.skipped and math.isfinite(row.sigma_ve):
                known[row.sigma_ve] = self._skipped_share(row.sigma_ve, known)
        return mean_share(*zip(*known.items(), strict=True), self.settings.data_std)

    def _skipped_share(self, level: float, known: dict[float, float]) -> float:
        """At sigma_ve `level`, where guidance was left out: by the formula, or from the nearest call."""
        if self.settings.free:
            return float(self.settings.free_factor(torch.tensor([level])))
        near = min(known, key=lambda other: abs(math.log(other / level)))
        return carried_share(known[near], level / near)

    @property
    def seconds(self) -> float:
        """Of all rectified calls; nan on a GPU."""
        return sum(row.seconds for row in self._rows)

    @property
    def extra_rows(self) -> int:
        """Model rows evaluated beyond those of plain guidance, per sample."""
        return sum(row.extra_rows for row in self._rows)

    @property
    def engines(self) -> str:
        """How the corrections of the run were found, in words."""
        pure_noise = "0"
        known = [row for row in self.active if row.product not in ("", pure_noise)] or self.active
        return " and ".join(dict.fromkeys(row.how for row in known))

    def summary(self) -> str:
        """One line: form, engine, active calls of total, share of plain guidance, cost."""
        rows, active = self.rows, self.active
        if not active:
            done = f"did nothing in {len(rows)} model calls" if rows else "nothing sampled yet"
            return f"form {self.settings.form}: {done}"
        skipped = sum(r.skipped for r in rows)
        worst = max((r.error for r in active if math.isfinite(r.error)), default=0.0)
        parts = [
            f"form {self.settings.form}, {self.engines}",
            f"active in {len(active)} of {len(rows)} model calls",
            *self.strength(),
            f"{skipped} skipped" if skipped else "",
            f"probe error up to {100 * worst:.0f} %" if worst > 0.1 else "",
            f"{self.extra_rows} extra rows",
            f"{self.seconds:.2f} s" if math.isfinite(self.seconds) else "",
        ]
        return ", ".join(filter(None, parts))

    def facts(self) -> list[str]:
        """What a run did, for people: where, how strongly, at what cost."""
        done = f"active in {len(self.active)} of {len(self.rows)} model calls"
        return [done, *self.strength(), self.cost()]

    def cost(self) -> str:
        """Words for the model rows beyond the two that plain guidance takes in a call."""
        more = self.extra_rows / (2 * len(self.rows))
        return f"{more:+.0%} model evaluations" if self.extra_rows else "no extra evaluations"

    def strength(self) -> list[str]:
        """Words for how strongly was guided: the share, and the gain for as much as without REG."""
        if math.isnan(self.share):
            return ["no guidance to measure"]
        gain = self.estimated_gain
        known = [] if math.isnan(gain) else [f"estimated gain {gain:.1f}"]
        return [f"{100 * self.share:.0f} % of plain guidance", *known]

    def table(self) -> str:
        """The rows as aligned text; mean, min and max are those of the factor."""
        lines = ["call     sigma    cfg       |g|      |Rg|    mean     min     max rows      s  engine"]
        for i, r in enumerate(self.rows):
            numbers = f"{i:>4} {r.sigma:>9.4g} {r.cfg:>6.3g} {r.guidance_norm:>9.3g} {r.rectified_norm:>9.3g}"
            numbers += f" {r.correction_mean:>7.3f} {r.correction_min:>7.3f} {r.correction_max:>7.3f}"
            cost = f"{r.extra_rows:>4}" + (f" {r.seconds:>6.3f}" if math.isfinite(r.seconds) else 7 * " ")
            engine = f"{r.engine} {r.product}".strip() + ("" if r.fresh or not r.active else " reused")
            lines.append(f"{numbers} {cost}  {engine}" + (f"  [{r.note}]" if r.note else ""))
        return "\n".join(lines)

    def __str__(self) -> str:
        return "\n".join([self.summary(), self.table(), *(f"note: {note}" for note in self.notes)])


def mean_share(levels, shares, data_std: float) -> float:
    """Mean of shares at noise levels sigma_ve over log sigma_ve, within WINDOW where any lie in it."""
    place, shares = np.log(np.array(levels) / data_std), np.array(shares)
    order = place.argsort()
    low, high = np.clip(np.log(WINDOW), place.min(), place.max())
    if low == high:  # none in the window
        low, high = place.min(), place.max()
    middles = low + (high - low) * (np.arange(200) + 0.5) / 200
    return float(np.interp(middles, place[order], shares[order]).mean())


@dataclass
class Trace:
    """The runs of one patched model, newest last; the oldest are dropped beyond `keep`."""

    runs: list[Run] = field(default_factory=list)
    keep: int = 16

    def start(self, run: Run) -> Run:
        self.runs.append(run)
        del self.runs[: -self.keep]
        return run

    @property
    def last(self) -> Run | None:
        return self.runs[-1] if self.runs else None

    def __str__(self) -> str:
        return "REG: nothing has been sampled with this model yet" if self.last is None else str(self.last)
