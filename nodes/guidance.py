"""REGGuidance: rectified guidance for whatever samples a MODEL."""

from functools import partial

from comfy_api.latest import io

from ..reg_core.checks import one_of
from ..reg_core.forms import FORMS
from ..reg_core.settings import ENGINES, Settings
from .checked import checked
from .hooks.rectified import rectified_model
from .host.noise_levels import check_percents
from .host.page import show_on_node
from .schema import (
    GUIDANCE,
    Calibration,
    Trace,
    advanced,
    choice,
    described,
    number,
    objection,
    percents,
    whole,
)

NO_TABLE = "form 'calibrated' needs a table, from REG Calibrate or a file"


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
            hidden=[io.Hidden.unique_id],
        )
        return described(schema, "REG", "rectified gradient guidance", "rectified cfg", "guidance")

    @classmethod
    def validate_inputs(cls, form=None, start_percent=None, end_percent=None, calibration=False):
        if form == "calibrated" and calibration is False:  # None where a table is connected
            return NO_TABLE
        refused = [
            objection(one_of, "form", form, FORMS),
            objection(check_percents, start_percent, end_percent),
        ]
        return next((said for said in refused if said is not True), True)

    @classmethod
    @checked
    def execute(cls, model, form, start_percent, end_percent, calibration=None, **settings) -> io.NodeOutput:
        """`settings`: gain, strength, skip_below, data_std, engine, refresh."""
        if form == "calibrated" and calibration is None:
            raise ValueError(f"REGGuidance: {NO_TABLE}")
        chosen = Settings(form=form, calibration=calibration if form == "calibrated" else None, **settings)
        tell = partial(show_on_node, cls.hidden.unique_id if cls.hidden else None)
        if not chosen.enabled:
            tell("off: plain guidance")
        return io.NodeOutput(*rectified_model(model, chosen, (start_percent, end_percent), tell=tell))
