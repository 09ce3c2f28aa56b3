"""The real page in a real browser, served by a real ComfyUI. Screenshots: out/browser.

COMFYUI_PATH         as for the host tests
REG_TEST_FRONTEND    folder of a newer frontend (its static/), for what the host's own is too old for

Debian's chromium if there is one, else the browser that Playwright installs.
"""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from tests.host.server import ComfyServer

REPO = Path(__file__).resolve().parents[2]
SHOTS = REPO / "out" / "browser"
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
READY = "!!(window.app && window.app.graph && window.LiteGraph && window.LiteGraph.registered_node_types['KSampler'])"
WAIT, START = 60_000, 180_000  # ms; the machine may be busy

SETTINGS = {  # or a dialog of templates covers the page at the first visit, and a map of the graph its corner
    "Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Locale": "en", "Comfy.VueNodes.Enabled": False,
}  # fmt: skip


class Comfy:
    """One tab with ComfyUI's page: what it logged, and what tests do with it."""

    def __init__(self, browser, server, size=(1800, 1000), **settings):
        self.server, self.settings = server, SETTINGS | settings
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        self.context.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.problems = []
        self.page.on("console", lambda message: message.type == "error" and self._note(message.text))
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.route("**/*", self._only_here)
        self.open()

    def _note(self, text):
        """Kinds of messages: without addresses and where in the page's own files they came from."""
        self.problems.append(re.sub(r"(https?|data):[^'\s]+", "ADDRESS", text.split("\n    at ")[0]))

    @property
    def version(self) -> tuple:
        return tuple(int(n) for n in self.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__").split(".")[:2])

    def _only_here(self, route):
        """No request leaves the machine: without internet the page would wait for each."""
        local = re.match(r"(https?://127\.0\.0\.1[:/]|data:|blob:)", route.request.url)
        route.continue_() if local else route.abort()

    def open(self):
        for name, value in self.settings.items():
            self.server.post(f"/settings/{name}", value)
        self.page.goto(f"http://{self.server.address}", wait_until="commit")
        self.page.wait_for_function(READY, timeout=START)
        self.page.wait_for_timeout(1500)

    def dismiss(self) -> list[str]:
        """Close the dialogs that are open; their texts."""
        texts = []
        while self.page.locator(".p-dialog-mask").count():
            texts.append(self.page.locator(".p-dialog-mask").last.inner_text())
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(500)
            assert len(texts) < 10, texts
        return texts

    def load(self, workflow: dict) -> None:
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(500)

    def prompt(self) -> dict:
        """What the page would queue, in API format."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def fit(self) -> None:
        """The whole graph in view."""
        self.page.evaluate(FIT)
        self.page.wait_for_timeout(500)

    def near(self, kind: str) -> None:
        """The first node of a kind in view, near enough for the page to draw its text."""
        self.page.evaluate(NEAR, kind)
        self.page.wait_for_timeout(1000)

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def close(self):
        self.context.close()


FIT = """() => {
    const boxes = app.graph._nodes.map(n => n.getBounding());
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const [width, height] = [innerWidth - 140, innerHeight - 190];
    const ds = app.canvas.ds;
    ds.scale = Math.min(1.2, width / (right - left), height / (bottom - top));
    ds.offset = [80 / ds.scale - left, 130 / ds.scale - top];
    app.canvas.setDirty(true, true);
}"""

NEAR = """kind => {
    const [x, y] = app.graph._nodes.find(n => n.type == kind).pos;
    app.canvas.ds.scale = 0.8;
    app.canvas.ds.offset = [500 - x, 300 - y];
    app.canvas.setDirty(true, true);
}"""


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        given = {"executable_path": str(CHROMIUM)} if CHROMIUM.exists() else {}
        running = playwright.chromium.launch(args=ARGUMENTS, **given)
        yield running
        running.close()


@pytest.fixture(scope="session")
def server():
    """ComfyUI with this pack alone."""
    with ComfyServer(packs={"ComfyUI-REG": REPO}) as running:
        example_picture(running)
        yield running


def example_picture(running):
    """What ComfyUI brings along for LoadImage."""
    Image.new("RGB", (64, 64)).save(running.base / "input" / "example.png")


@pytest.fixture(scope="session")
def bare_problems(browser):
    """What the page logs as errors without any pack: at its start, and for a graph whose model files are missing."""
    with ComfyServer(packs={}) as running:
        example_picture(running)
        comfy = Comfy(browser, running)
        loaders = json.loads((REPO / "example_workflows" / "REG with Wan 2.2.json").read_text(encoding="utf-8"))
        loaders["nodes"] = [node for node in loaders["nodes"] if not node["inputs"]]
        for node in loaders["nodes"]:
            node["outputs"] = [out | {"links": []} for out in node["outputs"]]
        comfy.load(loaders | {"links": []})
        comfy.page.wait_for_timeout(2000)
        problems = set(comfy.problems)
        comfy.close()
    return problems


@pytest.fixture(scope="session")
def comfy(browser, server):
    """One tab for the tests that leave nothing behind."""
    tab = Comfy(browser, server)
    yield tab
    tab.close()
