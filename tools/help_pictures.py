"""Draws web/docs/images/*.png, the pictures of the in-app help: `python tools/help_pictures.py`. No ComfyUI needed.

Drawn for a narrow panel: 640 px wide, shown at half of that. Curves, clothes and digits come from real runs of the demo models.
"""

from __future__ import annotations

import contextlib
import math
from itertools import product
from unittest import mock

import pictures  # first: it puts the repository on the path
import torch
from PIL import Image

import reg_core
from reg_core.demo_models.data import DIGITS as DATA
from reg_core.demo_models.loading import load_judge, load_model
from reg_core.drawing import SchedulePoint, form_color, labelled_grid, plot_run, plot_schedule, run_caption, schedules, traces
from reg_core.drawing.axes import TICK, Axes, Scale, scale_for
from reg_core.drawing.canvas import THEMES, Canvas, wrap
from reg_core.schedule import Band, Cosine, Curve, Linear

FOLDER = pictures.ROOT / "web" / "docs" / "images"
WIDTH, MARGIN = 640, 12
DARK = THEMES["dark"]
COLORS = (*DARK.series, "#d59cff", DARK.warning)
BOX, LINE = (190, 84), 26  # of a node in a wiring picture, px
ACROSS = 5  # pictures in a row
CELL, GAP = 112, 14  # a picture and the space around it, px
SHOWN = [2, 2, 8, 8, 9]  # pullovers, bags, a boot
CFG = 3.0


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


def curves(title, x, y, lines, x_title, colors=COLORS, bars=None, level=None) -> Image.Image:
    """One panel: `lines` [(name, xs, ys)] and `bars` (xs, low, high) in the first colour; names below the title."""
    canvas = Canvas(WIDTH, 400, DARK)
    canvas.text(MARGIN, 12, title, TICK, DARK.text)
    at = MARGIN
    for (name, _, _), color in zip(lines, colors, strict=False):
        canvas.rectangle((at, 60, at + 22, 66), color)
        canvas.text(at + 28, 63, name, TICK - 2, DARK.faint, "lm")
        at += 28 + 20 + 11 * len(name)
    axes = Axes(canvas, (78, 90, WIDTH - 34, 330), x, y)
    axes.frame("", x_title=x_title)
    if bars is not None:
        axes.bars(*bars, colors[0])
    if level is not None:
        axes.level(level, form_color("off", "dark"))
    for (_, xs, ys), color in zip(lines, colors, strict=False):
        axes.line(xs, ys, color, 4)
    return canvas.picture()


def correction() -> Image.Image:
    """What every form multiplies guidance by, in runs of the fashion model."""
    forms, lines = ("row_sum", "scalar", "product", "schedule"), []
    for form in forms:
        rows = pictures.sample(form, CFG, gain=1.0)[1].active[::2]  # Heun's method: two calls at one noise level
        lines.append((form, [r.sigma for r in rows], [r.correction_mean for r in rows]))
    colors = [form_color(form, "dark") for form in forms]
    return curves("what REG multiplies guidance by", _sigmas(), Scale(-0.05, 1.1), lines, "noise level sigma", colors, level=1.0)


def _sigmas():
    model = load_model("fashion_weak")
    return Scale(model.sigma_min, model.sigma_max, log=True, reverse=True)


def calibration() -> Image.Image:
    """A table measured on the fashion model, with twice its standard error, beside form schedule."""
    table = pictures.table(CFG)
    sigmas, value, error = table.sigma.tolist(), table.factor.tolist(), table.error.tolist()
    bars = (sigmas, [v - 2 * e for v, e in zip(value, error, strict=True)], [v + 2 * e for v, e in zip(value, error, strict=True)])
    formula = reg_core.schedule_factor(table.sigma, load_model("fashion_weak").sigma_data).tolist()
    lines = [("measured", sigmas, value), ("form schedule", sigmas, formula)]
    colors = [form_color(form, "dark") for form in ("calibrated", "schedule")]
    return curves("a table of REG Calibrate", _sigmas(), Scale(-0.05, 1.1), lines, "noise level sigma", colors, bars, 1.0)


def multipliers(title, schedules) -> Image.Image:
    """Schedules {name: function of the position} over the position."""
    xs = [i / 400 for i in range(401)]
    lines = [(name, xs, [schedule(x) for x in xs]) for name, schedule in schedules.items()]
    y = scale_for([v for _, _, ys in lines for v in ys], zero=True, log=False)
    return curves(title, Scale(0, 1), y, lines, "position: 0 = noise, 1 = clean")


