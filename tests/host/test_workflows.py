"""Every example workflow: opened without a page, validated by ComfyUI, run where that takes no download, and its graph measured.

What the demo models draw is in test_workflows_demo.py.
"""

import asyncio
import importlib
import importlib.util
import io
import json
import re
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tools import workflows
from tools.families import FAMILIES

from . import reg, tiny, workflow

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
FILES = sorted(FOLDER.glob("*.json"), key=lambda file: file.stem)
FIRST = workflows.workflows_demo.FIRST
WITHOUT_DOWNLOAD = {
    FIRST, "Try A B with the trace", "Try a sweep of forms and gains", "Try autoguidance", "Try calibration", "Try reward guidance",
}  # fmt: skip
NEEDS = {workflows.title(family): family for family in FAMILIES}
DRAWN = {"SD1.5": "sd15", "SDXL": "sdxl", "SD3.5": "sd3", "Chroma": "chroma", "Z-Image": "z_image", "Wan 2.2": "wan"}  # by tiny models
WIDEST, TALLEST = 1650, 1160  # px: newer pages fit a template into the window, and draw no text below about 57 %
TALLER = {"REG with Qwen-Image-Edit": 1340}  # two tall text nodes in one column: readable from a window of 1,000 px on
GUTTER = 2  # px: a wire may touch a border


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture
def here(host):
    """A function that skips the test where this ComfyUI is too old for a workflow's family."""

    def check(name):
        oldest = NEEDS[name].comfyui if name in NEEDS else "0"
        if [*map(int, host.version.split(".")[:3])] < [*map(int, oldest.split("."))]:
            pytest.skip(f"{name}: ComfyUI {host.version} lacks the family")

    return check


def api(name, server):
    return workflow.to_api(FOLDER / f"{name}.json", server.get("/object_info"))


def pixels(data):
    return numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def nodes_of(prompt, kind):
    return {key: node for key, node in prompt.items() if node["class_type"] == kind}


def test_every_file_is_known_here_and_the_starter_comes_first():
    assert {f.stem for f in FILES} == {*WITHOUT_DOWNLOAD, *NEEDS} and FILES[0].stem == FIRST


def comparable(data):
    """Without what newer hosts add: outputs that lead nowhere, and widgets after the last of ComfyUI's own nodes."""
    for graph in (data, *data.get("definitions", {}).get("subgraphs", ())):
        for node in graph["nodes"]:
            node["outputs"] = [out for out in node["outputs"] if out["links"]]
    return data


def test_files_are_what_the_tool_writes(server, host):
    """On every host: no widget, and no order of widgets, that one of them does not have. Only families too new for it are left out."""
    made = workflows.files(server.object_info())
    version = [*map(int, host.version.split(".")[:3])]
    too_new = {FOLDER / f"{name}.json" for name, family in NEEDS.items() if [*map(int, family.comfyui.split("."))] > version}
    assert {*FILES} - too_new <= {*made} and {*made} - {*FILES} == {p for p in made if p.parent != FOLDER}
    for path, wanted in made.items():
        ours, wanted = comparable(read(path)), comparable(json.loads(json.dumps(wanted)))
        for node, other in zip(ours["nodes"], wanted["nodes"], strict=True):
            if not node["type"].startswith("REG") and "widgets_values" in node:
                other["widgets_values"] = other["widgets_values"][: len(node["widgets_values"])]
                node["size"][1] = other["size"][1] = 0
            node["pos"][1] = other["pos"][1] = 0  # follows from the heights above
        assert ours == wanted, path.name


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_files_are_well_formed(file, server, here):
    """UI format 0.4 with a thumbnail of the same name, links in order, widgets within their limits."""
    here(file.stem)
    data = read(file)
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
        if node["type"] in ("MarkdownNote", "Reroute"):
            continue
        spec = server.object_info(node["type"])["input"]
        assert spec, node["type"]
        if node["type"].startswith("REG"):
            count = len(workflow.widgets_of(spec)) + ("seed" in spec["required"])  # the page's own "control after generate"
            assert len(node.get("widgets_values", ())) == count, "a widget without a value"
        for model in node["properties"].get("models", ()):
            assert model["name"] in node["widgets_values"]
    loaders = [node for node in data["nodes"] if node["type"] in workflow.LOADERS]
    assert bool(loaders) == (file.stem in NEEDS) and all(node["properties"].get("models") for node in loaders)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_comfyui_accepts_the_prompt(file, server, here, pack, all_nodes, host):
    """By ComfyUI's own validation: sockets, limits, choices. Empty files stand for the models."""
    here(file.stem)
    data = read(file)
    for node in data["nodes"]:
        for model in node["properties"].get("models", ()):
            folder = host.base_directory / "models" / model["directory"]
            folder.mkdir(exist_ok=True)
            (folder / model["name"]).touch()
    picture(host.base_directory)
    host.folder_paths.filename_list_cache.clear()
    prompt = workflow.to_api(data, server.object_info())
    accepted, error, _, errors = asyncio.run(importlib.import_module("execution").validate_prompt("test", prompt, None))
    assert accepted and not errors, (error, errors)
    next(node for node in prompt.values() if "cfg" in node["inputs"])["inputs"]["cfg"] = -5.0
    *_, errors = asyncio.run(importlib.import_module("execution").validate_prompt("test", prompt, None))
    assert errors, "this validation sees nothing"


