"""REGAutoguidance, REGReferenceModel: guidance by the difference of two models. REGWeakModel: a second one from the first."""

import math

from comfy_api.latest import io

from . import host
from .damped import damped_model
from .reference import with_reference
from .schema import with_aliases


class REGAutoguidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGAutoguidance",
            display_name="REG Autoguidance Guider",
            category="sampling/custom_sampling/guiders",
            description="Guides a model by its difference to a worse one (smaller or less trained) on the same prompt. "
            "Rectified when the model comes through REG Guidance. Both models stay loaded.",
            inputs=[
                io.Model.Input("model", tooltip="The good model; put REG Guidance in front to rectify."),
                io.Model.Input("weak_model", tooltip="A worse model of the same latents: smaller, less trained, or from REG Weak Model."),
                io.Conditioning.Input("positive", tooltip="The prompt, for both models."),
                io.Float.Input("scale", default=2.0, min=0.0, max=100.0, step=0.05, tooltip="Autoguidance scale, like cfg: 1 = none."),
                io.Conditioning.Input("negative", optional=True, tooltip="Adds CFG against this prompt, on the good model."),
                io.Float.Input("cfg", default=1.0, min=0.0, max=100.0, step=0.1, optional=True, tooltip="CFG scale against the negative prompt. 1 = none."),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )
        return with_aliases(schema, "autoguidance", "bad version of itself", "dual model guider")

    @classmethod
    def execute(cls, model, weak_model, positive, scale, negative=None, cfg=1.0) -> io.NodeOutput:
        for name, value in (("scale", scale), ("cfg", cfg)):
            if not math.isfinite(value):
                raise ValueError(f"REGAutoguidance: {name} must be finite, got {value}")
        weight, weight_negative = scale - 1, cfg - 1 if negative is not None else 0.0
        total = weight + weight_negative
        if abs(total) < 1e-6 and (abs(weight) > 1e-6 or abs(weight_negative) > 1e-6):
            raise ValueError(f"REGAutoguidance: scale {scale} and cfg {cfg} cancel each other; change one")
        patched = with_reference(model, weak_model, weight, weight_negative)
        return io.NodeOutput(host.cfg_guider(patched, positive, positive if negative is None else negative, 1 + total))


class REGReferenceModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGReferenceModel",
            display_name="REG Reference Model",
            category="advanced/guidance",
            description="Runs the negative prompt on another model: guidance is the difference of the two. For KSampler: give both the same "
            "prompt for autoguidance, or a small unconditional model as reference, as EDM2 does CFG.",
            inputs=[
                io.Model.Input("model", tooltip="The model that is sampled."),
                io.Model.Input("reference_model", tooltip="The model for the negative prompt; it must share the latents. Stays loaded during sampling."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For any sampler; cfg is the scale of the difference.")],
        )
        return with_aliases(schema, "autoguidance", "negative model", "edm2 guidance network")

    @classmethod
    def execute(cls, model, reference_model) -> io.NodeOutput:
        return io.NodeOutput(with_reference(model, reference_model))


class REGWeakModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGWeakModel",
            display_name="REG Weak Model",
            category="advanced/guidance",
            description="A worse version of a model, by damping the layers of its blocks: a reference for autoguidance without a second "
            "file and without memory.",
            inputs=[
                io.Model.Input("model", tooltip="The model to weaken. It stays as it is, and its weights are shared."),
                io.Float.Input(
                    "damping", default=0.2, min=0.0, max=0.9, step=0.01, tooltip="Fraction taken off the output of every block layer. 0 = the same model."
                ),
            ],
            outputs=[io.Model.Output(display_name="weak_model", tooltip="For REG Autoguidance or REG Reference Model.")],
        )
        return with_aliases(schema, "bad version of itself", "weaken")

    @classmethod
    def execute(cls, model, damping) -> io.NodeOutput:
        if not 0 <= damping <= 0.9:
            raise ValueError(f"REGWeakModel: damping must be between 0 and 0.9, got {damping}")
        return io.NodeOutput(damped_model(model, damping))
