"""The example workflows that need no download, as shipped, on a real server. Oracle: the same pictures without ComfyUI, by
reg_core's Heun sampler on the digits model from the same noise, and the digits classifier."""

import re

import comfy.sample
import numpy
import pytest
import torch

from . import workflow
from .test_workflows import DIGITS, FOLDER, api, nodes_of, pixels

STEPS = 18


def library(settings, count, cfg, model, weak=None, seed=7, denoiser=None):
    """(latents, trace): CFG, or autoguidance by `weak`, rectified; or any `denoiser`."""
    import reg_core
    from reg_core.demo_models.data import DIGITS

    labels = torch.arange(count) % 10
    if denoiser is None:
        reference = (lambda x, s: weak(x, s, labels)) if weak else model
        denoiser = reg_core.Guided(lambda x, s: model(x, s, labels), reference, cfg - 1, settings)
    noise = comfy.sample.prepare_noise(torch.zeros(count, 1, 8, 8), seed)
    # ComfyUI starts eps-like models at sigma_max with noise of the full marginal standard deviation
    start = noise * (1 + DIGITS.sigma_max**2) ** 0.5
    return reg_core.sample_heun(denoiser, start, reg_core.karras_sigmas(STEPS, DIGITS.sigma_min, DIGITS.sigma_max)), getattr(denoiser, "trace", None)


@pytest.fixture(scope="module")
def models(pack):
    from reg_core.demo_models.loading import load_model

    with torch.inference_mode(False):
        return {name: load_model(name) for name in ("digits", "digits_weak")}


def settings(prompt, key):
    """The Settings of a REGGuidance node of a prompt."""
    import reg_core

    values = {k: v for k, v in prompt[key]["inputs"].items() if k not in ("model", "start_percent", "end_percent", "calibration")}
    return reg_core.Settings(**values)


def plain():
    import reg_core

    return reg_core.Settings(form="off")


def sheets(prompt, result, server):
    """{branch: images [40, 1, 8, 8] in -1..1} of the saved sheets, read back from their pixels."""
    found = {}
    for save, node in nodes_of(prompt, "SaveImage").items():
        (image,) = result.images(save)
        picture = pixels(server.view(image))
        decode = prompt[node["inputs"]["images"][0]]["inputs"]
        scale, columns = decode["scale"], decode["columns"]
        cell = 9 * scale  # 8 and half a latent pixel of frame on either side
        assert picture.shape == (4 * cell, columns * cell, 3)
        points = torch.from_numpy(picture[:, :, 0]).unflatten(0, (4, cell)).unflatten(2, (columns, cell))[:, scale::scale, :, scale::scale]
        found[re.sub(r"^REG/[a-z]+_", "", node["inputs"]["filename_prefix"])] = (points.float() / 127.5 - 1).transpose(1, 2).reshape(-1, 1, 8, 8)
    return found


def same(images, latents):
    return (images - latents.clamp(-1, 1)).abs().max() < 0.06


def test_the_graph_for_comfy_test_runs(server):
    """With its widgets left at their defaults, as that tool needs it."""
    prompt = workflow.to_api(FOLDER.parent / "workflows" / "tests" / "reg_digits.json", server.get("/object_info"))
    result = server.run(prompt)
    assert all(result.images(key) for key in nodes_of(prompt, "PreviewImage")) and len(nodes_of(prompt, "PreviewImage")) == 2
    assert prompt[next(iter(nodes_of(prompt, "REGGuidance")))]["inputs"]["form"] == "row_sum"


def accuracy(images):
    from reg_core.demo_models.loading import load_judge

    return (load_judge("digits")(images).argmax(1) == torch.arange(len(images)) % 10).float().mean().item()


def test_first_workflow_draws_the_digits_that_were_asked_for(server, models):
    prompt = api(DIGITS, server)
    pictures = sheets(prompt, server.run(prompt), server)
    (key,) = nodes_of(prompt, "REGGuidance")
    for branch, how in (("REG", settings(prompt, key)), ("CFG", plain())):
        latents, _ = library(how, 40, 8.0, models["digits_weak"])
        assert accuracy(pictures[branch]) > 0.9
        assert same(pictures[branch], latents), branch  # ... and it is that picture, not only such a picture
    assert abs(pictures["REG"] - pictures["CFG"]).mean() > 0.02
    assert "REG: form row_sum" in server.log and "active in 35 of 35 model calls" in server.log


def test_compared_with_plain_cfg(server, models):
    prompt = api("REG against CFG with the trace", server)
    result = server.run(prompt)
    pictures = sheets(prompt, result, server)
    (plot,) = nodes_of(prompt, "REGTracePlot")
    strong = prompt[plot]["inputs"]["trace"][0]
    (paper,) = set(nodes_of(prompt, "REGGuidance")) - {strong}
    rectified, trace = library(settings(prompt, strong), 40, 4.0, models["digits_weak"])
    assert same(pictures["REG_gain_2.5"], rectified) and trace.last.settings.gain == 2.5
    assert same(pictures["REG_gain_1"], library(settings(prompt, paper), 40, 4.0, models["digits_weak"])[0])
    assert same(pictures["CFG"], library(plain(), 40, 4.0, models["digits_weak"])[0])
    share, gain = re.search(r"(\d+) % of plain guidance, estimated gain ([\d.]+)", result.text(plot)).groups()
    assert int(share) == pytest.approx(100 * trace.last.share, abs=1.1) and float(gain) == pytest.approx(trace.last.estimated_gain, abs=0.11)
    (image,) = result.images(plot)
    assert pixels(server.view(image)).shape[1] == 1024
    (heat,) = nodes_of(prompt, "PreviewImage")
    assert len(result.images(heat)) == 1


