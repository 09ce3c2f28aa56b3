"""One panel of a plot: from data to pixels, ticks, lines with gaps, bands."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .canvas import Canvas, mix, text_width

TICK, TITLE = 22, 24  # text sizes, px; half of that is still readable
BAND = 0.22  # part of a band's colour over the panel's: lines on it stay plain to see
STRIP = 24  # height of a strip, px


@dataclass(frozen=True)
class Scale:
    """A map of [low, high] onto [0, 1], linear or logarithmic, or downwards where `reverse`."""

    low: float
    high: float
    log: bool = False
    reverse: bool = False

    def __call__(self, value: float) -> float:
        """Position of a value; NaN where it has none (log of 0 or less)."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        low, high = self.low, self.high
        if self.log:
            low, high, value = (math.log(v) for v in (low, high, value))
        part = (value - low) / (high - low)
        return 1 - part if self.reverse else part

    def ticks(self, most: int = 6) -> list[float]:
        return log_ticks(self.low, self.high, most) if self.log else linear_ticks(self.low, self.high, most)


def scale_for(
    values,
    most_log_ratio: float = 20.0,
    zero: bool = False,
    log: bool | None = None,
    reverse: bool = False,
    pad: float = 0.06,
) -> Scale:
    """A scale that shows all finite values. `log` None: logarithmic where they are positive and span much."""
    finite = [v for v in values if math.isfinite(v)]
    if log is None:
        log = bool(finite) and min(finite) > 0 and max(finite) / min(finite) > most_log_ratio
    if log:
        positive = [v for v in finite if v > 0] or [1.0]
        low, high = min(positive), max(positive)
        return Scale(low / 1.2, high * 1.2, True, reverse) if low == high else Scale(low, high, True, reverse)
    if zero or not finite:
        finite = [*finite, 0.0]
    low, high = min(finite), max(finite)
    span = (high - low) or abs(high) or 1.0
    top = high + pad * span if high != 0 or low == high else high
    return Scale(low if low == 0 and zero else low - pad * span, top, False, reverse)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], at most `most`."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    while math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1 > most:
        step *= 2 if f"{step:e}"[0] in "15" else 2.5
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """1, 2, 5 times powers of ten inside [low, high], thinned to `most`."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        all_ticks = (d * 10.0**e for e in decades for d in digits)
        ticks = [tick for tick in all_ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            break
    return ticks[:: math.ceil(len(ticks) / most)] if ticks else [low]


class Axes:
    """A panel of a canvas. `box` (left, top, right, bottom) in pixels; `x`, `y` its scales."""

    def __init__(self, canvas: Canvas, box, x: Scale, y: Scale):
        self.canvas, self.box, self.x, self.y = canvas, box, x, y

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a point of the data. Points above or below the panel stick to its edge."""
        left, top, right, bottom = self.box
        return left + self.x(x) * (right - left), bottom - min(1.0, max(0.0, self.y(y))) * (bottom - top)

    def frame(self, title: str, keys=(), x_title: str = "", whole: bool = False, levels: int = 5) -> None:
        """Background, grid and title. `keys`: (name, color) pairs, written at the right.

        At most `levels` ticks are labelled at the left. The x axis is labelled if it has a title, at whole
        numbers only where `whole`.
        """
        canvas, theme, (left, top, right, bottom) = self.canvas, self.canvas.theme, self.box
        canvas.rectangle(self.box, theme.panel)
        for value in self.y.ticks(levels) if levels else ():
            y = self.at(self.x.low, value)[1]
            canvas.line([(left, y), (right, y)], theme.grid, 1)
            canvas.text(left - 10, y, f"{value:.6g}", TICK, theme.faint, "rm")
        for value in self.x.ticks(8):
            if whole and value != round(value):
                continue
            x = self.at(value, self.y.low)[0]
            canvas.line([(x, top), (x, bottom)], theme.grid, 1)
            if x_title:
                canvas.text(x, bottom + 8, f"{value:.6g}", TICK, theme.faint, "ma")
        if x_title:
            canvas.text((left + right) / 2, bottom + 36, x_title, TICK, theme.faint, "ma")
        canvas.text(left, top - 10, title, TITLE, theme.text, "ls")
        self._key(keys, right, top - 18)

    def _key(self, keys, right, y):
        for name, color in reversed(keys):
            right -= text_width(name, TICK)
            self.canvas.text(right, y, name, TICK, self.canvas.theme.faint, "lm")
            self.canvas.rectangle((right - 34, y - 3, right - 8, y + 3), color)
            right -= 56

    def line(self, xs, ys, color, width=3, dots=False) -> None:
        """A line through the points, broken where a value is no number; a value between two gaps is a dot."""
        for part in self._parts(xs, ys):
            if len(part) > 1:
                self.canvas.line(part, color, width)
            if len(part) == 1 or dots:
                for x, y in part:
                    self.canvas.dot(x, y, color, width + 1)

    def band(self, xs, low, high, color) -> None:
        """The area between two lines, in a colour mixed with the panel's (grid lines stay under it)."""
        fill = mix(color, self.canvas.theme.panel, BAND)
        upper, lower = [], []
        for x, a, b in [*zip(xs, low, high, strict=True), (math.nan,) * 3]:
            if all(math.isfinite(v) for v in (self.x(x), self.y(a), self.y(b))):
                upper.append(self.at(x, b))
                lower.append(self.at(x, a))
            elif upper:
                if len(upper) == 1:
                    (x0, y0), (_, y1) = upper[0], lower[0]
                    self.canvas.line([(x0, y0), (x0, y1)], fill, 8)
                else:
                    self.canvas.polygon(upper + lower[::-1], fill)
                upper, lower = [], []

    def level(self, y: float, color) -> None:
        """A dashed horizontal line."""
        left, _, right, _ = self.box
        height = self.at(self.x.low, y)[1]
        for x in range(round(left), round(right), 16):
            self.canvas.line([(x, height), (min(x + 8, right), height)], color, 2)

    def bars(self, xs, low, high, color) -> None:
        """A vertical bar with end marks at every x."""
        for x, a, b in zip(xs, low, high, strict=True):
            if all(math.isfinite(v) for v in (self.x(x), self.y(a), self.y(b))):
                (at, bottom), (_, top) = self.at(x, a), self.at(x, b)
                self.canvas.line([(at, bottom), (at, top)], color, 2)
                for y in (bottom, top):
                    self.canvas.line([(at - 5, y), (at + 5, y)], color, 2)

    def _parts(self, xs, ys):
        part = []
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(self.x(x)) and math.isfinite(self.y(y)):
                part.append(self.at(x, y))
            elif part:
                yield part
                part = []
        if part:
            yield part


def strip(canvas: Canvas, box, kinds: list[str], colors: dict[str, str], title: str, x_title: str) -> None:
    """A mark for every entry of `kinds`, in order and side by side, in the colour of its kind.

    `box`: (left, top, right, bottom) in pixels. The key names the kinds that are there."""
    left, top, right, bottom = box
    axes = Axes(canvas, box, Scale(0.5, len(kinds) + 0.5), Scale(0, 1))
    keys = [(kind, color) for kind, color in colors.items() if kind in kinds]
    axes.frame(title, keys, x_title=x_title, whole=True, levels=0)
    width = (right - left) / len(kinds)
    gap = min(4.0, width / 5)
    for i, kind in enumerate(kinds):
        start = left + i * width
        canvas.rectangle((start + gap / 2, top, start + width - gap / 2, bottom), colors[kind])
