"""The in-app help against the schemas as the server gives them, the server's own route, its log, and the sources' messages."""

import html
import io
import re
import urllib.error
from pathlib import Path

import pytest
from PIL import Image

from .server import PACK_FOLDER
from .setup_host import REPO

FOLDER = REPO / "web" / "docs"
NEWER = {("REGScheduleCurve", "curve")}  # inputs of newer hosts; their pages name them anyway
HOSTS_OWN = {("REGCalibrate", "sampler_name"), ("REGCalibrate", "scheduler"), ("REGLoadCalibration", "table"), ("REGDemoPrompt", "digit")}
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
PICTURE = re.compile(r"!\[[^\]]+\]\(([^)]+)\)")
ROUTE = f"/extensions/{PACK_FOLDER}/docs"


@pytest.fixture(scope="module")
def schemas(server):
    """{node id: object_info} of the pack."""
    found = {name: info for name, info in server.object_info().items() if info["python_module"] == f"custom_nodes.{PACK_FOLDER}"}
    assert len(found) >= 22
    return found


def table(page: str, heading: str) -> dict:
    """{name: (facts, meaning)} below a heading; a row is "`name` · fact · fact<br>meaning"."""
    rows = re.search(rf"^## {heading}\n\n\|.*\n\|-+\|\n((?:\|.*\n)+)", page, re.M)
    assert rows, f"no table below {heading}"
    found = {}
    for row in rows[1].splitlines():
        first, meaning = row.strip("|").split("<br>", 1)
        assert not re.search(r"(?<!\\)\|", row.strip("|")), f"a bare | ends the cell: {row}"
        name, *facts = first.strip().split(" · ")
        assert name.startswith("`") and name.endswith("`") and name not in found, row
        found[name.strip("`")] = (facts, meaning.strip())
    return found


def widgets(info: dict):
    """(name, type, options, optional) of every input a page must name."""
    for section in ("required", "optional"):
        for name, spec in info["input"].get(section, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            yield name, "COMBO" if isinstance(spec[0], list) else spec[0], options, section == "optional"


def test_a_page_for_every_node_and_no_other(schemas):
    assert set(PAGES) == set(schemas)


def test_inputs_and_outputs_are_the_schemas(schemas):
    for node_id, info in schemas.items():
        named = list(table(PAGES[node_id], "Inputs"))
        newer = [name for name in named if (node_id, name) in NEWER and name not in [w[0] for w in widgets(info)]]
        assert [name for name in named if name not in newer] == [name for name, *_ in widgets(info)], node_id
        assert list(table(PAGES[node_id], "Outputs")) == info["output_name"], node_id
        for name, (facts, meaning) in (table(PAGES[node_id], "Inputs") | table(PAGES[node_id], "Outputs")).items():
            assert facts or (node_id, name) in HOSTS_OWN, (node_id, name)
            assert len(meaning) > 5, (node_id, name)


def test_ranges_defaults_and_options_are_the_schemas(schemas):
    ranges = 0
    for node_id, info in schemas.items():
        rows = table(PAGES[node_id], "Inputs")
        for name, kind, options, optional in widgets(info):
            facts, meaning = rows[name]
            where = (node_id, name, facts)
            span = [re.fullmatch(r"(-?[\d.]+) to (-?[\d.]+|2\^64 - 1)", fact) for fact in facts]
            span = [[2**64 - 1 if edge == "2^64 - 1" else float(edge) for edge in found.groups()] for found in span if found]
            assert span == ([[options["min"], options["max"]]] if "min" in options else []), where
            ranges += len(span)
            given = [fact.removeprefix("default ") for fact in facts if fact.startswith("default ")]
            if "default" in options and not options.get("forceInput") and kind != "CURVE":
                (shown,) = given
                value = options["default"]
                wanted = float(shown) if kind in ("INT", "FLOAT") else {"on": True, "off": False}.get(shown) if kind == "BOOLEAN" else shown
                assert wanted == value, where
            else:
                assert not given, where
            assert ("advanced" in facts) == bool(options.get("advanced")), where
            assert any(fact.startswith(kind) for fact in facts) == (
                kind not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") or bool(options.get("forceInput"))
            )
            assert any(fact.endswith(", optional") for fact in facts) <= optional, where
            if kind == "COMBO" and (node_id, name) not in HOSTS_OWN:
                missing = [option for option in options["options"] if f"`{option}`" not in PAGES[node_id]]
                assert not missing, where
    assert ranges > 25, "the pages' ranges were not read"


def test_the_server_serves_what_the_page_asks_for(server):
    """The page fetches docs/<node>/<language>.md, then docs/<node>.md, and puts docs/ before relative pictures."""
    seen = set()
    for node_id, page in PAGES.items():
        assert server.get(f"{ROUTE}/{node_id}.md", raw=True).decode() == page
        for language in ("zh", "ja", "ko"):
            assert server.get(f"{ROUTE}/{node_id}/{language}.md", raw=True).decode() == (FOLDER / node_id / f"{language}.md").read_text(encoding="utf-8")
        pictures = PICTURE.findall(page)
        assert pictures, node_id
        for link in pictures:
            assert re.fullmatch(r"images/\w+\.png", link), (node_id, link)
            data = server.get(f"{ROUTE}/{link}", raw=True)
            picture = Image.open(io.BytesIO(data))
            picture.load()
            assert picture.format == "PNG" and len(data) < 60_000 and picture.width <= 640, link
            seen.add(Path(link).name)
    assert seen == {path.name for path in (FOLDER / "images").iterdir()}, "pictures that no page shows"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get(f"{ROUTE}/NoSuchNode.md")


def test_links_lead_out_or_nowhere():
    """The page knows no way from one help text to another: a link to a file would open a broken tab."""
    for node_id, page in PAGES.items():
        for link in re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", re.sub(r"!\[.*?\)", "", page)):
            assert link.startswith("https://arxiv.org/"), (node_id, link)
        assert "<img" not in page and "github.com" not in page
        assert max(len(row.split(" | ")) for row in page.splitlines() if row.startswith("|")) <= 3, f"{node_id}: too wide for a side panel"


def quoted():
    """(node id, what a page quotes of an error or a warning)."""
    return [(node_id, html.unescape(text)) for node_id, page in PAGES.items() for text in re.findall(r'\*\*"(.+?)"\.?(?=\*\*)', page)]


def test_quoted_messages_are_in_the_sources():
    sources = [path.read_text(encoding="utf-8") for folder in ("nodes", "reg_core") for path in (REPO / folder).rglob("*.py")]
    text = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))  # a message over two lines
    assert len(quoted()) > 25
    for node_id, quote in quoted():
        for piece in quote.split("..."):
            assert piece.strip() in text, (node_id, quote)


