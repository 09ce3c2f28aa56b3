"""REGSweep and REGGrid: the same seed at several cfg values and forms, through an ordinary sampler, on one labelled sheet.

ComfyUI runs a node once for every entry of a list: REGSweep gives lists, the sampler and the decoder follow, REGGrid
takes the list as a whole.
"""

import math
import re

from comfy_api.latest import io

from ..reg_core import drawing
from ..reg_core.drawing.canvas import THEMES
from ..reg_core.drawing.grid import SEPARATOR
from ..reg_core.rectify import ENGINES, FORMS, Settings
from .hook import rectified_model
from .schema import Calibration, Trace, advanced, with_aliases

CATEGORY = "advanced/guidance"
MOST_RUNS = 64
CFG_LIMITS = (0.0, 100.0)  # KSampler's


class REGSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGSweep",
            display_name="REG Sweep",
            category=CATEGORY,
            description="Lists for an ordinary sampler: every form and strength at every cfg, from the same seed. Connect model and cfg to one KSampler, "
            "decode, and collect with REG Grid: one run each, forms down, cfg across. Cancel ends them all.",
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model. The original stays untouched."),
                io.String.Input("cfgs", default="2, 4, 8", tooltip="Guidance scales, separated by commas, each 0 to 100. The weight is cfg - 1. No unit."),
                io.String.Input(
                    "forms",
                    default="off, row_sum, schedule",
                    tooltip=f"Forms of REG, separated by commas: {', '.join(FORMS)}. off is plain guidance, drawn once whatever the strengths.",
                ),
                io.String.Input("strengths", default="1", tooltip="Strengths of REG, separated by commas: 0 = plain guidance, 1 = REG. No unit."),
                advanced(io.Combo.Input("engine", options=list(ENGINES), default="auto", tooltip="How the Jacobian product is computed; see REG Guidance.")),
                advanced(
                    io.Float.Input(
                        "data_std",
                        default=1.0,
                        min=0.001,
                        max=1000.0,
                        step=0.001,
                        tooltip="Standard deviation of the clean latents, in the sampler's units; used by form 'schedule' alone. About 1 for most models.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "refresh",
                        default=4,
                        min=0,
                        max=100,
                        tooltip="Compute the correction at every k-th model call and carry it along in between. 1 = always fresh; 0 = automatic.",
                    )
                ),
                Calibration.Input("calibration", optional=True, tooltip="The table of form 'calibrated', from REG Calibrate or a file."),
            ],
            outputs=[
                io.Model.Output(display_name="model", is_output_list=True, tooltip="A model for every run, for the sampler's model input."),
                io.Float.Output(display_name="cfg", is_output_list=True, tooltip="A guidance scale for every run, for the sampler's cfg input."),
                io.String.Output(display_name="label", is_output_list=True, tooltip="A label for every run, for REG Grid."),
                Trace.Output(
                    display_name="trace", is_output_list=True, tooltip="A trace for every run, for REG Trace Plot and REG Grid; empty where the form is off."
                ),
            ],
        )
        return with_aliases(schema, "xy plot", "grid search", "compare cfg", "cfg sweep", "parameter sweep")

    @classmethod
    def execute(cls, model, cfgs, forms, strengths, engine, data_std, refresh, calibration=None) -> io.NodeOutput:
        scales = numbers("cfgs", cfgs, *CFG_LIMITS)
        chosen = names("forms", forms)
        if "calibrated" in chosen and calibration is None:
            raise ValueError("REGSweep: form 'calibrated' needs a table: connect one to calibration")
        rows = combinations(chosen, numbers("strengths", strengths, -10.0, 10.0))
        if len(rows) * len(scales) > MOST_RUNS:
            raise ValueError(
                f"REGSweep: {len(scales)} cfgs times {len(rows)} forms and strengths are {len(scales) * len(rows)} sampling runs; want at most {MOST_RUNS}"
            )
        models, values, labels, traces = [], [], [], []
        for heading, form, strength in rows:
            table = calibration if form == "calibrated" else None
            settings = Settings(form=form, engine=engine, strength=strength, data_std=data_std, refresh=refresh, calibration=table)
            for cfg in scales:
                patched, trace = rectified_model(model, settings, 0.0, 1.0)  # one each: a trace of its own
                models.append(patched)
                values.append(cfg)
                labels.append(f"{heading}{SEPARATOR}cfg {cfg:g}")
                traces.append(trace)
        return io.NodeOutput(models, values, labels, traces)


