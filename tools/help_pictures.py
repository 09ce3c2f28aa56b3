"""Draws web/docs/images/*.png, the pictures of the in-app help: `python tools/help_pictures.py`. No ComfyUI needed.

Drawn for a narrow panel: 640 px wide, shown at half of that. Curves and digits come from real runs of the digits model.
"""

from __future__ import annotations

import math
from itertools import product

import pictures  # first: it puts the repository on the path
import torch
from PIL import Image

import reg_core
from reg_core.demo_models.data import DIGITS as DATA
from reg_core.demo_models.loading import load_judge, load_model
from reg_core.drawing import labelled_grid, plot_run
from reg_core.drawing.axes import TICK, Axes, Scale, scale_for
from reg_core.drawing.canvas import THEMES, Canvas, wrap
from reg_core.schedule import Band, Cosine, Curve, Linear

FOLDER = pictures.ROOT / "web" / "docs" / "images"
WIDTH, MARGIN = 640, 12
DARK = THEMES["dark"]
COLORS = (*DARK.series, "#d59cff", DARK.warning)
BOX, LINE = (190, 84), 26  # of a node in a wiring picture, px
CELL, GAP = 56, 6  # a digit and the space around it, px


# Graphs


def graph(places: dict[str, tuple[float, float]], arrows, small: dict[str, str] | None = None) -> Image.Image:
    """Nodes in three columns and the links between them; `places` {node: (column, row)}, `small`: a line more in a node."""
    rows = max(row for _, row in places.values()) + 1
    step = (BOX[0] + (WIDTH - 2 * MARGIN - 3 * BOX[0]) / 2, BOX[1] + 26)
    canvas = Canvas(WIDTH, math.ceil(2 * MARGIN + rows * step[1] - 26), DARK)
    boxes = {name: (MARGIN + column * step[0], MARGIN + row * step[1]) for name, (column, row) in places.items()}
    for source, target in arrows:
        _arrow(canvas, boxes[source], boxes[target])
    for name, (x, y) in boxes.items():
        ours = name.startswith("REG ")
        canvas.rectangle((x, y, x + BOX[0], y + BOX[1]), "#2f4f3f" if ours else DARK.panel, outline=DARK.series[2] if ours else DARK.grid, corner=8)
        written = [(line, DARK.text) for line in wrap(name, TICK - 2, BOX[0] - 16)]
        written += [(line, DARK.faint) for line in wrap((small or {}).get(name, ""), TICK - 4, BOX[0] - 16) if line]
        top = y + (BOX[1] - LINE * len(written)) / 2 + 1
        for i, (line, color) in enumerate(written):
            canvas.text(x + BOX[0] / 2, top + i * LINE, line, TICK - 2 if color == DARK.text else TICK - 4, color, "ma")
    return canvas.picture()


def _arrow(canvas, source, target):
    if source[0] == target[0]:
        down = 1 if target[1] > source[1] else -1
        start = (source[0] + BOX[0] / 2, source[1] + (BOX[1] if down > 0 else 0))
        end = (start[0], target[1] + (0 if down > 0 else BOX[1]))
        head = [(end[0] - 6, end[1] - 10 * down), (end[0] + 6, end[1] - 10 * down), end]
    else:
        right = 1 if target[0] > source[0] else -1
        start = (source[0] + (BOX[0] if right > 0 else 0), source[1] + BOX[1] / 2)
        end = (target[0] + (0 if right > 0 else BOX[0]), target[1] + BOX[1] / 2)
        head = [(end[0] - 10 * right, end[1] - 6), (end[0] - 10 * right, end[1] + 6), end]
    canvas.line([start, ((head[0][0] + head[1][0]) / 2, (head[0][1] + head[1][1]) / 2)], DARK.faint, 3)
    canvas.polygon(head, DARK.faint)


# Curves


