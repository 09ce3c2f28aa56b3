"""Where in the image the correction was strong: a heat map, over the image if there is one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Canvas, theme_of, to_tensor, wrap

# From dark blue (guidance damped most) over teal to yellow (kept). Brightness rises all the way, which the
# colour-blind see as well.
ANCHORS = ("#2a1860", "#33428e", "#2b6f94", "#289a8c", "#5cc06c", "#b3d94a", "#fbe83a")
SMALLEST = 256  # px: maps without an image are enlarged to this, a latent pixel staying a square
BAR = 56  # px below the map
TOO_MANY = 256  # maps in one batch


def heat_pictures(
    heat: Tensor | None, images: Tensor | None = None, theme: str = "dark"
) -> tuple[Tensor, str]:
    """Maps [N, H, W, 3] of the mean correction with a colour bar below, and a remark, "" if all is well.

    `heat` [B, h, w] (video [B, frames, h, w], sound [B, length]): the correction, 1 = plain guidance.
    `images` [B, H, W, C] in 0..1 lie underneath, in grey. Images that do not belong to the maps are left out,
    with a remark."""
    colors = theme_of(theme)
    if heat is None or not torch.isfinite(heat).any():
        why = "no heat map: this form has one factor per image, or nothing was rectified"
        return _message(why, colors), "no heat map"
    low, high = _limits(heat)
    frames = _frames(heat.float().cpu())
    remark = ""
    under = None
    if images is not None:
        under, frames, remark = _beneath(images.detach().float().cpu(), heat.float().cpu(), frames)
    if len(frames) > TOO_MANY:
        remark = f"the first {TOO_MANY} of {len(frames)} maps" + (f"; {remark}" if remark else "")
        frames, under = frames[:TOO_MANY], under if under is None else under[:TOO_MANY]
    if under is not None:
        frames = F.interpolate(frames[:, None], under.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    else:
        scale = max(1, -(-SMALLEST // min(frames.shape[1:])))
        scale = max(1, min(scale, 2048 // max(frames.shape[1:])))
        frames = frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    picture = colorize((frames - low) / (high - low))
    if under is not None:
        luma = (under * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
        picture = 0.3 * luma + 0.7 * picture
    bar = _bar(low, high, picture.shape[2], colors)
    return torch.cat([picture, bar.expand(len(picture), -1, -1, -1)], 1).clamp(0, 1), remark


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


def _beneath(images, heat, frames):
    """(images RGB [N, H, W, 3] or None, frames [N, h, w], remark)."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(f"image: want [batch, height, width, channels], got {list(images.shape)}")
    images = images[..., :3].expand(*images.shape[:3], 3)
    if heat.ndim == 4 and len(images) != len(frames) and len(images) % len(heat) == 0:
        size = (len(images) // len(heat), *heat.shape[-2:])  # a video VAE makes several frames of one
        frames = F.interpolate(heat[:, None], size, mode="trilinear", align_corners=False)
        frames = frames.reshape(-1, *size[1:])
    if len(images) != len(frames):
        numbers = f"{len(images)} images given for {len(frames)} heat maps"
        return None, frames, f"{numbers}: drawn without the images"
    return images, frames, ""


def _bar(low, high, width, colors):
    """A colour bar with its ends and middle in numbers, [1, BAR, width, 3]."""
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
    return to_tensor(canvas.picture())


def _message(text, colors):
    canvas = Canvas(512, 256, colors)
    for i, line in enumerate(wrap(text, 22, 460)):
        canvas.text(256, 96 + 30 * i, line, 22, colors.faint, "mm")
    return to_tensor(canvas.picture())
