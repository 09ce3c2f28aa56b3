"""Every example workflow, posted to a real server: run to the end, and the picture checked against another computation."""

import io
import json
from pathlib import Path

import comfy.sample
import comfy.samplers
import numpy
import pytest
import torch
from PIL import Image

from . import reg, workflow

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
FILES = sorted(FOLDER.glob("*.json"))
ARCHITECTURE = {"REG with SD1.5": "sd15", "REG with SDXL": "sdxl", "REG with SD3.5": "sd3"}
DIGITS = "REG on handwritten digits"


def api(name, server):
    return workflow.to_api(FOLDER / f"{name}.json", server.get("/object_info"))


def pixels(data):
    return numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def nodes_of(prompt, kind):
    return {key: node for key, node in prompt.items() if node["class_type"] == kind}


def test_every_file_is_known_here():
    assert {f.stem for f in FILES} == {DIGITS, *ARCHITECTURE}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_files_are_well_formed(file, server):
    """UI format 0.4 with a thumbnail of the same name, links in order, widgets within their limits."""
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["version"] == 0.4
    thumbnail = Image.open(file.with_suffix(".jpg"))
    assert thumbnail.format == "JPEG" and min(thumbnail.size) >= 256
    ids = {node["id"] for node in data["nodes"]}
    assert len(ids) == len(data["nodes"]) and max(ids) == data["last_node_id"]
    for link, source, _, target, slot, kind in data["links"]:
        assert {source, target} <= ids and link <= data["last_link_id"]
        node = next(n for n in data["nodes"] if n["id"] == target)
        assert node["inputs"][slot]["link"] == link and node["inputs"][slot]["type"] == kind
    for node in data["nodes"]:
        if node["type"] != "MarkdownNote":
            assert server.object_info(node["type"]), node["type"]
    for key, node in api(file.stem, server).items():
        spec = server.object_info(node["class_type"])["input"]["required"]
        for name, value in node["inputs"].items():
            options = spec.get(name, [None, {}])
            limits = options[1] if len(options) > 1 else {}
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                assert limits.get("min", value) <= value <= limits.get("max", value), (key, name, value)


def test_the_page_is_served_every_workflow_and_picture(server):
    """What Browse Templates asks for."""
    import urllib.parse

    listed = server.get("/workflow_templates")
    (folder,) = (name for name, files in listed.items() if DIGITS in files)
    assert sorted(listed[folder]) == [f.stem for f in FILES]
    for file in FILES:
        for path in (file, file.with_suffix(".jpg")):
            assert server.get(f"/api/workflow_templates/{folder}/{urllib.parse.quote(path.name)}", raw=True) == path.read_bytes()


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_checkpoint_workflows_draw_what_an_independent_reg_draws(name, server, host, pack, testpack):
    """The graph as shipped, but for a tiny model of the same architecture in place of the file, and small latents.

    Oracle: the same prompt in this process with REGGuidance replaced by a cfg function (reg.oracle_model).
    """
    arch = ARCHITECTURE[name]
    prompt = workflow.shrink(workflow.substitute_checkpoint(api(name, server), arch), steps=4)
    (decode,), (save,) = nodes_of(prompt, "VAEDecode"), nodes_of(prompt, "SaveImage")
    (image,) = server.run(prompt, timeout=300).images(save)
    theirs = pixels(server.view(image))

    class Oracle:
        FUNCTION = "run"

        def run(self, model, **settings):
            return reg.oracle_model(model, flow=arch == "sd3", h=0.005), None

    class Plain:
        FUNCTION = "run"

        def run(self, model, **settings):
            return model, None

    def ours(replacement):
        mappings = dict(host.nodes.NODE_CLASS_MAPPINGS) | {"REGGuidance": replacement}
        if "EmptySD3LatentImage" not in mappings:
            mappings["EmptySD3LatentImage"] = host.nodes.EmptyLatentImage
        return (255 * workflow.execute(prompt, decode, mappings)[0][0].numpy()).clip(0, 255).astype(int)

    want, plain = ours(Oracle), ours(Plain)
    assert theirs.shape == want.shape == (128, 128, 3) and theirs.std() > 5
    error, effect = abs(theirs - want).mean(), abs(plain - want).mean()
    assert error < 0.2 * effect and effect > 0.5, (error, effect)


def reg_branch(prompt):
    """Without the CFG image: a prompt with one good output runs, and only names the errors of the other."""
    bad = [key for key, node in nodes_of(prompt, "SaveImage").items() if "CFG" in node["inputs"]["filename_prefix"]]
    return {key: node for key, node in prompt.items() if key not in bad}


