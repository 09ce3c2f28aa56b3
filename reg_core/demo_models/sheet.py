"""Digits of several runs on one labelled sheet."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from ..drawing import labelled_grid
from ..files import whole_file

SCALE = 4


def save_sheet(path: Path, runs: list[Tensor], labels: list[str], captions: list[str] | None = None) -> None:
    """A PNG of images [B, 1, 8, 8] in [-1, 1] of each run, ten in a line. Labels as in `labelled_grid`."""
    pictures = [(run.clamp(-1, 1).add(1) / 2).movedim(1, -1) for run in runs]
    pictures = [picture.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2) for picture in pictures]
    (sheet,) = labelled_grid(pictures, labels, theme="light", captions=captions, across=10)
    with whole_file(path) as partial:
        Image.fromarray((255 * sheet).round().byte().numpy()).save(partial, "PNG")
