"""Cases of features.py: guidance and model patches of ComfyUI's core."""

import functools

from . import tiny
from .features import Missing, Setup, case

KIND = "neighbour"
UNET = [
    "RescaleCFG", "APG", "TCFG", "CFGZeroStar", "CFGNorm", "Mahiro", "FreSca", "PerturbedAttentionGuidance", "SelfAttentionGuidance",
    "HyperTile", "FreeU", "FreeU_V2", "TomePatchModel", "RenormCFG", "NAGuidance", "CFGOverride",
]  # fmt: skip
DIT = ["SkipLayerGuidanceSD3", "SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple"]
CACHES = ["EasyCache", "LazyCache"]
VALUES = {
    "SkipLayerGuidanceSD3": {"layers": "0", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiT": {"double_layers": "0", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "0", "single_layers": "", "start_percent": 0.0},
    "CFGOverride": {"cfg": 2.5, "start_percent": 0.0, "end_percent": 0.6}, "RescaleCFG": {"multiplier": 0.7},
    "APG": {"eta": 0.5, "norm_threshold": 5.0, "momentum": -0.5}, "HyperTile": {"tile_size": 32},
    "EasyCache": {"reuse_threshold": 1e6, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    "LazyCache": {"reuse_threshold": 0.5, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
}  # fmt: skip


def defaults(node):
    """A node's widgets at their defaults, read from its own declaration."""
    values = {}
    for name, spec in node.INPUT_TYPES().get("required", {}).items():
        options = spec[1] if len(spec) > 1 else {}
        if spec[0] == "MODEL":
            continue
        choices = spec[0] if isinstance(spec[0], list) else options.get("options")
        values[name] = options.get("default", choices[0] if choices else None)
    return values


def patch(nodes, name, model, **values):
    """`model` through the core node `name`."""
    if name not in nodes:
        raise Missing
    node = nodes[name]
    values = {k: v for k, v in (defaults(node) | VALUES.get(name, {}) | values).items() if k in defaults(node)}
    if hasattr(node, "PREPARE_CLASS_CLONE"):
        result = node.execute(model=model, **values)
        return getattr(result, "result", result)[0]
    return getattr(node(), node.FUNCTION)(model=model, **values)[0]


def _neighbour(name, arch, w):
    t = tiny.build(arch)
    return Setup(t, patch(w.nodes, name, t.patcher), values=dict(steps=8 if name in CACHES else 4), flow=arch != "sd15")


for _name in UNET + DIT + CACHES:  # EasyCache lives in the network's own wrappers, which SD3's network does not have
    case(KIND, _name)(functools.partial(_neighbour, _name, "sd15" if _name in UNET else "sd3" if _name in DIT else "flux"))
