"""REGSchedule*: cfg as a function of the noise level, with or without REG."""

from comfy_api.latest import io

from ..reg_core.schedule import AXES, Cosine, Curve, Interval, Linear, SigmaInterval
from .scheduled import scheduled_model
from .schema import with_aliases

CATEGORY = "advanced/guidance"
AXIS_TOOLTIP = (
    "What the schedule runs over, from pure noise (0) to clean (1). step: the sampler's step number. "
    "timestep: the model's training time (ComfyUI's percent). sigma: the noise level, 1 - sigma / sigma_max."
)
MODEL_TOOLTIP = "Any diffusion model. Several schedules multiply. Order against REGGuidance does not matter."
OUTPUT_TOOLTIP = "The model under whose sampling cfg follows the schedule. Where cfg becomes 1 the unconditional pass is skipped."


def _axis(default):
    return io.Combo.Input("axis", options=list(AXES), default=default, tooltip=AXIS_TOOLTIP)


def _factor(name, default, tooltip):
    return io.Float.Input(name, default=default, min=-10.0, max=10.0, step=0.01, tooltip=tooltip)


def _fraction(name, default, tooltip):
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)


def _model():
    return io.Model.Input("model", tooltip=MODEL_TOOLTIP)


def _output():
    return io.Model.Output(display_name="model", tooltip=OUTPUT_TOOLTIP)


class REGScheduleLinear(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGScheduleLinear",
            display_name="REG Schedule: Linear",
            category=CATEGORY,
            description="Guidance weight (cfg - 1) changes in a straight line from noise to clean.",
            inputs=[
                _model(),
                _factor("start", 0.0, "Multiplier of the weight (cfg - 1) at pure noise."),
                _factor("end", 2.0, "Multiplier of the weight (cfg - 1) at the clean end. 0 to 2 keeps the average."),
                _axis("timestep"),
            ],
            outputs=[_output()],
        )
        return with_aliases(schema, "linear cfg", "cfg schedule", "dynamic cfg")

    @classmethod
    def execute(cls, model, start, end, axis) -> io.NodeOutput:
        return io.NodeOutput(scheduled_model(model, Linear(start, end), axis, f"linear schedule {start:g} to {end:g} over {axis}"))


class REGScheduleCosine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGScheduleCosine",
            display_name="REG Schedule: Cosine",
            category=CATEGORY,
            description="Guidance weight (cfg - 1) rises along (1 - cos(pi p^power)) / 2 from noise to clean.",
            inputs=[
                _model(),
                io.Float.Input(
                    "power", default=1.0, min=0.01, max=10.0, step=0.01, tooltip="Exponent s of the position: above 1 guidance comes later. No unit."
                ),
                _axis("timestep"),
            ],
            outputs=[_output()],
        )
        return with_aliases(schema, "cosine cfg", "cfg schedule", "powered cosine")

    @classmethod
    def execute(cls, model, power, axis) -> io.NodeOutput:
        return io.NodeOutput(scheduled_model(model, Cosine(power), axis, f"cosine schedule of power {power:g} over {axis}"))


class REGScheduleInterval(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGScheduleInterval",
            display_name="REG Schedule: Interval",
            category=CATEGORY,
            description="Guidance only inside an interval of noise levels; outside the unconditional pass is skipped, which saves its time.",
            inputs=[
                _model(),
                _fraction("start", 0.2, "Where guidance begins (0 = pure noise), for the axes step and timestep. Inclusive."),
                _fraction("end", 0.8, "Where guidance ends (1 = clean), for the axes step and timestep. Inclusive."),
                _axis("timestep"),
                io.Float.Input(
                    "sigma_start", default=5.0, min=0.0, max=10000.0, step=0.001, tooltip="Highest noise level guided, in units of sigma; axis sigma only."
                ),
                io.Float.Input(
                    "sigma_end", default=0.28, min=0.0, max=10000.0, step=0.001, tooltip="Lowest noise level guided, in units of sigma; axis sigma only."
                ),
            ],
            outputs=[_output()],
        )
        return with_aliases(schema, "limited interval guidance", "cfg interval", "cfg schedule")

    @classmethod
    def execute(cls, model, start, end, axis, sigma_start, sigma_end) -> io.NodeOutput:
        if axis == "sigma":
            schedule, label = SigmaInterval(sigma_start, sigma_end), f"interval sigma {sigma_start:g} to {sigma_end:g}"
        else:
            schedule, label = Interval(start, end), f"interval {start:g} to {end:g} over {axis}"
        return io.NodeOutput(scheduled_model(model, schedule, axis, label))


class REGScheduleCurve(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGScheduleCurve",
            display_name="REG Schedule: Curve",
            category=CATEGORY,
            description="Guidance weight (cfg - 1) along straight lines through points of your own.",
            inputs=[
                _model(),
                io.String.Input(
                    "points",
                    default="0:0, 0.2:1, 0.8:1, 1:0.5",
                    multiline=True,
                    tooltip="position:multiplier, separated by commas. Positions from 0 (noise) to 1 (clean), multipliers of the weight (cfg - 1).",
                ),
                _axis("timestep"),
            ],
            outputs=[_output()],
        )
        return with_aliases(schema, "cfg curve", "cfg schedule", "cfg keyframes")

    @classmethod
    def execute(cls, model, points, axis) -> io.NodeOutput:
        return io.NodeOutput(scheduled_model(model, Curve.parse(points), axis, f"curve {points.strip()} over {axis}"))
