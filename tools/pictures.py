"""Draws docs/images/{demo_correction,trace}.png from the fashion model: `python tools/pictures.py`. No ComfyUI needed."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import reg_core  # noqa: E402
from reg_core.demo_models.loading import load_model  # noqa: E402
from reg_core.drawing import form_color, plot_run  # noqa: E402
from reg_core.drawing.axes import TICK, Axes, Scale  # noqa: E402
from reg_core.drawing.canvas import THEMES, Canvas, text_width  # noqa: E402

FOLDER = ROOT / "docs" / "images"
STEPS, CFG = 18, 3.0
# As strong as plain CFG: at equal Inception score, see docs/evidence.md
GAINS = {"off": 1.0, "row_sum": 1.3, "product": 1.7, "scalar": 2.1, "calibrated": 2.2, "schedule": 4.3}


@functools.cache
def table(cfg: float = CFG, name: str = "fashion_weak") -> reg_core.Calibration:
    """The correction `scalar` of a demo model, measured on pictures of other noise."""
    model = load_model(name)
    labels = torch.arange(model.classes).repeat(2)
    guided = reg_core.Guided(lambda x, s: model(x, s, labels), lambda x, s: model(x, s), cfg - 1, reg_core.Settings("scalar"))
    return reg_core.calibrate(guided, [noise(model, len(labels), seed) for seed in (1, 2)], sigmas(model), model=name)


def noise(model, count: int, seed: int) -> torch.Tensor:
    return (model.sigma_max**2 + model.sigma_data**2) ** 0.5 * torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(seed))


def sigmas(model) -> torch.Tensor:
    return reg_core.karras_sigmas(STEPS, model.sigma_min, model.sigma_max)


def sample(form: str, cfg: float = CFG, labels=None, name: str = "fashion_weak", weight=None, seed: int = 5, **settings):
    """(latents [B, 1, H, W], the run): one of each class by Heun's method, as strong as plain CFG, always from the same noise.

    `weight`: a function of sigma in place of cfg - 1."""
    model = load_model(name)
    labels = torch.arange(model.classes) if labels is None else torch.as_tensor(labels)
    settings = {"gain": GAINS[form] if name.startswith("fashion") else 1.0, "data_std": model.sigma_data} | settings
    known = table(cfg, name) if form == "calibrated" else None
    settings = reg_core.Settings(form=form, calibration=known, **settings)
    guided = reg_core.Guided(lambda x, s: model(x, s, labels), lambda x, s: model(x, s), cfg - 1 if weight is None else weight, settings)
    with torch.no_grad():
        latents = reg_core.sample_heun(guided, noise(model, len(labels), seed), sigmas(model))
    return latents, guided.trace.last


def images(latents, scale: int):
    """[B, H, W, 3] in 0..1, a latent pixel a square of `scale`."""
    grey = ((latents + 1) / 2).clamp(0, 1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return grey.movedim(1, -1).expand(-1, -1, -1, 3)


def correction() -> Image.Image:
    """What each form multiplies guidance by: the mean; for row_sum also where 90 % of the factors lie."""
    theme = THEMES["light"]
    canvas = Canvas(900, 520, theme)
    model = load_model("fashion_weak")
    x = Scale(model.sigma_min, model.sigma_max, log=True, reverse=True)
    axes = Axes(canvas, (70, 96, 856, 440), x, Scale(-0.35, 1.5))
    canvas.text(24, 14, "what REG multiplies guidance by", TICK + 2, theme.text)
    axes.frame("", x_title="sigma (noise level)")
    # Heun's method: two calls at one noise level
    runs = {form: sample(form, gain=1.0)[1].active[::2] for form in ("row_sum", "product", "scalar", "calibrated", "schedule")}
    places = {form: [row.sigma for row in rows] for form, rows in runs.items()}
    band = runs["row_sum"]
    axes.band(places["row_sum"], [row.correction_low for row in band], [row.correction_high for row in band], form_color("row_sum"))
    axes.level(1.0, form_color("off"))
    at = 24
    for form, rows in runs.items():
        axes.line(places[form], [row.correction_mean for row in rows], form_color(form), 4)
        canvas.rectangle((at, 64, at + 26, 70), form_color(form))
        name = form + (" (shade: 90 % of its factors)" if form == "row_sum" else "")
        canvas.text(at + 34, 67, name, TICK - 4, theme.faint, "lm")
        at += 34 + 24 + round(text_width(name, TICK - 4))
    return canvas.picture()


def from_tensor(picture) -> Image.Image:
    return Image.fromarray((255 * picture).round().byte().numpy())


def save(picture: Image.Image, name: str) -> None:
    picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)
    print(name, picture.size, (FOLDER / name).stat().st_size)


def main() -> None:
    torch.set_num_threads(1)
    save(correction(), "demo_correction.png")
    save(plot_run(sample("row_sum", refresh=8)[1]), "trace.png")  # as the node has it


if __name__ == "__main__":
    main()
