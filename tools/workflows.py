"""Writes example_workflows/*.json (ComfyUI's UI format 0.4): `python tools/workflows.py`.

Graphs are described here once, so that node ids, links and positions stay consistent; tests run every file.
"""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows"
COLUMN, ROW = 400, 60  # px; ROW is added between the nodes of a column

# The outputs of each node, and its inputs that are links, as ComfyUI names them.
OUTPUTS = {
    "CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"],
    "CLIPTextEncode": ["CONDITIONING"],
    "EmptyLatentImage": ["LATENT"],
    "EmptySD3LatentImage": ["LATENT"],
    "KSampler": ["LATENT"],
    "VAEDecode": ["IMAGE"],
    "SaveImage": [],
    "PreviewImage": [],
    "MarkdownNote": [],
    "REGGuidance": ["MODEL", "REG_TRACE"],
    "REGDemoModel": ["MODEL"],
    "REGDemoPrompt": ["CONDITIONING"],
    "REGDemoLatent": ["LATENT"],
    "REGDemoDecode": ["IMAGE"],
}
OUTPUT_NAMES = {"REGGuidance": ["model", "trace"], "REGDemoModel": ["model"], "REGDemoPrompt": ["conditioning"], "REGDemoLatent": ["latent"],
                "REGDemoDecode": ["image"]}  # fmt: skip
LINKED = {
    "CLIPTextEncode": [("clip", "CLIP")],
    "KSampler": [("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT")],
    "VAEDecode": [("samples", "LATENT"), ("vae", "VAE")],
    "SaveImage": [("images", "IMAGE")],
    "PreviewImage": [("images", "IMAGE")],
    "REGGuidance": [("model", "MODEL")],
    "REGDemoDecode": [("latent", "LATENT")],
}
SIZES = {
    "CheckpointLoaderSimple": (320, 100), "CLIPTextEncode": (360, 140), "EmptyLatentImage": (280, 110), "EmptySD3LatentImage": (280, 110),
    "KSampler": (300, 270), "VAEDecode": (200, 50), "SaveImage": (440, 330), "PreviewImage": (380, 380), "MarkdownNote": (360, 300),
    "REGGuidance": (320, 260), "REGDemoModel": (300, 60), "REGDemoPrompt": (300, 60), "REGDemoLatent": (300, 60), "REGDemoDecode": (300, 90),
}  # fmt: skip
NO_WIDGETS = ("VAEDecode", "PreviewImage")
GUIDANCE = ["row_sum", "auto", 1.0, 0.0, 1.0, 1, 1.0]


