"""Schema helpers that hold on every supported ComfyUI, and the pack's own sockets."""

from comfy_api.latest import io

Trace = io.Custom("REG_TRACE")
Reward = io.Custom("REG_REWARD")
Calibration = io.Custom("REG_CALIBRATION")


def advanced(widget):
    """Fold an input under "advanced" on hosts that can; older ones show it."""
    if hasattr(widget, "advanced"):
        widget.advanced = True
    elif isinstance(getattr(widget, "extra_dict", None), dict):
        widget.extra_dict["advanced"] = True
    return widget


def with_aliases(schema, *aliases):
    """Search words for a node, on hosts whose schema has them."""
    if hasattr(schema, "search_aliases"):
        schema.search_aliases = list(aliases)
    return schema