def picture(base):
    """The picture that ComfyUI brings along for LoadImage."""
    Image.linear_gradient("L").convert("RGB").save(base / "input" / "example.png")


def upstream(prompt, key, name):
    """Kinds of the nodes that an input passes through, nearest first."""
    kinds = []
    while isinstance(source := prompt[key]["inputs"].get(name), list):
        key, name = source[0], "model"
        kinds.append(prompt[key]["class_type"])
    return kinds


@pytest.mark.parametrize("name", NEEDS)
def test_families_are_sampled_as_the_table_says(name, server, here):
    """With REG and without it, all else being equal. Oracle: the table, which is compared with ComfyUI's templates below."""
    here(name)
    family, prompt = NEEDS[name], api(name, server)
    for node in nodes_of(prompt, "REGGuidance").values():
        assert (node["inputs"]["form"], node["inputs"]["gain"]) == (family.form, family.gain)
    samplers = {key: node for kind in ("KSampler", "KSamplerAdvanced", "SamplerCustom") for key, node in nodes_of(prompt, kind).items()}
    with_reg = {key: upstream(prompt, key, "model").count("REGGuidance") for key in samplers}
    assert [*with_reg.values()] == ([1] * len(samplers) if family.video else [0, 1])
    if not family.video:
        plain, rectified = ({k: v for k, v in node["inputs"].items() if k != "model"} for node in samplers.values())
        assert plain == rectified, "the comparison is fair"
    for key, node in samplers.items():
        values = dict(node["inputs"])
        for link in ("sampler", "sigmas"):
            values |= prompt[node["inputs"][link][0]]["inputs"] | {link: prompt[node["inputs"][link][0]]["class_type"]} if link in values else {}
        assert (values["cfg"], values["steps"], values["sampler_name"]) == (family.cfg, family.steps, family.sampler)
        assert family.scheduler in (values.get("scheduler"), values.get("sigmas"))
        shifts = [prompt[k]["inputs"]["shift"] for k in prompt if "shift" in prompt[k]["inputs"]]
        assert set(shifts) == ({family.shift} if family.shift is not None else set()), key
        assert family.shift is None or any("ModelSampling" in kind for kind in upstream(prompt, key, "model"))
    sizes = [{"width", "height", "length"} & {*node["inputs"]} and node["inputs"] for node in prompt.values()]
    for inputs in filter(None, sizes):
        assert (inputs["width"], inputs["height"]) == family.size and inputs.get("length", 1) in (1, family.frames)
    loaded = {value for node in prompt.values() for value in node["inputs"].values() if str(value).endswith(".safetensors")}
    assert loaded == {file.name for file in family.files}