def curves(title, x, y, lines, x_title, bands=(), level=None) -> Image.Image:
    """One panel: `lines` [(name, xs, ys)], `bands` [(xs, low, high)] of the first colours; names below the title."""
    canvas = Canvas(WIDTH, 400, DARK)
    canvas.text(MARGIN, 12, title, TICK, DARK.text)
    at = MARGIN
    for (name, _, _), color in zip(lines, COLORS, strict=False):
        canvas.rectangle((at, 60, at + 22, 66), color)
        canvas.text(at + 28, 63, name, TICK - 2, DARK.faint, "lm")
        at += 28 + 20 + 11 * len(name)
    axes = Axes(canvas, (78, 90, WIDTH - 34, 330), x, y)
    axes.frame("", x_title=x_title)
    for (xs, low, high), color in zip(bands, COLORS, strict=False):
        axes.band(xs, low, high, color)
    if level is not None:
        axes.level(level, DARK.faint)
    for (_, xs, ys), color in zip(lines, COLORS, strict=False):
        axes.line(xs, ys, color, 4)
    return canvas.picture()


def correction() -> Image.Image:
    """What every form multiplies guidance by, in runs of the digits model."""
    lines = []
    for form in ("row_sum", "scalar", "product", "schedule"):
        rows = pictures.sample(form, 5.0)[1].active
        lines.append((form, [r.sigma for r in rows], [r.correction_mean for r in rows]))
    return curves("what guidance is multiplied by (digits)", _sigmas(), Scale(-0.05, 1.1), lines, "noise level sigma", level=1.0)


def _sigmas():
    return Scale(DATA.sigma_min, DATA.sigma_max, log=True, reverse=True)


