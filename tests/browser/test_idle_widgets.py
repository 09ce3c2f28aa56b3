"""web/js/reg.js: widgets that do nothing at a node's settings are out of sight, and nothing else changes.

In both renderers, with the host's own frontend and with the newer one. Oracles: the settings that reg_core reads for each form; a
page without the script.
"""

import os

import pytest

from tests.host.server import ComfyServer
from tests.host.workflow import to_api

from .conftest import REPO, Comfy
from .test_page import EMPTY, TRACED, read

ALL = ["form", "gain", "start_percent", "end_percent", "strength", "skip_below", "data_std", "engine", "refresh"]
WITH_PRODUCT = [name for name in ALL if name != "data_std"]
ACTING = {  # form -> widgets of REGGuidance
    "row_sum": WITH_PRODUCT, "scalar": WITH_PRODUCT, "product": WITH_PRODUCT,
    "schedule": ALL[:7], "calibrated": ALL[:6], "off": ["form"],
}  # fmt: skip
FORMS = list(ACTING)
VALUES = ["product", 2.0, 0.1, 0.9, 0.5, 0.05, 0.75, "reverse", 7]  # none at its default


@pytest.fixture(scope="module", params=["own", "newer"])
def frontend(request):
    newer = os.environ.get("REG_TEST_FRONTEND")
    if request.param == "newer" and not newer:
        pytest.skip("REG_TEST_FRONTEND names no newer frontend")
    with ComfyServer(["--front-end-root", newer] if request.param == "newer" else [], packs={"ComfyUI-REG": REPO}) as running:
        yield running


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "vue"])
def tab(request, browser, frontend):
    comfy = Comfy(browser, frontend, **{"Comfy.VueNodes.Enabled": request.param})
    comfy.vue = request.param
    yield comfy
    comfy.close()
    frontend.post("/settings/Comfy.VueNodes.Enabled", False)


def add(tab, name, values=None):
    """The only node of a new graph."""
    tab.load(EMPTY)
    tab.page.evaluate(
        "([name, values]) => { const n = LiteGraph.createNode(name); n.pos = [400, 150]; app.graph.add(n); app.canvas.ds.reset();"
        "(values ?? []).forEach((v, i) => { n.widgets[i].value = v; n.widgets[i].callback?.(v); }); }",
        [name, values],
    )
    tab.page.wait_for_timeout(700)


def shown(tab, kind="REGGuidance"):
    """Names of the widgets that a user sees on the first node of a kind."""
    tab.page.wait_for_timeout(700)
    node = tab.page.evaluate("kind => app.graph._nodes.find(n => n.type == kind).id", kind)
    if tab.vue:
        box = tab.page.locator(f"[data-node-id='{node}']")
        unfold = box.get_by_text("Show advanced inputs")
        if unfold.count():
            unfold.click()
            tab.page.wait_for_timeout(700)
        names = [row.inner_text().split("\n")[0] for row in box.locator(".lg-node-widget").all() if row.is_visible()]
        return [name or "points" for name in names]  # a text area has no name beside it
    lines = tab.page.evaluate(
        "id => { const n = app.graph.getNodeById(id); return n.widgets.filter(w => n.isWidgetVisible(w)).map(w => [w.name, w.last_y, w.computedHeight]); }",
        node,
    )
    for (_, y, height), (name, after, _) in zip(lines, lines[1:], strict=False):
        assert after == pytest.approx(y + height, abs=1), f"a gap before {name}"
    return [name for name, *_ in lines]


def choose(tab, form):
    """A form, taken by hand."""
    if tab.vue:
        row = tab.page.locator("[data-node-id]", has_text="REG Guidance").locator(".lg-node-widget", has_text="form").first
        row.locator("[role=combobox], button").first.click()
        tab.page.get_by_role("option", name=form, exact=True).click()
        return
    for _ in range(len(FORMS)):  # by the arrow at its right end
        value, width, x, y = tab.page.evaluate(
            "() => { const n = app.graph._nodes.find(n => n.type == 'REGGuidance'), w = n.widgets[0];"
            "const d = app.canvas.ds, c = app.canvas.canvas.getBoundingClientRect();"
            "return [w.value, n.size[0] * d.scale, (n.pos[0] + d.offset[0]) * d.scale + c.x, (n.pos[1] + w.last_y + 10 + d.offset[1]) * d.scale + c.y]; }"
        )
        if value == form:
            return
        arrow = 24 * tab.page.evaluate("app.canvas.ds.scale")
        tab.page.mouse.click(x + (arrow if FORMS.index(value) > FORMS.index(form) else width - arrow), y)
        tab.page.wait_for_timeout(400)
    raise AssertionError(form)


