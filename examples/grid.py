"""What the two ImageNet examples share: options, one seed an image, shards by torchrun, the image folder and its .npz.

An image depends on its seed alone (as far as the hardware's arithmetic does not depend on the batch), so any number of
processes, batch sizes and restarts give the same folder: what is there already is not sampled again.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import reg_core
from reg_core import presets
from reg_core.drawing import labelled_grid
from reg_core.drawing.canvas import to_tensor
from reg_core.files import whole_file


def options(description: str, steps: int, data_std: float) -> argparse.ArgumentParser:
    """The options both have; w = cfg - 1 is the weight the REG authors call guidance."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--out", required=True, help="a .png for one sheet of all images, else a folder of single images, with FOLDER.npz beside it")
    p.add_argument("--seeds", default="0-3", help="one an image: '0-49999' or '1,2,5-10'")
    p.add_argument("--classes", type=int, nargs="+", help="labels, taken in turn; drawn at random from the seeds when absent")
    p.add_argument("--cfg", type=float, default=1.5, help="guidance scale, the authors' w + 1; 1 = none")
    p.add_argument("--form", choices=reg_core.FORMS, default="row_sum", help="'off' is plain guidance")
    p.add_argument("--engine", choices=reg_core.ENGINES, default="reverse", help="reverse is what the paper's tables used")
    p.add_argument("--strength", type=float, default=1.0)
    p.add_argument("--data-std", type=float, default=data_std, help="standard deviation of clean latents, for form schedule")
    p.add_argument("--calibration", help="a .safetensors table, for form calibrated")
    p.add_argument("--schedule", nargs="+", default=["constant"], help="constant | linear START END (factors of w) | cosine POWER | interval LOW HIGH")
    p.add_argument("--steps", type=int, default=steps)
    p.add_argument("--batch", type=int, default=8, help="images at a time in each process")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p


@dataclass(frozen=True)
class Guide:
    """How strongly a run is guided, and what is rectified. `schedule` None: cfg is constant."""

    cfg: float
    settings: reg_core.Settings
    schedule: presets.CfgSchedule | None = None

    def at(self, sigma: float, levels: presets.Levels) -> float:
        """The cfg in force."""
        return self.cfg if self.schedule is None else self.schedule.cfg(self.cfg, sigma, levels)


def settings(args) -> reg_core.Settings:
    table = reg_core.Calibration.load(args.calibration) if args.calibration else None
    return reg_core.Settings(form=args.form, engine=args.engine, strength=args.strength, data_std=args.data_std, calibration=table)


def schedule(words: list[str], preset: str) -> presets.CfgSchedule | None:
    """`--schedule` in the variable the authors' code for this model uses (reg_core/presets.py); None for a constant weight."""
    kind, *numbers = words
    wanted = {"constant": 0, "linear": 2, "cosine": 1, "interval": 2}
    if kind not in wanted:
        raise SystemExit(f"--schedule must begin with {', '.join(wanted)}, got {kind!r}")
    try:
        numbers = [float(n) for n in numbers]
    except ValueError:
        raise SystemExit(f"--schedule {kind} wants numbers, got {' '.join(words[1:])}") from None
    if len(numbers) != wanted[kind]:
        raise SystemExit(f"--schedule {kind} wants {wanted[kind]} numbers, got {len(numbers)}")
    if kind == "constant":
        return None
    if kind == "interval":
        return presets.interval(preset, max(numbers), min(numbers))
    return presets.linear(preset, *numbers) if kind == "linear" else presets.cosine(preset, *numbers)


def parse_seeds(text: str) -> list[int]:
    seeds = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not found:
            raise SystemExit(f"--seeds: cannot read {part!r}; write '0-49999' or '1,2,5-10'")
        first, last = int(found[1]), int(found[2] or found[1])
        seeds.extend(range(first, last + 1))
    if not seeds or len(set(seeds)) < len(seeds):
        raise SystemExit(f"--seeds: want different seeds, at least one, got {text!r}")
    return seeds


