"""Writes example_workflows/*.json, subgraphs/*.json and workflows/tests/*.json: `COMFYUI_PATH=... python tools/workflows.py`.

Graphs are described here and, those of the digits, in workflows_digits.py; tests run every file. Sockets and widgets come from a
running ComfyUI: take the oldest that is supported, so that the files have no widget that it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __package__:
    from . import blueprint, workflows_digits
    from .graph import ROOT, File, Graph
else:
    import blueprint
    import workflows_digits
    from graph import ROOT, File, Graph

FOLDER = ROOT / "example_workflows"
SUBGRAPHS = ROOT / "subgraphs"
COMFY_TEST = ROOT / "workflows" / "tests"  # where that tool looks; not a folder that ComfyUI serves
HF = "https://huggingface.co"
GAIN = 1.5  # of row_sum: 1.3 on Fashion-MNIST, 2.6 on the digits (docs/evidence.md)
PROMPT = "a lighthouse on a cliff at dawn, heavy sea, photograph, fine detail"


def text_to_image(g: Graph, checkpoint: File, note: str, latent: str, size: int, negative: str, **sampler) -> None:
    """Checkpoint, prompts, REG, sampler, image. With `distilled` among the sampler's values: the guidance embedded by models that have one."""
    distilled = sampler.pop("distilled", None)
    loader = g.add("CheckpointLoaderSimple", 0, ckpt_name=checkpoint)
    empty = g.add(latent, 0, width=size, height=size)
    g.note(0, note)
    reg = g.add("REGGuidance", 1, gain=GAIN, model=(loader, 0))
    prompts = [g.add("CLIPTextEncode", 1, title, text=text, clip=(loader, 1)) for title, text in (("Positive", PROMPT), ("Negative", negative))]
    if distilled is not None:
        prompts = [g.add("FluxGuidance", 2, f"Distilled guidance {distilled:g}", beside=p, guidance=distilled, conditioning=(p, 0)) for p in prompts]
    column = 2 if distilled is None else 3
    links = dict(model=(reg, 0), positive=(prompts[0], 0), negative=(prompts[1], 0), latent_image=(empty, 0))
    sample = g.add("KSampler", column, seed=42, **sampler, **links)
    decoded = g.add("VAEDecode", column, samples=(sample, 0), vae=(loader, 2))
    g.add("SaveImage", column + 1, size=(440, 500), filename_prefix="REG/image", images=(decoded, 0))


