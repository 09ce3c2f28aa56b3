"""Where in the image the correction was strong: a heat map, over the image if there is one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Canvas, theme_of, to_tensor, wrap

# From dark blue (guidance damped most) over teal to yellow (kept). Brightness rises all the way, which the
# colour-blind see as well.
ANCHORS = ("#2a1860", "#33428e", "#2b6f94", "#289a8c", "#5cc06c", "#b3d94a", "#fbe83a")
READABLE, LONGEST = 768, 2048  # px, sides of a sheet: smaller ones are enlarged, larger ones made smaller
GAP = 6  # px between maps
BAR = 84  # px below the sheet
TOO_MANY = 256  # maps on one sheet


def heat_sheet(heat: Tensor | None, images: Tensor | None = None, theme: str = "dark") -> tuple[Tensor, str]:
    """One sheet [1, H, W, 3] of all maps of the mean correction above one colour bar, and a remark or "".

    `heat` [B, h, w] (video [B, frames, h, w], sound [B, length]): the correction, 1 = plain guidance.
    `images` [B, H, W, C] in 0..1 lie underneath, in grey: one for each map, or one sheet of them all, whose
    columns the maps then have. Images that do not belong to the maps are left out, with a remark."""
    colors = theme_of(theme)
    if heat is None or not torch.isfinite(heat).any():
        why = "no heat map: this form has one factor per image, or nothing was rectified"
        return _message(why, colors), "no heat map"
    low, high = _limits(heat)
    maps, under, columns, remark = _frames(heat.float().cpu()), None, 0, ""
    if images is not None:
        under, maps, columns, remark = _beneath(images.detach().float().cpu(), heat.float().cpu(), maps)
    if len(maps) > TOO_MANY:
        remark = f"the first {TOO_MANY} of {len(maps)} maps" + (f"; {remark}" if remark else "")
        maps, under = maps[:TOO_MANY], under if under is None else under[:TOO_MANY]
    gap = 0 if columns else GAP
    columns = columns or math.ceil((len(maps) * maps.shape[1] / maps.shape[2]) ** 0.5)
    columns = min(len(maps), columns)
    if under is not None:
        maps = F.interpolate(maps[:, None], under.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    picture = colorize((maps - low) / (high - low))
    if under is not None:
        luma = (under * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
        picture = 0.3 * luma + 0.7 * picture
    sheet = _fitted(_tiled(_enlarged(picture, columns), columns, gap, colors))
    return torch.cat([sheet, _bar(low, high, sheet.shape[2], colors)], 1).clamp(0, 1), remark


def _enlarged(pictures: Tensor, columns: int) -> Tensor:
    """Pictures [N, h, w, 3] so that a sheet of them can be read; a pixel stays a square."""
    rows = -(-len(pictures) // columns)
    scale = max(1, READABLE // max(rows * pictures.shape[1], columns * pictures.shape[2]))
    return pictures.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def _tiled(pictures: Tensor, columns: int, gap: int, colors) -> Tensor:
    """[N, h, w, 3] -> one sheet [1, H, W, 3] in reading order, `gap` px between."""
    count, h, w, _ = pictures.shape
    rows = -(-count // columns)
    background = to_tensor(Canvas(1, 1, colors).picture())[0, 0, 0]
    sheet = background.repeat(1, rows * (h + gap) - gap, columns * (w + gap) - gap, 1)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        sheet[0, y : y + h, x : x + w] = picture
    return sheet


def _fitted(sheet: Tensor) -> Tensor:
    """The sheet [1, H, W, 3] with no side longer than LONGEST."""
    scale = LONGEST / max(sheet.shape[1:3])
    if scale >= 1:
        return sheet
    size = [max(1, round(scale * side)) for side in sheet.shape[1:3]]
    return F.interpolate(sheet.movedim(3, 1), size, mode="area").movedim(1, 3)


def of_one_size(pictures: list[Tensor]) -> Tensor:
    """Pictures [N, H, W, 3] of several sizes as one batch, the smaller ones on black."""
    height, width = (max(p.shape[i] for p in pictures) for i in (1, 2))
    return torch.cat([F.pad(p, (0, 0, 0, width - p.shape[2], 0, height - p.shape[1])) for p in pictures])


def colorize(values: Tensor) -> Tensor:
    """Numbers in 0..1 [...] -> RGB [..., 3]; outside values are clipped, NaN is black."""
    table = torch.tensor([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in ANCHORS])
    place = values.nan_to_num(0.0).clamp(0, 1) * (len(table) - 1)
    left = place.floor().long().clamp(max=len(table) - 2)
    rgb = torch.lerp(table[left], table[left + 1], (place - left)[..., None])
    return torch.where(torch.isnan(values)[..., None], 0.0, rgb)


def _limits(heat):
    """1 % and 99 % of the finite values, a little apart at least."""
    values = heat[torch.isfinite(heat)].float().flatten()
    ranked = values[:: -(-len(values) // (1 << 16))].sort().values
    low, high = (float(ranked[round(q * (len(ranked) - 1))]) for q in (0.01, 0.99))
    middle, half = (low + high) / 2, max((high - low) / 2, 0.005)
    return middle - half, middle + half


def _frames(heat):
    """[B, ...] -> [N, h, w]."""
    if heat.ndim == 1:
        return heat[:, None, None]
    if heat.ndim == 2:
        return heat[:, None, :]
    return heat.reshape(-1, *heat.shape[-2:])


def _beneath(images, heat, maps):
    """(images RGB [N, H, W, 3] or None, maps [N, h, w], columns of the sheet they were or 0, remark)."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(f"image: want [batch, height, width, channels], got {list(images.shape)}")
    images = images[..., :3].expand(*images.shape[:3], 3)
    if heat.ndim == 4 and len(images) != len(maps) and len(images) % len(heat) == 0:
        size = (len(images) // len(heat), *heat.shape[-2:])  # a video VAE makes several frames of one
        maps = F.interpolate(heat[:, None], size, mode="trilinear", align_corners=False)
        maps = maps.reshape(-1, *size[1:])
    columns = 0
    if len(images) == 1 < len(maps) and (columns := _columns_of(images[0], maps)):
        rows = -(-len(maps) // columns)
        cells = images[0].unflatten(0, (rows, -1)).unflatten(2, (columns, -1))  # [rows, h, columns, w, 3]
        images = cells.transpose(1, 2).flatten(0, 1)[: len(maps)]
    if len(images) != len(maps):
        numbers = f"{len(images)} images given for {len(maps)} heat maps"
        return None, maps, 0, f"{numbers}: drawn without the images"
    return images, maps, columns, ""


def _columns_of(sheet, maps) -> int:
    """Columns of a sheet [H, W, 3] that holds a picture for each of the maps [N, h, w]; 0: it does not."""
    (height, width, _), (count, h, w) = sheet.shape, maps.shape
    for columns in range(1, count + 1):
        rows = -(-count // columns)
        whole = width % columns == 0 and height % rows == 0
        if whole and abs(width * rows * h / (height * columns * w) - 1) < 0.02:
            return columns
    return 0


def _bar(low, high, width, colors):
    """A colour bar with its ends and middle in numbers, and what it shows, [1, BAR, width, 3]."""
    canvas = Canvas(width, BAR, colors)
    size = 18 if width >= 360 else 14
    margin = 34 if width >= 160 else 2
    left, right = margin, max(width - margin, margin + 1)
    shades = colorize(torch.linspace(0, 1, right - left))
    for i, (r, g, b) in enumerate((255 * shades).round().int().tolist()):
        canvas.rectangle((left + i, 8, left + i + 1, 26), (r, g, b))
    for part in (0, 0.5, 1) if width >= 100 else ():
        x = left + part * (right - left)
        canvas.line([(x, 26), (x, 31)], colors.faint, 2)
        canvas.text(x, 33, f"{low + part * (high - low):.2f}", size, colors.text, "ma")
    if width >= 360:
        canvas.text(width / 2, 58, "mean correction (1 = plain guidance)", size, colors.faint, "ma")
    return to_tensor(canvas.picture())


def _message(text, colors):
    canvas = Canvas(512, 256, colors)
    for i, line in enumerate(wrap(text, 22, 460)):
        canvas.text(256, 96 + 30 * i, line, 22, colors.faint, "mm")
    return to_tensor(canvas.picture())
