"""Pictures of several runs on one labelled sheet."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from ..drawing import labelled_grid
from ..files import whole_file

SIDE = 56  # of a picture on the sheet, in pixels, about


def save_sheet(path: Path, runs: list[Tensor], labels: list[str], across: int = 10) -> None:
    """A PNG of pictures [B, 1, H, W] in [-1, 1] of each run. `labels`, `across`: see `labelled_grid`."""
    scale = max(1, SIDE // runs[0].shape[-1])
    pictures = [(run.clamp(-1, 1).add(1) / 2).movedim(1, -1) for run in runs]
    pictures = [picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2) for picture in pictures]
    (sheet,) = labelled_grid(pictures, labels, theme="light", across=across)
    with whole_file(path) as partial:
        Image.fromarray((255 * sheet).round().byte().numpy()).save(partial, "PNG")
