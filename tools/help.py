"""Keeps web/docs/*.md, the in-app help, at the nodes' schemas: `COMFYUI_PATH=... python tools/help.py`.

Writes the first line (name, type or range, default) of every row in the tables of inputs and outputs, from a real server's
object_info. What an input means is written by hand below it; a new input gets a row with its tooltip, one that is gone loses
its row. The tables have one column: the page's panel is some 250 px wide.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "web" / "docs"
# Inputs that only newer hosts have; run on an older one they stay as they are.
NEWER = {("REGScheduleCurve", "curve")}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def inputs(info: dict) -> dict[str, tuple]:
    """{name: (type, options, optional)} of a node's object_info, in the order of the page."""
    sections = info["input"]
    found = {name: (spec[0], spec[1] if len(spec) > 1 else {}, section == "optional") for section in ("required", "optional")
             for name, spec in sections.get(section, {}).items()}  # fmt: skip
    return {name: (kind if isinstance(kind, str) else "COMBO", options, optional) for name, (kind, options, optional) in found.items()}


def facts(name: str, kind: str, options: dict, optional: bool) -> str:
    """`name`, its type or range, its default, in a line."""
    parts = [f"`{name}`"]
    if kind not in WIDGETS or options.get("forceInput"):
        parts.append(kind + (", optional" if optional else ""))
    elif "min" in options:
        parts.append(f"{number(options['min'])} to {number(options['max'])}")
    if "default" in options and kind in WIDGETS and not options.get("forceInput"):
        value = options["default"]
        shown = ("on" if value else "off") if kind == "BOOLEAN" else number(value) if isinstance(value, (int, float)) else str(value)
        parts.append(f"default {shown}")
    if options.get("advanced"):
        parts.append("advanced")
    return " · ".join(parts)


def number(value) -> str:
    """0.001, 10, 2^64 - 1."""
    return "2^64 - 1" if value == 2**64 - 1 else f"{value:.10g}"


def with_table(page: str, heading: str, facts: dict[str, str], meanings: dict[str, str], keep=()) -> str:
    """The page with the table below `## heading` holding a row for each of `facts` {name: first line}, in their order."""
    pattern = re.compile(rf"(## {heading}\n\n\|[^\n]*\n\|-+\|\n)((?:\|[^\n]*\n)*)")
    found = pattern.search(page)
    if found is None:
        raise ValueError(f"no table of one column below '## {heading}'")
    rows = {}
    for row in found[2].splitlines():
        first, meaning = (part.strip() for part in row.strip("|").split("<br>", 1))
        rows[re.match(r"`(\w+)`", first)[1]] = (first, meaning)
    lines = [f"| {first}<br>{rows[name][1] if name in rows else meanings.get(name, '')} |" for name, first in facts.items()]
    lines += [f"| {first}<br>{meaning} |" for name, (first, meaning) in rows.items() if name not in facts and name in keep]
    return page[: found.start(2)] + "".join(line + "\n" for line in lines) + page[found.end(2) :]


def updated(page: str, node_id: str, info: dict) -> str:
    """A page brought to a node's object_info."""
    given = inputs(info)
    lines = {name: facts(name, *spec) for name, spec in given.items()}
    keep = [name for node, name in NEWER if node == node_id]
    page = with_table(page, "Inputs", lines, {name: options.get("tooltip", "") for name, (_, options, _) in given.items()}, keep)
    kinds = zip(info["output_name"], info["output"], info["output_is_list"], strict=True)
    lines = {name: f"`{name}` · {kind}{', a list' if many else ''}" for name, kind, many in kinds}
    return with_table(page, "Outputs", lines, dict(zip(info["output_name"], info.get("output_tooltips") or [], strict=False)))


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.host.server import PACK_FOLDER, ComfyServer

    with ComfyServer() as server:
        nodes = {name: info for name, info in server.object_info().items() if info["python_module"] == f"custom_nodes.{PACK_FOLDER}"}
    for node_id, info in nodes.items():
        path = FOLDER / f"{node_id}.md"
        page = path.read_text(encoding="utf-8")
        new = updated(page, node_id, info)
        if new != page:
            path.write_text(new, encoding="utf-8")
            print("written:", path.name)


if __name__ == "__main__":
    main()