def scheduled(name: str, schedule) -> Image.Image:
    """Clothes with the same cfg at every step, and with cfg by a schedule: a function of the position among the steps."""
    levels = pictures.sigmas(load_model("fashion_weak"))[:-1]

    def weight(sigma):
        position = float((levels - sigma).abs().argmin()) / (len(levels) - 1)
        return (CFG - 1) * schedule(position)

    plain, ours = (pictures.sample("off", CFG, SHOWN, weight=w)[0] for w in (None, weight))
    return strips([(f"cfg {CFG:g} at every step", plain), (f"cfg {CFG:g} with {name}", ours)])


# Clothes and digits


def strips(rows) -> Image.Image:
    """[(label, latents [B, 1, H, W])]: the first pictures in a row below each label."""
    height = 32 + CELL + GAP
    canvas = Canvas(WIDTH, 2 * MARGIN + height * len(rows) - GAP, DARK)
    for i, (label, _) in enumerate(rows):
        canvas.text(MARGIN, MARGIN + i * height, label, TICK, DARK.text)
    page = canvas.picture()
    for i, (_, latents) in enumerate(rows):
        grey = (255 * ((latents[:ACROSS] + 1) / 2).clamp(0, 1)).round().byte()
        for j, image in enumerate(grey):
            picture = Image.fromarray(image[0].numpy()).resize((CELL, CELL), Image.Resampling.NEAREST)
            page.paste(picture, (MARGIN + j * (CELL + GAP), MARGIN + i * height + 32))
    return page


def stacked(*parts: Image.Image) -> Image.Image:
    """Pictures of one width, one below the other."""
    page = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), DARK.background)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def compared(*forms: str) -> Image.Image:
    """CFG and forms of REG: the same noise, the same cfg, and gains which make them about as strong."""
    names = {form: f"REG {form}, cfg {CFG:g}, gain {pictures.GAINS[form]:g}" for form in forms}
    return strips([(name, pictures.sample(form, CFG, SHOWN)[0]) for form, name in ({"off": f"CFG, cfg {CFG:g}"} | names).items()])


def autoguided() -> Image.Image:
    """The good fashion model alone, guided by the weak one, and that rectified."""
    good, weak = load_model("fashion"), load_model("fashion_weak")
    labels = torch.tensor(SHOWN)

    def sample(scale, form):
        settings = reg_core.Settings(form, data_std=good.sigma_data)
        guided = reg_core.Guided(lambda x, s: good(x, s, labels), lambda x, s: weak(x, s, labels), scale - 1, settings)
        with torch.no_grad():
            return reg_core.sample_heun(guided, pictures.noise(good, len(SHOWN), 5), pictures.sigmas(good))

    return strips([("the good model alone", sample(1.0, "off")), ("scale 3", sample(3.0, "off")), ("scale 3, REG row_sum", sample(3.0, "row_sum"))])


IN_TURN = torch.arange(ACROSS)


def guided(labels=IN_TURN, cfg=3.0, stop=None, name="digits"):
    """Latents [B, 1, H, W] by plain CFG; `stop`: x, scaled to the data's size, after that many steps. `labels` None: any."""
    model = load_model(name)
    denoise = reg_core.Guided(lambda x, s: model(x, s, labels), lambda x, s: model(x, s), cfg - 1, reg_core.Settings(form="off"))
    sigmas, noise = pictures.sigmas(model), pictures.noise(model, ACROSS, 5)
    with torch.no_grad():
        if stop is None:
            return reg_core.sample_heun(denoise, noise, sigmas)
        x = reg_core.sample_heun(denoise, noise, sigmas[: stop + 1]) if stop else noise
    return x / (1 + float(sigmas[stop]) ** 2) ** 0.5