def calibration() -> Image.Image:
    """A table measured on the digits model, with twice its standard error, beside the schedule."""
    model, labels = load_model("digits"), torch.arange(10)
    guided = reg_core.Guided(lambda x, s: model(x, s, labels), lambda x, s: model(x, s), 4.0, reg_core.Settings("row_sum"))
    noises = [DATA.sigma_max * torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    table = reg_core.calibrate(guided, noises, reg_core.karras_sigmas(20, DATA.sigma_min, DATA.sigma_max))
    sigmas, value, error = table.sigma.tolist(), table.factor.tolist(), table.error.tolist()
    band = (sigmas, [v - 2 * e for v, e in zip(value, error, strict=True)], [v + 2 * e for v, e in zip(value, error, strict=True)])
    formula = reg_core.schedule_factor(table.sigma, pictures.DATA_STD).tolist()
    lines = [("measured, row_sum", sigmas, value), ("form schedule", sigmas, formula)]
    return curves("a table of REG Calibrate (digits)", _sigmas(), Scale(-0.05, 1.1), lines, "noise level sigma", [band], 1.0)


def multipliers(title, schedules) -> Image.Image:
    """Schedules {name: function of the position} over the position."""
    xs = [i / 400 for i in range(401)]
    lines = [(name, xs, [schedule(x) for x in xs]) for name, schedule in schedules.items()]
    y = scale_for([v for _, _, ys in lines for v in ys], zero=True, log=False)
    return curves(title, Scale(0, 1), y, lines, "position: 0 = noise, 1 = clean")


# Digits


def strips(rows) -> Image.Image:
    """[(label, latents [10, 1, 8, 8])]: ten digits in a row below each label."""
    height = 30 + CELL + GAP
    canvas = Canvas(WIDTH, 2 * MARGIN + height * len(rows), DARK)
    for i, (label, _) in enumerate(rows):
        canvas.text(MARGIN, MARGIN + i * height, label, TICK - 2, DARK.text)
    page = canvas.picture()
    for i, (_, latents) in enumerate(rows):
        grey = (255 * ((latents + 1) / 2).clamp(0, 1)).round().byte()
        for j, digit in enumerate(grey):
            picture = Image.fromarray(digit[0].numpy()).resize((CELL, CELL), Image.Resampling.NEAREST)
            page.paste(picture, (MARGIN + j * (CELL + GAP), MARGIN + i * height + 30))
    return page


def digits(variant="digits", labels=None, cfg=3.0, seed=5, stop=None):
    """Latents [10, 1, 8, 8] by plain CFG; `stop`: x, scaled to the data's size, after that many steps."""
    model = load_model(variant)
    guided = reg_core.Guided(lambda x, s: model(x, s, labels), lambda x, s: model(x, s), cfg - 1, reg_core.Settings(form="off"))
    sigmas = reg_core.karras_sigmas(pictures.STEPS, DATA.sigma_min, DATA.sigma_max)
    noise = DATA.sigma_max * torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    if stop is None:
        return reg_core.sample_euler(guided, noise, sigmas)
    x = reg_core.sample_euler(guided, noise, sigmas[: stop + 1]) if stop else noise
    return x / (1 + float(sigmas[stop]) ** 2) ** 0.5


def rewarded(digit, scale, rectified):
    """Any digit of the unconditional model, guided by the classifier's log probability of `digit` (a number, or one each)."""
    model, classifier = load_model("digits"), load_judge("digits")
    wanted = torch.as_tensor(digit).expand(10)[:, None]

    def denoise(x, sigma):
        denoised, g = reg_core.classifier_guidance(model, log_prob, reg_core.Point.of(x, sigma), scale, rectified)
        return denoised + g

    def log_prob(x0):
        return classifier(x0).log_softmax(1).gather(1, wanted)[:, 0]

    noise = DATA.sigma_max * torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    return reg_core.sample_euler(denoise, noise, reg_core.karras_sigmas(pictures.STEPS, DATA.sigma_min, DATA.sigma_max)).detach()


def sheet() -> Image.Image:
    """What REG Grid makes of a sweep."""
    cells = list(product(("off", "row_sum", "schedule"), (2, 8)))
    images = [pictures.images(pictures.sample(form, cfg)[0], 6) for form, cfg in cells]
    return from_tensor(labelled_grid(images, [f"{form} | cfg {cfg}" for form, cfg in cells])[0])


def from_tensor(picture) -> Image.Image:
    return Image.fromarray((255 * picture).round().byte().numpy())


def save(name: str, picture: Image.Image) -> None:
    """At most 640 px wide, in a palette: a few kilobytes."""
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    path = FOLDER / f"{name}.png"
    picture.convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path.name, picture.size, path.stat().st_size)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    ten = torch.arange(10)
    save("REGGuidance", correction())
    save("REGGuidance_graph", graph({"model loader": (0, 0), "REG Guidance": (1, 0), "KSampler": (2, 0), "REG Trace Plot": (2, 1)},
         [("model loader", "REG Guidance"), ("REG Guidance", "KSampler"), ("REG Guidance", "REG Trace Plot"), ("KSampler", "REG Trace Plot")],
         {"KSampler": "cfg raised"}))  # fmt: skip
    save("REGCalibrate", calibration())
    save("REGLoadCalibration", graph({"model loader": (0, 0), "REG Load Calibration": (0, 1), "REG Guidance": (1, 0.5), "KSampler": (2, 0.5)},
         [("model loader", "REG Guidance"), ("REG Load Calibration", "REG Guidance"), ("REG Guidance", "KSampler")],
         {"REG Guidance": "form calibrated"}))  # fmt: skip
    both = {"start 0, end 2": Linear(0, 2), "start 2, end 0": Linear(2, 0)}
    save("REGScheduleLinear", multipliers("what the weight cfg - 1 is multiplied by", both))
    save("REGScheduleCosine", multipliers("what the weight cfg - 1 is multiplied by", {f"power {p:g}": Cosine(p) for p in (0.5, 1.0, 2.0)}))
    save("REGScheduleInterval", multipliers("what the weight cfg - 1 is multiplied by", {"start 0.2, end 0.8": Band(0.2, 0.8)}))
    points = "0:0, 0.2:1, 0.8:1, 1:0.5"
    save("REGScheduleCurve", multipliers("what the weight cfg - 1 is multiplied by", {points: Curve.parse(points)}))
    save("REGAutoguidance", graph({"REG Guidance": (0, 0), "weak model": (0, 1), "positive prompt": (0, 2), "REG Autoguidance Guider": (1, 1),
         "Sampler Custom Advanced": (2, 1)},
         [("REG Guidance", "REG Autoguidance Guider"), ("weak model", "REG Autoguidance Guider"), ("positive prompt", "REG Autoguidance Guider"),
          ("REG Autoguidance Guider", "Sampler Custom Advanced")],
         {"REG Guidance": "the good model", "weak model": "or REG Weak Model"}))  # fmt: skip
    save("REGReferenceModel", graph({"model loader": (0, 0), "second loader": (0, 1), "REG Reference Model": (1, 0.5), "KSampler": (2, 0.5)},
         [("model loader", "REG Reference Model"), ("second loader", "REG Reference Model"), ("REG Reference Model", "KSampler")],
         {"model loader": "positive prompt", "second loader": "negative prompt"}))  # fmt: skip
    save("REGWeakModel", graph({"model loader": (0, 0.5), "REG Guidance": (1, 0), "REG Weak Model": (1, 1), "REG Autoguidance Guider": (2, 0.5)},
         [("model loader", "REG Guidance"), ("model loader", "REG Weak Model"), ("REG Guidance", "REG Autoguidance Guider"),
          ("REG Weak Model", "REG Autoguidance Guider")]))  # fmt: skip
    save("REGRewardGuidance", strips([("no reward", rewarded(3, 0.0, True)), ("reward 3, scale 1", rewarded(3, 1.0, True)),
         ("scale 4", rewarded(3, 4.0, True)), ("rectified off, scale 0.2", rewarded(3, 0.2, False))]))  # fmt: skip
    save("REGRewardDigit", strips([("digit 3, scale 4", rewarded(3, 4.0, True)), ("digit -1: in turn over the batch", rewarded(ten, 4.0, True))]))
    save("REGRewardLatent", graph({"Load Image": (0, 0), "VAE Encode": (1, 0), "REG Reward: Latent Target": (2, 0), "model loader": (1, 1),
         "REG Reward Guidance": (2, 1), "KSampler": (2, 2)},
         [("Load Image", "VAE Encode"), ("VAE Encode", "REG Reward: Latent Target"),
         ("REG Reward: Latent Target", "REG Reward Guidance"), ("model loader", "REG Reward Guidance"), ("REG Reward Guidance", "KSampler")]))  # fmt: skip
    save("REGRewardImage", graph({"Load CLIP Vision": (0, 0), "Load Image": (0, 1), "VAE": (0, 2), "REG Reward: Image Similarity": (1, 1),
         "REG Reward Guidance": (2, 1), "model loader": (2, 0), "KSampler": (2, 2)},
         [("Load CLIP Vision", "REG Reward: Image Similarity"), ("Load Image", "REG Reward: Image Similarity"), ("VAE", "REG Reward: Image Similarity"),
          ("REG Reward: Image Similarity", "REG Reward Guidance"), ("model loader", "REG Reward Guidance"), ("REG Reward Guidance", "KSampler")]))  # fmt: skip
    save("REGTracePlot", plot_run(pictures.sample("row_sum", 5.0, refresh=8)[1]))
    save("REGSchedulePlot", pictures.schedule())
    save("REGSweep", graph({"model loader": (0, 0), "REG Sweep": (1, 0), "KSampler": (2, 0), "VAE Decode": (2, 1), "REG Grid": (1, 1)},
         [("model loader", "REG Sweep"), ("REG Sweep", "KSampler"), ("KSampler", "VAE Decode"), ("REG Sweep", "REG Grid"), ("VAE Decode", "REG Grid")],
         {"KSampler": "model, cfg", "REG Grid": "images, labels"}))  # fmt: skip
    save("REGGrid", sheet())
    save("REGDemoModel", strips([("digits, cfg 3", digits("digits", ten)), ("digits_weak, cfg 3", digits("digits_weak", ten))]))
    save("REGDemoPrompt", strips([("3", digits(labels=torch.full((10,), 3))), ("0 to 9 in turn", digits(labels=ten)), ("any digit", digits(cfg=1.0))]))
    save("REGDemoLatent", strips([("noise", digits(labels=ten, stop=0)), ("half way", digits(labels=ten, stop=pictures.STEPS // 2)),
         ("done", digits(labels=ten))]))  # fmt: skip
    save("REGDemoDecode", graph({"REG Demo Latent": (0, 0), "KSampler": (1, 0), "REG Demo Decode": (2, 0), "REG Demo Model": (0, 1),
         "REG Demo Prompt": (1, 1), "Save Image": (2, 1)},
         [("REG Demo Latent", "KSampler"), ("REG Demo Model", "KSampler"), ("REG Demo Prompt", "KSampler"), ("KSampler", "REG Demo Decode"),
          ("REG Demo Decode", "Save Image")]))  # fmt: skip


if __name__ == "__main__":
    main()
