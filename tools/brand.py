"""Draws docs/images/{icon,banner}.png, which the registry and the Manager show: `python -m tools.brand`. No ComfyUI needed."""

from __future__ import annotations

import torch
from PIL import Image

from reg_core.demo_models.loading import load_model
from reg_core.drawing import form_color
from reg_core.drawing.axes import Axes, Scale
from reg_core.drawing.canvas import THEMES, Canvas

from .pictures import from_tensor, images, sample, save

THEME = THEMES["dark"]
SHOWN = ("pullover", "dress", "coat", "shirt", "sneaker", "bag", "boot")


def curve(canvas: Canvas, box, width: float) -> None:
    """Plain guidance, which is the same at every noise level, and the correction of `schedule`."""
    sigma = torch.logspace(1.4, -1.6, 400)
    axes = Axes(canvas, box, Scale(float(sigma[-1]), float(sigma[0]), log=True, reverse=True), Scale(0, 1.08))
    axes.line(sigma.tolist(), [1.0] * len(sigma), THEME.faint, width * 0.6)
    axes.line(sigma.tolist(), (0.5 / (0.5 + sigma**2)).tolist(), form_color("schedule", "dark"), width)


def icon() -> Image.Image:
    canvas = Canvas(400, 400, THEME)
    curve(canvas, (52, 60, 348, 250), 22)
    canvas.text(200, 320, "REG", 96, THEME.text, "mm")
    return canvas.picture()


def banner() -> Image.Image:
    """21:9. The same noise with plain CFG and with REG as strong as that."""
    canvas = Canvas(1260, 540, THEME)
    curve(canvas, (60, 70, 400, 230), 10)
    canvas.text(60, 300, "REG", 100, THEME.text, "lm")
    canvas.text(60, 378, "Rectified gradient guidance", 27, THEME.text, "lm")
    canvas.text(60, 420, "for any model in ComfyUI", 27, THEME.faint, "lm")
    page = canvas.picture()
    names = load_model("fashion_weak").names
    labels = [names.index(name) for name in SHOWN]
    for top, words, form, cfg in ((64, "CFG, cfg 3", "off", 3.0), (304, "REG schedule, cfg 3, gain 4.3", "schedule", 3.0)):
        for i, one in enumerate(images(sample(form, cfg, labels, seed=9)[0], 4)):
            page.paste(from_tensor(one), (454 + 112 * i, top + 36))
        label = Canvas(780, 34, THEME)
        label.text(0, 16, words, 22, THEME.text, "lm")
        page.paste(label.picture(), (454, top))
    return page


def main() -> None:
    torch.set_num_threads(1)
    save(icon(), "icon.png")
    save(banner(), "banner.png")


if __name__ == "__main__":
    main()