def graph(model, **sampler):
    """API prompt: the digits model through `model` {id: node} (the last one's first output is sampled)."""
    last = list(model)[-1] if model else "1"
    values = dict(seed=1, steps=12, cfg=4.0, sampler_name="euler", scheduler="karras", denoise=1.0) | sampler
    return {
        "1": {"class_type": "REGDemoModel", "inputs": {"variant": "digits"}},
        "2": {"class_type": "REGDemoPrompt", "inputs": {"digit": "all ten in turn"}},
        "3": {"class_type": "REGDemoPrompt", "inputs": {"digit": "no prompt"}},
        "4": {"class_type": "REGDemoLatent", "inputs": {"batch_size": 10}},
        **model,
        "8": {"class_type": "KSampler", "inputs": dict(model=[last, 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], **values)},
        "9": {"class_type": "REGDemoDecode", "inputs": {"latent": ["8", 0], "scale": 8, "columns": 10}},
        "10": {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}},
    }


def defaults(info, **values):
    return {name: values.get(name, options.get("default")) for name, _, options, _ in widgets(info) if name in values or "default" in options}


def test_log_lines_are_those_of_real_runs(server, schemas):
    """Every line a page quotes of the log, its numbers aside, is written by a run of these."""
    begin = len(server.log)
    for node_id in ("REGGuidance", "REGScheduleLinear", "REGScheduleCosine", "REGScheduleInterval", "REGScheduleCurve"):
        values = defaults(schemas[node_id], model=["1", 0])
        values.pop("curve", None)
        node = {"5": {"class_type": node_id, "inputs": values}}
        server.run(graph(node))
        if node_id == "REGGuidance":
            server.run(graph(node, cfg=1.0))
    links = dict(model=["1", 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0])
    calibrate = {"class_type": "REGCalibrate", "inputs": defaults(schemas["REGCalibrate"], filename_prefix="", cfg=4.0, steps=12, **links)}
    server.run(graph({}) | {"11": calibrate})
    log = [line[line.index("REG") :] for line in server.log[begin:].splitlines() if "REG" in line]
    lines = [(node_id, line) for node_id, page in PAGES.items() for line in re.findall(r"`(REG(?::| did).*?)`", page)]
    assert len(lines) == 7
    for node_id, line in lines:
        pattern = re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", re.escape(line))
        assert any(re.fullmatch(pattern, real) for real in log), (node_id, line, log)
