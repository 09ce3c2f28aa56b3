"""REGSweep and REGGrid: the same seed with several forms, gains and cfg values, on one labelled sheet.

ComfyUI runs a node once for every entry of a list. REGSweep gives lists, an ordinary sampler and decoder
follow, and REGGrid takes the list as a whole.
"""

import dataclasses
import itertools
import re

from comfy_api.latest import io

from ..reg_core import drawing
from ..reg_core.checks import cut, one_of, shortened
from ..reg_core.drawing.canvas import THEMES
from ..reg_core.drawing.grid import SEPARATOR
from ..reg_core.forms import FORMS
from ..reg_core.settings import Settings
from .checked import checked
from .hooks.rectified import KEY, rectified_model
from .host.options import hooks_of
from .schema import GUIDANCE, Trace, choice, described, objection, whole

MOST_RUNS = 64


class REGSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGSweep",
            category=GUIDANCE,
            inputs=[
                io.Model.Input("model"),
                io.String.Input("forms", default="off, row_sum, schedule"),
                io.String.Input("gains", default="1, 2, 4"),
                io.String.Input("cfgs", default="7"),
            ],
            outputs=[kind.Output(is_output_list=True) for kind in (io.Model, io.Float, io.String, Trace)],
        )
        return described(schema, "xy plot", "grid search", "compare cfg", "cfg sweep", "parameter sweep")

    @classmethod
    def validate_inputs(cls, forms=None, gains=None, cfgs=None):
        return objection(planned, forms, gains, cfgs)

    @classmethod
    @checked
    def execute(cls, model, forms, gains, cfgs) -> io.NodeOutput:
        plan = planned(forms, gains, cfgs)
        settings, percents = Settings(refresh=8), (0.0, 1.0)
        for hook in hooks_of(model, KEY):
            settings, percents = hook.settings, hook.percents
        if any(form == "calibrated" for form, *_ in plan) and settings.calibration is None:
            raise ValueError("REGSweep: form 'calibrated' needs a table: put REG Guidance with one in front")
        runs = []
        for form, gain, cfg, label in plan:
            table = settings.calibration if form == "calibrated" else None
            changed = dataclasses.replace(settings, form=form, gain=gain, calibration=table)
            patched, trace = rectified_model(model, changed, percents)  # each has a trace of its own
            runs.append((patched, cfg, label, trace))
        return io.NodeOutput(*map(list, zip(*runs, strict=True)))


def planned(forms: str, gains: str, cfgs: str):
    """The `combinations` of three texts. Raises ValueError with the piece that does not fit."""
    scales, chosen = numbers("cfgs", cfgs, 0.0, 100.0), _once("forms", _pieces("forms", forms))
    for form in chosen:
        one_of("REGSweep: forms", form, FORMS)
    plan = combinations(chosen, numbers("gains", gains, 0.05, 100.0), scales)
    if len(plan) > MOST_RUNS:
        raise ValueError(f"REGSweep: these are {len(plan)} sampling runs; want at most {MOST_RUNS}")
    return plan


def combinations(forms, gains, cfgs):
    """[(form, gain, cfg, label)], plain CFG first and once for each cfg.

    Columns of the sheet are gains; where there is one gain only, they are cfg values.
    """
    plan = []
    for form, cfg in itertools.product(sorted(forms, key=lambda form: form != "off"), cfgs):
        for gain in gains if form != "off" else gains[:1]:
            name = "CFG" if form == "off" else form
            row, column = f"{name}, cfg {cfg:g}", f"gain {gain:g}"
            if len(gains) == 1:
                row, column = name + (f", {column}" if gain != 1 and form != "off" else ""), f"cfg {cfg:g}"
            plan.append((form, gain, cfg, f"{row}{SEPARATOR}{column}"))
    return plan


def numbers(name, text, low, high) -> list[float]:
    """ "2, 4.5" -> [2.0, 4.5]. Raises ValueError with the piece that is no number, or out of range."""
    values = []
    for piece in _pieces(name, text):
        try:
            value = float(piece)
        except ValueError:
            raise ValueError(f"REGSweep: {name}: {shortened(piece)} is not a number; want 2, 4, 8") from None
        if not low <= value <= high:
            raise ValueError(f"REGSweep: {name} must be between {low:g} and {high:g}, got {cut(piece)}")
        values.append(value)
    return _once(name, values)


def _pieces(name, text):
    pieces = [piece for piece in re.split(r"[\s,;]+", text) if piece]
    if not pieces:
        raise ValueError(f"REGSweep: {name} is empty, got {shortened(text)}; want at least one value")
    return pieces


def _once(name, values):
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"REGSweep: {name}: {cut(value)} is there twice")
    return values


class REGGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGGrid",
            category=GUIDANCE,
            inputs=[
                io.Image.Input("images"),
                io.String.Input("labels", force_input=True),
                whole("columns", 0, 0, 64),
                choice("theme", THEMES, "dark"),
                Trace.Input("trace", optional=True),
            ],
            outputs=[io.Image.Output()],
            is_input_list=True,
        )
        return described(schema, "xy plot", "image grid", "contact sheet", "comparison sheet")

    @classmethod
    @checked
    def execute(cls, images, labels, columns, theme, trace=None) -> io.NodeOutput:
        if trace is not None and len(trace) != len(images):
            raise ValueError(
                f"REGGrid: {len(trace)} traces for {len(images)} images: take both from one sweep"
            )
        captions = None if trace is None else [drawing.run_caption(one.last) for one in trace]
        return io.NodeOutput(drawing.labelled_grid(images, labels, columns[0], theme[0], captions))
