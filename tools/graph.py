"""ComfyUI's UI format 0.4, built in columns: node ids, links, sizes and positions stay consistent.

Sockets and widgets are those of a real ComfyUI, as its server describes the nodes (object_info).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # in tests the path begins with ComfyUI, whose nodes.py this repository's nodes/ would hide
    sys.path.insert(0, str(ROOT))

from tests.host.workflow import default_of, followed_by_control, widgets_of  # noqa: E402

GAP, TITLE, BETWEEN = 70, 30, 40  # px: between columns; a node's title, which is above its position; between nodes of a column
WIDTHS = {"KSampler": 300, "MarkdownNote": 360, "CLIPTextEncode": 360, "REGGuidance": 310, "VAEDecode": 200, "REGTracePlot": 620}
PICTURES = {"SaveImage": 300, "PreviewImage": 300, "SaveAnimatedWEBP": 300, "REGTracePlot": 420, "PreviewAny": 120, "REGCalibrate": 0}  # room below, px
TALL = {"CLIPTextEncode": 120}  # a text area: the height given
ROW, WIDGET, BORDER = 20, 24, 14  # px a socket, a widget, and around them
NOTE = {"color": "#432", "bgcolor": "#653"}


@dataclass(frozen=True)
class File:
    """A file that a loader's widget names, and where the page may fetch it."""

    name: str
    url: str
    directory: str


class Graph:
    """Nodes and links, laid out in columns from left to right. Positions follow from the widest node of each column."""

    def __init__(self, info: dict):
        """`info`: a server's object_info."""
        self.info, self.nodes, self.links, self._heights, self._columns = info, [], [], {}, {}

    def add(self, kind: str, column: int, title=None, size=None, beside=None, **inputs) -> dict:
        """A node. `size`: (width, height), None in either for the usual. `beside`: start no higher than this node.

        `inputs`, by name: a tuple (node, output slot) is a link, (node, slot, value) a link to a widget that holds the value,
        and anything else is a widget's value. Widgets that are not given have their defaults.
        """
        spec, files = self.info[kind]["input"], [value for value in inputs.values() if isinstance(value, File)]
        slots, values = self._sockets(kind, spec, inputs), []
        widgets = widgets_of(spec)
        fed = [name for name, value in inputs.items() if isinstance(value, tuple)]
        last = max((i for i, name in enumerate(widgets) if name in fed), default=-1)
        for i, (name, (type_, options)) in enumerate(widgets.items()):
            value = inputs.pop(name, None)
            link, value = (value[:2], value[2]) if isinstance(value, tuple) else (None, value)
            if i <= last:  # all up to the last one fed are written down, as the page does
                slots.append(({"name": name, "type": type_ if isinstance(type_, str) else "COMBO", "widget": {"name": name}}, link))
            values.append(default_of(type_, options) if value is None else value.name if isinstance(value, File) else value)
            values += ["fixed"] if followed_by_control(name, options) else []
        if inputs:
            raise ValueError(f"{kind} has no inputs {sorted(inputs)}")
        outputs = list(zip(self.info[kind]["output_name"], self.info[kind]["output"], strict=True))
        rows = max(sum("widget" not in slot for slot, _ in slots), len(outputs))
        height = TALL.get(kind, ROW * rows + WIDGET * len(values) + BORDER) + PICTURES.get(kind, 0)
        node = self._placed(kind, column, size, height, beside)
        node["outputs"] += [{"name": name, "type": type_, "links": [], "slot_index": slot} for slot, (name, type_) in enumerate(outputs)]
        node["inputs"] += [given | {"link": self._connect(source, node, slot)} for slot, (given, source) in enumerate(slots)]
        node["properties"]["cnr_id"] = "reg-guidance" if kind.startswith("REG") else "comfy-core"
        if files:
            node["properties"]["models"] = [vars(file) for file in files]
        if values:
            node["widgets_values"] = values
        if title:
            node["title"] = title
        return node

    def note(self, column: int, text: str) -> None:
        """A page of text, which the server never sees."""
        lines = sum(0.8 + math.ceil(len(paragraph) / 60) for paragraph in text.split("\n\n"))
        node = self._placed("MarkdownNote", column, None, 60 + round(15 * lines), None)
        node.update({"widgets_values": [text], "title": "Read me", **NOTE})

    def level(self, *columns: int) -> None:
        """Begin the next nodes of these columns at the same height."""
        top = max(self._heights.get(column, 0) for column in columns)
        self._heights.update(dict.fromkeys(columns, top))

    def _sockets(self, kind, spec, inputs) -> list[tuple[dict, tuple | None]]:
        """[(an input that is no widget, its source)], taken out of `inputs`."""
        slots, widgets = [], widgets_of(spec)
        for section in ("required", "optional"):
            for name, (type_, *_) in (spec.get(section) or {}).items():
                if name in widgets:
                    continue
                source = inputs.pop(name, None)
                if source is None and section == "required":
                    raise ValueError(f"{kind}: input {name} needs a link")
                slots.append(({"name": name, "type": type_, "link": None} | ({"shape": 7} if section == "optional" else {}), source))
        return slots

    def _placed(self, kind, column, size, usual_height, beside) -> dict:
        """A new node at the foot of its column, without sockets."""
        usual = WIDTHS.get(kind, 280), usual_height
        width, height = (given or otherwise for given, otherwise in zip(size or (None, None), usual, strict=True))
        top = max(self._heights.get(column, 0), beside["pos"][1] if beside else 0)
        self._heights[column] = top + height + TITLE + BETWEEN
        self._columns[column] = max(self._columns.get(column, 0), width)
        node = {
            "id": len(self.nodes) + 1, "type": kind, "pos": [column, top], "size": [width, height], "flags": {}, "order": len(self.nodes),
            "mode": 0, "inputs": [], "outputs": [], "properties": {"Node name for S&R": kind},
        }  # fmt: skip
        self.nodes.append(node)
        return node

    def _connect(self, source, node, target_slot) -> int | None:
        """The id of a new link from `source`, a node and a slot."""
        if source is None:
            return None
        (origin, slot), link = source, len(self.links) + 1
        self.links.append([link, origin["id"], slot, node["id"], target_slot, origin["outputs"][slot]["type"]])
        origin["outputs"][slot]["links"].append(link)
        return link

    def json(self) -> dict:
        """The workflow; call it once, when all nodes are there. It opens with its corner clear of the page's bars."""
        left, at = 0, {}
        for column in sorted(self._columns):
            at[column] = left
            left += self._columns[column] + GAP
        for node in self.nodes:
            node["pos"] = [at[node["pos"][0]], node["pos"][1]]
        return {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": [],
            "config": {}, "extra": {"ds": {"scale": 0.7, "offset": [130, 270]}}, "version": 0.4,
        }  # fmt: skip