def state(tab):
    """(the saved values, the queued inputs) of the first REGGuidance."""
    saved = tab.page.evaluate("app.graph.serialize().nodes.find(n => n.type == 'REGGuidance').widgets_values")
    return saved, tab.prompt()


def test_forms_chosen_by_hand(tab):
    add(tab, "REGGuidance")
    for form in (*FORMS, "row_sum"):
        choose(tab, form)
        assert shown(tab) == ACTING[form], form
        tab.shot(f"idle {'vue' if tab.vue else 'canvas'} {'.'.join(map(str, tab.version))} {form}")


@pytest.mark.parametrize("form", FORMS)
def test_hidden_widgets_are_saved_queued_and_loaded(tab, frontend, form):
    workflow = read(TRACED)
    (node,) = (n for n in workflow["nodes"] if n["type"] == "REGGuidance")
    node["widgets_values"] = [form, *VALUES[1:]]
    tab.load(workflow)
    assert shown(tab) == ACTING[form]
    saved, queued = state(tab)
    assert saved == node["widgets_values"]
    ours = to_api(workflow, frontend.object_info())
    assert {key: n["inputs"] for key, n in ours.items()} == {key: n["inputs"] for key, n in queued.items()}
    again = tab.page.evaluate("app.graph.serialize()")
    tab.load(EMPTY)
    tab.load(again)
    assert shown(tab) == ACTING[form] and state(tab) == (saved, queued)


def test_undo(tab):
    tab.load(read(TRACED))
    tab.near("REGGuidance")
    assert shown(tab) == ACTING["row_sum"]
    choose(tab, "scalar")
    for form in ("product", "schedule"):
        choose(tab, form)
        tab.page.wait_for_timeout(700)
    assert shown(tab) == ACTING["schedule"]
    tab.page.keyboard.press("Control+z")
    tab.page.wait_for_timeout(1500)
    value = tab.page.evaluate("app.graph._nodes.find(n => n.type == 'REGGuidance').widgets[0].value")
    assert value != "schedule" and shown(tab) == ACTING[value]


def test_copies_are_as_the_original(tab):
    add(tab, "REGGuidance", ["schedule", *VALUES[1:]])
    tab.page.evaluate("() => { const n = app.graph._nodes[0], c = n.clone(); c.pos = [900, 150]; app.graph.add(c); app.graph.remove(n); }")
    assert shown(tab) == ACTING["schedule"]
    assert state(tab)[0] == ["schedule", *VALUES[1:]]


LINK = "([from, slot, to, name]) => { const of = t => app.graph._nodes.find(n => n.type == t); of(from).connect(slot, of(to), of(to).findInputSlot(name)); }"
UNLINK = "([kind, name]) => { const n = app.graph._nodes.find(n => n.type == kind); n.disconnectInput(n.findInputSlot(name)); }"


def beside(tab, name):
    tab.page.evaluate("name => { const n = LiteGraph.createNode(name); n.pos = [50, 150]; app.graph.add(n); }", name)


def test_cfg_of_autoguidance_acts_with_a_negative_prompt(tab):
    add(tab, "REGAutoguidance")
    beside(tab, "REGDemoPrompt")
    assert shown(tab, "REGAutoguidance") == ["scale"]
    tab.page.evaluate(LINK, ["REGDemoPrompt", 0, "REGAutoguidance", "negative"])
    assert shown(tab, "REGAutoguidance") == ["scale", "cfg"]
    again = tab.page.evaluate("app.graph.serialize()")
    tab.load(EMPTY)
    tab.load(again)
    assert shown(tab, "REGAutoguidance") == ["scale", "cfg"]
    for cfg, names in ((5, ["scale", "cfg"]), (1, ["scale"])):  # 5 is an error without the prompt: it must be seen to be mended
        tab.page.evaluate(LINK, ["REGDemoPrompt", 0, "REGAutoguidance", "negative"])
        tab.page.evaluate("cfg => { const w = app.graph._nodes[0].widgets.find(w => w.name == 'cfg'); w.value = cfg; w.callback?.(cfg); }", cfg)
        tab.page.evaluate(UNLINK, ["REGAutoguidance", "negative"])
        assert shown(tab, "REGAutoguidance") == names


