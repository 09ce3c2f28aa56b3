"""A measured correction with its error, beside the formula that needs no measuring."""

from __future__ import annotations

import torch
from PIL import Image

from ..calibration import Calibration
from ..forms import schedule_factor
from .axes import TICK, Axes, scale_for
from .canvas import Canvas, theme_of, wrap
from .palette import form_color
from .traces import HEAD, LEFT, LINE, PANEL, RIGHT, WIDTH


def plot_calibration(table: Calibration, data_std: float, theme: str = "dark", lines=()) -> Image.Image:
    """The table over the noise level, bars of two standard errors, and form `schedule` at `data_std`.

    A picture 1024 px wide. `lines`: text to write above."""
    colors = theme_of(theme)
    lines = [part for line in lines for part in wrap(line, TICK, WIDTH - 2 * RIGHT)]
    top = 108 + LINE * len(lines)
    height = PANEL + 160
    canvas = Canvas(WIDTH, top + height + 76, colors)
    canvas.text(RIGHT, 18, f"calibration of {table.model or 'a model'}, {table.form}", HEAD, colors.text)
    for i, line in enumerate(lines):
        canvas.text(RIGHT, 64 + i * LINE, line, TICK, colors.faint)
    sigma, factor = table.sigma.tolist(), table.factor.tolist()
    low, high = ((table.factor + sign * 2 * table.error).tolist() for sign in (-1, 1))
    x = scale_for(sigma, log=True, reverse=True)
    levels = torch.logspace(*(torch.tensor([x.low, x.high]).log10().tolist()), 200)
    formula = schedule_factor(levels, data_std).tolist()
    measured, plain = form_color("calibrated", theme), form_color("off", theme)
    axes = Axes(
        canvas,
        (LEFT, top, WIDTH - RIGHT, top + height),
        x,
        scale_for([*factor, *low, *high, 0, 1], log=False),
    )
    keys = [("measured, 2 standard errors", measured), ("form schedule", form_color("schedule", theme))]
    axes.frame("correction (1 = plain guidance)", keys, x_title="sigma (noise level)")
    axes.level(1.0, plain)
    axes.line(levels.tolist(), formula, form_color("schedule", theme))
    axes.bars(sigma, low, high, measured)
    axes.line(sigma, factor, measured, 4, dots=len(sigma) <= 60)
    return canvas.picture()
