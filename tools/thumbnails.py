"""Draws the .jpg beside every example workflow: `COMFYUI_PATH=... python tools/thumbnails.py`.

Where the model ships with the pack the workflow is run on a real server and the picture is what came out; otherwise
the graph itself is drawn.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "example_workflows"
SIZE = (640, 640)  # the page crops to a square
LABEL = 44  # px above a picture
COLORS = {
    "MODEL": "#b39ddb", "CLIP": "#ffd500", "VAE": "#ff6e6e", "CONDITIONING": "#ffa931", "LATENT": "#ff9cf9", "IMAGE": "#64b5f6",
    "REG_TRACE": "#9fe0a0",
}  # fmt: skip


def draw_graph(workflow: dict) -> Image.Image:
    """The nodes and links of a UI-format workflow, fitted into the thumbnail."""
    nodes = [n for n in workflow["nodes"] if n["type"] != "MarkdownNote"]
    left, top = min(n["pos"][0] for n in nodes), min(n["pos"][1] for n in nodes)
    right, bottom = (max(n["pos"][i] + n["size"][i] for n in nodes) for i in (0, 1))
    scale = min((SIZE[0] - 40) / (right - left), (SIZE[1] - 50) / (bottom - top))
    big = 2  # drawn at twice the size: smooth edges
    page = Image.new("RGB", (SIZE[0] * big, SIZE[1] * big), "#202024")
    draw = ImageDraw.Draw(page)
    title, small = ImageFont.load_default(15 * big), ImageFont.load_default(10 * big)
    margin = ((SIZE[0] - scale * (right - left)) / 2, (SIZE[1] - scale * (bottom - top)) / 2 + 6)

    def place(x, y):
        return ((x - left) * scale + margin[0]) * big, ((y - top) * scale + margin[1]) * big

    by_id = {n["id"]: n for n in workflow["nodes"]}
    for _, source, out_slot, target, in_slot, kind in workflow["links"]:
        a, b = by_id[source], by_id[target]
        start = place(a["pos"][0] + a["size"][0], a["pos"][1] + 20 + 22 * out_slot)
        end = place(b["pos"][0], b["pos"][1] + 20 + 22 * in_slot)
        _curve(draw, start, end, COLORS.get(kind, "#aaaaaa"), 2 * big)
    for n in nodes:
        box = (*place(*n["pos"]), *place(n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]))
        ours = n["type"].startswith("REG")
        draw.rounded_rectangle(box, 6 * big, fill="#2f4f3f" if ours else "#353539", outline="#7fd08f" if ours else "#555560", width=big)
        draw.text((box[0] + 7 * big, box[1] + 5 * big), _fit(n.get("title", n["type"]), box, 15), fill="white", font=title)
        for i, value in enumerate(n.get("widgets_values", [])[:7]):
            y = box[1] + (28 + 13 * i) * big
            if y + 12 * big < box[3]:
                draw.text((box[0] + 9 * big, y), _fit(str(value), box, 10), fill="#bbbbbb", font=small)
    return page.resize(SIZE, Image.Resampling.LANCZOS)


def _fit(text: str, box, size: int) -> str:
    """Text cut to the width of a box (drawn at twice the size)."""
    room = int((box[2] - box[0]) / 2 / (0.55 * size)) - 1
    return text if len(text) <= room else text[: max(1, room - 1)] + "…"


def _curve(draw, start, end, color, width):
    bend = max(30.0, abs(end[0] - start[0]) / 2)
    points = []
    for i in range(33):
        t = i / 32
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        points.append((a * start[0] + b * (start[0] + bend) + c * (end[0] - bend) + d * end[0], a * start[1] + b * start[1] + c * end[1] + d * end[1]))
    draw.line(points, fill=color, width=width, joint="curve")


def run(path: Path, server) -> Image.Image:
    """The pictures of a workflow that needs no download, run on a real server, one below the other under their titles."""
    from tests.host.workflow import to_api

    prompt = to_api(path, server.get("/object_info"))
    result = server.run(prompt)
    rows = []
    for key, node in prompt.items():
        if node["class_type"] == "SaveImage":
            rows.append((node["_meta"]["title"], Image.open(io.BytesIO(server.view(result.images(key)[0]))).convert("RGB")))
    page = Image.new("RGB", SIZE, "#202024")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(30)
    room = (SIZE[0] - 40, (SIZE[1] - 20) // len(rows) - 20)
    for i, (title, picture) in enumerate(rows):
        top, label = 20 + i * (room[1] + 20), LABEL if len(rows) > 1 else 0
        if label:
            draw.text((20, top), title, fill="white", font=font)
        scale = min(room[0] / picture.width, (room[1] - label) / picture.height)
        size = (round(scale * picture.width), round(scale * picture.height))
        page.paste(picture.resize(size, Image.Resampling.LANCZOS), (20 + (room[0] - size[0]) // 2, top + label + (room[1] - label - size[1]) // 2))
    return page


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.host.server import ComfyServer

    with ComfyServer() as server:
        for path in sorted(FOLDER.glob("*.json")):
            workflow = json.loads(path.read_text(encoding="utf-8"))
            loads = any(n["properties"].get("models") for n in workflow["nodes"])
            picture = draw_graph(workflow) if loads else run(path, server)
            picture.save(path.with_suffix(".jpg"), quality=88)
            print(path.with_suffix(".jpg").name, picture.size)


if __name__ == "__main__":
    main()
