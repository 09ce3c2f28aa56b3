"""Schema helpers that hold on every supported ComfyUI, and the pack's own sockets."""

import json
from pathlib import Path

from comfy_api.latest import io

Trace = io.Custom("REG_TRACE")
Reward = io.Custom("REG_REWARD")
Calibration = io.Custom("REG_CALIBRATION")
GUIDANCE = "advanced/guidance"
WORDS = Path(__file__).parents[1] / "locales" / "en" / "nodeDefs.json"
ENGLISH = json.loads(WORDS.read_text(encoding="utf-8"))


def described(schema, *aliases):
    """The schema with its English words (locales/en), and with search words on hosts that have them."""
    words = ENGLISH.get(schema.node_id)
    if words is None:
        raise KeyError(f"locales/en/nodeDefs.json has no words for {schema.node_id}")
    schema.display_name, schema.description = words["display_name"], words["description"]
    for given in schema.inputs:
        given.tooltip = words["inputs"][given.id]["tooltip"]
    for given, texts in zip(schema.outputs, words["outputs"].values(), strict=True):
        given.display_name, given.tooltip = texts["name"], texts["tooltip"]
    if hasattr(schema, "search_aliases"):
        schema.search_aliases = list(aliases)
    return schema


def objection(check, *values):
    """True, or what `check(*values)` objects to, for ComfyUI to say before it runs anything.

    A value that comes through a link is None there: it is checked when the node runs.
    """
    if None not in values:
        try:
            check(*values)
        except ValueError as error:
            return str(error)
    return True


def number(name, default, low, high, step, **more):
    return io.Float.Input(name, default=default, min=low, max=high, step=step, **more)


def whole(name, default, low, high):
    return io.Int.Input(name, default=default, min=low, max=high)


def choice(name, options, default=None, **more):
    """A combo; its default is the first option where none is given."""
    options = list(options)
    return io.Combo.Input(name, options=options, default=default or options[0], **more)


def advanced(*widgets):
    """Inputs folded under "advanced" on hosts that can; older ones show them."""
    for widget in widgets:
        if hasattr(widget, "advanced"):
            widget.advanced = True
        elif isinstance(getattr(widget, "extra_dict", None), dict):
            widget.extra_dict["advanced"] = True
    return widgets


def percents():
    """Where a node acts, as fractions of the model's schedule."""
    bounds = {"start_percent": 0.0, "end_percent": 1.0}
    return advanced(*(number(name, default, 0.0, 1.0, 0.001) for name, default in bounds.items()))
