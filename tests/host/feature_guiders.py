"""Cases of features.py: who asks the model. REG acts on every guider whose guidance goes through ComfyUI's prediction calls."""

import functools

import comfy.samplers

from . import tiny, tiny_av
from .features import Missing, Setup, case

KIND = "guider"
SILENT = dict(active=False)


def _case(name, **expected):
    """Registers `make(w, t, model) -> guider`, sampled by the guider itself."""

    def register(make):
        def build(w):
            t = tiny.build("sd15")
            return Setup(t, draw=functools.partial(_draw, t, functools.partial(make, w, t)), **expected)

        case(KIND, name)(build)
        return make

    return register


def _draw(t, make, model):
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    return make(model).sample(t.noise(), t.empty_latent()["samples"], comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)


def _node(w, name, **inputs):
    """A guider through ComfyUI's node, with the inputs that this version of it knows."""
    if name not in w.nodes:
        raise Missing
    node = w.nodes[name]
    known = {k for part in node.INPUT_TYPES().values() if isinstance(part, dict) for k in part}
    inputs = {k: v for k, v in inputs.items() if k in known}
    result = node.execute(**inputs) if hasattr(node, "PREPARE_CLASS_CLONE") else getattr(node(), node.FUNCTION)(**inputs)
    return getattr(result, "result", result)[0]


@_case("CFGGuider")
def cfg_guider(w, t, model):
    return _node(w, "CFGGuider", model=model, positive=t.positive, negative=t.negative, cfg=4.0)


@_case("BasicGuider", why="cfg 1: no guidance to rectify", **SILENT)
def basic_guider(w, t, model):
    return _node(w, "BasicGuider", model=model, conditioning=t.positive)


def _dual_cfg(style, w, t, model):
    return _node(
        w, "DualCFGGuider", model=model, cond1=t.positive, cond2=t.conditioning("middle"), negative=t.negative,
        cfg_conds=4.0, cfg_cond2_negative=2.0, style=style,
    )  # fmt: skip


_case("DualCFGGuider")(functools.partial(_dual_cfg, "regular"))
_case("DualCFGGuider nested")(functools.partial(_dual_cfg, "nested"))


@_case("PerpNegGuider")
def perp_neg_guider(w, t, model):
    return _node(w, "PerpNegGuider", model=model, positive=t.positive, negative=t.negative, empty_conditioning=t.conditioning(""), cfg=4.0, neg_scale=1.0)


@_case("DualModelGuider")
def dual_model_guider(w, t, model):
    return _node(w, "DualModelGuider", model=model, model_negative=tiny.build("sd15", seed=1).patcher, positive=t.positive, negative=t.negative, cfg=4.0)


def ltxv_dual_cfg_guider(w, t, model):
    return _node(w, "LTXVDualCFGGuider", model=model, positive=t.positive, negative=t.negative, video_cfg=3.0, audio_cfg=7.0)


@case(KIND, "LTXVDualCFGGuider")
def audio_video(w):
    if not tiny_av.known():
        raise Missing
    t = tiny_av.build()
    return Setup(t, flow=True, draw=functools.partial(tiny_av.draw, functools.partial(ltxv_dual_cfg_guider, w, t)))


@_case("REGAutoguidance")
def autoguidance(w, t, model):
    return w.pack.nodes["REGAutoguidance"].execute(model, tiny.build("sd15", seed=1).patcher, t.positive, 3.0).result[0]
