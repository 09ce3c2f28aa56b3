"""The authors' variables as axes of REGSchedule*: the cfg of a real run, as another pack sees it, against the authors' formulas in their own variables.

And ComfyUI's own curve, on hosts that have one.
"""

import io
import math

import comfy.samplers
import pytest
import torch
from PIL import Image

from . import tiny

CFG = 5.0
W0, W1 = 1.5, 6.0  # the authors' weights at both ends


@pytest.fixture(scope="module")
def sd15():
    return tiny.build("sd15")


def scheduled(pack, name, model, **values):
    return pack.nodes[name].execute(model, **values).result[0]


def run(t, model, sigmas, cfg, positive=None, negative=None, latent=None):
    """[(sigma, cfg)] of every model call over these noise levels, by a CFGGuider."""
    seen = []
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: (seen.append((args["sigma"].max().item(), float(args["cond_scale"]))), args["denoised"])[1])
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or t.positive, negative or t.negative)
    guider.set_cfg(cfg)
    latent = t.empty_latent()["samples"] if latent is None else latent
    guider.sample(torch.randn_like(latent), latent, comfy.samplers.sampler_object("heun"), sigmas, disable_pbar=True)
    return seen


def cosine(p, s):
    return 0.5 - 0.5 * math.cos(math.pi * p**s)


@pytest.mark.parametrize("shape", ["linear", "cosine", "interval"])
def test_edm2_on_an_edm_model(host, pack, shape):
    """Heun over Karras levels from 80 to 0.002, as EDM2 samples, though the model itself reaches elsewhere."""
    model = pack.nodes["REGDemoModel"].execute("digits").result[0]
    positive, negative = (pack.nodes["REGDemoPrompt"].execute(digit).result[0] for digit in ("3", "no prompt"))
    sigmas = host.k_diffusion_sampling.get_sigmas_karras(6, 0.002, 80.0)
    values = {
        "linear": dict(start=W0 / (CFG - 1), end=W1 / (CFG - 1), axis="edm2"),
        "cosine": dict(power=1.5, axis="edm2"),
        "interval": dict(start=sigmas[2].item(), end=sigmas[4].item(), axis="sigma"),
    }[shape]
    latent = pack.nodes["REGDemoLatent"].execute(1).result[0]["samples"]
    patched = scheduled(pack, f"REGSchedule{shape.capitalize()}", model, **values)
    seen = run(None, patched, sigmas, CFG, positive, negative, latent)
    assert len(seen) == 11
    for sigma, cfg in seen:
        weight = {
            "linear": W0 + (W0 - W1) / (80 - 0.002) * (sigma - 80),
            "cosine": 4 * cosine(max(0.0, 1 - sigma / 80), 1.5),
            "interval": 4.0 if sigmas[4] <= sigma <= sigmas[2] else 0.0,
        }[shape]
        assert cfg == pytest.approx(1 + weight, abs=1e-4), sigma


@pytest.mark.parametrize("axis", ["dit", "t2i"])
@pytest.mark.parametrize("steps", [4, 9])
def test_dit_and_t2i_on_training_timesteps(host, pack, sd15, axis, steps):
    """t is read from ComfyUI's own class at the levels of a spaced run, as DDPM samplers of the authors have them."""
    sampling = sd15.patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)

    def time(sigma):
        return int(sampling.timestep(torch.tensor([sigma])).item())

    first, last = time(sigmas[0]), time(sigmas[-2])
    assert first > last
    base = CFG - 1
    models = {
        "linear": scheduled(pack, "REGScheduleLinear", sd15.patcher, start=W0 / base, end=W1 / base, axis=axis),
        "cosine": scheduled(pack, "REGScheduleCosine", sd15.patcher, power=2.0, axis=axis),
    }
    for shape, model in models.items():
        seen = run(sd15, model, sigmas, CFG)
        assert len(seen) > steps
        for sigma, cfg in seen:
            t = time(sigma)
            if axis == "dit":
                weight = {"linear": t * (W1 - W0) / (0 - 1000) + W0, "cosine": base * cosine(1 - t / 1000, 2.0)}[shape]
            else:
                progress = (t - first) / (last - first)
                weight = {"linear": W0 + progress * (W1 - W0), "cosine": base * cosine(progress, 2.0)}[shape]
            assert cfg == pytest.approx(1 + weight, abs=1e-3), (shape, t)


def test_dit_interval_is_closed_on_training_timesteps(host, pack, sd15):
    sampling = sd15.patcher.get_model_object("model_sampling")
    inside = [502, 501, 206, 205]
    sigmas = torch.stack([sampling.sigma(torch.tensor(float(t))) for t in (900, 503, *inside, 204, 10)] + [torch.tensor(0.0)])
    seen = run(sd15, scheduled(pack, "REGScheduleInterval", sd15.patcher, start=502.0, end=205.0, axis="dit"), sigmas, CFG)
    guided = {int(sampling.timestep(torch.tensor([sigma])).item()) for sigma, cfg in seen if cfg == CFG}
    assert guided == set(inside) and {cfg for _, cfg in seen} == {1.0, CFG}


