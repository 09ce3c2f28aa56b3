"""What a user of the page sees of the pack. Oracles: the server's own schema, the headless converter, the files on disk."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy
import pytest
from PIL import Image
from playwright.sync_api import TimeoutError

from tests.host.server import ComfyServer
from tests.host.workflow import to_api, widgets_of

from .conftest import REPO, Comfy

FILES = sorted((REPO / "example_workflows").glob("*.json"))
CLOTHES, TRACED = (next(f for f in FILES if f.stem == name) for name in ("1 REG on clothes", "Try A B with the trace"))
NODES = sorted(f.stem for f in (REPO / "web" / "docs").glob("*.md"))
EMPTY = {"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": []}
KEEPS_TRANSLATIONS = (1, 36)  # older frontends lose those of packs: Comfy-Org/ComfyUI_frontend pull request 7214


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def boxes(comfy):
    """{title: [left, top, width, height]}, titles included, as the page has grown the nodes."""
    return comfy.page.evaluate("app.graph._nodes.map(n => [`${n.id} ${n.title}`, [...n.getBounding()]])")


def apart(placed):
    for i, (name, a) in enumerate(placed):
        for other, b in placed[:i]:
            assert a[0] >= b[0] + b[2] or b[0] >= a[0] + a[2] or a[1] >= b[1] + b[3] or b[1] >= a[1] + a[3], (name, a, other, b)


def inputs_of(prompt):
    return {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_workflow_opens(file, comfy, server, bare_problems):
    workflow, before = read(file), len(comfy.problems)
    lacks = {node["type"] for node in workflow["nodes"]} - {"MarkdownNote", "Reroute"} - {*server.object_info()}
    if lacks:
        pytest.skip(f"this ComfyUI is older than the family: it lacks {', '.join(sorted(lacks))}")
    comfy.load(workflow)
    dialogs = comfy.dismiss()
    assert not [text for text in dialogs if "issing Node" in text]
    models = [model["name"] for node in workflow["nodes"] for model in node["properties"].get("models", ())]
    assert comfy.version >= (1, 40) or all(name in "".join(dialogs) for name in models), "the page offers to download the models"
    comfy.fit()
    comfy.shot(file.stem)
    on_page = comfy.page.evaluate("app.graph._nodes.map(n => [n.type, n.type in LiteGraph.registered_node_types, !!n.has_errors])")
    assert sorted(kind for kind, *_ in on_page) == sorted(node["type"] for node in workflow["nodes"])
    without_files = {node["type"] for node in workflow["nodes"] if node["properties"].get("models")}
    assert all(known and (not errors or kind in without_files) for kind, known, errors in on_page), on_page
    assert not set(comfy.problems[before:]) - bare_problems
    apart(boxes(comfy))  # nothing lies on anything, and no note is cut off
    notes = comfy.page.evaluate("[...document.querySelectorAll('.comfy-markdown')].map(e => [e.scrollHeight, e.clientHeight, e.innerText])")
    assert notes and all(inside <= room + 2 for inside, room, _ in notes), notes
    # the page queues what the headless tests run
    ours, theirs = inputs_of(to_api(workflow, server.object_info())), inputs_of(comfy.prompt())
    assert set(ours) == set(theirs)
    for key, (kind, values) in ours.items():
        assert theirs[key][0] == kind and {name: theirs[key][1].get(name) for name in values} == values


def test_widgets_have_the_limits_of_the_schema(comfy, server):
    seen = 0
    for name in NODES:
        info = server.object_info(name)["input"]
        widgets = comfy.page.evaluate(
            "name => LiteGraph.createNode(name).widgets?.map(w => [w.name, {value: w.value, min: w.options.min, max: w.options.max, "
            "choices: Array.isArray(w.options.values) ? w.options.values : null}]) ?? []",
            name,
        )
        widgets = dict(widgets)
        for input_, (kind, *options) in (info.get("required", {}) | info.get("optional", {})).items():
            options = options[0] if options else {}
            if not (kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") or isinstance(kind, list)) or options.get("forceInput"):
                continue
            seen += 1
            widget = widgets[input_]
            if kind in ("INT", "FLOAT"):
                assert [float(widget[k]) for k in ("min", "max")] == [float(options[k]) for k in ("min", "max")], (name, input_, widget)
            choices = kind if isinstance(kind, list) else options.get("options")
            assert choices is None or widget["choices"] == choices
            if "default" in options:
                assert widget["value"] == options["default"], (name, input_)
    assert seen > 50


def region(comfy, title):
    """Pixels of the lower half of a node, as they are on the screen."""
    x, y, w, h = comfy.page.evaluate(
        "title => { const n = app.graph._nodes.find(n => n.title == title), d = app.canvas.ds, c = app.canvas.canvas.getBoundingClientRect();"
        "return [(n.pos[0] + d.offset[0]) * d.scale + c.x, (n.pos[1] + d.offset[1]) * d.scale + c.y, n.size[0] * d.scale, n.size[1] * d.scale]; }",
        title,
    )
    clip = {"x": x + 0.1 * w, "y": y + 0.45 * h, "width": 0.8 * w, "height": 0.4 * h}
    return numpy.asarray(Image.open(io.BytesIO(comfy.page.screenshot(clip=clip))).convert("L")).astype(float)


def test_clothes_are_run_from_the_page(comfy, server):
    """Two pictures and a line on REG Guidance; what grows covers nothing."""
    comfy.load(read(CLOTHES))
    comfy.fit()
    assert region(comfy, "REG").std() < 12, "no picture yet"
    comfy.page.get_by_role("button", name="Run", exact=True).first.click()
    comfy.page.wait_for_function("app.graph._nodes.filter(n => n.type == 'SaveImage' && n.imgs?.length && n.imgs[0].naturalWidth).length == 2")
    comfy.page.wait_for_timeout(1000)
    comfy.fit()
    comfy.shot("clothes, run")
    for title in ("REG", "plain CFG"):
        assert region(comfy, title).std() > 40, title
        width, height, address = comfy.page.evaluate(
            "title => { const i = app.graph._nodes.find(n => n.title == title).imgs[0]; return [i.naturalWidth, i.naturalHeight, i.src]; }", title
        )
        (file,) = (server.base / "output" / "REG").glob(f"clothes_{title.split()[-1]}_*.png")
        assert file.name in address and Image.open(file).size == (width, height) == (430, 344)
    assert "REG: form schedule" in server.log
    apart(boxes(comfy))


def test_help_opens(comfy):
    opened_help(comfy, REPO / "web/docs/REGGuidance.md")
    comfy.shot("help")
    comfy.page.keyboard.press("Escape")


def opened_help(comfy, file):
    """The help of REG Guidance has all headings and pictures of a file."""
    comfy.load(EMPTY)
    comfy.page.evaluate(
        "() => { const n = LiteGraph.createNode('REGGuidance'); n.pos = [700, 400]; app.graph.add(n); app.canvas.ds.reset();app.canvas.selectNode(n); }"
    )
    comfy.page.get_by_test_id("info-button").first.click()
    headings = [line[3:] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    for heading in headings:
        comfy.page.get_by_role("heading", name=heading).wait_for(state="attached")
    comfy.page.wait_for_function("[...document.querySelectorAll('img[src*=\"docs\"]')].length && "
                                 "[...document.querySelectorAll('img[src*=\"docs\"]')].every(i => i.complete && i.naturalWidth > 0)")  # fmt: skip


@pytest.mark.parametrize("name,typed,alias", [
    ("REGGuidance", "rectified gradient", "rectified cfg"),
    ("REGSweep", "reg sweep", "xy plot"),
    ("REGTracePlot", "reg trace", "correction heat map"),
])  # fmt: skip
def test_search_finds_nodes(name, typed, alias, comfy, server):
    """By display name everywhere; by alias where the host has aliases."""
    info = server.object_info(name)
    words = [typed]
    if info.get("search_aliases"):
        assert alias in info["search_aliases"]
        words.append(alias)
    for word in words:
        comfy.load(EMPTY)
        box = comfy.page.locator("input[role=combobox], input[id*=search]").last
        for _ in range(6):  # on a busy machine the two clicks may be too far apart
            comfy.page.mouse.dblclick(1000, 700)
            with contextlib.suppress(TimeoutError):
                box.wait_for(timeout=10_000)
                break
        box.press_sequentially(word, delay=20)
        found = comfy.page.get_by_role("option").filter(has_text=info["display_name"]).first  # not the preview beside the list
        found.wait_for()
        comfy.page.wait_for_timeout(500)
        comfy.shot(f"search {word}")
        found.click()
        comfy.page.wait_for_function("name => app.graph._nodes.some(n => n.type == name)", arg=name)
        comfy.page.keyboard.press("Escape")


def test_blueprint(comfy, server):
    """The subgraph opens, and a widget of its node reaches both samplers."""
    (file,) = (REPO / "subgraphs").glob("*.json")
    comfy.load(read(file))
    assert not comfy.dismiss()
    comfy.fit()
    comfy.shot("blueprint")
    page, ours = inputs_of(comfy.prompt()), inputs_of_unlinked(file, server)
    assert {key: kind for key, (kind, _) in page.items()} == {key: kind for key, (kind, _) in ours.items()}
    for key, (_, values) in ours.items():
        assert page[key][1] == values
    comfy.page.evaluate("() => { const w = Object.fromEntries(app.graph._nodes[0].widgets.map(w => [w.name, w])); "
                        "w.cfg.value = 3.5; w.seed.value = 11; w.form.value = 'scalar'; w.scheduler.value = 'karras'; }")  # fmt: skip
    changed = [values for kind, values in inputs_of(comfy.prompt()).values() if kind == "KSampler"]
    assert [(v["cfg"], v["seed"], v["scheduler"], v["steps"]) for v in changed] == [(3.5, 11, "karras", 30)] * 2
    (form,) = (values["form"] for kind, values in inputs_of(comfy.prompt()).values() if kind == "REGGuidance")
    assert form == "scalar"
    comfy.page.evaluate("async () => { const n = app.graph._nodes[0]; app.canvas.openSubgraph?.(n.subgraph, n); }")
    comfy.page.wait_for_timeout(1000)
    comfy.page.evaluate("() => { const ds = app.canvas.ds; ds.scale = 0.75; ds.offset = [380, 200]; app.canvas.setDirty(true, true); }")
    comfy.page.wait_for_timeout(1000)
    comfy.shot("blueprint, inside")


def inputs_of_unlinked(file, server):
    """The blueprint's prompt as the converter makes it, where nothing is connected to the node yet."""
    info = {name: {"input": {"required": widgets_of(node["input"])}} for name, node in server.object_info().items()}
    return inputs_of(to_api(file, info))


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_other_languages(language, browser, translated_server):
    """Oracle: the file of names in that language."""
    names = read(REPO / "locales" / language / "nodeDefs.json")
    tab = Comfy(browser, translated_server, **{"Comfy.Locale": language})
    try:
        if tab.version < KEEPS_TRANSLATIONS:
            pytest.skip(f"frontend {tab.version} loses packs' translations (ComfyUI_frontend 7214); nox brings a newer one")
        for name in ("REGGuidance", "REGSweep", "REGDemoModel"):
            title, widgets, sockets = tab.page.evaluate(
                "name => { const n = LiteGraph.createNode(name);"
                "return [n.title, n.widgets.map(w => [w.name, w.label]), n.inputs.map(i => [i.name, i.localized_name])]; }",
                name,
            )
            assert title == names[name]["display_name"]
            labels = {**dict(sockets), **dict(widgets)}
            for input_, words in names[name]["inputs"].items():
                assert labels[input_] == words["name"], (name, input_)
        tab.load(read(CLOTHES))
        tab.fit()
        tab.shot(f"language {language}")
        opened_help(tab, REPO / "web/docs/REGGuidance" / f"{language}.md")
        tab.shot(f"help {language}")
    finally:
        tab.close()


@pytest.fixture(scope="module")
def translated_server():
    newer = os.environ.get("REG_TEST_FRONTEND")
    with ComfyServer(["--front-end-root", newer] if newer else [], packs={"ComfyUI-REG": REPO}) as running:
        yield running


def test_new_node_renderer(browser, server):
    """Nodes 2.0: every widget of REG Guidance is there as an element."""
    tab = Comfy(browser, server, **{"Comfy.VueNodes.Enabled": True})
    try:
        tab.load(read(TRACED))
        tab.near("REGGuidance")
        tab.shot("nodes 2.0")
        node = tab.page.locator("[data-node-id]", has_text="REG Guidance").first
        assert all(name in node.inner_text() for name in ("form", "gain", "model", "trace"))
        folded = node.get_by_text("Show advanced inputs")
        if folded.count():  # where the page folds them
            assert "refresh" not in node.inner_text()
            folded.click()
            tab.page.wait_for_timeout(1000)
        assert all(name in node.inner_text() for name in ("strength", "refresh", "engine", "skip_below"))
    finally:
        tab.close()
        server.post("/settings/Comfy.VueNodes.Enabled", False)
