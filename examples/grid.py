"""What the examples share: a grid of settings, the folder of images, shards by torchrun.

An image depends on its point of the grid, its prompt and its seed number alone (as far as the hardware's arithmetic does not
depend on the batch). So any number of processes, batch sizes and restarts give the same folder, and what is there already is not
sampled again. The folder is that of `python -m reg_core.evaluation`, whose `score` reads it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import reg_core
from reg_core import presets
from reg_core.drawing import labelled_grid
from reg_core.drawing.canvas import to_tensor
from reg_core.evaluation.plan import GridPoint, Job, Plan, PlanError
from reg_core.evaluation.store import Store
from reg_core.files import whole_file

ABOUT_FOLDER = ("out", "seeds", "cfg", "form", "gain", "schedule", "batch", "device", "images", "prompts", "classes", "sheet", "npz")


def options(description: str, steps: int, data_std: float, cfg: float) -> argparse.ArgumentParser:
    """The options all have; w = cfg - 1 is the weight the REG authors call guidance."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="the folder; `python -m reg_core.evaluation score --out` reads it")
    p.add_argument("--seeds", type=int, nargs="+", default=[0], help="seed numbers; each makes all images once, on noise of its own")
    p.add_argument("--cfg", type=float, nargs="+", default=[cfg], help="guidance scales, the authors' w + 1; 1 = none")
    p.add_argument("--form", choices=reg_core.FORMS, nargs="+", default=["row_sum"], help="'off' is plain guidance")
    p.add_argument("--gain", type=float, nargs="+", default=[1.0], help="multiplies rectified guidance; 'off' has none")
    which = "constant | linear START END (factors of w) | cosine POWER | interval LOW HIGH; give it again for more rows (default: constant)"
    p.add_argument("--schedule", action="append", nargs="+", metavar="WORD", help=which)
    p.add_argument("--engine", choices=reg_core.ENGINES, default="reverse", help="reverse is what the paper's tables used")
    p.add_argument("--strength", type=float, default=1.0)
    p.add_argument("--data-std", type=float, default=data_std, help="standard deviation of clean latents, for form schedule")
    p.add_argument("--calibration", help="a .safetensors table, for form calibrated")
    p.add_argument("--steps", type=int, default=steps)
    p.add_argument("--batch", type=int, default=8, help="images at a time in each process")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--sheet", type=int, default=4, help="images of each point on OUT/sheet.png, same noise in a column; 0: no sheet")
    p.add_argument("--npz", action="store_true", help="also OUT/POINT.npz: arr_0 uint8 [N, H, W, 3], as the ADM evaluation suite reads it")
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


def guides(args, schedule: Callable) -> list[tuple[GridPoint, Guide]]:
    """Every point of the grid. `schedule(words, form)` -> CfgSchedule or None, in the variable of the model's authors."""
    found = []
    table = reg_core.Calibration.load(args.calibration) if args.calibration else None
    for words in args.schedule or [["constant"]]:
        for form in args.form:
            for gain in [1.0] if form == "off" else args.gain:
                chosen = dict(form=form, gain=gain, strength=args.strength, engine=args.engine, data_std=args.data_std)
                settings = reg_core.Settings(**chosen, calibration=table if form == "calibrated" else None)
                for cfg in args.cfg:
                    labels = {"cfg": whole(cfg), "form": form, "gain": whole(gain), "schedule": "_".join(words)}
                    found.append((GridPoint(labels, {}), Guide(cfg, settings, schedule(words, form))))
    return found


def whole(number: float):
    return int(number) if number == int(number) else number


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
        return presets.interval("sigma" if preset.startswith("t2i") else preset, max(numbers), min(numbers))
    return presets.linear(preset, *numbers) if kind == "linear" else presets.cosine(preset, *numbers)