class Shard:
    """This process among those torchrun started, or the only one."""

    def __init__(self, device: str):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device(device, int(os.environ.get("LOCAL_RANK", 0))) if device == "cuda" else torch.device(device)
        if self.world > 1 and not torch.distributed.is_initialized():
            # Ranks meet once, at the end, and may be hours apart there.
            torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))

    def wait_for_all(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()

    def batches(self, seeds: list[int], size: int, folder: Path):
        """This process's share of the seeds that have no image yet, in batches."""
        mine = [seed for seed in seeds[self.rank :: self.world] if not image_path(folder, seed).is_file()]
        return [mine[i : i + size] for i in range(0, len(mine), size)]


def draw(seeds: list[int], shape: tuple[int, ...], labels: int, classes: list[int] | None, positions: dict[int, int], device):
    """(noise [B, *shape], labels [B], generators), image by image from its seed alone: first the noise, then the label."""
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(shape, generator=g, device=device) for g in generators])
    drawn = torch.stack([torch.randint(max(labels, 1), (), generator=g, device=device) for g in generators])
    if classes:
        if not all(0 <= c < labels for c in classes):
            raise SystemExit(f"--classes must lie in 0..{labels - 1}, got {classes}")
        drawn = torch.tensor([classes[positions[seed] % len(classes)] for seed in seeds], device=device)
    return noise, drawn, generators


def run(args, shape: tuple[int, ...], labels: int, shard: Shard, sample) -> None:
    """Samples what is missing by `sample(noise, labels, generators) -> uint8 [B, H, W, 3]` and writes the result."""
    seeds, out = parse_seeds(args.seeds), Path(args.out)
    sheet = out.suffix == ".png"
    folder = out.with_suffix("") if sheet else out
    positions = {seed: i for i, seed in enumerate(seeds)}
    todo = shard.batches(seeds, args.batch, folder)
    for i, batch in enumerate(todo):
        images = sample(*draw(batch, shape, labels, args.classes, positions, shard.device))
        for seed, image in zip(batch, images, strict=True):
            save(image_path(folder, seed), image)
        if shard.rank == 0:
            print(f"batch {i + 1} of {len(todo)}", flush=True)
    shard.wait_for_all()
    if shard.rank == 0:
        print("wrote", write_sheet(folder, seeds, out) if sheet else write_npz(folder, seeds))
    shard.wait_for_all()


def image_path(folder: Path, seed: int) -> Path:
    return folder / f"{seed // 1000 * 1000:06d}" / f"{seed:06d}.png"


def save(path: Path, image: np.ndarray) -> None:
    """A file that is there is whole."""
    with whole_file(path) as partial:
        Image.fromarray(image).save(partial, format="png")


def write_npz(folder: Path, seeds: list[int]) -> Path:
    """FOLDER.npz with arr_0 uint8 [N, H, W, 3], as the ADM evaluation suite reads it. Holds all images in memory (50k of 256^2: 10 GB)."""
    first = np.asarray(Image.open(image_path(folder, seeds[0])))
    images = np.empty((len(seeds), *first.shape), np.uint8)
    for row, seed in zip(images, seeds, strict=True):
        row[:] = np.asarray(Image.open(image_path(folder, seed)))
    np.savez(folder.with_suffix(".npz"), arr_0=images)
    return folder.with_suffix(".npz")


def write_sheet(folder: Path, seeds: list[int], path: Path) -> Path:
    """All images with their seeds on one sheet."""
    images = [to_tensor(Image.open(image_path(folder, seed))) for seed in seeds]
    (sheet,) = labelled_grid(images, [f"seed {seed}" for seed in seeds], theme="light")
    save(path, (255 * sheet).round().byte().numpy())
    return path


def to_bytes(decoded: torch.Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3], rounded as in the DiT and ADM samplers."""
    return (127.5 * decoded.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
