"""Images of different runs on one sheet, each with its label, or as a table with headings."""

from __future__ import annotations

import math

from torch import Tensor

from ..checks import whole
from .canvas import Canvas, text_width, theme_of, to_tensor, wrap

SEPARATOR = " | "  # "row heading | column heading"
GAP = 8
LONGEST = 300  # characters of a label
BETWEEN = 2  # images of one batch
MOST_PIXELS = 16384 * 16384


def labelled_grid(
    images: list[Tensor],
    labels: list[str],
    columns: int = 0,
    theme: str = "dark",
    captions: list[str] | None = None,
    across: int = 0,
) -> Tensor:
    """One sheet [1, H, W, 3] of `images` [B, h, w, C] each, in 0..1, of any sizes; a batch becomes one cell.

    - `columns`: cells in a row. 0: as many as the labels' table has, else about as many as rows.
    - `labels`: one a cell. Labels "a | b" of a table in reading order are written once, as headings of rows
      and columns; cells may be absent. Others are written above every cell.
    - `captions`: a line below each cell.
    - `across`: images in a row of a cell. 0: about as many as down.

    Image pixels are copied, never resampled. Raises ValueError with the numbers that do not fit.
    """
    if not images:
        raise ValueError("no images to put on a sheet")
    if len(labels) != len(images):
        numbers = f"{len(labels)} labels for {len(images)} images"
        raise ValueError(f"{numbers}: want one label for each image (a batch counts as one)")
    labels = [str(label)[:LONGEST] for label in labels]
    captions = list(captions or [""] * len(images))
    if len(captions) != len(images):
        numbers = f"{len(captions)} captions for {len(images)} images"
        raise ValueError(f"{numbers}: want one caption for each image, or none at all")
    whole("columns (0: automatic)", columns, 0)
    colors = theme_of(theme)
    background = to_tensor(Canvas(1, 1, colors).picture())[0, 0, 0]
    blocks = [_block(image, i, across) for i, image in enumerate(images)]
    height, width = (max(block[axis] for block in blocks) for axis in (2, 3))
    table = _table(labels)
    if table and columns not in (0, len(table[1])):
        table = None
    columns = min(len(images), len(table[1]) if table else columns or math.ceil(math.sqrt(len(images))))
    size = min(48, max(20, round(min(height, width) / 12)))
    names = table[1] if table else labels
    small = round(0.8 * size)
    width = max(width, *(min(10 * size, math.ceil(text_width(str(name), size))) for name in names))
    width = max(width, *(min(10 * size, math.ceil(text_width(text, small))) for text in captions))
    places = table[2] if table else range(len(images))
    rows = math.ceil((max(places) + 1) / columns)
    side = min(320, max(math.ceil(text_width(name, size)) for name in table[0]) + 2 * GAP) if table else GAP
    written = [wrap(name, size, width) for name in names]
    above = _line(size) * max(len(lines) for lines in written)
    head, caption = (above + GAP, 0) if table else (0, above)
    below = [wrap(text, small, width) if text else [] for text in captions]
    foot = _line(small) * max(len(lines) for lines in below)
    step = (height + caption + foot + GAP, width + GAP)
    total = (head + GAP + rows * step[0], side + columns * step[1])
    if total[0] * total[1] > MOST_PIXELS:
        size = f"{total[1]} x {total[0]} px, more than {MOST_PIXELS} in all"
        raise ValueError(f"the sheet would be {size}: use fewer or smaller images")

    sheet = background.repeat(*total, 1)
    for i, image in enumerate(images):
        row, column = divmod(places[i], columns)
        top, left = head + GAP + row * step[0], side + column * step[1]
        if not table:
            _write(sheet, (top, left, width), written[i], size, colors)
        cell = _cell(image, blocks[i], background)
        y, x = top + caption + (height - cell.shape[0]) // 2, left + (width - cell.shape[1]) // 2
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
        if below[i]:
            _write(sheet, (y + cell.shape[0], left, width), below[i], small, colors)
    for j, lines in enumerate(written if table else []):
        _write(sheet, (GAP, side + j * step[1], width), lines, size, colors)
    for i, name in enumerate(table[0] if table else []):
        lines = wrap(name, size, side - GAP)
        middle = head + GAP + i * step[0] + (height - _line(size) * len(lines)) // 2
        _write(sheet, (max(0, middle), 0, side), lines, size, colors)
    return sheet[None]


def _block(image: Tensor, index: int, across: int) -> tuple[int, int, int, int]:
    """(down, across, height, width) of the block that shows a batch [B, h, w, C]."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f"image {index + 1}: want [batch, height, width, channels], got {list(image.shape)}")
    count, h, w, _ = image.shape
    across = min(count, across or math.ceil(math.sqrt(count)))
    down = math.ceil(count / across)
    return down, across, down * (h + BETWEEN) - BETWEEN, across * (w + BETWEEN) - BETWEEN


def _cell(image: Tensor, block, background: Tensor) -> Tensor:
    """[B, h, w, C] -> [H, W, 3]: the batch side by side."""
    image = image.detach().float().cpu()
    image = image[..., :3] if image.shape[-1] > 1 else image.expand(*image.shape[:3], 3)
    image = image.nan_to_num(0.0).clamp(0, 1)
    _, across, height, width = block
    _, h, w, _ = image.shape
    cell = background.repeat(height, width, 1)
    for i, one in enumerate(image):
        y, x = (i // across) * (h + BETWEEN), (i % across) * (w + BETWEEN)
        cell[y : y + h, x : x + w] = one
    return cell


def _table(labels):
    """(row headings, column headings, place of each label) of labels "row | column", or None.

    A place counts the table's cells in reading order.
    """
    parts = [str(label).split(SEPARATOR) for label in labels]
    if len(labels) < 2 or any(len(p) != 2 for p in parts):
        return None
    rows, columns = (list(dict.fromkeys(p[i] for p in parts)) for i in (0, 1))
    places = [rows.index(row) * len(columns) + columns.index(column) for row, column in parts]
    ordered = all(a < b for a, b in zip(places, places[1:], strict=False))
    return (rows, columns, places) if ordered and min(len(rows), len(columns)) < len(labels) else None


def _line(size: int) -> int:
    """Height of a line of text."""
    return round(size * 1.3)


def _write(sheet, place, lines, size, colors):
    """Centred lines of text into a strip of the sheet; `place` (top, left, width)."""
    (top, left, width), line = place, _line(size)
    canvas = Canvas(width, line * len(lines), colors)
    for i, text in enumerate(lines):
        canvas.text(width / 2, line * (i + 0.5), text, size, colors.text, "mm")
    strip = to_tensor(canvas.picture())[0]
    sheet[top : top + strip.shape[0], left : left + strip.shape[1]] = strip[
        : sheet.shape[0] - top, : sheet.shape[1] - left
    ]
