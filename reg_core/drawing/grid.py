"""Images of different runs on one sheet, each with its label; a table with headings where the labels make one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .canvas import Canvas, text_width, theme_of, to_tensor, wrap

SEPARATOR = " | "  # "row heading | column heading"
GAP = 8
MOST_PIXELS = 16384 * 16384


def labelled_grid(images: list[Tensor], labels: list[str], columns: int = 0, theme: str = "dark") -> Tensor:
    """One sheet [1, H, W, 3]. `images` [B, h, w, C] each, in 0..1, of any sizes; a batch becomes one cell.

    `columns` 0: as many as the labels' table has, else about as many as rows. Labels "a | b" that form a full table in
    reading order are written once as headings of rows and columns, others above every image.
    Image pixels are copied, never resampled. Raises ValueError with the numbers that do not fit.
    """
    if not images:
        raise ValueError("no images to put on a sheet")
    if len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images: want one label for each image (a batch counts as one)")
    if columns < 0:
        raise ValueError(f"columns must be 0 (automatic) or more, got {columns}")
    colors = theme_of(theme)
    background = to_tensor(Canvas(1, 1, colors).picture())[0, 0, 0]
    cells = [_cell(image, i, background) for i, image in enumerate(images)]
    height, width = (max(c.shape[axis] for c in cells) for axis in (0, 1))
    table = _table(labels)
    if table and columns not in (0, len(table[1])):
        table = None
    columns = min(len(cells), len(table[1]) if table else columns or math.ceil(math.sqrt(len(cells))))
    size = min(48, max(14, round(min(height, width) / 12)))
    width = max(width, *(min(180, math.ceil(text_width(word, size))) for label in labels for word in str(label).split() or [""]))
    rows = math.ceil(len(cells) / columns)
    side = min(320, max(math.ceil(text_width(name, size)) for name in table[0]) + 2 * GAP) if table else GAP
    captions = None if table else [wrap(label, size, width) for label in labels]
    heads = [wrap(name, size, width) for name in table[1]] if table else []
    line = round(size * 1.3)
    head = line * max(len(h) for h in heads) + GAP if table else 0
    caption = 0 if table else line * max(len(c) for c in captions)
    step = (height + caption + GAP, width + GAP)
    total = (head + GAP + rows * step[0], side + columns * step[1])
    if total[0] * total[1] > MOST_PIXELS:
        raise ValueError(f"the sheet would be {total[1]} x {total[0]} px, more than {MOST_PIXELS} in all: fewer or smaller images, please")

    sheet = background.repeat(*total, 1)
    for i, cell in enumerate(cells):
        top, left = head + GAP + (i // columns) * step[0], side + (i % columns) * step[1]
        if captions:
            _write(sheet, top, left, width, captions[i], size, line, colors)
        y, x = top + caption + (height - cell.shape[0]) // 2, left + (width - cell.shape[1]) // 2
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    for j, lines in enumerate(heads):
        _write(sheet, GAP, side + j * step[1], width, lines, size, line, colors)
    for i, name in enumerate(table[0] if table else []):
        lines = wrap(name, size, side - GAP)
        middle = head + GAP + i * step[0] + (height - line * len(lines)) // 2
        _write(sheet, max(0, middle), 0, side, lines, size, line, colors)
    return sheet[None]


def _cell(image: Tensor, index: int, background: Tensor) -> Tensor:
    """[B, h, w, C] -> [H, W, 3]: the batch side by side in a near-square block."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f"image {index + 1}: want [batch, height, width, channels], got {list(image.shape)}")
    image = image.detach().float().cpu()
    image = (image[..., :3] if image.shape[-1] > 1 else image.expand(*image.shape[:3], 3)).nan_to_num(0.0).clamp(0, 1)
    count, h, w, _ = image.shape
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    gap = 2 if count > 1 else 0
    block = background.repeat(down * (h + gap) - gap, across * (w + gap) - gap, 1)
    for i in range(count):
        y, x = (i // across) * (h + gap), (i % across) * (w + gap)
        block[y : y + h, x : x + w] = image[i]
    return block


def _table(labels):
    """(row headings, column headings) of labels "row | column" in reading order, or None."""
    parts = [str(label).split(SEPARATOR) for label in labels]
    if len(labels) < 2 or any(len(p) != 2 for p in parts):
        return None
    rows, columns = (list(dict.fromkeys(p[i] for p in parts)) for i in (0, 1))
    return (rows, columns) if parts == [[r, c] for r in rows for c in columns] else None


def _write(sheet, top, left, width, lines, size, line, colors):
    """Centred lines of text into a strip of the sheet."""
    canvas = Canvas(width, line * len(lines), colors)
    for i, text in enumerate(lines):
        canvas.text(width / 2, line * (i + 0.5), text, size, colors.text, "mm")
    strip = to_tensor(canvas.picture())[0]
    sheet[top : top + strip.shape[0], left : left + strip.shape[1]] = strip[: sheet.shape[0] - top, : sheet.shape[1] - left]
