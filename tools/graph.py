"""ComfyUI's UI format 0.4, built in columns: node ids, links, sizes and positions stay consistent."""

from __future__ import annotations

import math

GAP, TITLE, BETWEEN = 70, 30, 40  # px: between columns; a node's title, which is above its position; between nodes of a column

# Outputs of each node, and its inputs that are links, by the names ComfyUI gives them.
OUTPUTS = {
    "BasicScheduler": ["SIGMAS"],
    "CFGGuider": ["GUIDER"],
    "CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"],
    "CLIPLoader": ["CLIP"],
    "CLIPTextEncode": ["CONDITIONING"],
    "EmptyHunyuanLatentVideo": ["LATENT"],
    "EmptyLatentImage": ["LATENT"],
    "EmptySD3LatentImage": ["LATENT"],
    "FluxGuidance": ["CONDITIONING"],
    "KSampler": ["LATENT"],
    "KSamplerSelect": ["SAMPLER"],
    "MarkdownNote": [],
    "ModelSamplingSD3": ["MODEL"],
    "PreviewAny": [],
    "PreviewImage": [],
    "RandomNoise": ["NOISE"],
    "SamplerCustomAdvanced": ["LATENT", "LATENT"],
    "SaveAnimatedWEBP": [],
    "SaveImage": [],
    "UNETLoader": ["MODEL"],
    "VAEDecode": ["IMAGE"],
    "VAELoader": ["VAE"],
    "REGAutoguidance": ["GUIDER"],
    "REGCalibrate": ["REG_CALIBRATION", "STRING"],
    "REGDemoDecode": ["IMAGE"],
    "REGDemoLatent": ["LATENT"],
    "REGDemoModel": ["MODEL"],
    "REGDemoPrompt": ["CONDITIONING"],
    "REGGrid": ["IMAGE"],
    "REGGuidance": ["MODEL", "REG_TRACE"],
    "REGRewardDigit": ["REG_REWARD"],
    "REGRewardGuidance": ["MODEL"],
    "REGSweep": ["MODEL", "FLOAT", "STRING", "REG_TRACE"],
    "REGTracePlot": ["IMAGE", "IMAGE", "STRING"],
}
NAMES = {  # where an output is not called by its type
    "REGAutoguidance": ["guider"], "REGCalibrate": ["calibration", "text"], "REGDemoDecode": ["image"], "REGDemoLatent": ["latent"],
    "REGDemoModel": ["model"], "REGDemoPrompt": ["conditioning"], "REGGrid": ["image"], "REGGuidance": ["model", "trace"],
    "REGRewardDigit": ["reward"], "REGRewardGuidance": ["model"], "REGSweep": ["model", "cfg", "label", "trace"],
    "REGTracePlot": ["plot", "heat_map", "text"], "SamplerCustomAdvanced": ["output", "denoised_output"],
}  # fmt: skip
_PAIR = [("positive", "CONDITIONING"), ("negative", "CONDITIONING")]
LINKED = {  # a name with `?` is optional
    "BasicScheduler": [("model", "MODEL")],
    "CFGGuider": [("model", "MODEL"), *_PAIR],
    "CLIPTextEncode": [("clip", "CLIP")],
    "FluxGuidance": [("conditioning", "CONDITIONING")],
    "KSampler": [("model", "MODEL"), *_PAIR, ("latent_image", "LATENT")],
    "ModelSamplingSD3": [("model", "MODEL")],
    "PreviewAny": [("source", "*")],
    "PreviewImage": [("images", "IMAGE")],
    "SamplerCustomAdvanced": [("noise", "NOISE"), ("guider", "GUIDER"), ("sampler", "SAMPLER"), ("sigmas", "SIGMAS"), ("latent_image", "LATENT")],
    "SaveAnimatedWEBP": [("images", "IMAGE")],
    "SaveImage": [("images", "IMAGE")],
    "VAEDecode": [("samples", "LATENT"), ("vae", "VAE")],
    "REGAutoguidance": [("model", "MODEL"), ("weak_model", "MODEL"), ("positive", "CONDITIONING"), ("negative?", "CONDITIONING")],
    "REGCalibrate": [
        ("model", "MODEL"), *_PAIR, ("latent_image", "LATENT"),
        ("positive_2?", "CONDITIONING"), ("positive_3?", "CONDITIONING"), ("positive_4?", "CONDITIONING"),
    ],
    "REGDemoDecode": [("latent", "LATENT")],
    "REGGrid": [("images", "IMAGE"), ("labels", "STRING"), ("trace?", "REG_TRACE")],
    "REGGuidance": [("model", "MODEL"), ("calibration?", "REG_CALIBRATION")],
    "REGRewardGuidance": [("model", "MODEL"), ("reward", "REG_REWARD")],
    "REGSweep": [("model", "MODEL"), ("calibration?", "REG_CALIBRATION")],
    "REGTracePlot": [("trace", "REG_TRACE"), ("latent", "LATENT"), ("image?", "IMAGE")],
}  # fmt: skip
WIDGETS = {  # that a link may feed: all of the node's up to the last one fed are written down, as the page does
    "KSampler": [("seed", "INT"), ("steps", "INT"), ("cfg", "FLOAT"), ("sampler_name", "COMBO"), ("scheduler", "COMBO")],
    "REGGuidance": [("form", "COMBO")],
}
WIDTHS = {"KSampler": 300, "MarkdownNote": 360, "CLIPTextEncode": 360, "REGGuidance": 310, "VAEDecode": 200, "REGTracePlot": 620}
PICTURES = {"SaveImage": 300, "PreviewImage": 300, "SaveAnimatedWEBP": 300, "REGTracePlot": 420, "PreviewAny": 120, "REGCalibrate": 0}  # room below, px
TALL = {"CLIPTextEncode": 120}  # a text area: the height given
ROW, WIDGET, BORDER = 20, 24, 14  # px a socket, a widget, and around them


