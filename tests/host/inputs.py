"""Inputs that every node of the pack takes, made in this process: the digits model, its prompts and latents."""

from types import SimpleNamespace

import torch


def valid(pack, io) -> dict:
    """{node_id: inputs that its `execute` takes}; a node that has more than digits in it gets stand-ins."""
    core = pack.import_("reg_core")

    def result(name, **values):
        return pack.nodes[name].execute(**values).result[0]

    table = core.Calibration(torch.ones(1), 0.5 * torch.ones(1), torch.zeros(1), "scalar")
    sockets = {
        "MODEL": result("REGDemoModel", variant="digits_weak"),
        "CONDITIONING": result("REGDemoPrompt", digit="3"),
        "LATENT": result("REGDemoLatent", batch_size=1),
        "SIGMAS": torch.tensor([3.0, 1.0, 0.0]),
        "IMAGE": torch.zeros(1, 16, 16, 3),
        "VAE": SimpleNamespace(first_stage_model=None),
        "CLIP_VISION": SimpleNamespace(encode_image=lambda image: {"image_embeds": torch.ones(1, 4)}),
        "REG_TRACE": core.Trace(),
        "REG_CALIBRATION": table,
        "REG_REWARD": SimpleNamespace(log_prob=lambda x0: -x0.flatten(1).square().sum(1)),
    }
    others = {"REGCalibrate": {"steps": 2, "runs": 1, "filename_prefix": ""}, "REGGrid": {"labels": "a"}, "REGDemoLatent": {"batch_size": 2}}

    def inputs(schema):
        values = {}
        for given in schema.inputs:
            if given.optional and schema.node_id != "REGAutoguidance":
                continue
            value = sockets.get(str(given.io_type), getattr(given, "default", None))
            value = others.get(schema.node_id, {}).get(given.id, value)
            values[given.id] = [value] if schema.is_input_list else value
        return values

    schemas = [node.define_schema() for node in pack.nodes.values()]
    return {schema.node_id: inputs(schema) for schema in schemas if schema.node_id != "REGLoadCalibration"}