def test_the_table_agrees_with_comfyuis_own_templates():
    """Oracle: the installed package of templates, where it is the newest kind. A template's values are those of its widgets."""
    found = importlib.util.find_spec("comfyui_workflow_templates_json")
    if found is None:
        pytest.skip("this ComfyUI's templates are older than the table")
    folder, seen = Path(next(iter(found.submodule_search_locations))) / "templates", 0
    for family in FAMILIES:
        path = folder / f"{family.template}.json"
        if not path.is_file():
            continue
        seen, data = seen + 1, read(path)
        nodes = [node for graph in (data, *data.get("definitions", {}).get("subgraphs", ())) for node in graph["nodes"]]
        models = [model for node in nodes for model in node.get("properties", {}).get("models", ())]
        values = [value for node in nodes for value in (node.get("widgets_values") or ()) if not isinstance(value, (bool, dict, list))]
        numbers = [float(value) for value in values if isinstance(value, (int, float))]
        for wanted in filter(None, (family.cfg, family.steps, family.shift, family.fps)):
            assert any(abs(wanted - number) < 0.02 for number in numbers), (family.name, wanted)
        assert {family.sampler, family.scheduler} <= {*map(str, values), *(node["type"] for node in nodes)}, family.name
        links = {model["name"]: model["url"].split("?")[0] for model in models}
        for file in family.files:
            assert links[file.name] == file.url, (family.name, file.name)
    assert seen >= 11