def test_autoguidance(server, models):
    prompt = api("REG on autoguidance", server)
    pictures = sheets(prompt, server.run(prompt), server)
    (key,) = nodes_of(prompt, "REGGuidance")
    for branch, how in (("REG", settings(prompt, key)), ("plain", plain())):
        assert same(pictures[branch], library(how, 40, 3.0, models["digits"], models["digits_weak"])[0]), branch
        assert accuracy(pictures[branch]) > 0.9
    assert abs(pictures["REG"] - pictures["plain"]).mean() > 0.01


def test_reward_guidance(server, models):
    """Oracle: the gradient written out by autograd, with and without the chain rule."""
    from reg_core.demo_models.loading import load_judge

    prompt = api("REG reward guidance", server)
    pictures = sheets(prompt, server.run(prompt), server)
    with torch.inference_mode(False):
        labels, classifier, model = torch.arange(40) % 10, load_judge("digits"), models["digits"]

        def denoiser(scale, rectified):
            def denoise(x, sigma):
                with torch.enable_grad():
                    x = x.clone().requires_grad_(True)
                    d = model(x, sigma)
                    at = x if rectified else d
                    (g,) = torch.autograd.grad(classifier(d).log_softmax(1)[torch.arange(40), labels].sum(), at)
                return (d + scale * sigma.clamp(max=20).reshape(-1, 1, 1, 1) ** 2 * g).detach()

            return denoise

        for branch, scale, rectified in (("rectified", 4.0, True), ("unrectified", 0.1, False)):
            want = library(None, 40, 1.0, model, denoiser=denoiser(scale, rectified))[0]
            off = (pictures[branch] - want.clamp(-1, 1)).abs()
            assert off.mean() < 0.01 and (off.flatten(1).amax(1) < 0.06).float().mean() > 0.9, (branch, off.mean(), off.max())
    unguided = library(None, 40, 1.0, models["digits"], denoiser=models["digits"])[0]
    assert accuracy(pictures["rectified"]) > 0.8 and accuracy(pictures["unrectified"]) > 0.6
    assert accuracy(unguided) < 0.4, "no prompt: without the reward the digits are any"


def test_sweep(server, models):
    """Every cell of the sheet is the picture of its row and column, found by its pixels."""
    from scipy.signal import fftconvolve

    import reg_core

    prompt = api("REG sweep of forms and gains", server)
    result = server.run(prompt)
    (save,) = nodes_of(prompt, "SaveImage")
    (image,) = result.images(save)
    whole = pixels(server.view(image))[:, :, 0].astype(float)
    at = {}
    cells = [("off", 1), *((form, gain) for form in ("row_sum", "schedule") for gain in (1, 2, 4))]
    for form, gain in cells:
        latents, _ = library(reg_core.Settings(form=form, gain=gain, refresh=8, data_std=0.75), 20, 4, models["digits_weak"])
        grey = ((latents.clamp(-1, 1) + 1) * 127.5).reshape(4, 5, 8, 8)
        cell = torch.nn.functional.pad(grey.repeat_interleave(4, 2).repeat_interleave(4, 3), (2, 2, 2, 2), value=0.25 * 255)
        cell = cell.transpose(1, 2).reshape(4 * 36, 5 * 36).numpy().astype(float)
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

    prompt = api("REG calibration", server)
    before = server.log
    result = server.run(prompt)
    pictures = sheets(prompt, result, server)
    live = next(key for key in nodes_of(prompt, "REGGuidance") if prompt[key]["inputs"]["form"] == "scalar")
    want, _ = library(settings(prompt, live), 40, 4.0, models["digits_weak"])
    assert same(pictures["scalar"], want)
    (file,) = (server.base / "output" / "reg_calibration").glob("digits_*.safetensors")
    table = reg_core.Settings(form="calibrated", calibration=reg_core.Calibration.load(file))
    assert same(pictures["calibrated"], library(table, 40, 4.0, models["digits_weak"])[0])
    cfg, _ = library(plain(), 40, 4.0, models["digits_weak"])
    assert abs(pictures["calibrated"] - want).mean() < 0.3 * abs(cfg - want).mean()
    (note,) = nodes_of(prompt, "PreviewAny")
    assert "c from" in result.text(note) and "digits_" in result.text(note)
    # what the note in the workflow says
    log = server.log[len(before) :]
    assert re.search(r"form calibrated.* 0 extra rows", log) and re.search(r"form scalar.* \d+ extra rows", log)