def wan(g: Graph) -> None:
    """Text to video with Wan 2.1, 1.3B."""

    def file(name, folder):
        return File(name, f"{HF}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/{folder}/{name}", folder)

    model = g.add("UNETLoader", 0, unet_name=file("wan2.1_t2v_1.3B_fp16.safetensors", "diffusion_models"))
    clip = g.add("CLIPLoader", 0, clip_name=file("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders"), type="wan")
    decoder = g.add("VAELoader", 0, vae_name=file("wan_2.1_vae.safetensors", "vae"))
    empty = g.add("EmptyHunyuanLatentVideo", 0, width=832, height=480, length=33)
    g.note(
        0,
        "## REG with Wan 2.1\n\nA flow model, 33 frames at 16 a second. cfg 6 is the usual one; **gain** 1.5 makes up for what REG takes away. "
        "Bypass REG Guidance (Ctrl+B) to compare with plain CFG.\n\nTo pay nothing, try form **schedule** with gain 3.",
    )
    shifted = g.add("ModelSamplingSD3", 1, shift=8.0, model=(model, 0))
    reg = g.add("REGGuidance", 2, gain=GAIN, model=(shifted, 0))
    positive = g.add("CLIPTextEncode", 1, "Positive", text="a fox runs through deep snow between birches, tracking shot, morning light", clip=(clip, 0))
    negative = g.add("CLIPTextEncode", 1, "Negative", text="static, overexposed, subtitles, blurry, worst quality, deformed", clip=(clip, 0))
    values = dict(seed=42, steps=30, cfg=6.0, sampler_name="uni_pc", scheduler="simple")
    sample = g.add("KSampler", 3, **values, model=(reg, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(empty, 0))
    frames = g.add("VAEDecode", 3, samples=(sample, 0), vae=(decoder, 0))
    g.add("SaveAnimatedWEBP", 4, size=(480, 480), filename_prefix="REG/video", fps=16.0, lossless=False, quality=90, images=(frames, 0))


def note_for(name: str, cfg: float, more: str = "") -> str:
    return (
        f"## REG with {name}\n\ncfg {cfg:g} is the usual one. REG guides less at high noise; **gain** {GAIN:g} makes up for it. After a run the "
        f"log estimates the gain that fits this model.{more}\n\nBypass REG Guidance (Ctrl+B) to compare with plain CFG. To pay nothing, try "
        "form **schedule** with gain 3."
    )


FLUX = (
    "\n\nFlux dev is usually run at cfg 1 with a *distilled* guidance of 3.5: there is no difference of two predictions then, and REG has nothing to "
    "rectify. Here the distilled guidance is 1 and cfg is real, so a step costs two model rows, and the negative prompt counts."
)


def checkpoint(name: str, repository: str) -> File:
    return File(name, f"{HF}/{repository}/resolve/main/{name}", "checkpoints")


WORKFLOWS: dict[str, Callable[[Graph], None]] = workflows_digits.WORKFLOWS | {
    "REG with SDXL": partial(
        text_to_image, checkpoint=checkpoint("sd_xl_base_1.0.safetensors", "stabilityai/stable-diffusion-xl-base-1.0"),
        note=note_for("SDXL", 6), latent="EmptyLatentImage", size=1024, negative="blurry, text, watermark",
        cfg=6.0, steps=30, sampler_name="euler", scheduler="normal",
    ),
    "REG with SD1.5": partial(
        text_to_image, checkpoint=checkpoint("v1-5-pruned-emaonly-fp16.safetensors", "Comfy-Org/stable-diffusion-v1-5-archive"),
        note=note_for("SD 1.5", 7.5), latent="EmptyLatentImage", size=512, negative="blurry, text, watermark",
        cfg=7.5, steps=30, sampler_name="dpmpp_2m", scheduler="karras",
    ),
    "REG with SD3.5": partial(
        text_to_image, checkpoint=checkpoint("sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors", "Comfy-Org/stable-diffusion-3.5-fp8"),
        note=note_for("SD 3.5", 4.5), latent="EmptySD3LatentImage", size=1024, negative="",
        cfg=4.5, steps=30, sampler_name="dpmpp_2m", scheduler="sgm_uniform",
    ),
    "REG with Flux and real cfg": partial(
        text_to_image, checkpoint=checkpoint("flux1-dev-fp8.safetensors", "Comfy-Org/flux1-dev"),
        note=note_for("Flux dev and real cfg", 3, FLUX), latent="EmptySD3LatentImage", size=1024, negative="blurry, text, watermark",
        cfg=3.0, steps=24, sampler_name="euler", scheduler="simple", distilled=1.0,
    ),
    "REG with Wan 2.1 video": wan,
}  # fmt: skip


def for_comfy_test(g: Graph) -> None:
    """A graph that comfy-test can read: it takes widgets by position, so those that the page adds to stay unwritten, and knows no notes."""
    model = g.add("REGDemoModel", 0)
    positive, negative = (g.add("REGDemoPrompt", 0, digit=text) for text in ("0 to 9 in turn", "any digit"))
    latent = g.add("REGDemoLatent", 0, batch_size=10)
    reg = g.add("REGGuidance", 1, model=(model, 0))
    sampler = g.add("KSampler", 2, model=(reg, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
    image = g.add("REGDemoDecode", 2, scale=8, columns=5, latent=(sampler, 0))
    plot = g.add("REGTracePlot", 3, trace=(reg, 1), latent=(sampler, 0))
    for picture in (image, plot):
        g.add("PreviewImage", 4, images=(picture, 0))
    for node in (reg, sampler, plot):
        del node["widgets_values"]


def files(info: dict) -> dict[Path, dict]:
    """{path: workflow} of everything that is written here, from a server's object_info."""

    def built(build) -> dict:
        graph = Graph(info)
        build(graph)
        return graph.json()

    found = {FOLDER / f"{name}.json": built(build) for name, build in WORKFLOWS.items()}
    found[SUBGRAPHS / f"{blueprint.NAME}.json"] = blueprint.json(info)
    found[COMFY_TEST / "reg_digits.json"] = built(for_comfy_test)
    return found


def main() -> None:
    from tests.host.server import ComfyServer

    with ComfyServer() as server:
        found = files(server.object_info())
    for path, workflow in found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
