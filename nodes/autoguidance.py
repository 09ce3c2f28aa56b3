"""REGAutoguidance, REGReferenceModel: guidance by the difference of two models. REGWeakModel makes one."""

import math

from comfy_api.latest import io

from .checked import checked
from .hooks.damped import damped_model
from .hooks.reference import with_reference
from .host.runs import cfg_guider
from .schema import GUIDANCE, described, number


class REGAutoguidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGAutoguidance",
            category="sampling/custom_sampling/guiders",
            inputs=[
                io.Model.Input("model"),
                io.Model.Input("weak_model"),
                io.Conditioning.Input("positive"),
                number("scale", 2.0, 0.0, 100.0, 0.05),
                io.Conditioning.Input("negative", optional=True),
                number("cfg", 1.0, 0.0, 100.0, 0.1, optional=True),
            ],
            outputs=[io.Guider.Output()],
        )
        return described(schema, "autoguidance", "bad version of itself", "dual model guider")

    @classmethod
    @checked
    def execute(cls, model, weak_model, positive, scale, negative=None, cfg=1.0) -> io.NodeOutput:
        if negative is None and not math.isclose(cfg, 1.0):
            raise ValueError(f"REGAutoguidance: cfg {cfg} needs a negative prompt: connect one")
        weights = scale - 1, cfg - 1
        total = sum(weights)
        if abs(total) < 1e-6 and max(map(abs, weights)) > 1e-6:
            raise ValueError(f"REGAutoguidance: scale {scale} and cfg {cfg} cancel each other; change one")
        patched = with_reference(model, weak_model, weights)
        other = positive if negative is None else negative
        return io.NodeOutput(cfg_guider(patched, positive, other, 1 + total))


class REGReferenceModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGReferenceModel",
            category=GUIDANCE,
            inputs=[io.Model.Input("model"), io.Model.Input("reference_model")],
            outputs=[io.Model.Output()],
        )
        return described(schema, "autoguidance", "negative model", "edm2 guidance network")

    @classmethod
    @checked
    def execute(cls, model, reference_model) -> io.NodeOutput:
        return io.NodeOutput(with_reference(model, reference_model))


class REGWeakModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="REGWeakModel",
            category=GUIDANCE,
            inputs=[io.Model.Input("model"), number("damping", 0.2, 0.0, 0.9, 0.01)],
            outputs=[io.Model.Output()],
        )
        return described(schema, "bad version of itself", "weaken")

    @classmethod
    @checked
    def execute(cls, model, damping) -> io.NodeOutput:
        return io.NodeOutput(damped_model(model, damping))