class Shard:
    """This process among those torchrun started, or the only one."""

    def __init__(self, device: str):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device(device, int(os.environ.get("LOCAL_RANK", 0))) if device == "cuda" else torch.device(device)
        if self.world > 1 and not torch.distributed.is_initialized():
            # Ranks meet at the start and at the end, and may be hours apart there.
            torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))

    def wait_for_all(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()

    def batches(self, missing: list[Job], size: int) -> list[list[Job]]:
        """This process's share: batches of one point each, all points of the same prompts together."""
        groups, batches = {}, []
        for job in missing:
            groups.setdefault((job.seed, job.prompt), []).append(job)
        mine = [group for (_, prompt), group in groups.items() if prompt % self.world == self.rank]
        for i in range(0, len(mine), size):
            jobs = [job for group in mine[i : i + size] for job in group]
            for key in dict.fromkeys((job.point, job.seed) for job in jobs):
                batches.append([job for job in jobs if (job.point, job.seed) == key])
        return batches


def class_prompts(count: int, labels: int, classes: list[int] | None) -> tuple[dict, ...]:
    """A label for each image: `classes` in turn, or drawn from the image's number."""
    if classes and not all(0 <= c < labels for c in classes):
        raise SystemExit(f"--classes must lie in 0..{labels - 1}, got {classes}")
    drawn = [int(torch.randint(max(labels, 1), (), generator=torch.Generator().manual_seed(i))) for i in range(count)]
    chosen = [classes[i % len(classes)] for i in range(count)] if classes else drawn
    return tuple({"prompt": f"class {c}", "label": c} for c in chosen)


def draw(jobs: list[Job], shape: tuple[int, ...], device):
    """(noise [B, *shape], generators), image by image from its seed alone."""
    generators = [torch.Generator(device).manual_seed(job.noise_seed) for job in jobs]
    return torch.stack([torch.randn(shape, generator=g, device=device) for g in generators]), generators


def run(args, prompts: tuple[dict, ...], shard: Shard, schedule: Callable, sample: Callable) -> None:
    """Samples what is missing by `sample(guide, prompts, jobs) -> (uint8 [B, H, W, 3], the trace's run)`."""
    try:
        made = guides(args, schedule)
        plan = Plan(tuple(point for point, _ in made), prompts, tuple(args.seeds))
    except ValueError as error:  # of settings that make no sense
        raise SystemExit(str(error)) from None
    store, first = Store(args.out), shard.rank == 0
    try:
        with store if first else contextlib.nullcontext():
            if first:
                store.begin(plan)
            shard.wait_for_all()
            fill(store, plan, args, shard, lambda jobs: sample(made[jobs[0].point][1], [plan.prompts[job.prompt] for job in jobs], jobs))
            shard.wait_for_all()
            if first:
                finish(store, plan, args)
    except PlanError as error:  # of a folder that holds something else
        raise SystemExit(str(error)) from None
    shard.wait_for_all()


def fill(store: Store, plan: Plan, args, shard: Shard, sample: Callable) -> None:
    """Samples this process's share of what is missing."""
    digests = {job: digest(args, plan, job) for job in plan.jobs()}
    batches = shard.batches(store.missing(plan, digests), args.batch)
    for i, jobs in enumerate(batches):
        images, run = sample(jobs)
        share = run.share if run.active and math.isfinite(run.share) else None  # of the batch
        for job, image in zip(jobs, images, strict=True):
            store.put(plan, job, [png(image)], workflow=digests[job], share=share)
        if shard.rank == 0:
            print(f"{plan.points[jobs[0].point].name}: {run.summary()}\nbatch {i + 1} of {len(batches)}", flush=True)


def finish(store: Store, plan: Plan, args) -> None:
    print("wrote", store.finish(plan))
    if args.sheet:
        print("wrote", write_sheet(store, plan, args.sheet))
    for point in range(len(plan.points)) if args.npz else ():
        print("wrote", write_npz(store, plan, point))


def digest(args, plan: Plan, job: Job) -> str:
    """What an image was made from: the options that change it, its point and its prompt."""
    used = {name: str(value) for name, value in vars(args).items() if name not in ABOUT_FOLDER}
    facts = [used, plan.points[job.point].labels, plan.prompts[job.prompt], job.noise_seed]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="png")
    return file.getvalue()


def pictures(store: Store, plan: Plan, point: int) -> list[Path]:
    jobs = (Job(point, prompt, seed) for seed in plan.seeds for prompt in range(len(plan.prompts)))
    return [store.out / "images" / store.record(plan.key(job))["images"][0]["file"] for job in jobs]


def write_npz(store: Store, plan: Plan, point: int) -> Path:
    """All images of a point, which are held in memory (50k of 256^2: 10 GB)."""
    files = pictures(store, plan, point)
    images = np.empty((len(files), *np.asarray(Image.open(files[0])).shape), np.uint8)
    for row, file in zip(images, files, strict=True):
        row[:] = np.asarray(Image.open(file))
    path = store.out / f"{plan.points[point].name}.npz"
    with whole_file(path) as partial, open(partial, "wb") as file:
        np.savez(file, arr_0=images)
    return path


def write_sheet(store: Store, plan: Plan, count: int) -> Path:
    """A row for each point, a column for each of the first images."""
    images, labels = [], []
    for point in range(len(plan.points)):
        for i, file in enumerate(pictures(store, plan, point)[:count]):
            images.append(to_tensor(Image.open(file)))
            labels.append(f"{plan.points[point].name.replace(',', ' ')} | {i}")
    (sheet,) = labelled_grid(images, labels, theme="light")
    path = store.out / "sheet.png"
    with whole_file(path) as partial:
        partial.write_bytes(png((255 * sheet).round().byte().numpy()))
    return path


def to_bytes(decoded: torch.Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3], rounded as in the DiT and ADM samplers."""
    return (127.5 * decoded.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