def library_digits(prompt, sampler, form):
    """The same picture without ComfyUI: reg_core's Heun sampler on the digits model, from the same noise."""
    import reg_core
    from reg_core.lab.evaluate import SIGMA_MAX, SIGMA_MIN
    from reg_core.lab.models import load_digits_model

    values = prompt[sampler]["inputs"]
    (variant,) = (n["inputs"]["variant"] for n in nodes_of(prompt, "REGDemoModel").values())
    batch = prompt[values["latent_image"][0]]["inputs"]["batch_size"]
    assert prompt[values["positive"][0]]["inputs"]["digit"] == "0 to 9 in turn"
    model = load_digits_model(variant)
    labels = torch.arange(batch) % 10
    guided = reg_core.Guided(
        lambda x, s: model(x, s, labels), lambda x, s: model(x, s), values["cfg"] - 1, reg_core.Settings(form=form, engine="finite_difference")
    )
    noise = comfy.sample.prepare_noise(torch.zeros(batch, 1, 8, 8), values["seed"])
    # ComfyUI starts eps-like models at sigma_max with noise of the full marginal standard deviation
    return reg_core.sample_heun(guided, noise * (1 + SIGMA_MAX**2) ** 0.5, reg_core.karras_sigmas(values["steps"], SIGMA_MIN, SIGMA_MAX)), labels


def test_digits_workflow_draws_the_digit_that_was_asked_for(server, host, pack):
    from reg_core.lab.models import load_digits_classifier

    prompt = api(DIGITS, server)
    result = server.run(prompt, timeout=300)
    saves = {node["inputs"]["filename_prefix"].split("_")[-1]: key for key, node in nodes_of(prompt, "SaveImage").items()}
    assert set(saves) == {"REG", "CFG"}
    pictures = {}
    for branch, form in (("REG", "row_sum"), ("CFG", "off")):
        (image,) = result.images(saves[branch])
        picture = pictures[branch] = pixels(server.view(image))
        decode = prompt[saves[branch]]["inputs"]["images"][0]
        scale, columns = (prompt[decode]["inputs"][k] for k in ("scale", "columns"))
        cell = 9 * scale  # 8 and half a latent pixel of frame on either side
        assert picture.shape == (4 * cell, columns * cell, 3)
        # read the sheet back as digits and ask the classifier
        points = torch.from_numpy(picture[:, :, 0]).unflatten(0, (4, cell)).unflatten(2, (columns, cell))[:, scale::scale, :, scale::scale]
        images = (points.float() / 127.5 - 1).transpose(1, 2).reshape(-1, 1, 8, 8)
        sampler = prompt[decode]["inputs"]["latent"][0]
        latents, labels = library_digits(prompt, sampler, form)
        assert (load_digits_classifier()(images).argmax(1) == labels).float().mean() > 0.9
        # ... and it is that picture, not only such a picture
        assert (images - latents.clamp(-1, 1)).abs().max() < 0.06, branch
    assert abs(pictures["REG"] - pictures["CFG"]).mean() > 3
    assert "REG: form row_sum" in server.log and "active in 35 of 35 model calls" in server.log


def test_cancel_on_the_server_and_the_next_prompt_works(server):
    prompt = api(DIGITS, server)
    for node in nodes_of(prompt, "KSampler").values():
        node["inputs"] |= {"steps": 2000, "seed": 99}
    state = {"sent": False}

    def cancel(value, maximum):
        if not state["sent"] and value > 3:
            state["sent"] = True
            server.interrupt()

    with pytest.raises(InterruptedError):
        server.run(prompt, timeout=120, on_progress=cancel)
    assert state["sent"]
    for node in nodes_of(prompt, "KSampler").values():
        node["inputs"] |= {"steps": 3, "seed": 100}
    assert server.run(prompt, timeout=120).outputs


@pytest.mark.parametrize("bad", [{"refresh": -1}, {"strength": 99.0}, {"form": "rowsum"}, {"start_percent": 1.5}])
def test_the_server_refuses_bad_widgets_by_value(server, bad):
    from .server import PromptError

    prompt = reg_branch(api(DIGITS, server))
    (node,) = nodes_of(prompt, "REGGuidance").values()
    node["inputs"] |= bad
    with pytest.raises(PromptError, match=str(next(iter(bad.values())))):
        server.run(prompt, timeout=60)


def test_a_bad_combination_is_an_error_message_not_a_crash(server):
    from .server import PromptError

    prompt = reg_branch(api(DIGITS, server))
    (node,) = nodes_of(prompt, "REGGuidance").values()
    node["inputs"] |= {"start_percent": 0.8, "end_percent": 0.2}
    with pytest.raises(PromptError, match="start_percent 0.8 is after end_percent 0.2"):
        server.run(prompt, timeout=60)
    assert server.get("/system_stats"), "the server is still there"
