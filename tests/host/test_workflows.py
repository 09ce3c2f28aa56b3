"""Every example workflow, posted to a real server: run to the end, and the picture checked against another computation.

The digits' workflows are in test_workflows_digits.py.
"""

import io
import json
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tools import workflows

from . import reg, workflow

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
FILES = sorted(FOLDER.glob("*.json"))
ARCHITECTURE = {
    "REG with SD1.5": "sd15", "REG with SDXL": "sdxl", "REG with SD3.5": "sd3", "REG with Flux and real cfg": "flux", "REG with Wan 2.1 video": "wan",
}  # fmt: skip
DIGITS = "REG on handwritten digits"
WITHOUT_DOWNLOAD = {
    DIGITS, "REG against CFG with the trace", "REG calibration", "REG on autoguidance", "REG reward guidance", "REG sweep of forms and gains",
}  # fmt: skip


def api(name, server):
    return workflow.to_api(FOLDER / f"{name}.json", server.get("/object_info"))


def pixels(data):
    return numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def nodes_of(prompt, kind):
    return {key: node for key, node in prompt.items() if node["class_type"] == kind}


def test_every_file_is_known_here():
    assert {f.stem for f in FILES} == {*WITHOUT_DOWNLOAD, *ARCHITECTURE}


def connected(workflow):
    """Without the outputs that lead nowhere: newer hosts give some nodes more of them."""
    for graph in (workflow, *workflow.get("definitions", {}).get("subgraphs", ())):
        for node in graph["nodes"]:
            node["outputs"] = [out for out in node["outputs"] if out["links"]]
    return workflow


def test_files_are_what_the_tool_writes(server):
    """On every host: no widget, and no order of widgets, that one of them does not have."""
    made = workflows.files(server.object_info())
    assert {*FILES} < {*made} and len(made) == len(FILES) + 2
    for path, wanted in made.items():
        assert connected(json.loads(path.read_text(encoding="utf-8"))) == connected(json.loads(json.dumps(wanted))), path.name


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
        assert node["inputs"][slot]["link"] == link and node["inputs"][slot]["type"] in (kind, "*")
    for node in data["nodes"]:
        if node["type"] == "MarkdownNote":
            assert node["widgets_values"][0].startswith("## ")
            continue
        spec = server.object_info(node["type"])["input"]
        assert spec, node["type"]
        if node["type"].startswith("REG"):
            count = len(workflow.widgets_of(spec)) + ("seed" in spec["required"])  # the page's own "control after generate"
            assert len(node.get("widgets_values", ())) == count, "a widget without a value"
        for model in node["properties"].get("models", ()):
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(f"/{model['name']}")
            assert model["name"] in node["widgets_values"] and model["directory"] in ("checkpoints", "diffusion_models", "text_encoders", "vae")
    loaders = [node for node in data["nodes"] if node["type"] in workflow.LOADERS]
    assert bool(loaders) == (file.stem in ARCHITECTURE) and all(node["properties"].get("models") for node in loaders)
    for key, node in api(file.stem, server).items():
        spec = server.object_info(node["class_type"])["input"]
        for name, value in node["inputs"].items():
            kind, *options = (spec["required"] | spec.get("optional", {})).get(name, [None])
            limits = options[0] if options else {}
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                assert limits.get("min", value) <= value <= limits.get("max", value), (key, name, value)
            choices = kind if isinstance(kind, list) else limits.get("options")
            if choices and isinstance(value, str) and node["class_type"] not in workflow.LOADERS:
                assert value in choices, (key, name, value)


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
def test_checkpoint_workflows_draw_what_an_independent_reg_draws(name, server, host, pack, testpack, all_nodes):
    """The graph as shipped, but for tiny models of the same architecture in place of the files, small latents, and a correction
    that is always fresh.

    Oracle: the same prompt in this process with REGGuidance replaced by a cfg function (reg.oracle_model).
    """
    arch = ARCHITECTURE[name]
    size, length = (64, 5) if arch == "wan" else (128, 1)  # a video decoder is slow
    prompt = workflow.shrink(workflow.substitute_checkpoint(api(name, server), arch), size, steps=4, length=length)
    (guidance,), (decode,) = nodes_of(prompt, "REGGuidance").values(), nodes_of(prompt, "VAEDecode")
    assert guidance["inputs"]["refresh"] == 8, "the default"
    guidance["inputs"]["refresh"] = 1
    prompt["frames"] = {"class_type": "SaveImage", "inputs": {"images": [decode, 0], "filename_prefix": "frames"}}
    result = server.run(prompt, timeout=300)
    theirs = numpy.stack([pixels(server.view(image)) for image in result.images("frames")])

    class Oracle:
        FUNCTION = "run"

        def run(self, model, **settings):
            return reg.oracle_model(model, flow=arch in ("sd3", "flux", "wan"), h=0.005, gain=settings["gain"]), None

    class Plain:
        FUNCTION = "run"

        def run(self, model, **settings):
            return model, None

    def ours(replacement):
        images = workflow.execute(prompt, decode, all_nodes | {"REGGuidance": replacement})[0]
        return (255 * images.numpy()).clip(0, 255).astype(int)

    want, plain = ours(Oracle), ours(Plain)
    assert theirs.shape == want.shape == (length, size, size, 3) and theirs.std() > 5
    error, effect = abs(theirs - want).mean(), abs(plain - want).mean()
    print(f"\n{name}: {error:.3f} of {effect:.3f}")
    assert error < 0.2 * effect and effect > 0.5, (error, effect)
    for save in nodes_of(prompt, "SaveAnimatedWEBP"):
        (file,) = result.images(save)
        film = Image.open(io.BytesIO(server.view(file)))
        assert film.n_frames == length and film.size == (size, size)


def reg_branch(prompt):
    """Without the CFG image: a prompt with one good output runs, and only names the errors of the other."""
    bad = [key for key, node in nodes_of(prompt, "SaveImage").items() if "CFG" in node["inputs"]["filename_prefix"]]
    return {key: node for key, node in prompt.items() if key not in bad}


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


@pytest.mark.parametrize("bad", [{"refresh": 0}, {"strength": 99.0}, {"form": "rowsum"}, {"start_percent": 1.5}])
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
    with pytest.raises(PromptError, match="want 0 <= start_percent <= end_percent <= 1, got 0.8 and 0.2"):
        server.run(prompt, timeout=60)
    assert server.get("/system_stats"), "the server is still there"
