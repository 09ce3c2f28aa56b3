"""REGTracePlot and REGSchedulePlot: what guidance did, and what it will do, as a picture and as text."""

import math

import torch
from comfy_api.latest import io

from ..reg_core import drawing
from ..reg_core.checks import shortened
from ..reg_core.drawing.canvas import THEMES, to_tensor
from ..reg_core.drawing.schedules import AXES as SCHEDULE_AXES
from ..reg_core.drawing.traces import AXES as TRACE_AXES
from ..reg_core.drawing.traces import BYPASSED, NOTHING
from ..reg_core.trace import Trace as RunTrace
from .checked import checked
from .hooks import rectified, scheduled
from .host.noise_levels import point_at
from .host.options import hooks_of
from .host.page import shown
from .schema import GUIDANCE, Trace, choice, described, number, whole


class REGTracePlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGTracePlot",
            category=GUIDANCE,
            inputs=[
                Trace.Input("trace", optional=True),  # a bypassed REG Guidance gives none
                io.Latent.Input("latent"),
                choice("axis", TRACE_AXES),
                choice("theme", THEMES, "dark"),
                whole("run", -1, -RunTrace.keep, RunTrace.keep - 1),
                io.Image.Input("image", optional=True),
            ],
            outputs=[io.Image.Output(), io.Image.Output(), io.String.Output()],
            is_output_node=True,
        )
        return described(schema, "guidance plot", "guidance graph", "correction heat map", "cfg plot")

    @classmethod
    @checked
    def execute(cls, latent, axis, theme, run, trace=None, image=None) -> io.NodeOutput:
        chosen, title = _chosen([] if trace is None else trace.runs, run)
        nothing = BYPASSED if trace is None else NOTHING
        plot = to_tensor(drawing.plot_run(chosen, axis, theme, title, nothing))
        heats = [drawing.heat_sheet(h, image, theme) for h in (chosen.heats if chosen else None) or [None]]
        remark = "; ".join(dict.fromkeys(filter(None, (remark for _, remark in heats))))
        heat = drawing.of_one_size([sheet for sheet, _ in heats])
        text = drawing.run_report(chosen, nothing) + (f"\nheat map: {remark}" if remark else "")
        return io.NodeOutput(plot, heat, text, ui=shown(cls, plot, text))


def _chosen(runs, index):
    """(the run or None, a heading or "")."""
    if not runs:
        return None, ""
    if not -len(runs) <= index < len(runs):
        held = f"the trace holds {len(runs)} (-1 is the last, 0 the oldest kept)"
        raise ValueError(f"REGTracePlot: run {index} asked for, but {held}")
    chosen = runs[index]
    # The last one needs no number: ComfyUI keeps the trace, and with it the runs of earlier graphs.
    number = "" if index == -1 else f" - run {index % len(runs) + 1} of the {len(runs)} kept"
    return chosen, chosen.settings.title + number


class REGSchedulePlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGSchedulePlot",
            category=GUIDANCE,
            inputs=[
                io.Model.Input("model"),
                io.Sigmas.Input("sigmas"),
                number("cfg", 5.0, 0.0, 100.0, 0.1, round=0.01),
                choice("axis", SCHEDULE_AXES),
                choice("theme", THEMES, "dark"),
            ],
            outputs=[io.Image.Output(), io.String.Output()],
            is_output_node=True,
        )
        return described(schema, "cfg schedule plot", "guidance schedule graph", "sigmas plot")

    @classmethod
    @checked
    def execute(cls, model, sigmas, cfg, axis, theme) -> io.NodeOutput:
        if sigmas.ndim != 1 or len(sigmas) < 2 or not torch.isfinite(sigmas).all():
            raise ValueError(
                f"REGSchedulePlot: want two or more finite sigmas, got {shortened(sigmas.tolist())}"
            )
        points, lines, form = schedule_points(model, sigmas.detach().float().cpu(), cfg)
        plot = to_tensor(drawing.plot_schedule(points, axis, theme, lines, form))
        text = "\n".join([*lines, drawing.schedule_table(points)])
        return io.NodeOutput(plot, text, ui=shown(cls, plot, text))


def schedule_points(model, sigmas, cfg):
    """([SchedulePoint a step], [what is in force, in words], form). `sigmas` [steps + 1], `cfg` as given."""
    sampling, levels = model.get_model_object("model_sampling"), scheduled.levels_of(model, sigmas)
    schedules = hooks_of(model, scheduled.KEY)
    (reg,) = hooks_of(model, rectified.KEY) or [None]
    settings = None if reg is None else reg.settings_for(model)
    points = []
    for sigma in sigmas[:-1]:
        in_force = cfg
        for hook in schedules:
            in_force = hook.schedule.cfg(in_force, float(sigma), levels)
        active = settings is not None and not settings.why_plain(in_force - 1, sigma)
        factor = math.nan
        if active and settings.free:
            sigma_ve = point_at(sampling, torch.zeros(1, 1), sigma).sigma_ve
            factor = settings.applied(float(settings.free_factor(sigma_ve)))
        at = float(sigma), levels.percent(float(sigma))
        points.append(drawing.SchedulePoint(*at, round(in_force, 9), active, factor))
    labels = " times ".join(hook.label for hook in schedules)
    lines = [
        f"cfg {cfg:g}: weight {cfg - 1:g}" + (f", times {labels}" if labels else " at every step"),
        "This node does not see your sampler: give it the same cfg, steps and scheduler.",
    ]
    guided = sum(point.weight != 0 for point in points)
    lines.append(f"guidance in {guided} of {len(points)} steps")
    if settings is None:
        lines[-1] += "; the model carries no REG Guidance"
        return points, lines, "off"
    known = "" if settings.free else "; its correction depends on the image and is known after sampling only"
    active = sum(point.active for point in points)
    lines[-1] += f", {settings.title} in {active}{known}"
    return points, lines, settings.form
