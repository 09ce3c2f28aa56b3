"""REGGuidance: rectified guidance for whatever samples a MODEL."""

from comfy_api.latest import io

from ..reg_core.forms import FORMS
from ..reg_core.settings import ENGINES, Settings
from .checked import checked
from .hooks.rectified import rectified_model
from .schema import GUIDANCE, Calibration, Trace, advanced, choice, described, number, percents, whole


class REGGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGGuidance",
            category=GUIDANCE,
            inputs=[
                io.Model.Input("model"),
                choice("form", FORMS),
                number("gain", 1.0, 0.05, 100.0, 0.05),
                *percents(),
                *advanced(
                    number("strength", 1.0, -10.0, 10.0, 0.01),
                    number("skip_below", 0.0, 0.0, 1.0, 0.01),
                    number("data_std", 1.0, 0.001, 1000.0, 0.001),
                    choice("engine", ENGINES),
                    whole("refresh", 8, 1, 100),
                ),
                Calibration.Input("calibration", optional=True),
            ],
            outputs=[io.Model.Output(), Trace.Output()],
        )
        return described(schema, "REG", "rectified gradient guidance", "rectified cfg", "guidance")

    @classmethod
    @checked
    def execute(cls, model, form, start_percent, end_percent, calibration=None, **settings) -> io.NodeOutput:
        """`settings`: gain, strength, skip_below, data_std, engine, refresh."""
        if form == "calibrated" and calibration is None:
            raise ValueError("REGGuidance: form 'calibrated' needs a table, from REG Calibrate or a file")
        chosen = Settings(form=form, calibration=calibration if form == "calibrated" else None, **settings)
        return io.NodeOutput(*rectified_model(model, chosen, (start_percent, end_percent)))
