"""A page to draw on: themes, fonts, and a Pillow canvas with smooth lines.

Lengths are in pixels of the finished picture."""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..checks import one_of

OVERSAMPLING = 2  # Pillow's lines have hard edges: draw bigger, then average
# Tried for text that Pillow's own font cannot write; found by name in the system's font folders.
OTHER_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "DejaVuSans.ttf",
)


@dataclass(frozen=True)
class Theme:
    """Colours. `series`: blue, orange and green that also differ in brightness."""

    background: str
    panel: str
    grid: str
    faint: str
    text: str
    warning: str
    series: tuple[str, str, str]


THEMES = {
    "dark": Theme(
        "#1e1f24", "#26282f", "#3d404a", "#a6a9b6", "#f0f0f3", "#ff8a7a", ("#5aa9ff", "#ffc05c", "#7ddc9a")
    ),
    "light": Theme(
        "#ffffff", "#f5f6f8", "#d5d8e0", "#5c6070", "#16181d", "#b3261e", ("#1f6fd0", "#c96a00", "#1b7f46")
    ),
}


def theme_of(name: str) -> Theme:
    """A theme by name. Raises ValueError with the name."""
    one_of("theme", name, THEMES)
    return THEMES[name]


class Canvas:
    """Draws at OVERSAMPLING times the size; `picture()` is the page at its own size."""

    def __init__(self, width: int, height: int, theme: Theme):
        self.theme = theme
        self.width, self.height = width, height
        self._page = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), theme.background)
        self._draw = ImageDraw.Draw(self._page, "RGBA")

    def picture(self) -> Image.Image:
        return self._page.reduce(OVERSAMPLING)

    def text(self, x, y, text, size, color, anchor="la"):
        """Text at (x, y); `anchor` as in Pillow: la = left and ascender, mm = middle, ra, ls, ..."""
        big = size * OVERSAMPLING
        place = x * OVERSAMPLING, y * OVERSAMPLING
        self._draw.text(place, text, fill=color, font=font(big, text), anchor=anchor)

    def line(self, points, color, width=3):
        scaled = [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]
        self._draw.line(scaled, fill=color, width=round(width * OVERSAMPLING), joint="curve")

    def dot(self, x, y, color, radius=4):
        self.rectangle((x - radius, y - radius, x + radius, y + radius), color, corner=radius)

    def polygon(self, points, color):
        self._draw.polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points], fill=color)

    def rectangle(self, box, color=None, outline=None, corner=0):
        scaled = [v * OVERSAMPLING for v in box]
        width = OVERSAMPLING if outline else 0
        self._draw.rounded_rectangle(scaled, corner * OVERSAMPLING, fill=color, outline=outline, width=width)


def mix(color: str, other: str, part: float) -> str:
    """`part` of `color` over `other`."""
    a, b = ([int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (color, other))
    return "#" + "".join(f"{round(part * x + (1 - part) * y):02x}" for x, y in zip(a, b, strict=True))


@functools.lru_cache(maxsize=64)
def _builtin(size):
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=512)
def _missing(character) -> bool:
    builtin = _builtin(20)
    return not character.isspace() and bytes(builtin.getmask(character)) == bytes(builtin.getmask("\uffff"))


@functools.lru_cache(maxsize=64)
def _foreign(size):
    for name in OTHER_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return _builtin(size)


def font(size: float, text: str = ""):
    """Pillow's own font, or one of the system's where `text` has characters that it lacks."""
    return _foreign(size) if any(_missing(c) for c in text if c > "~") else _builtin(size)


def text_width(text: str, size: float) -> float:
    return font(size, text).getlength(text)


def wrap(text: str, size: float, width: float) -> list[str]:
    """At least one line, each at most `width` pixels, broken at spaces, or inside a word that is too long."""
    lines = []
    for paragraph in str(text).split("\n"):
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if text_width(joined, size) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            most = round(width) + 2  # a letter takes a pixel at least
            while len(word) > 1 and text_width(word[:most], size) > width:
                tried = range(2, min(len(word), most))
                fits = 1 + bisect.bisect_right(tried, width, key=lambda n: text_width(word[:n], size))
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    return lines


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as [1, H, W, 3] float in 0..1."""
    return torch.from_numpy(numpy.array(picture.convert("RGB"), dtype=numpy.float32) / 255)[None]
