"""Draws docs/images/{trace,heat,schedule,sweep}.png from the digits model: `python tools/pictures.py`. No ComfyUI needed."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import reg_core  # noqa: E402
from reg_core.demo_models.data import DIGITS as DATA  # noqa: E402
from reg_core.demo_models.loading import load_model  # noqa: E402
from reg_core.drawing import SchedulePoint, heat_pictures, labelled_grid, plot_run, plot_schedule  # noqa: E402

FOLDER = ROOT / "docs" / "images"
DIGITS, STEPS, DATA_STD = 10, 24, 0.75


def sample(form: str, cfg: float, **settings):
    """(latents [10, 1, 8, 8], the run): one of each digit, always from the same noise."""
    model, labels = load_model("digits"), torch.arange(DIGITS)
    settings = reg_core.Settings(form=form, data_std=DATA_STD, **settings)
    guided = reg_core.Guided(lambda x, s: model(x, s, labels), lambda x, s: model(x, s), cfg - 1, settings)
    noise = torch.randn(DIGITS, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    sigmas = reg_core.karras_sigmas(STEPS, DATA.sigma_min, DATA.sigma_max)
    return reg_core.sample_euler(guided, noise * (1 + DATA.sigma_max**2) ** 0.5, sigmas), guided.trace.last


def images(latents, scale: int):
    """[10, H, W, 3] in 0..1, a latent pixel a square of `scale`."""
    grey = ((latents + 1) / 2).clamp(0, 1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return grey.movedim(1, -1).expand(-1, -1, -1, 3)


def schedule():
    """A cosine schedule times the free form of REG."""
    sigmas = reg_core.karras_sigmas(STEPS, DATA.sigma_min, DATA.sigma_max)[:-1]
    factors = reg_core.schedule_factor(sigmas, DATA_STD).tolist()
    points = []
    for i, (sigma, factor) in enumerate(zip(sigmas.tolist(), factors, strict=True)):
        position = i / (STEPS - 1)
        points.append(SchedulePoint(sigma, position, 1 + 4 * reg_core.Cosine(1.0)(position), active=True, factor=factor))
    lines = ["cfg 5: weight 4, times cosine schedule of power 1 over step", f"REG schedule in {STEPS} of {STEPS} steps"]
    return plot_schedule(points, lines=lines)


def save(picture, name: str) -> None:
    if isinstance(picture, torch.Tensor):
        picture = Image.fromarray((255 * picture).round().byte().numpy())
    picture.save(FOLDER / name, optimize=True)
    print(name, picture.size)


def main() -> None:
    latents, run = sample("row_sum", 5.0, refresh=8)  # as the node has it
    save(plot_run(run), "trace.png")
    maps, _ = heat_pictures(run.heat, images(latents, 32))
    save(torch.cat([*maps[:4]], 1), "heat.png")
    save(schedule(), "schedule.png")
    cells = [(f"{form} | cfg {cfg}", images(sample(form, cfg)[0], 8)) for form in ("off", "row_sum", "schedule") for cfg in (2, 5, 12)]
    save(labelled_grid([cell for _, cell in cells], [label for label, _ in cells])[0], "sweep.png")


if __name__ == "__main__":
    main()