class Graph:
    """Nodes and links, laid out in columns from left to right. Positions follow from the widest node of each column."""

    def __init__(self):
        self.nodes, self.links, self._heights, self._columns = [], [], {}, {}

    def add(self, kind: str, column: int, widgets=(), title=None, models=(), color=None, size=None, beside=None, **inputs) -> dict:
        """A node; `inputs` are (node, output slot) pairs by input name, widgets among them. `models`: (name, url, folder) of the
        files it loads. `size`: (width, height), None in either for the usual. `beside`: start no higher than this node."""
        wired, sources = [], []
        for name, type_ in LINKED.get(kind, []):
            source = inputs.pop(name.rstrip("?"), None)
            if source is None and not name.endswith("?"):
                raise ValueError(f"{kind}: input {name} needs a link")
            wired.append({"name": name.rstrip("?"), "type": type_, "link": self._reserve(source)} | ({"shape": 7} if name.endswith("?") else {}))
            sources.append(source)
        for name, type_ in WIDGETS.get(kind, []) if inputs else []:
            source = inputs.pop(name, None)
            wired.append({"name": name, "type": type_, "widget": {"name": name}, "link": self._reserve(source)})
            sources.append(source)
        if inputs:
            raise ValueError(f"{kind} has no linked inputs {sorted(inputs)}")
        outputs = [
            {"name": name, "type": type_, "links": [], "slot_index": slot}
            for slot, (name, type_) in enumerate(zip(NAMES.get(kind, OUTPUTS[kind]), OUTPUTS[kind], strict=True))
        ]
        sockets = max(len(LINKED.get(kind, [])), len(outputs))
        height = TALL.get(kind, ROW * sockets + WIDGET * len(widgets) + BORDER) + PICTURES.get(kind, 0)
        if kind == "MarkdownNote":
            height = 60 + round(15 * sum(0.8 + math.ceil(len(paragraph) / 60) for paragraph in widgets[0].split("\n\n")))
        width, height = (given or usual for given, usual in zip(size or (None, None), (WIDTHS.get(kind, 280), height), strict=True))
        top = max(self._heights.get(column, 0), beside["pos"][1] if beside else 0)
        self._heights[column] = top + height + TITLE + BETWEEN
        self._columns[column] = max(self._columns.get(column, 0), width)
        node = {
            "id": len(self.nodes) + 1, "type": kind, "pos": [column, top], "size": [width, height], "flags": {}, "order": len(self.nodes),
            "mode": 0, "inputs": wired, "outputs": outputs, "properties": {"Node name for S&R": kind}, "widgets_values": list(widgets),
        }  # fmt: skip
        if title:
            node["title"] = title
        if color:
            node["color"], node["bgcolor"] = color
        if kind.startswith("REG"):
            node["properties"]["cnr_id"] = "reg-guidance"
        elif kind != "MarkdownNote":
            node["properties"]["cnr_id"] = "comfy-core"
        if models:
            node["properties"]["models"] = [dict(zip(("name", "url", "directory"), m, strict=True)) for m in models]
        if not widgets:
            del node["widgets_values"]
        for slot, source in enumerate(sources):
            if source is not None:
                self._connect(wired[slot]["link"], *source, node, slot)
        self.nodes.append(node)
        return node

    def level(self, *columns: int) -> None:
        """Begin the next nodes of these columns at the same height."""
        top = max(self._heights.get(column, 0) for column in columns)
        self._heights.update(dict.fromkeys(columns, top))

    def _reserve(self, source) -> int | None:
        if source is None:
            return None
        self.links.append(None)
        return len(self.links)

    def _connect(self, link, source, slot, node, target_slot):
        self.links[link - 1] = [link, source["id"], slot, node["id"], target_slot, source["outputs"][slot]["type"]]
        source["outputs"][slot]["links"].append(link)

    def _place(self) -> None:
        """From column numbers to px."""
        left, at = 0, {}
        for column in sorted(self._columns):
            at[column] = left
            left += self._columns[column] + GAP
        for node in self.nodes:
            node["pos"] = [at[node["pos"][0]], node["pos"][1]]

    def json(self) -> dict:
        """The workflow; call it once, when all nodes are there. It opens with its corner clear of the page's bars."""
        self._place()
        return {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": [],
            "config": {}, "extra": {"ds": {"scale": 0.7, "offset": [130, 270]}}, "version": 0.4,
        }  # fmt: skip