def test_points_of_the_curve_act_without_a_drawn_one(tab, frontend):
    add(tab, "REGScheduleCurve")
    assert shown(tab, "REGScheduleCurve") == ["points", "axis"]
    if "curve" not in frontend.object_info("REGScheduleCurve")["input"].get("optional", {}):
        pytest.skip("this ComfyUI has no curves")
    beside(tab, "CurveEditor")
    tab.page.evaluate(LINK, ["CurveEditor", 0, "REGScheduleCurve", "curve"])
    assert shown(tab, "REGScheduleCurve") == ["axis"]
    tab.shot(f"idle curve {'vue' if tab.vue else 'canvas'}")
    tab.page.evaluate(UNLINK, ["REGScheduleCurve", "curve"])
    assert shown(tab, "REGScheduleCurve") == ["points", "axis"]


def test_what_is_connected_stays_in_sight(tab):
    """A form that comes through a link is unknown; an input with a link is never hidden."""
    add(tab, "REGGuidance")
    beside(tab, "PrimitiveNode")
    tab.page.evaluate(LINK, ["PrimitiveNode", 0, "REGGuidance", "form"])
    assert shown(tab) == ALL
    tab.page.evaluate(UNLINK, ["REGGuidance", "form"])
    assert shown(tab) == WITH_PRODUCT
    tab.page.evaluate("() => app.graph.remove(app.graph._nodes.find(n => n.type == 'PrimitiveNode'))")
    choose(tab, "schedule")
    beside(tab, "PrimitiveNode")
    tab.page.evaluate(LINK, ["PrimitiveNode", 0, "REGGuidance", "data_std"])
    choose(tab, "off")
    assert shown(tab) == ["form", "data_std"]


def test_heights(tab):
    """On the canvas a node follows what is in it, and is never smaller than its user made it."""
    if tab.vue:
        pytest.skip("there the page measures the nodes itself")
    add(tab, "REGGuidance")

    def height():
        tab.page.wait_for_timeout(300)
        return tab.page.evaluate("app.graph._nodes[0].size[1]")

    usual = height()
    choose(tab, "off")
    assert height() == usual - 24 * 7
    choose(tab, "row_sum")
    assert height() == usual
    tab.page.evaluate("own => app.graph._nodes[0].setSize([330, own])", usual + 50)
    for form in ("off", "schedule", "row_sum"):
        choose(tab, form)
        assert height() == usual + 50
    tab.page.evaluate("own => app.graph._nodes[0].setSize([330, own])", usual)
    choose(tab, "off")
    tab.page.evaluate("own => app.graph._nodes[0].setSize([330, own])", usual - 50)
    choose(tab, "row_sum")
    assert height() == usual
    choose(tab, "off")
    assert height() == usual - 50
    # as it was saved
    saved = tab.page.evaluate("app.graph.serialize()")
    tab.load(EMPTY)
    tab.load(saved)
    assert height() == usual - 50


def test_a_new_plot_can_be_read_and_its_socket_has_the_colour_of_its_links(tab):
    """The page's own colour for unknown kinds is grey."""
    add(tab, "REGTracePlot")
    node = tab.page.evaluate("() => { const n = app.graph._nodes[0]; return [n.size[0], LGraphCanvas.link_type_colors.REG_TRACE]; }")
    assert node[0] >= 560 and node[1] == "#9fe0a0"
    tab.shot(f"plot, {'vue' if tab.vue else 'canvas'}")
    if tab.vue:
        box = tab.page.locator("[data-node-id]").first
        assert box.bounding_box()["width"] >= 550
        looks = "e => { const s = getComputedStyle(e); return [s.backgroundColor, s.backgroundImage, s.fill, s.color].join() }"
        assert "rgb(159, 224, 160)" in box.evaluate(f"box => [...box.querySelectorAll('*')].map({looks}).join()")
    else:
        shown = "() => app.graph._nodes[0].inputs.find(i => i.name == 'trace').renderingColor(app.canvas.colourGetter)"
        assert tab.page.evaluate(shown) == "#9fe0a0"