class Graph:
    """Nodes and links, laid out in columns from left to right."""

    def __init__(self):
        self.nodes, self.links, self._heights = [], [], {}

    def add(self, kind: str, column: int, widgets=(), title=None, models=(), color=None, **inputs) -> dict:
        """A node; `inputs` are (node, output slot) pairs by input name."""
        size = SIZES[kind]
        top = self._heights.get(column, 0)
        self._heights[column] = top + size[1] + ROW
        node = {
            "id": len(self.nodes) + 1, "type": kind, "pos": [column * COLUMN, top], "size": list(size), "flags": {}, "order": len(self.nodes),
            "mode": 0, "inputs": [], "outputs": [], "properties": {"Node name for S&R": kind}, "widgets_values": list(widgets),
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
        for slot, (name, type_) in enumerate(zip(OUTPUT_NAMES.get(kind, OUTPUTS[kind]), OUTPUTS[kind], strict=True)):
            node["outputs"].append({"name": name, "type": type_, "links": [], "slot_index": slot})
        for name, type_ in LINKED.get(kind, []):
            source, slot = inputs.pop(name)
            link = len(self.links) + 1
            self.links.append([link, source["id"], slot, node["id"], len(node["inputs"]), type_])
            source["outputs"][slot]["links"].append(link)
            node["inputs"].append({"name": name, "type": type_, "link": link})
        if inputs:
            raise ValueError(f"{kind} has no linked inputs {sorted(inputs)}")
        if kind in NO_WIDGETS:
            del node["widgets_values"]
        self.nodes.append(node)
        return node

    def json(self) -> dict:
        return {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": [],
            "config": {}, "extra": {"ds": {"scale": 0.7, "offset": [80, 80]}}, "version": 0.4,
        }  # fmt: skip


NOTE = ("#432", "#653")


def digits() -> Graph:
    """CFG beside REG on the model shipped with the pack, same seed."""
    g = Graph()
    model = g.add("REGDemoModel", 0, ["digits_weak"])
    positive = g.add("REGDemoPrompt", 0, ["0 to 9 in turn"], "Positive")
    negative = g.add("REGDemoPrompt", 0, ["any digit"], "Negative")
    latent = g.add("REGDemoLatent", 0, [40])
    text = (
        "## REG on handwritten digits\n\nNo download: the model comes with the pack. Press **Queue**.\n\n"
        "Above, REG; below, plain CFG from the same noise and with the same cfg. REG multiplies guidance by the denoiser's Jacobian, "
        "which is near 0 at high noise and near 1 at the end: it guides less, and later. The log says by how much (*effective cfg*).\n\n"
        "Try another form, a higher cfg, or a single digit."
    )
    g.add("MarkdownNote", 0, [text], "Read me", color=NOTE)
    reg = g.add("REGGuidance", 1, GUIDANCE, model=(model, 0))
    for branch, source in (("REG", reg), ("CFG", model)):
        values = [7, "fixed", 18, 8.0, "heun", "karras", 1.0]
        inputs = dict(model=(source, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
        sampler = g.add("KSampler", 2, values, f"Sample with {branch}", **inputs)
        image = g.add("REGDemoDecode", 3, [8, 10], latent=(sampler, 0))
        g.add("SaveImage", 4, [f"REG/digits_{branch}"], branch, images=(image, 0))
    return g


def text_to_image(checkpoint, cfg, steps, sampler, scheduler, latent, size, prompt, negative_prompt, note) -> Graph:
    """Checkpoint, prompts, REG, sampler, image."""
    g = Graph()
    loader = g.add("CheckpointLoaderSimple", 0, [checkpoint[0]], models=[checkpoint])
    empty = g.add(latent, 0, [size, size, 1])
    g.add("MarkdownNote", 0, [note], "Read me", color=NOTE)
    reg = g.add("REGGuidance", 1, GUIDANCE, model=(loader, 0))
    positive = g.add("CLIPTextEncode", 1, [prompt], "Positive", clip=(loader, 1))
    negative = g.add("CLIPTextEncode", 1, [negative_prompt], "Negative", clip=(loader, 1))
    values = [42, "fixed", steps, cfg, sampler, scheduler, 1.0]
    sample = g.add("KSampler", 2, values, model=(reg, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(empty, 0))
    decoded = g.add("VAEDecode", 2, samples=(sample, 0), vae=(loader, 2))
    g.add("SaveImage", 3, ["REG/image"], images=(decoded, 0))
    return g


def note_for(name: str, usual: float, cfg: float) -> str:
    return (
        f"## REG with {name}\n\nREG guides less than CFG at the same cfg, most of all at high noise. This graph starts at cfg {cfg:g}, where "
        f"people usually take {usual:g} without REG; neither is tuned. To compare fairly look at *effective cfg* in the log after a run, "
        "and compare with form `schedule`, which costs nothing.\n\n`strength` 0 or form `off` gives plain CFG, to the bit."
    )


PROMPT = "a lighthouse on a cliff at dawn, heavy sea, photograph, fine detail"
HF = "https://huggingface.co"
WORKFLOWS = {
    "REG on handwritten digits": digits,
    "REG with SDXL": lambda: text_to_image(
        ("sd_xl_base_1.0.safetensors", f"{HF}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors", "checkpoints"),
        10.0, 30, "euler", "normal", "EmptyLatentImage", 1024, PROMPT, "blurry, text, watermark", note_for("SDXL", 6, 10),
    ),
    "REG with SD1.5": lambda: text_to_image(
        ("v1-5-pruned-emaonly-fp16.safetensors",
         f"{HF}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors", "checkpoints"),
        12.0, 30, "dpmpp_2m", "karras", "EmptyLatentImage", 512, PROMPT, "blurry, text, watermark", note_for("SD 1.5", 7.5, 12),
    ),
    "REG with SD3.5": lambda: text_to_image(
        ("sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors",
         f"{HF}/Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors", "checkpoints"),
        7.0, 30, "dpmpp_2m", "sgm_uniform", "EmptySD3LatentImage", 1024, PROMPT, "", note_for("SD 3.5, a flow model,", 4.5, 7),
    ),
}  # fmt: skip


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, build in WORKFLOWS.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(build().json(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