def test_axes_of_each_node(pack):
    axes = {name: node.INPUT_TYPES()["required"]["axis"][1]["options"] for name, node in pack.nodes.items() if name.startswith("REGSchedule")}
    common = ["step", "timestep", "sigma"]
    assert {name: options for name, options in axes.items() if name != "REGSchedulePlot"} == {
        "REGScheduleLinear": [*common, "edm2", "dit", "t2i"], "REGScheduleCosine": [*common, "edm2", "dit", "t2i"],
        "REGScheduleInterval": [*common, "dit"], "REGScheduleCurve": common,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("REGScheduleLinear", dict(start=0.0, end=2.0, axis="edm3"), "edm3"),
        ("REGScheduleCosine", dict(power=-1.0, axis="dit"), "-1.0"),
        ("REGScheduleInterval", dict(start=0.28, end=5.0, axis="sigma"), "over sigma wants start >= end >= 0, since noise falls, got start=0.28, end=5.0"),
        ("REGScheduleInterval", dict(start=100, end=300, axis="dit"), "over dit wants start >= end >= 0, since noise falls, got start=100.0, end=300.0"),
        ("REGScheduleInterval", dict(start=0.8, end=0.2, axis="step"), "over step wants 0 <= start <= end <= 1, got start=0.8, end=0.2"),
    ],
)  # fmt: skip
def test_bad_values_are_named(pack, sd15, name, values, match):
    with pytest.raises(ValueError, match=match):
        scheduled(pack, name, sd15.patcher, **values)


# ComfyUI's own curve


def curve_node(host, all_nodes):
    if not hasattr(host.io, "Curve"):
        pytest.skip("this ComfyUI has no curves")
    return all_nodes["CurveEditor"]


def test_the_curve_is_a_socket_where_the_host_has_curves_and_absent_elsewhere(host, pack):
    optional = pack.nodes["REGScheduleCurve"].INPUT_TYPES().get("optional", {})
    assert ("curve" in optional) == hasattr(host.io, "Curve")
    if optional:
        assert optional["curve"][0] == "CURVE"
        assert optional["curve"][1]["forceInput"] is True, "a widget would send its default and always override the text"


@pytest.mark.parametrize("interpolation", ["linear", "monotone_cubic"])
def test_a_drawn_curve_takes_the_place_of_the_points(host, pack, all_nodes, sd15, interpolation):
    """Straight lines against the text of the same points; smooth ones against Hermite's formula in the middle of two points."""
    editor = curve_node(host, all_nodes)
    points = [[0.0, 0.0], [0.5, 1.0], [1.0, 0.25]]
    drawn = editor.execute({"points": points, "interpolation": interpolation}).result[0]
    sigmas = comfy.samplers.calculate_sigmas(sd15.patcher.get_model_object("model_sampling"), "normal", 5)
    text = "0:0, 0.5:1, 1:0.25"
    by_text = run(sd15, scheduled(pack, "REGScheduleCurve", sd15.patcher, points=text, axis="step"), sigmas, CFG)
    by_curve = run(sd15, scheduled(pack, "REGScheduleCurve", sd15.patcher, points="0:7", axis="step", curve=drawn), sigmas, CFG)
    weights = [dict((round(s, 4), (c - 1) / 4) for s, c in seen) for seen in (by_text, by_curve)]
    straight, smooth = (list(w.values()) for w in weights)
    assert straight == pytest.approx([0, 0.5, 1, 0.625, 0.25])
    if interpolation == "linear":
        assert smooth == pytest.approx(straight)
    else:  # Hermite with slopes 2, 0, -1.5: halfway is the mean plus a quarter of half the slopes' difference
        assert smooth == pytest.approx([0, 0.5 + 0.5 * (2 - 0) / 8, 1, 0.625 + 0.5 * (0 + 1.5) / 8, 0.25])


def test_a_curve_without_a_number_is_named(host, pack, all_nodes, sd15):
    drawn = curve_node(host, all_nodes).execute({"points": [[0, math.nan]]}).result[0]
    model = scheduled(pack, "REGScheduleCurve", sd15.patcher, points="", axis="step", curve=drawn)
    with pytest.raises(ValueError, match="multiplier must be finite, got nan"):
        tiny.sample(sd15, model)


def test_the_curve_editor_reaches_a_real_run_on_a_server(host, pack, all_nodes, server):
    """The editor drawn at 0 everywhere is cfg 1: the same latent as cfg 1, by the same server."""
    curve_node(host, all_nodes)

    def prompt(**sampler):
        values = dict(
            model=["m", 0], seed=5, steps=2, cfg=4.0, sampler_name="euler", scheduler="normal", positive=["p", 0],
            negative=["n", 0], latent_image=["l", 0], denoise=1.0,
        )  # fmt: skip
        return {
            "m": {"class_type": "REGDemoModel", "inputs": {"variant": "digits"}},
            "p": {"class_type": "REGDemoPrompt", "inputs": {"digit": "3"}},
            "n": {"class_type": "REGDemoPrompt", "inputs": {"digit": "no prompt"}},
            "l": {"class_type": "REGDemoLatent", "inputs": {"batch_size": 1}},
            "c": {"class_type": "CurveEditor", "inputs": {"curve": {"points": [[0.0, 0.0], [1.0, 0.0]], "interpolation": "linear"}}},
            "s": {"class_type": "REGScheduleCurve", "inputs": {"model": ["m", 0], "points": "0:1", "axis": "step", "curve": ["c", 0]}},
            "k": {"class_type": "KSampler", "inputs": values | sampler},
            "d": {"class_type": "REGDemoDecode", "inputs": {"latent": ["k", 0], "scale": 8, "columns": 0}},
            "o": {"class_type": "PreviewImage", "inputs": {"images": ["d", 0]}},
        }

    def pixels(**change):
        return Image.open(io.BytesIO(server.view(server.run(prompt(**change), timeout=120).images("o")[0]))).tobytes()

    assert pixels(model=["s", 0]) == pixels(cfg=1.0) != pixels()