def box(node):
    """Left, top, right, bottom on the page; a title is above the position."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - (0 if node["type"] == "Reroute" else 30), x + width, y + height


def wires(data):
    """(ends, points) of every link, as LiteGraph draws a spline: its handles are level and a quarter of the distance long."""
    nodes = {node["id"]: node for node in data["nodes"]}
    for _, source, out, target, slot, kind in data["links"]:
        a, b = nodes[source], nodes[target]
        level = {node["id"]: node["size"][1] / 2 if node["type"] == "Reroute" else None for node in (a, b)}
        start = numpy.array([a["pos"][0] + a["size"][0], a["pos"][1] + (level[source] or 20 * (out + 0.7))])
        end = numpy.array([b["pos"][0], b["pos"][1] + (level[target] or 20 * (slot + 0.7))])
        handle = numpy.array([numpy.linalg.norm(end - start) / 4, 0])
        t = numpy.linspace(0, 1, 201)[:, None]
        points = (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * (start + handle) + 3 * (1 - t) * t**2 * (end - handle) + t**3 * end
        yield (a, b, kind), points


def hidden(data):
    """Wires that run behind nodes which they do not belong to."""
    found = []
    for (a, b, kind), points in wires(data):
        for node in data["nodes"]:
            left, top, right, bottom = box(node)
            x, y = points.T
            inside = (x > left + GUTTER) & (x < right - GUTTER) & (y > top + GUTTER) & (y < bottom - GUTTER)
            if node is not a and node is not b and inside.any():
                found.append((kind, a["type"], b["type"], node["type"]))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_graphs_can_be_read(file):
    """Narrow enough, no node on another, no wire behind a node, and compared pictures one below the other."""
    data = read(file)
    boxes = [box(node) for node in data["nodes"]]
    assert max(b[2] for b in boxes) - min(b[0] for b in boxes) <= WIDEST
    assert max(b[3] for b in boxes) - min(b[1] for b in boxes) <= TALLER.get(file.stem, TALLEST)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3], (a, b)
    assert not hidden(data)
    saves = [node for node in data["nodes"] if node["type"] == "SaveImage"]
    assert len({node["pos"][0] for node in saves}) <= 1 and len({tuple(node["size"]) for node in saves}) <= 1


def test_a_wire_behind_a_node_is_seen():
    data = read(FOLDER / f"{FIRST}.json")
    assert not hidden(data)
    wall = {"id": 99, "type": "Wall", "pos": [300, -20], "size": [30, 60]}  # where the model's wire crosses to plain CFG's sampler
    assert ("MODEL", "REGDemoModel", "KSampler", "Wall") in hidden(data | {"nodes": [*data["nodes"], wall]})


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_notes_are_three_short_sentences(file):
    (note,) = (node for node in read(file)["nodes"] if node["type"] == "MarkdownNote")
    heading, *paragraphs = note["widgets_values"][0].split("\n\n")
    assert heading.startswith("## ") and "`" not in " ".join(paragraphs), "code cannot be read in Nodes 2.0"
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(paragraphs))
    assert len(sentences) == 3 and all(len(sentence.split()) <= 25 for sentence in sentences), sentences


def test_the_page_is_served_every_workflow_and_picture(server):
    """What Browse Templates asks for."""
    import urllib.parse

    listed = server.get("/workflow_templates")
    (folder,) = (name for name, files in listed.items() if FIRST in files)
    assert sorted(listed[folder]) == [f.stem for f in FILES]
    for file in FILES:
        for path in (file, file.with_suffix(".jpg")):
            assert server.get(f"/api/workflow_templates/{folder}/{urllib.parse.quote(path.name)}", raw=True) == path.read_bytes()


@pytest.mark.parametrize("family", DRAWN)
def test_families_draw_what_an_independent_reg_draws(family, server, here, host, pack, testpack, all_nodes):
    """The graph as it is, but for tiny models of the same architecture in place of the files, small latents, and a correction
    that is always fresh.

    Oracle: the same prompt in this process with REGGuidance replaced by a cfg function (reg.oracle_model).
    """
    name, arch = f"REG with {family}", DRAWN[family]
    here(name)
    if tiny.missing(arch):
        pytest.skip(tiny.missing(arch))
    size, length = (64, 5) if arch == "wan" else (128, 1)  # a video decoder is slow
    for base in (server.base, host.base_directory):
        picture(base)
    prompt = workflow.shrink(workflow.substitute_checkpoint(api(name, server), arch), size, steps=4, length=length)
    for node in nodes_of(prompt, "REGGuidance").values():
        assert node["inputs"]["refresh"] == 8, "the default"
        node["inputs"]["refresh"] = 1
    *_, decode = decoders = [*nodes_of(prompt, "VAEDecode")]  # plain CFG's comes first
    ends = dict(zip(("rectified", "plain"), reversed(decoders), strict=False))
    for end, key in ends.items():
        prompt[end] = {"class_type": "SaveImage", "inputs": {"images": [key, 0], "filename_prefix": end}}
    result = server.run(prompt, timeout=300)
    theirs = {end: numpy.stack([pixels(server.view(image)) for image in result.images(end)]) for end in ends}

    flow = arch not in ("sd15", "sdxl")

    def share(sigma_ve):
        """Of plain guidance, for clean latents of standard deviation 1."""
        return 1 / (1 + sigma_ve**2)

    class Oracle:
        FUNCTION = "run"

        def run(self, model, **settings):
            assert settings["form"] == "schedule"
            return reg.oracle_model(model, factor=lambda sigma: share(sigma / (1 - flow * sigma)), gain=settings["gain"]), None

    class Plain:
        FUNCTION = "run"

        def run(self, model, **settings):
            return model, None

    def ours(replacement):
        images = workflow.execute(prompt, decode, all_nodes | {"REGGuidance": replacement})[0]
        return (255 * images.numpy()).clip(0, 255).astype(int)

    want, plain = ours(Oracle), ours(Plain)
    assert theirs["rectified"].shape == want.shape == (length, size, size, 3) and want.std() > 5
    error, effect = abs(theirs["rectified"] - want).mean(), abs(plain - want).mean()
    print(f"\n{name}: {error:.3f} of {effect:.3f}")
    assert error < 0.2 * effect and effect > 0.5, (error, effect)
    assert "plain" not in theirs or abs(theirs["plain"] - plain).max() <= 1
    for save in nodes_of(prompt, "SaveVideo"):
        (file,) = result.images(save)
        assert server.view(file)[4:8] == b"ftyp", "an mp4"


def reg_branch(prompt):
    """Without the CFG image: a prompt with one good output runs, and only names the errors of the other."""
    bad = [key for key, node in nodes_of(prompt, "SaveImage").items() if "CFG" in node["inputs"]["filename_prefix"]]
    return {key: node for key, node in prompt.items() if key not in bad}


def test_cancel_on_the_server_and_the_next_prompt_works(server):
    prompt = api(FIRST, server)
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

    prompt = reg_branch(api(FIRST, server))
    (node,) = nodes_of(prompt, "REGGuidance").values()
    node["inputs"] |= bad
    with pytest.raises(PromptError, match=str(next(iter(bad.values())))):
        server.run(prompt, timeout=60)


def test_a_bad_combination_is_an_error_message_not_a_crash(server):
    from .server import PromptError

    prompt = reg_branch(api(FIRST, server))
    (node,) = nodes_of(prompt, "REGGuidance").values()
    node["inputs"] |= {"start_percent": 0.8, "end_percent": 0.2}
    with pytest.raises(PromptError, match="want 0 <= start_percent <= end_percent <= 1, got 0.8 and 0.2"):
        server.run(prompt, timeout=60)
    assert server.get("/system_stats"), "the server is still there"
