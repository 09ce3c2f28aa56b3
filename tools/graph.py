"""ComfyUI's UI format 0.4, built in columns: node ids, links, sizes and positions stay consistent.

Sockets and widgets are those of a real ComfyUI, as its server describes the nodes (object_info).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # in tests the path begins with ComfyUI, whose nodes.py this repository's nodes/ would hide
    sys.path.insert(0, str(ROOT))

from tests.host.workflow import default_of, expanded, followed_by_control, widgets_of  # noqa: E402

if __package__:
    from .families import File
else:
    from families import File

GAP, TITLE, BETWEEN = 70, 30, 20  # px: between columns; a node's title, which is above its position; between nodes of a column
WIDTHS = {
    "KSampler": 270, "KSamplerAdvanced": 270, "SamplerCustom": 270, "MarkdownNote": 270, "CLIPTextEncode": 290, "TextEncodeQwenImageEditPlus": 290,
    "REGGuidance": 290, "REGTracePlot": 620, "ModelSamplingAuraFlow": 220, "VAEDecode": 180, "Reroute": 75,
    "WanImageToVideo": 230, "LTXVConditioning": 210, "LTXVConcatAVLatent": 210, "LTXVSeparateAVLatent": 230, "LTXVScheduler": 230, "SamplerCustomAdvanced": 220,
}  # fmt: skip
ROOM = {  # for what nodes show, px
    "PreviewImage": 300, "LoadImage": 214, "REGTracePlot": 420, "PreviewAny": 120, "REGGuidance": 46, "REGSweep": 50, "CreateVideo": 30,
}  # fmt: skip
TALL = {"CLIPTextEncode": 84, "TextEncodeQwenImageEditPlus": 172}  # a text area: the height given
ROW, WIDGET, BORDER, REROUTE = 20, 24, 14, 26  # px: a socket, a widget, around them; a reroute
LINE, LETTERS = 17, 40  # of a note: px a line, letters in it
UNSAVED = ("IMAGECOMPARE",)  # widgets whose value the page does not keep
NOTE = {"color": "#432", "bgcolor": "#653"}


class Missing(LookupError):
    """The host has no such node."""


class Graph:
    """Nodes and links, laid out in columns from left to right. Positions follow from the widest node of each column."""

    def __init__(self, info: dict):
        """`info`: a server's object_info."""
        self.info, self.nodes, self.links, self._heights, self._columns = info, [], [], {}, {}
        self._right = []

    def add(self, kind: str, column: int, title=None, size=None, beside=None, **inputs) -> dict:
        """A node. `size`: (width, height), None in either for the usual. `beside`: start no higher than this node.

        `inputs`, by name: a tuple (node, output slot) is a link, (node, slot, value) a link to a widget that holds the value,
        None is a link made later, and anything else is a widget's value. Widgets that are not given have their defaults.
        """
        if kind not in self.info:
            raise Missing(f"this ComfyUI has no node {kind}")
        spec, files = self.info[kind]["input"], [value for value in inputs.values() if isinstance(value, File)]
        slots, values = self._sockets(kind, spec, inputs), []
        widgets = expanded(spec)
        fed = [name for name, value in inputs.items() if isinstance(value, tuple)]
        last = max((i for i, name in enumerate(widgets) if name in fed), default=-1)
        for i, (name, (type_, options)) in enumerate(widgets.items()):
            value = inputs.pop(name, None)
            link, value = (value[:2], value[2]) if isinstance(value, tuple) else (None, value)
            if i <= last:  # all up to the last one fed are written down, as the page does
                slots.append(({"name": name, "type": type_ if isinstance(type_, str) else "COMBO", "widget": {"name": name}}, link))
            if type_ in UNSAVED:
                continue
            values.append(default_of(type_, options) if value is None else value.name if isinstance(value, File) else value)
            values += ["fixed"] if followed_by_control(name, options) else []
            values += ["image"] if options.get("image_upload") else []
        if inputs:
            raise ValueError(f"{kind} has no inputs {sorted(inputs)}")
        outputs = list(zip(self.info[kind]["output_name"], self.info[kind]["output"], strict=True))
        rows = max(sum("widget" not in slot for slot, _ in slots), len(outputs))
        height = TALL.get(kind, ROW * rows + WIDGET * len(values) + BORDER) + ROOM.get(kind, 0)
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

    def through(self, column: int, source: tuple, right: bool = False) -> tuple:
        """A source led through a column in which it is not used, so that its wire runs behind no node. The new source.

        `right`: at the column's right edge, where its wire may turn to the next column.
        """
        type_ = source[0]["outputs"][source[1]]["type"]
        node = self._placed("Reroute", column, None, REROUTE, None)
        node["outputs"].append({"name": "", "type": type_, "links": [], "slot_index": 0})
        node["inputs"].append({"name": "", "type": "*", "link": self._connect(source, node, 0)})
        node["properties"] = {"showOutputText": False, "horizontal": False}
        self._right += [node] if right else []
        return node, 0

    def link(self, source: tuple, node: dict, name: str) -> None:
        """Connect a node that is there already."""
        slot = next(i for i, given in enumerate(node["inputs"]) if given["name"] == name)
        node["inputs"][slot]["link"] = self._connect(source, node, slot)

    def reach(self, top: int, *columns: int) -> None:
        """Begin the next nodes of these columns no higher than `top`, px: a wire may run above."""
        for column in columns:
            self._heights[column] = max(self._heights.get(column, 0), top)

    def note(self, column: int, text: str) -> None:
        """A page of text, which the server never sees."""
        lines = sum(0.8 + math.ceil(len(paragraph) / LETTERS) for paragraph in text.split("\n\n"))
        node = self._placed("MarkdownNote", column, None, 50 + round(LINE * lines), None)
        node.update({"widgets_values": [text], "title": "Read me", **NOTE})

    def level(self, *columns: int) -> None:
        """Begin the next nodes of these columns at the same height."""
        top = max(self._heights.get(column, 0) for column in columns)
        self._heights.update(dict.fromkeys(columns, top))

    def _sockets(self, kind, spec, inputs) -> list[tuple[dict, tuple | None]]:
        """[(an input that is no widget, its source)], taken out of `inputs`."""
        slots, widgets = [], widgets_of(spec)
        for section in ("required", "optional"):
            for name, (type_, *options) in (spec.get(section) or {}).items():
                if name in widgets or (options and options[0].get("hidden")):
                    continue
                given, source = name in inputs, inputs.pop(name, None)
                if section == "required" and not given:
                    raise ValueError(f"{kind}: input {name} needs a link")
                slots.append(({"name": name, "type": type_, "link": None} | ({"shape": 7} if section == "optional" else {}), source))
        return slots

    def _placed(self, kind, column, size, usual_height, beside) -> dict:
        """A new node at the foot of its column, without sockets."""
        usual = WIDTHS.get(kind, 270), usual_height
        width, height = (given or otherwise for given, otherwise in zip(size or (None, None), usual, strict=True))
        top = max(self._heights.get(column, 0), beside["pos"][1] if beside else 0)
        if kind == "Reroute":
            top -= TITLE  # it has none
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
            column, top = node["pos"]
            right = self._columns[column] - node["size"][0] if node in self._right else 0
            node["pos"] = [at[column] + right, top]
        return {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": [],
            "config": {}, "extra": {"ds": {"scale": 0.7, "offset": [130, 270]}}, "version": 0.4,
        }  # fmt: skip