def rewarded(digit, scale, rectified):
    """Any digit of the unconditional model, guided by the classifier's log probability of `digit` (a number, or one each)."""
    model, classifier = load_model("digits"), load_judge("digits")
    wanted = torch.as_tensor(digit).expand(ACROSS)[:, None]

    def denoise(x, sigma):
        denoised, g = reg_core.classifier_guidance(model, log_prob, reg_core.Point.of(x, sigma), scale, rectified)
        return denoised + g

    def log_prob(x0):
        return classifier(x0).log_softmax(1).gather(1, wanted)[:, 0]

    noise = DATA.sigma_max * torch.randn(ACROSS, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    return reg_core.sample_euler(denoise, noise, reg_core.karras_sigmas(24, DATA.sigma_min, DATA.sigma_max)).detach()


def sheet() -> Image.Image:
    """What REG Grid makes of a sweep with its traces."""
    cells = [("off", 1.0), *product(("row_sum", "schedule"), (1.0, 4.0))]
    images, labels, captions = [], [], []
    for form, gain in cells:
        latents, run = pictures.sample(form, CFG, SHOWN[1:], gain=gain)
        images.append(pictures.images(latents, 3))
        labels.append(f"{'CFG' if form == 'off' else form} | gain {gain:g}")
        captions.append(run_caption(None if form == "off" else run))
    return pictures.from_tensor(labelled_grid(images, labels, captions=captions)[0])


@contextlib.contextmanager
def narrow():
    """Plots of the nodes for the panel: less wide, so that their letters stay large."""
    with mock.patch.object(traces, "WIDTH", 840), mock.patch.object(schedules, "WIDTH", 840):
        yield


def before_sampling() -> Image.Image:
    """An interval times the free form of REG, which acts in its second half."""
    levels = pictures.sigmas(load_model("fashion_weak"))[:-1]
    factors = reg_core.schedule_factor(levels, 0.7).tolist()
    points = []
    for i, (sigma, factor) in enumerate(zip(levels.tolist(), factors, strict=True)):
        position = i / (len(levels) - 1)
        cfg = 5.0 if 0.2 <= position <= 0.8 else 1.0
        active = position >= 0.4 and cfg > 1
        points.append(SchedulePoint(sigma, position, cfg, active, factor if active else math.nan))
    return plot_schedule(points, lines=["cfg 5: weight 4, times interval 0.2 to 0.8 over step"], form="schedule")


def save(name: str, picture: Image.Image) -> None:
    """At most 640 px wide, in a palette: a few kilobytes."""
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    path = FOLDER / f"{name}.png"
    picture.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path.name, picture.size, path.stat().st_size)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    save("REGGuidance", stacked(compared("row_sum", "schedule"), correction()))
    save("REGGuidance_graph", graph({"model loader": (0, 0), "REG Guidance": (1, 0), "KSampler": (2, 0), "REG Trace Plot": (2, 1)},
         [("model loader", "REG Guidance"), ("REG Guidance", "KSampler"), ("REG Guidance", "REG Trace Plot"), ("KSampler", "REG Trace Plot")],
         {"REG Guidance": "gain raised"}))  # fmt: skip
    save("REGCalibrate", stacked(calibration(), compared("calibrated")))
    save("REGLoadCalibration", graph({"model loader": (0, 0), "REG Load Calibration": (0, 1), "REG Guidance": (1, 0.5), "KSampler": (2, 0.5)},
         [("model loader", "REG Guidance"), ("REG Load Calibration", "REG Guidance"), ("REG Guidance", "KSampler")],
         {"REG Guidance": "form calibrated"}))  # fmt: skip
    both = {"start 0, end 2": Linear(0, 2), "start 2, end 0": Linear(2, 0)}
    save("REGScheduleLinear", stacked(multipliers("what the weight cfg - 1 is multiplied by", both), scheduled("start 0, end 2", Linear(0, 2))))
    powers = {f"power {p:g}": Cosine(p) for p in (0.5, 1.0, 2.0)}
    save("REGScheduleCosine", stacked(multipliers("what the weight cfg - 1 is multiplied by", powers), scheduled("power 1", Cosine(1.0))))
    name, band = "start 0.2, end 0.8", Band(0.2, 0.8)
    save("REGScheduleInterval", stacked(multipliers("what the weight cfg - 1 is multiplied by", {name: band}), scheduled(name, band)))
    points = "0:0, 0.2:1, 0.8:1, 1:0.5"
    curve = Curve.parse(points)
    save("REGScheduleCurve", stacked(multipliers("what the weight cfg - 1 is multiplied by", {points: curve}), scheduled("these points", curve)))
    save("REGAutoguidance", stacked(graph({"REG Guidance": (0, 0), "weak model": (0, 1), "positive prompt": (0, 2), "REG Autoguidance Guider": (1, 1),
         "Sampler Custom Advanced": (2, 1)},
         [("REG Guidance", "REG Autoguidance Guider"), ("weak model", "REG Autoguidance Guider"), ("positive prompt", "REG Autoguidance Guider"),
          ("REG Autoguidance Guider", "Sampler Custom Advanced")],
         {"REG Guidance": "the good model", "weak model": "or REG Weak Model"}), autoguided()))  # fmt: skip
    save("REGReferenceModel", graph({"model loader": (0, 0), "second loader": (0, 1), "REG Reference Model": (1, 0.5), "KSampler": (2, 0.5)},
         [("model loader", "REG Reference Model"), ("second loader", "REG Reference Model"), ("REG Reference Model", "KSampler")],
         {"model loader": "positive prompt", "second loader": "negative prompt"}))  # fmt: skip
    save("REGWeakModel", graph({"model loader": (0, 0.5), "REG Guidance": (1, 0), "REG Weak Model": (1, 1), "REG Autoguidance Guider": (2, 0.5)},
         [("model loader", "REG Guidance"), ("model loader", "REG Weak Model"), ("REG Guidance", "REG Autoguidance Guider"),
          ("REG Weak Model", "REG Autoguidance Guider")]))  # fmt: skip
    save("REGRewardGuidance", strips([("no reward", rewarded(3, 0.0, True)), ("reward 3, scale 1", rewarded(3, 1.0, True)),
         ("scale 4", rewarded(3, 4.0, True)), ("rectified off, scale 0.2", rewarded(3, 0.2, False))]))  # fmt: skip
    in_turn = rewarded(torch.arange(ACROSS), 4.0, True)
    save("REGRewardDigit", strips([("digit 3, scale 4", rewarded(3, 4.0, True)), ("digit -1: in turn over the batch", in_turn)]))
    save("REGRewardLatent", graph({"Load Image": (0, 0), "VAE Encode": (1, 0), "REG Reward: Latent Target": (2, 0), "model loader": (1, 1),
         "REG Reward Guidance": (2, 1), "KSampler": (2, 2)},
         [("Load Image", "VAE Encode"), ("VAE Encode", "REG Reward: Latent Target"),
         ("REG Reward: Latent Target", "REG Reward Guidance"), ("model loader", "REG Reward Guidance"), ("REG Reward Guidance", "KSampler")]))  # fmt: skip
    save("REGRewardImage", graph({"Load CLIP Vision": (0, 0), "Load Image": (0, 1), "VAE": (0, 2), "REG Reward: Image Similarity": (1, 1),
         "REG Reward Guidance": (2, 1), "model loader": (2, 0), "KSampler": (2, 2)},
         [("Load CLIP Vision", "REG Reward: Image Similarity"), ("Load Image", "REG Reward: Image Similarity"), ("VAE", "REG Reward: Image Similarity"),
          ("REG Reward: Image Similarity", "REG Reward Guidance"), ("model loader", "REG Reward Guidance"), ("REG Reward Guidance", "KSampler")]))  # fmt: skip
    with narrow():
        save("REGTracePlot", plot_run(pictures.sample("row_sum", CFG, refresh=8, skip_below=0.05)[1]))
        save("REGSchedulePlot", before_sampling())
    save("REGSweep", graph({"model loader": (0, 0), "REG Sweep": (1, 0), "KSampler": (2, 0), "VAE Decode": (2, 1), "REG Grid": (1, 1)},
         [("model loader", "REG Sweep"), ("REG Sweep", "KSampler"), ("KSampler", "VAE Decode"), ("REG Sweep", "REG Grid"), ("VAE Decode", "REG Grid")],
         {"KSampler": "model, cfg", "REG Grid": "images, labels"}))  # fmt: skip
    save("REGGrid", sheet())
    models = (("digits", 3.0), ("digits_weak", 3.0), ("fashion", 2.0), ("fashion_weak", 2.0))
    save("REGDemoModel", strips([(f"{name}, cfg {cfg:g}", guided(name=name, cfg=cfg)) for name, cfg in models]))
    one, clothes = torch.full((ACROSS,), 8), {"name": "fashion_weak", "cfg": 2.0}
    asked = [("bag", guided(one, **clothes)), ("all ten in turn", guided(**clothes)), ("no prompt", guided(None, 1.0, name="fashion_weak"))]
    save("REGDemoPrompt", strips(asked))
    stops = (("noise", 0), ("half way", pictures.STEPS // 2), ("done", None))
    save("REGDemoLatent", strips([(name, guided(stop=stop, **clothes)) for name, stop in stops]))
    save("REGDemoDecode", graph({"REG Demo Latent": (0, 0), "KSampler": (1, 0), "REG Demo Decode": (2, 0), "REG Demo Model": (0, 1),
         "REG Demo Prompt": (1, 1), "Save Image": (2, 1)},
         [("REG Demo Latent", "KSampler"), ("REG Demo Model", "KSampler"), ("REG Demo Prompt", "KSampler"), ("KSampler", "REG Demo Decode"),
          ("REG Demo Decode", "Save Image")]))  # fmt: skip


if __name__ == "__main__":
    main()
