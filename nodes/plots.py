"""REGTracePlot and REGSchedulePlot: what guidance did, and what it will do, as a picture and as text."""

import dataclasses
import math

import torch
from comfy_api.latest import io, ui

from ..reg_core import drawing
from ..reg_core.drawing.canvas import THEMES, to_tensor
from ..reg_core.drawing.schedules import AXES as SCHEDULE_AXES
from ..reg_core.drawing.traces import AXES as TRACE_AXES
from ..reg_core.rectify import FREE_FORMS, schedule_factor
from ..reg_core.trace import Trace as RunTrace
from . import hook, host, host_runs, scheduled
from .schema import Trace, with_aliases

CATEGORY = "advanced/guidance"


def _theme():
    return io.Combo.Input("theme", options=list(THEMES), default="dark", tooltip="Colours of the picture.")


def _shown(cls, picture, text):
    """What the page shows under the node: the picture; the text for those who ask for it."""
    return {**ui.PreviewImage(picture, cls=cls).as_dict(), "text": (text,)}


class REGTracePlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGTracePlot",
            display_name="REG Trace Plot",
            category=CATEGORY,
            description="What REG did in a sampling run: the correction, the size of the guidance and its weight over the noise levels, as a picture and "
            "a table; and where in the image the correction was strong.",
            inputs=[
                Trace.Input("trace", tooltip="From REG Guidance, whose model was sampled."),
                io.Latent.Input("latent", tooltip="The sampler's output, so that the plot is drawn after sampling. Its values are not used."),
                io.Combo.Input(
                    "axis",
                    options=list(TRACE_AXES),
                    default=TRACE_AXES[0],
                    tooltip="What the picture runs over. sigma: the noise level. step: the model calls in order (second order samplers make two a step).",
                ),
                _theme(),
                io.Int.Input(
                    "run",
                    default=-1,
                    min=-RunTrace.keep,
                    max=RunTrace.keep - 1,
                    tooltip=f"Which sampling run of this model: -1 = the last, -2 = the one before; 0 = the oldest of the {RunTrace.keep} that are kept.",
                ),
                io.Image.Input("image", optional=True, tooltip="The decoded images of that run, to lie under the heat map: one each, not a sheet."),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The picture, RGB, 1024 px wide."),
                io.Image.Output(display_name="heat_map", tooltip="Mean correction over the image (1 = plain guidance), a picture for every image or frame."),
                io.String.Output(display_name="text", tooltip="The table: a line for every model call."),
            ],
            is_output_node=True,
        )
        return with_aliases(schema, "guidance plot", "guidance graph", "correction heat map", "cfg plot")

    @classmethod
    def execute(cls, trace, latent, axis, theme, run, image=None) -> io.NodeOutput:
        if not isinstance(trace, RunTrace):
            raise ValueError(f"REGTracePlot: want the trace of REG Guidance, got {type(trace).__name__}")
        chosen, title = _chosen(trace.runs, run)
        plot = to_tensor(drawing.plot_run(chosen, axis, theme, title))
        heat, remark = drawing.heat_pictures(chosen.heat if chosen else None, image, theme)
        text = drawing.run_report(chosen) + (f"\nheat map: {remark}" if remark else "")
        return io.NodeOutput(plot, heat, text, ui=_shown(cls, plot, text))


def _chosen(runs, index):
    """(the run or None, a heading or "")."""
    if not runs and index in (-1, 0):
        return None, ""
    if not -len(runs) <= index < len(runs):
        raise ValueError(f"REGTracePlot: run {index} asked for, but the trace holds {len(runs)} (-1 is the last, 0 the oldest kept)")
    chosen = runs[index]
    name = f"REG {chosen.form}" + (f", strength {chosen.strength:g}" if chosen.strength != 1 else "")
    return chosen, name + (f" - run {index % len(runs) + 1} of {len(runs)}" if len(runs) > 1 else "")


class REGSchedulePlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGSchedulePlot",
            display_name="REG Schedule Plot",
            category=CATEGORY,
            description="The guidance weight before sampling: what cfg and all REG schedules on the model make of it at every noise level, where REG is "
            "active, and its correction where that is known in advance (forms schedule and calibrated).",
            inputs=[
                io.Model.Input("model", tooltip="With REG Schedule and REG Guidance nodes applied, in any order."),
                io.Sigmas.Input("sigmas", tooltip="Noise levels of the run, from BasicScheduler or another scheduler."),
                io.Float.Input(
                    "cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="As given to the sampler. The weight is cfg - 1. No unit."
                ),
                io.Combo.Input(
                    "axis",
                    options=list(SCHEDULE_AXES),
                    default=SCHEDULE_AXES[0],
                    tooltip="What the picture runs over. step: the sampler's steps. sigma: the noise level. timestep: the model's training time, 0 to 1.",
                ),
                _theme(),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="The picture, RGB, 1024 px wide."),
                io.String.Output(display_name="text", tooltip="The same as a table, a line a step."),
            ],
            is_output_node=True,
        )
        return with_aliases(schema, "cfg schedule plot", "guidance schedule graph", "sigmas plot")

    @classmethod
    def execute(cls, model, sigmas, cfg, axis, theme) -> io.NodeOutput:
        if sigmas.ndim != 1 or len(sigmas) < 2 or not torch.isfinite(sigmas).all():
            raise ValueError(f"REGSchedulePlot: want at least two finite sigmas in a row, got {sigmas.tolist()}")
        if not math.isfinite(cfg):
            raise ValueError(f"REGSchedulePlot: cfg must be finite, got {cfg}")
        points, lines = schedule_points(model, sigmas.detach().float().cpu(), cfg)
        plot = to_tensor(drawing.plot_schedule(points, axis, theme, lines))
        text = "\n".join([*lines, drawing.schedule_table(points)])
        return io.NodeOutput(plot, text, ui=_shown(cls, plot, text))


def schedule_points(model, sigmas, cfg):
    """([SchedulePoint a step], [what is in force, in words]) of a MODEL for SIGMAS [steps + 1] and the cfg of the sampler."""
    sampling = model.get_model_object("model_sampling")
    labels = [hooked.label for hooked in host_runs.hooks_of(model, scheduled.KEY)]
    (reg,) = host_runs.hooks_of(model, hook.KEY) or [None]
    settings = bounded(reg, sampling) if reg is not None else None
    points = []
    for sigma in sigmas[:-1]:
        level = float(sigma)
        in_force = host_runs.cfg_in_force(model, scheduled.KEY, cfg, sigma, sigmas)
        active = settings is not None and settings.covers(level) and not math.isclose(in_force, 1.0)
        factor = _factor(settings, sampling, sigma) if active else math.nan
        points.append(drawing.SchedulePoint(level, host.percent_of(sampling, level), in_force, active, factor))
    lines = [f"cfg {cfg:g}: weight {cfg - 1:g}, times " + " times ".join(labels) if labels else f"cfg {cfg:g}: weight {cfg - 1:g} at every step"]
    if settings is None:
        return points, [*lines, "the model carries no REG Guidance"]
    known = "" if settings.form in FREE_FORMS else "; its correction depends on the image and is known after sampling only"
    strength = f", strength {settings.strength:g}" if settings.strength != 1 else ""
    return points, [*lines, f"REG {settings.form}{strength} in {sum(p.active for p in points)} of {len(points)} steps{known}"]


def bounded(reg, sampling):
    """The settings of a hook with its start and end in units of sigma, as a sampling run has them."""
    start, end = reg.percents
    return dataclasses.replace(
        reg.settings,
        sigma_start=math.inf if start <= 0 else float(sampling.percent_to_sigma(start)),
        sigma_end=0.0 if end >= 1 else float(sampling.percent_to_sigma(end)),
    )


def _factor(settings, sampling, sigma):
    """The correction of the free forms at one noise level, the mean over channels; NaN for forms that need the model."""
    if settings.form not in FREE_FORMS:
        return math.nan
    alpha, s = host.alpha_and_s(sampling, sigma.reshape(1), torch.zeros(1, 1))
    factor = schedule_factor(s / alpha, settings.data_std) if settings.form == "schedule" else settings.calibration(s / alpha)
    return 1 + settings.strength * (float(factor.mean()) - 1)
