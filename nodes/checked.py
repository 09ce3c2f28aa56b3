"""Inputs as they reach a node: the host does not check words, links or what stands in place of an object."""

import functools
import inspect

import torch
from comfy_api.latest import io

from ..reg_core.calibration import Calibration
from ..reg_core.checks import number, one_of, shortened, whole
from ..reg_core.trace import Trace


def checked(execute):
    """Around a node's `execute`: every input is of its kind, in its range or among its choices.

    Raises ValueError with the node, the input, what was wanted, and the value in short.
    """
    names = [*inspect.signature(execute).parameters][1:]

    @functools.wraps(execute)
    def call(cls, *args, **kwargs):
        values = dict(zip(names, args, strict=False)) | kwargs
        schema = cls.define_schema()
        for given in schema.inputs:
            value, name = values.get(given.id), f"{schema.node_id}: {given.id}"
            if value is None and (given.optional or given.id not in values):
                values.pop(given.id, None)  # the default of `execute`
                continue
            if not schema.is_input_list:
                values[given.id] = _checked(name, given, value)
            elif not isinstance(value, (list, tuple)) or not value:
                raise ValueError(f"{name} must be a list, got {shortened(value)}")
            else:
                values[given.id] = [_checked(name, given, one) for one in value]
        return execute(cls, **values)

    return call


def _checked(name, given, value):
    """The value; a whole number as int."""
    if isinstance(given, io.Combo.Input):
        one_of(name, value, given.options)
    elif isinstance(given, io.Float.Input):
        return number(name, value, given.min, given.max)
    elif isinstance(given, io.Int.Input):
        return whole(name, value, given.min, given.max)
    else:
        want, fits = KINDS[str(given.io_type)]
        if not fits(value):
            raise ValueError(f"{name} must be {want}, got {shortened(value)}")
    return value


def _is_latent(value) -> bool:
    samples = value.get("samples") if isinstance(value, dict) else None
    return isinstance(samples, torch.Tensor) or getattr(samples, "is_nested", False)


def _is_conditioning(value) -> bool:
    entries = value if isinstance(value, (list, tuple)) else [None]
    return all(isinstance(e, (list, tuple)) and len(e) > 1 and isinstance(e[1], dict) for e in entries)


KINDS = {
    "MODEL": ("a MODEL from a loader", lambda value: hasattr(value, "get_model_object")),
    "CONDITIONING": ("a CONDITIONING, a list of tensors with options", _is_conditioning),
    "LATENT": ("a LATENT, a table with samples", _is_latent),
    "SIGMAS": ("SIGMAS, a tensor", lambda value: isinstance(value, torch.Tensor)),
    "IMAGE": (
        "an IMAGE, a tensor [B, H, W, C]",
        lambda value: isinstance(value, torch.Tensor) and value.ndim == 4,
    ),
    "VAE": ("a VAE from a loader", lambda value: hasattr(value, "first_stage_model")),
    "CLIP_VISION": ("a CLIP_VISION from a loader", lambda value: hasattr(value, "encode_image")),
    "CURVE": ("a CURVE", lambda value: callable(getattr(value, "interp", None))),
    "STRING": ("a text", lambda value: isinstance(value, str)),
    "BOOLEAN": ("true or false", lambda value: isinstance(value, bool)),
    "REG_TRACE": ("a trace of REG Guidance", lambda value: isinstance(value, Trace)),
    "REG_CALIBRATION": ("a table of REG Calibrate", lambda value: isinstance(value, Calibration)),
    "REG_REWARD": (
        "a reward, with log_prob(x0)",
        lambda value: callable(getattr(value, "log_prob", None)),
    ),
}
