"""Draws the .jpg beside every example workflow: `COMFYUI_PATH=... python tools/thumbnails.py [NAME ...]`, all or those named.

Where the model comes with the pack the workflow is run on a real server, and the picture is what came out. Otherwise it is the family's
name with the settings to use.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.families import FAMILIES, Family  # noqa: E402

FOLDER = ROOT / "example_workflows"
SIZE, EDGE, BADGE = 640, 30, 100  # px: the picture, its margin, and room at the top for the page's own badge
BACK, INK, DIM = "#202024", "white", "#b8b8c0"
STRIPES = {"picture": "#7fd08f", "video": "#64b5f6"}
LABEL = 50  # px above a picture


def fitted(draw: ImageDraw.ImageDraw, text: str, size: int) -> ImageFont.FreeTypeFont:
    """The largest font, up to `size`, in which the text is as wide as the picture."""
    while draw.textlength(text, font=(font := ImageFont.load_default(size))) > SIZE - 2 * EDGE:
        size -= 1
    return font


def card(family: Family) -> Image.Image:
    """What to set, in words."""
    page = Image.new("RGB", (SIZE, SIZE), BACK)
    draw = ImageDraw.Draw(page)
    draw.text((EDGE, 170), family.name, fill=INK, font=fitted(draw, family.name, 110), anchor="ls")
    draw.rectangle((EDGE, 200, SIZE - EDGE, 208), fill=STRIPES["video" if family.video else "picture"])
    lines = (f"cfg {family.cfg:g}", f"REG gain {family.gain:g}", f"{family.steps} steps, {family.sampler}", f"form {family.form}")
    for i, line in enumerate(lines):
        draw.text((EDGE, 300 + 85 * i), line, fill=INK if i < 2 else DIM, font=fitted(draw, line, 64 if i < 2 else 48), anchor="ls")
    return page


def pictures(rows: list[tuple[str, Image.Image]]) -> Image.Image:
    """One picture, or the upper halves of compared sheets under their titles."""
    page = Image.new("RGB", (SIZE, SIZE), BACK)
    draw = ImageDraw.Draw(page)
    label = LABEL if len(rows) > 1 else 0
    room = (SIZE - 2 * EDGE, (SIZE - BADGE - EDGE) // len(rows) - label)
    for i, (title, picture) in enumerate(rows):
        if label:
            picture = picture.crop((0, 0, picture.width, picture.height // 2))
        top = BADGE + i * (room[1] + label)
        scale = min(room[0] / picture.width, (room[1] - 10) / picture.height)
        size = (round(scale * picture.width), round(scale * picture.height))
        left = (SIZE - size[0]) // 2
        if label:
            draw.text((left, top + label - 10), title, fill=INK, font=ImageFont.load_default(34), anchor="ls")
        page.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, top + label + (0 if label else (room[1] - size[1]) // 2)))
    return page


def run(path: Path, server) -> Image.Image:
    """A workflow that needs no download, run on a real server: its plot where it has one, or else what it saves."""
    from tests.host.workflow import to_api

    prompt = to_api(path, server.object_info())
    result = server.run(prompt)
    kinds = {node["class_type"] for node in prompt.values()}
    kind = "REGTracePlot" if "REGTracePlot" in kinds else "SaveImage"
    shown = {key: node["_meta"]["title"] for key, node in prompt.items() if node["class_type"] == kind}
    return pictures([(title, Image.open(io.BytesIO(server.view(result.images(key)[0]))).convert("RGB")) for key, title in shown.items()])


def main() -> None:
    from tests.host.server import ComfyServer
    from tools.workflows import title

    cards = {title(family): card(family) for family in FAMILIES}
    wanted = sys.argv[1:] or sorted(file.stem for file in FOLDER.glob("*.json"))
    with ComfyServer() as server:
        for name in wanted:
            path = FOLDER / f"{name}.json"
            (cards.get(name) or run(path, server)).save(path.with_suffix(".jpg"), quality=88)
            print(path.with_suffix(".jpg").name)


if __name__ == "__main__":
    main()
