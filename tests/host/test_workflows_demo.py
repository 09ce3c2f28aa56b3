"""The example workflows that need no download, as they are, on a real server. Oracle: the same pictures without ComfyUI, by
reg_core's Heun sampler on the demo model from the same noise, and a classifier.
"""

import re

import comfy.sample
import numpy
import pytest
import torch

from tools.workflows_demo import CFG, DATA_STD

from . import workflow
from .test_workflows import FIRST, FOLDER, api, nodes_of, pixels

STEPS, COUNT = 18, 20


def library(settings, cfg, model, weak=None, seed=7, denoiser=None, count=COUNT, data="fashion"):
    """(latents, trace): CFG, or autoguidance by `weak`, rectified; or any `denoiser`."""
    import reg_core
    from reg_core.demo_models.data import DATA_SETS

    data, labels = DATA_SETS[data], torch.arange(count) % 10
    if denoiser is None:
        reference = (lambda x, s: weak(x, s, labels)) if weak else model
        denoiser = reg_core.Guided(lambda x, s: model(x, s, labels), reference, cfg - 1, settings)
    noise = comfy.sample.prepare_noise(torch.zeros(count, *data.shape), seed)
    # ComfyUI starts eps-like models at sigma_max with noise of the full marginal standard deviation
    start = noise * (1 + data.sigma_max**2) ** 0.5
    return reg_core.sample_heun(denoiser, start, reg_core.karras_sigmas(STEPS, data.sigma_min, data.sigma_max)), getattr(denoiser, "trace", None)


@pytest.fixture(scope="module")
def models(pack):
    from reg_core.demo_models.loading import DENOISERS, load_model

    with torch.inference_mode(False):
        return {name: load_model(name) for name in DENOISERS}


def settings(prompt, key):
    """The Settings of a REGGuidance node of a prompt."""
    import reg_core

    values = {k: v for k, v in prompt[key]["inputs"].items() if k not in ("model", "start_percent", "end_percent", "calibration")}
    return reg_core.Settings(**values)


def plain():
    import reg_core

    return reg_core.Settings(form="off")


def sheets(prompt, result, server, side=28):
    """{branch: images [B, 1, side, side] in -1..1} of the saved sheets, read back from their pixels."""
    found = {}
    for save, node in nodes_of(prompt, "SaveImage").items():
        (image,) = result.images(save)
        decode = prompt[node["inputs"]["images"][0]]["inputs"]
        found[re.sub(r"^REG/[a-z]+_", "", node["inputs"]["filename_prefix"])] = cells(pixels(server.view(image)), side, decode["scale"], decode["columns"])
    return found


