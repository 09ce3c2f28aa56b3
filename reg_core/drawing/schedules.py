"""The guidance weight before sampling: what cfg, schedules and free forms of REG make of it at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from ..checks import one_of
from .axes import TICK, Axes, Scale, scale_for
from .canvas import Canvas, mix, theme_of, wrap
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
    points: list[SchedulePoint], axis: str = "step", theme: str = "dark", lines=()
) -> Image.Image:
    """The weight cfg - 1 over the steps, shaded where REG rectifies. `lines`: text to write above."""
    one_of("axis", axis, AXES)
    if not points:
        raise ValueError("no steps to draw: want at least two sigmas")
    colors = theme_of(theme)
    blue, orange, green = colors.series
    lines = [part for line in lines for part in wrap(line, TICK, WIDTH - 2 * RIGHT)]
    top = 66 + LINE * len(lines) + GAP - 10
    known = any(p.active and math.isfinite(p.factor) for p in points)
    height = PANEL + 120
    canvas = Canvas(WIDTH, top + height + 76, colors)
    canvas.text(RIGHT, 18, f"guidance weight before sampling, {len(points)} steps", HEAD, colors.text)
    for i, line in enumerate(lines):
        canvas.text(RIGHT, 64 + i * LINE, line, TICK, colors.faint)

    xs, x, name = _horizontal(points, axis)
    weights = [p.weight for p in points]
    rectified = [p.rectified for p in points]
    y = scale_for([*weights, *rectified], zero=True, log=False)
    axes = Axes(canvas, (LEFT, top, WIDTH - RIGHT, top + height), x, y)
    keys = [("cfg - 1", orange), *([("times c(sigma) of REG", blue)] if known else [])]
    if any(p.active for p in points):
        keys.append(("REG active", mix(green, colors.panel, 0.25)))
    axes.frame("weight in force", keys, x_title=name, whole=axis == "step")
    _shade(axes, xs, points, mix(green, colors.panel, 0.25))
    axes.line(xs, weights, orange, dots=len(xs) <= 60)
    if known:
        axes.line(xs, rectified, blue, dots=len(xs) <= 60)
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


def _shade(axes: Axes, xs, points, color) -> None:
    """A strip along the bottom under the steps that REG rectifies, each out to halfway to its neighbours."""
    left, _, right, bottom = axes.box
    at = [axes.at(x, axes.y.low)[0] if math.isfinite(axes.x(x)) else math.nan for x in xs]
    for i, point in enumerate(points):
        if point.active and math.isfinite(at[i]):
            before = (at[i - 1] + at[i]) / 2 if i else at[i] - 8
            after = (at[i + 1] + at[i]) / 2 if i + 1 < len(at) else at[i] + 8
            box = [v for v in (before, after) if math.isfinite(v)] or [at[i] - 4, at[i] + 4]
            axes.canvas.rectangle((max(left, min(box)), bottom - 14, min(right, max(box)), bottom), color)


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
