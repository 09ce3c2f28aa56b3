"""REGSchedule*: cfg as a function of the noise level, with or without REG."""

from comfy_api.latest import io

from ..reg_core import presets
from ..reg_core.presets import PRESETS, CfgSchedule
from ..reg_core.schedule import AXES, Curve
from .checked import checked
from .hooks.scheduled import scheduled_model
from .schema import GUIDANCE, choice, described, number, objection


class REGScheduleLinear(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGScheduleLinear",
            category=GUIDANCE,
            inputs=[
                io.Model.Input("model"),
                number("start", 0.0, -10.0, 10.0, 0.01),
                number("end", 2.0, -10.0, 10.0, 0.01),
                choice("axis", (*AXES, *PRESETS), default="timestep"),
            ],
            outputs=[io.Model.Output()],
        )
        return described(schema, "linear cfg", "cfg schedule", "dynamic cfg")

    @classmethod
    @checked
    def execute(cls, model, start, end, axis) -> io.NodeOutput:
        label = f"linear schedule {start:g} to {end:g} over {axis}"
        return io.NodeOutput(scheduled_model(model, presets.linear(axis, start, end), label))


class REGScheduleCosine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGScheduleCosine",
            category=GUIDANCE,
            inputs=[
                io.Model.Input("model"),
                number("power", 1.0, 0.01, 10.0, 0.01),
                choice("axis", (*AXES, *PRESETS), default="timestep"),
            ],
            outputs=[io.Model.Output()],
        )
        return described(schema, "cosine cfg", "cfg schedule", "powered cosine")

    @classmethod
    @checked
    def execute(cls, model, power, axis) -> io.NodeOutput:
        label = f"cosine schedule of power {power:g} over {axis}"
        return io.NodeOutput(scheduled_model(model, presets.cosine(axis, power), label))


class REGScheduleInterval(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGScheduleInterval",
            category=GUIDANCE,
            inputs=[
                io.Model.Input("model"),
                number("start", 0.2, 0.0, 10000.0, 0.001),
                number("end", 0.8, 0.0, 10000.0, 0.001),
                choice("axis", (*AXES, "dit"), default="timestep"),
            ],
            outputs=[io.Model.Output()],
        )
        return described(schema, "limited interval guidance", "cfg interval", "cfg schedule")

    @classmethod
    def validate_inputs(cls, start=None, end=None, axis=None):
        return objection(presets.interval, axis, start, end)

    @classmethod
    @checked
    def execute(cls, model, start, end, axis) -> io.NodeOutput:
        label = f"interval {start:g} to {end:g} over {axis}"
        return io.NodeOutput(scheduled_model(model, presets.interval(axis, start, end), label))


class REGScheduleCurve(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGScheduleCurve",
            category=GUIDANCE,
            inputs=[
                io.Model.Input("model"),
                io.String.Input("points", default="0:0, 0.2:1, 0.8:1, 1:0.5", multiline=True),
                choice("axis", AXES, default="timestep"),
                *_curve_input(),
            ],
            outputs=[io.Model.Output()],
        )
        return described(schema, "cfg curve", "cfg schedule", "cfg keyframes")

    @classmethod
    def validate_inputs(cls, points=None, curve=False):
        return objection(Curve.parse, points) if curve is False else True  # None where one is connected

    @classmethod
    @checked
    def execute(cls, model, points, axis, curve=None) -> io.NodeOutput:
        schedule, name = (Curve.parse(points), points.strip()) if curve is None else (curve.interp, "drawn")
        return io.NodeOutput(scheduled_model(model, CfgSchedule(schedule, axis), f"curve {name} over {axis}"))


def _curve_input():
    """ComfyUI's curve, where a host has one. It is linked: a widget would always override the text."""
    if not hasattr(io, "Curve"):
        return []
    curve = io.Curve.Input("curve", optional=True, socketless=False)
    curve.force_input = True
    return [curve]
