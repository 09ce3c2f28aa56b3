"""REGSchedule*: cfg as a function of the noise level, with or without REG."""

from comfy_api.latest import io

from ..reg_core import presets
from ..reg_core.presets import Plan
from ..reg_core.schedule import AXES, Cosine, Curve, Drawn, Interval, Linear, SigmaInterval
from .scheduled import scheduled_model
from .schema import advanced, with_aliases

CATEGORY = "advanced/guidance"
AXIS_TOOLTIP = (
    "What the schedule runs over, from pure noise (0) to clean (1). step: the sampler's step number. "
    "timestep: the model's training time (ComfyUI's percent). sigma: the noise level, 1 - sigma / sigma_max."
)
MODEL_TOOLTIP = "Any diffusion model. Several schedules multiply. Order against REGGuidance does not matter."
PRESET_TOOLTIP = "custom: as the axis says. Otherwise one of the REG authors' own definitions, each with a variable of its own, in place of the axis. "
OUTPUT_TOOLTIP = "The model under whose sampling cfg follows the schedule. Where cfg becomes 1 the unconditional pass is skipped."


def _axis(default):
    return io.Combo.Input("axis", options=list(AXES), default=default, tooltip=AXIS_TOOLTIP)


def _preset(options, tooltip):
    return advanced(io.Combo.Input("preset", options=["custom", *options], default="custom", optional=True, tooltip=PRESET_TOOLTIP + tooltip))


def _number(name, default, high, step, tooltip, optional=False):
    return io.Float.Input(name, default=default, min=0.0, max=high, step=step, optional=optional, tooltip=tooltip)


def _factor(name, default, tooltip):
    return io.Float.Input(name, default=default, min=-10.0, max=10.0, step=0.01, tooltip=tooltip)


def _fraction(name, default, tooltip):
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)


def _over(axis, preset):
    return f"over {axis}" if preset == "custom" else f"as {preset} defines it"


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
                _preset(
                    presets.LINEAR_PRESETS,
                    "edm2: in sigma, between the run's first and last. dit: over t/1000, from 2*start - end to start, as their code does. "
                    "t2i: in the timestep, between the run's first and last; t2i_plain: the same for cfg itself, their baseline. "
                    "With cfg 2, start and end are the authors' two weights.",
                ),
            ],
            outputs=[_output()],
        )
        return with_aliases(schema, "linear cfg", "cfg schedule", "dynamic cfg")

    @classmethod
    def execute(cls, model, start, end, axis, preset="custom") -> io.NodeOutput:
        plan = Plan(Linear(start, end), axis) if preset == "custom" else presets.linear(preset, start, end)
        return io.NodeOutput(scheduled_model(model, plan, f"linear schedule {start:g} to {end:g} {_over(axis, preset)}"))


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
                _preset(
                    presets.COSINE_PRESETS,
                    "edm2: position 1 - sigma / the run's first sigma. dit: 1 - t/1000. t2i: the timestep between the run's first and last. "
                    "_plain: their baselines without REG, which multiply cfg itself and so start from the unconditional prediction.",
                ),
            ],
            outputs=[_output()],
        )
        return with_aliases(schema, "cosine cfg", "cfg schedule", "powered cosine")

    @classmethod
    def execute(cls, model, power, axis, preset="custom") -> io.NodeOutput:
        plan = Plan(Cosine(power), axis) if preset == "custom" else presets.cosine(preset, power)
        return io.NodeOutput(scheduled_model(model, plan, f"cosine schedule of power {power:g} {_over(axis, preset)}"))


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
                _number("sigma_start", 5.0, 10000.0, 0.001, "Highest noise level guided, in units of sigma; axis sigma and preset edm2 only."),
                _number("sigma_end", 0.28, 10000.0, 0.001, "Lowest noise level guided, in units of sigma; axis sigma and preset edm2 only."),
                _preset(
                    presets.INTERVAL_PRESETS,
                    "edm2: between sigma_start and sigma_end (their ImageNet-512 runs: 2.9 and 0.28). dit: between timestep_start and timestep_end.",
                ),
                advanced(_number("timestep_start", 502.0, 999.0, 1.0, "Noisiest training timestep guided, 0 to 999; preset dit only. Inclusive.", True)),
                advanced(_number("timestep_end", 205.0, 999.0, 1.0, "Cleanest training timestep guided, 0 to 999; preset dit only. Inclusive.", True)),
            ],
            outputs=[_output()],
        )
        return with_aliases(schema, "limited interval guidance", "cfg interval", "cfg schedule")

    @classmethod
    def execute(cls, model, start, end, axis, sigma_start, sigma_end, preset="custom", timestep_start=502.0, timestep_end=205.0) -> io.NodeOutput:
        if preset == "dit":
            plan, label = presets.interval(preset, timestep_start, timestep_end), f"interval timestep {timestep_start:g} to {timestep_end:g}"
        elif preset != "custom":
            plan, label = presets.interval(preset, sigma_start, sigma_end), f"interval sigma {sigma_start:g} to {sigma_end:g}"
        elif axis == "sigma":
            plan, label = Plan(SigmaInterval(sigma_start, sigma_end), "sigma_itself"), f"interval sigma {sigma_start:g} to {sigma_end:g}"
        else:
            plan, label = Plan(Interval(start, end), axis), f"interval {start:g} to {end:g} over {axis}"
        return io.NodeOutput(scheduled_model(model, plan, label))


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
                *_curve_socket(),
            ],
            outputs=[_output()],
        )
        return with_aliases(schema, "cfg curve", "cfg schedule", "cfg keyframes")

    @classmethod
    def execute(cls, model, points, axis, curve=None) -> io.NodeOutput:
        if curve is None:
            schedule, name = Curve.parse(points), points.strip()
        else:
            schedule, name = Drawn(_native(curve)), "drawn"
        return io.NodeOutput(scheduled_model(model, Plan(schedule, axis), f"curve {name} over {axis}"))


def _native(value):
    """ComfyUI's CURVE (its object, or the page's raw form) as a function of x in [0, 1]."""
    from comfy_api.input import CurveInput  # newer hosts only

    curve = CurveInput.from_raw(value)
    if not curve.points:
        raise ValueError(f"a curve needs at least one point, got {value!r}")
    return curve.interp


def _curve_socket():
    """ComfyUI's own curve, from its Curve Editor, on hosts that have one. A socket: as a widget it would always override the text."""
    if not hasattr(io, "Curve"):
        return []
    tooltip = "A curve drawn in ComfyUI's Curve Editor, in place of the points: left is noise, right is clean; 1 is the full weight (cfg - 1)."
    socket = io.Curve.Input("curve", optional=True, socketless=False, tooltip=tooltip)
    socket.force_input = True
    return [socket]
