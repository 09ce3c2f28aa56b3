"""Cases of features.py: guidance and model patches of ComfyUI's core."""

import functools

import comfy.samplers

from . import tiny, tiny_av
from .features import Missing, Setup, case

KIND = "neighbour"
UNET = [
    "RescaleCFG", "APG", "TCFG", "CFGZeroStar", "CFGNorm", "Mahiro", "FreSca", "PerturbedAttentionGuidance", "SelfAttentionGuidance",
    "HyperTile", "FreeU", "FreeU_V2", "TomePatchModel", "RenormCFG", "NAGuidance", "CFGOverride",
]  # fmt: skip
DIT = ["SkipLayerGuidanceSD3", "SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple"]
CACHES = ["EasyCache", "LazyCache"]
FURTHER = ["Epsilon Scaling", "TemporalScoreRescaling", "VideoLinearCFGGuidance", "VideoTriangleCFGGuidance", "CFGNorm before cfg"]  # on a UNet too
AUDIO_VIDEO = ["LTXVSpatioTemporalGuidance", "LTXVModalityGuidance"]
FRAMES = {"VideoLinearCFGGuidance": 3, "VideoTriangleCFGGuidance": 3}  # they are the batch
VALUES = {
    "SkipLayerGuidanceSD3": {"layers": "0", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiT": {"double_layers": "0", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "0", "single_layers": "", "start_percent": 0.0},
    "CFGOverride": {"cfg": 2.5, "start_percent": 0.0, "end_percent": 0.6}, "RescaleCFG": {"multiplier": 0.7},
    "APG": {"eta": 0.5, "norm_threshold": 5.0, "momentum": -0.5}, "HyperTile": {"tile_size": 32},
    "EasyCache": {"reuse_threshold": 1e6, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    "LazyCache": {"reuse_threshold": 0.5, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    "Epsilon Scaling": {"scaling_factor": 1.05}, "TemporalScoreRescaling": {"tsr_k": 0.8, "tsr_sigma": 1.0}, "CFGNorm": {"pre_cfg": False},
    "LTXVSpatioTemporalGuidance": {"blocks": "0"},
}  # fmt: skip


def defaults(node):
    """A node's widgets at their defaults, read from its own declaration."""
    values, types = {}, node.INPUT_TYPES()
    for name, spec in (types.get("required", {}) | types.get("optional", {})).items():
        options = spec[1] if len(spec) > 1 else {}
        if spec[0] == "MODEL":
            continue
        choices = spec[0] if isinstance(spec[0], list) else options.get("options")
        values[name] = options.get("default", choices[0] if choices else None)
    return values


def patch(nodes, name, model, **values):
    """`model` through the core node `name`."""
    if name == "CFGNorm before cfg":
        name, values = "CFGNorm", values | {"pre_cfg": True}
    if name not in nodes or not values.keys() <= defaults(nodes[name]).keys():
        raise Missing
    node = nodes[name]
    values = {k: v for k, v in (defaults(node) | VALUES.get(name, {}) | values).items() if k in defaults(node)}
    if hasattr(node, "PREPARE_CLASS_CLONE"):
        result = node.execute(model=model, **values)
        return getattr(result, "result", result)[0]
    return getattr(node(), node.FUNCTION)(model=model, **values)[0]


def _neighbour(name, arch, w):
    t = tiny.build(arch)
    values = dict(steps=8 if name in CACHES else 4, batch=FRAMES.get(name, 1))
    loose = {"transparent": 1e-5} if name == "CFGZeroStar" else {}  # it divides by the size of the prediction
    return Setup(t, patch(w.nodes, name, t.patcher), values=values, flow=arch != "sd15", **loose)


def _audio_video(name, w):
    if not tiny_av.known():
        raise Missing
    t = tiny_av.build()
    return Setup(t, patch(w.nodes, name, t.patcher), flow=True, draw=functools.partial(tiny_av.draw, functools.partial(_guider, t)))


def _guider(t, model):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(t.positive, t.negative)
    guider.set_cfg(4.0)
    return guider


@case(KIND, "PerpNeg (deprecated)")
def perp_neg(w):
    """Its cfg function asks the network for a third prompt."""
    t = tiny.build("sd15")
    return Setup(t, patch(w.nodes, "PerpNeg", t.patcher, empty_conditioning=t.conditioning("")), values=dict(steps=4))


for _name in UNET + DIT + CACHES + FURTHER:  # EasyCache lives in the network's own wrappers, which SD3's network does not have
    case(KIND, _name)(functools.partial(_neighbour, _name, "sd3" if _name in DIT else "flux" if _name in CACHES else "sd15"))
for _name in AUDIO_VIDEO:
    case(KIND, _name)(functools.partial(_audio_video, _name))
