"""The guidance weight before sampling: what cfg, schedules and free forms of REG make of it at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from ..checks import one_of
from .axes import STRIP, TICK, Axes, Scale, scale_for, strip
from .canvas import Canvas, mix, theme_of, wrap
from .palette import form_color
from .traces import GAP, HEAD, LEFT, LINE, PANEL, RIGHT, WIDTH

AXES = ("step", "sigma", "timestep")


@dataclass(frozen=True)
class SchedulePoint:
    """One step before sampling. `cfg` in force after all schedules; `percent` 0 = pure noise, 1 = clean.

    `active`: REG rectifies here. `factor`: the correction c(sigma) where it is known in advance, else NaN.
    """

    sigma: float
    percent: float
    cfg: float
    active: bool = False
    factor: float = math.nan

    @property
    def weight(self) -> float:
        """w = cfg - 1 in force."""
        return self.cfg - 1

    @property
    def rectified(self) -> float:
        """The weight times the correction; NaN where REG acts by a correction that sampling has to show."""
        return self.weight * self.factor if self.active else self.weight


def plot_schedule(
    points: list[SchedulePoint], axis: str = "step", theme: str = "dark", lines=(), form: str = "row_sum"
) -> Image.Image:
    """The weight cfg - 1 over the steps, and a mark for each step: REG, plain guidance or none.

    `lines`: text to write above. `form`: of REG, for its colour."""
    one_of("axis", axis, AXES)
    if not points:
        raise ValueError("no steps to draw: want at least two sigmas")
    colors = theme_of(theme)
    plain, ours = form_color("off", theme), form_color(form, theme)
    lines = [part for line in lines for part in wrap(line, TICK, WIDTH - 2 * RIGHT)]
    top = 66 + LINE * len(lines) + GAP - 10
    known = any(p.active and math.isfinite(p.factor) for p in points)
    height = PANEL + 120
    canvas = Canvas(WIDTH, top + height + 2 * 76 + GAP + STRIP, colors)
    span = f"{len(points)} steps from sigma {points[0].sigma:.3g} to {points[-1].sigma:.3g}"
    canvas.text(RIGHT, 18, f"before sampling: {span}", HEAD, colors.text)
    for i, line in enumerate(lines):
        canvas.text(RIGHT, 64 + i * LINE, line, TICK, colors.faint)

    xs, x, name = _horizontal(points, axis)
    weights = [p.weight for p in points]
    rectified = [p.rectified for p in points]
    y = scale_for([*weights, *rectified], zero=True, log=False)
    axes = Axes(canvas, (LEFT, top, WIDTH - RIGHT, top + height), x, y)
    keys = [("given, cfg - 1", plain), *([("used", ours)] if known else [])]
    axes.frame("weight of the guidance", keys, x_title=name, whole=axis == "step")
    axes.line(xs, weights, plain, dots=len(xs) <= 60)
    if known:
        axes.line(xs, rectified, ours, dots=len(xs) <= 60)
    top += height + 76 + GAP
    kinds = {"REG": ours, "plain guidance": plain, "no guidance": mix(colors.faint, colors.panel, 0.3)}
    marks = ["REG" if p.active else "plain guidance" if p.weight else "no guidance" for p in points]
    box = LEFT, top, WIDTH - RIGHT, top + STRIP
    strip(canvas, box, marks, kinds, "guided steps", "steps, in order")
    return canvas.picture()


def _horizontal(points, axis):
    if axis == "step":
        return [i + 1 for i in range(len(points))], Scale(0.5, len(points) + 0.5), "step"
    if axis == "timestep":
        title = "timestep as a fraction of the model's schedule (0 = noise, 1 = clean)"
        return [p.percent for p in points], Scale(-0.02, 1.02), title
    sigmas, title = [p.sigma for p in points], "sigma (noise level)"
    inner = scale_for([sigma for sigma in sigmas if sigma > 0], reverse=True)
    if inner.log:
        stretch = (inner.high / inner.low) ** 0.03
        return sigmas, Scale(inner.low / stretch, inner.high * stretch, True, True), title
    return sigmas, inner, title


def schedule_table(points: list[SchedulePoint]) -> str:
    """The same as text, a line a step."""
    names = ("step", "sigma", "percent", "cfg", "weight", "REG", "c", "used")
    lines = ["{:>4} {:>9} {:>7} {:>7} {:>7} {:>4} {:>6} {:>7}".format(*names)]
    for i, p in enumerate(points, 1):
        factor = f"{p.factor:.3f}" if math.isfinite(p.factor) else "-"
        used = f"{p.rectified:.3g}" if math.isfinite(p.rectified) else "-"
        numbers = f"{i:>4} {p.sigma:>9.4g} {p.percent:>7.3f} {p.cfg:>7.3g} {p.weight:>7.3g}"
        lines.append(f"{numbers} {'yes' if p.active else 'no':>4} {factor:>6} {used:>7}")
    return "\n".join(lines)