def combinations(forms, strengths):
    """[(row heading, form, strength)]: every form at every strength, `off` once."""
    rows = []
    for form in forms:
        for strength in strengths if form != "off" else [1.0]:
            plain = form == "off" or strengths == [1.0]
            rows.append((form if plain else f"{form} x {strength:g}", form, strength))
    return rows


def numbers(name, text, low, high) -> list[float]:
    """ "2, 4.5" -> [2.0, 4.5]. Raises ValueError with the piece that is no number, out of range or there twice."""
    values = []
    for piece in _pieces(name, text):
        try:
            value = float(piece)
        except ValueError:
            raise ValueError(f"REGSweep: {name}: cannot read {piece!r} as a number; write '2, 4, 8'") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"REGSweep: {name} must be between {low:g} and {high:g}, got {piece}")
        if value in values:
            raise ValueError(f"REGSweep: {name}: {piece} is there twice")
        values.append(value)
    return values


def names(name, text) -> list[str]:
    """ "off, row_sum" -> ["off", "row_sum"]. Raises ValueError with the piece that is no form or there twice."""
    values = []
    for piece in _pieces(name, text):
        if piece not in FORMS:
            raise ValueError(f"REGSweep: {name} must be out of {', '.join(FORMS)}; got {piece!r}")
        if piece in values:
            raise ValueError(f"REGSweep: {name}: {piece} is there twice")
        values.append(piece)
    return values


def _pieces(name, text):
    pieces = [piece for piece in re.split(r"[\s,;]+", text) if piece]
    if not pieces:
        raise ValueError(f"REGSweep: {name} is empty, got {text!r}; want at least one value")
    return pieces


class REGGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGGrid",
            display_name="REG Grid",
            category=CATEGORY,
            description="Collects the images of several runs on one sheet, with their labels. Pixels are copied, never resampled; sizes may differ.",
            inputs=[
                io.Image.Input("images", tooltip="Images of all runs, as a list: from a sampler and decoder that follow REG Sweep. A batch shares one cell."),
                io.String.Input(
                    "labels",
                    force_input=True,
                    tooltip="A label for every run, in the same order. Labels 'row | column' that fill a table become its headings.",
                ),
                io.Int.Input("columns", default=0, min=0, max=64, tooltip="Images in a row. 0 = as the labels' table has, else about as many as rows."),
                io.Combo.Input("theme", options=list(THEMES), default="dark", tooltip="Colours of the sheet."),
                Trace.Input(
                    "trace",
                    optional=True,
                    tooltip="Traces of all runs, in the same order, from REG Sweep: the effective cfg is written below each image. "
                    "Compare images of equal effective cfg.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The sheet: one RGB image.")],
            is_input_list=True,
        )
        return with_aliases(schema, "xy plot", "image grid", "contact sheet", "comparison sheet")

    @classmethod
    def execute(cls, images, labels, columns, theme, trace=None) -> io.NodeOutput:
        if trace and len(labels) == len(images) != len(trace):
            raise ValueError(f"REGGrid: {len(trace)} traces for {len(images)} images: take images, labels and traces from the same sweep")
        return io.NodeOutput(drawing.labelled_grid(images, labels, columns[0], theme[0], [caption(one) for one in trace or []]))


def caption(trace) -> str:
    """The effective cfg of a trace's last run; nothing where nothing was rectified."""
    value = trace.last.effective_cfg if trace.last is not None else math.nan
    return f"effective cfg {value:.2f}" if math.isfinite(value) else ""