def cells(picture, side, scale, columns):
    """The images of a sheet: each has a frame of half a latent pixel."""
    cell, first = side * scale + 2 * (scale // 2), 2 * (scale // 2)
    assert picture.shape == (COUNT // columns * cell, columns * cell, 3)
    points = torch.from_numpy(picture[:, :, 0]).unflatten(0, (-1, cell)).unflatten(2, (columns, cell))
    points = points[:, first : first + side * scale : scale, :, first : first + side * scale : scale]
    return (points.float() / 127.5 - 1).transpose(1, 2).reshape(-1, 1, side, side)


def same(images, latents):
    return (images - latents.clamp(-1, 1)).abs().max() < 0.06


def test_the_graph_for_comfy_test_runs(server):
    """With its widgets left at their defaults, as that tool needs it."""
    prompt = workflow.to_api(FOLDER.parent / "workflows" / "tests" / "reg_digits.json", server.get("/object_info"))
    result = server.run(prompt)
    assert all(result.images(key) for key in nodes_of(prompt, "PreviewImage")) and len(nodes_of(prompt, "PreviewImage")) == 2
    assert prompt[next(iter(nodes_of(prompt, "REGGuidance")))]["inputs"]["form"] == "row_sum"


def accuracy(images, judge="fashion"):
    from reg_core.demo_models.loading import load_judge

    return (load_judge(judge)(images).argmax(1) == torch.arange(len(images)) % 10).float().mean().item()


def test_first_workflow_draws_the_clothes_that_were_asked_for(server, models):
    prompt = api(FIRST, server)
    pictures = sheets(prompt, server.run(prompt), server)
    (key,) = nodes_of(prompt, "REGGuidance")
    for branch, how in (("REG", settings(prompt, key)), ("CFG", plain())):
        latents, _ = library(how, CFG, models["fashion_weak"])
        assert accuracy(pictures[branch]) > 0.8
        assert same(pictures[branch], latents), branch  # ... and it is that picture, not only such a picture
    assert "REG: form schedule" in server.log and "active in 35 of 35 model calls" in server.log
    # what the note says: more shades where plain CFG is white
    white = {branch: (pictures[branch] > 0.9).float().mean() for branch in pictures}
    assert white["REG"] < 0.8 * white["CFG"], white


def test_traced(server, models):
    prompt = api("Try A B with the trace", server)
    result = server.run(prompt)
    pictures = sheets(prompt, result, server)
    (plot,), (key,) = nodes_of(prompt, "REGTracePlot"), nodes_of(prompt, "REGGuidance")
    rectified, trace = library(settings(prompt, key), CFG, models["fashion_weak"])
    assert same(pictures["REG"], rectified) and trace.last.settings.form == "row_sum"
    assert same(pictures["CFG"], library(plain(), CFG, models["fashion_weak"])[0])
    share, gain = re.search(r"(\d+) % of plain guidance, estimated gain ([\d.]+)", result.text(plot)).groups()
    assert int(share) == pytest.approx(100 * trace.last.share, abs=1.1) and float(gain) == pytest.approx(trace.last.estimated_gain, abs=0.11)
    (image,) = result.images(plot)
    assert pixels(server.view(image)).shape[1] == 1024


def test_autoguidance(server, models):
    prompt = api("Try autoguidance", server)
    pictures = sheets(prompt, server.run(prompt), server)
    (key,) = nodes_of(prompt, "REGGuidance")
    for branch, how in (("REG", settings(prompt, key)), ("plain", plain())):
        assert same(pictures[branch], library(how, 2.0, models["fashion"], models["fashion_weak"])[0]), branch
        assert accuracy(pictures[branch]) > 0.7
    assert abs(pictures["REG"] - pictures["plain"]).mean() > 0.01


def test_reward_guidance(server, models):
    """Oracle: the gradient written out by autograd, with and without the chain rule."""
    from reg_core.demo_models.loading import load_judge

    prompt = api("Try reward guidance", server)
    pictures = sheets(prompt, server.run(prompt), server, side=8)
    with torch.inference_mode(False):
        labels, classifier, model = torch.arange(COUNT) % 10, load_judge("digits"), models["digits"]

        def denoiser(scale, rectified):
            def denoise(x, sigma):
                with torch.enable_grad():
                    x = x.clone().requires_grad_(True)
                    d = model(x, sigma)
                    at = x if rectified else d
                    (g,) = torch.autograd.grad(classifier(d).log_softmax(1)[torch.arange(COUNT), labels].sum(), at)
                return (d + scale * sigma.clamp(max=20).reshape(-1, 1, 1, 1) ** 2 * g).detach()

            return denoise

        for branch, scale, rectified in (("rectified", 4.0, True), ("unrectified", 0.1, False)):
            want = library(None, 1.0, model, denoiser=denoiser(scale, rectified), data="digits")[0]
            off = (pictures[branch] - want.clamp(-1, 1)).abs()
            assert off.mean() < 0.01 and (off.flatten(1).amax(1) < 0.06).float().mean() > 0.9, (branch, off.mean(), off.max())
    unguided = library(None, 1.0, None, denoiser=models["digits"], data="digits")[0]
    assert accuracy(pictures["rectified"], "digits") > 0.8 and accuracy(pictures["unrectified"], "digits") > 0.6
    assert accuracy(unguided, "digits") < 0.4, "no prompt: without the reward the digits are any"


def test_sweep(server, models):
    """Every cell of the sheet is the picture of its row and column, found by its pixels."""
    from scipy.signal import fftconvolve

    import reg_core

    prompt = api("Try a sweep of forms and gains", server)
    result = server.run(prompt)
    (save,) = nodes_of(prompt, "SaveImage")
    (image,) = result.images(save)
    whole = pixels(server.view(image))[:, :, 0].astype(float)
    at = {}
    for form, gain in [("off", 1), *((form, gain) for form in ("row_sum", "schedule") for gain in (1, 2, 4))]:
        how = reg_core.Settings(form=form, gain=gain, refresh=8, data_std=DATA_STD["fashion"])
        latents, _ = library(how, CFG, models["fashion_weak"], count=10)
        grey = ((latents.clamp(-1, 1) + 1) * 127.5).repeat_interleave(3, 2).repeat_interleave(3, 3)
        framed = torch.nn.functional.pad(grey, (1, 1, 1, 1), value=0.25 * 255).reshape(2, 5, 86, 86)
        cell = framed.transpose(1, 2).reshape(2 * 86, 5 * 86).numpy().astype(float)
        power = fftconvolve(whole**2, numpy.ones_like(cell), "valid")
        distance = (power - 2 * fftconvolve(whole, cell[::-1, ::-1], "valid") + (cell**2).sum()) / cell.size
        assert distance.min() < 2, (form, gain, distance.min())
        at[form, gain] = numpy.unravel_index(distance.argmin(), distance.shape)
    rows = [{place[0] for (form, _), place in at.items() if form == name} for name in ("off", "row_sum", "schedule")]
    columns = [{place[1] for (_, gain), place in at.items() if gain == name} for name in (1, 2, 4)]
    assert all(len(line) == 1 for line in rows + columns)
    assert [*map(min, rows)] == sorted(map(min, rows)) and [*map(min, columns)] == sorted(map(min, columns))


def test_calibration(server, models):
    import reg_core

    prompt = api("Try calibration", server)
    before = server.log
    result = server.run(prompt)
    (picture,) = sheets(prompt, result, server).values()
    (key,) = nodes_of(prompt, "REGGuidance")
    (file,) = (server.base / "output" / "reg_calibration").glob("clothes_*.safetensors")
    table = reg_core.Settings(form="calibrated", gain=prompt[key]["inputs"]["gain"], calibration=reg_core.Calibration.load(file))
    free = library(table, CFG, models["fashion_weak"])[0]
    assert same(picture, free)
    # the table stands for the form that it was measured on
    live = library(reg_core.Settings(form="scalar", gain=table.gain), CFG, models["fashion_weak"])[0]
    cfg = library(plain(), CFG, models["fashion_weak"])[0]
    assert abs(free - live).mean() < 0.5 * abs(cfg - live).mean()
    (note,) = nodes_of(prompt, "PreviewAny")
    assert "c from" in result.text(note) and "clothes_" in result.text(note)
    assert re.search(r"form calibrated.* 0 extra rows", server.log[len(before) :]), "what the note in the workflow says"
