"""REGGuidance: rectified guidance for whatever samples a MODEL."""

import math

from comfy_api.latest import io

from ..reg_core.rectify import ENGINES, FORMS, MEMORY, Settings
from .hook import rectified_model
from .schema import Calibration, Trace, advanced, with_aliases


class REGGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGGuidance",
            display_name="REG Guidance (Rectified Gradient)",
            category="advanced/guidance",
            description="Rectifies the guidance of any sampler that runs this model: CFG's difference passes through the denoiser's "
            "Jacobian, as the chain rule asks (REG, ICML 2025). Guides less at equal cfg, most of all at high noise: raise cfg to compare.",
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model. The original stays untouched; sample with the output."),
                io.Combo.Input(
                    "form",
                    options=list(FORMS),
                    default="row_sum",
                    tooltip="row_sum: the paper's formula, an elementwise factor. scalar: one factor per image, keeps CFG's direction. "
                    "product: the full chain rule. schedule: a factor of the noise level alone, free. calibrated: the same from a measured "
                    "table (connect one), free. off: plain guidance.",
                ),
                advanced(
                    io.Combo.Input(
                        "engine",
                        options=list(ENGINES),
                        default="auto",
                        tooltip="How the Jacobian product is computed. auto = finite_difference: one more model row, any model and memory. "
                        "forward: exact J v, slower. reverse: exact J^T v as in the paper, needs memory for a backward pass.",
                    )
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How far to go from plain guidance (0) to REG (1). Beyond 1 over-corrects. No unit.",
                ),
                advanced(
                    io.Float.Input(
                        "start_percent",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.001,
                        tooltip="Where rectification begins, as a fraction of the model's schedule: 0 = pure noise, 1 = clean. Plain guidance outside.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "end_percent",
                        default=1.0,
                        min=0.0,
                        max=1.0,
                        step=0.001,
                        tooltip="Where rectification ends, as a fraction of the model's schedule: 0 = pure noise, 1 = clean.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "refresh",
                        default=4,
                        min=0,
                        max=100,
                        tooltip="Compute the correction at every k-th model call and carry it along in between. 1 = always fresh, costs most; "
                        "0 = automatic: as often as the correction moves.",
                    )
                ),
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
                    io.Float.Input(
                        "skip_below",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        tooltip="Run without guidance, at half the cost of a step, where the effect of |Rg| on the image is below this share of the "
                        "strongest |g| of the run so far: in noise, and where guidance fades at the end. 0 = never; 0.05 is cheaper than CFG. No unit.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "memory",
                        options=list(MEMORY),
                        default="auto",
                        optional=True,
                        tooltip="What engine 'reverse' keeps for its backward pass. resident: everything, fastest. checkpoint: the borders of "
                        "blocks, about a forward pass slower. auto: what fits.",
                    )
                ),
                Calibration.Input(
                    "calibration",
                    optional=True,
                    tooltip="The table of form 'calibrated', from REG Calibrate or REG Load Calibration. Other forms leave it unused.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with rectified guidance."),
                Trace.Output(display_name="trace", tooltip="What REG did in each model call of the runs sampled with this model."),
            ],
        )
        return with_aliases(schema, "REG", "rectified gradient guidance", "rectified cfg", "guidance")

    @classmethod
    def execute(
        cls, model, form, engine, strength, start_percent, end_percent, refresh, data_std, skip_below=0.0, memory="auto", calibration=None
    ) -> io.NodeOutput:
        for name, value in (("start_percent", start_percent), ("end_percent", end_percent)):
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"REGGuidance: {name} must be between 0 and 1, got {value}")
        if start_percent > end_percent:
            raise ValueError(f"REGGuidance: start_percent {start_percent} is after end_percent {end_percent}")
        if form == "calibrated" and calibration is None:
            raise ValueError("REGGuidance: form 'calibrated' needs a table: connect REG Calibrate or REG Load Calibration")
        settings = Settings(
            form=form,
            engine=engine,
            strength=strength,
            refresh=refresh,
            data_std=data_std,
            skip_below=skip_below,
            memory=memory,
            calibration=calibration if form == "calibrated" else None,
        )
        return io.NodeOutput(*rectified_model(model, settings, start_percent, end_percent))
