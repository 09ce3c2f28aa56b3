"""Writes example_workflows/*.json, subgraphs/*.json and workflows/tests/*.json: `python tools/workflows.py`. The digits' graphs are in workflows_digits.py.

Graphs are described here once; tests run every file.
"""

from __future__ import annotations

import json
from pathlib import Path

if __package__:
    from . import blueprint, workflows_digits
    from .graph import Graph
    from .workflows_digits import GUIDANCE, NOTE
else:
    import blueprint
    import workflows_digits
    from graph import Graph
    from workflows_digits import GUIDANCE, NOTE

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "example_workflows"
SUBGRAPHS = ROOT / "subgraphs"
COMFY_TEST = ROOT / "workflows" / "tests"  # where that tool looks; not a folder that ComfyUI serves


def text_to_image(checkpoint, cfg, steps, sampler, scheduler, latent, size, prompt, negative_prompt, note, distilled=None) -> Graph:
    """Checkpoint, prompts, REG, sampler, image. `distilled`: the guidance embedded by models that have one."""
    g = Graph()
    loader = g.add("CheckpointLoaderSimple", 0, [checkpoint[0]], models=[checkpoint])
    empty = g.add(latent, 0, [size, size, 1])
    g.add("MarkdownNote", 0, [note], "Read me", color=NOTE)
    reg = g.add("REGGuidance", 1, GUIDANCE, model=(loader, 0))
    prompts = [
        g.add("CLIPTextEncode", 1, [prompt], "Positive", clip=(loader, 1)),
        g.add("CLIPTextEncode", 1, [negative_prompt], "Negative", clip=(loader, 1)),
    ]
    if distilled is not None:
        prompts = [g.add("FluxGuidance", 2, [distilled], "Distilled guidance 1", beside=p, conditioning=(p, 0)) for p in prompts]
    column = 2 if distilled is None else 3
    values = [42, "fixed", steps, cfg, sampler, scheduler, 1.0]
    sample = g.add("KSampler", column, values, model=(reg, 0), positive=(prompts[0], 0), negative=(prompts[1], 0), latent_image=(empty, 0))
    decoded = g.add("VAEDecode", column, samples=(sample, 0), vae=(loader, 2))
    g.add("SaveImage", column + 1, ["REG/image"], size=(440, 500), images=(decoded, 0))
    return g


def wan() -> Graph:
    """Text to video with Wan 2.1, 1.3B."""
    g = Graph()
    repository = f"{HF}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"

    def file(name, folder):
        return name, f"{repository}/{folder}/{name}", folder

    unet, encoder, vae = (
        file(*f)
        for f in (
            ("wan2.1_t2v_1.3B_fp16.safetensors", "diffusion_models"),
            ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders"),
            ("wan_2.1_vae.safetensors", "vae"),
        )
    )
    model = g.add("UNETLoader", 0, [unet[0], "default"], models=[unet])
    clip = g.add("CLIPLoader", 0, [encoder[0], "wan", "default"], models=[encoder])
    decoder = g.add("VAELoader", 0, [vae[0]], models=[vae])
    empty = g.add("EmptyHunyuanLatentVideo", 0, [832, 480, 33, 1])
    note = (
        "## REG with Wan 2.1\n\nA flow model, 33 frames at 16 a second. This graph starts at cfg 9, where people usually take 6 without REG; neither "
        "is tuned.\n\nVideo is where REG's cost counts: *refresh* 4 asks for its extra model row at every fourth call only. To pay nothing, "
        "measure a table once with **REG Calibrate** and take form `calibrated`, or try form `schedule`."
    )
    g.add("MarkdownNote", 0, [note], "Read me", color=NOTE)
    shifted = g.add("ModelSamplingSD3", 1, [8.0], model=(model, 0))
    reg = g.add("REGGuidance", 2, GUIDANCE, model=(shifted, 0))
    positive = g.add("CLIPTextEncode", 1, ["a fox runs through deep snow between birches, tracking shot, morning light"], "Positive", clip=(clip, 0))
    negative = g.add("CLIPTextEncode", 1, ["static, overexposed, subtitles, blurry, worst quality, deformed"], "Negative", clip=(clip, 0))
    values = [42, "fixed", 30, 9.0, "uni_pc", "simple", 1.0]
    sample = g.add("KSampler", 3, values, model=(reg, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(empty, 0))
    frames = g.add("VAEDecode", 3, samples=(sample, 0), vae=(decoder, 0))
    g.add("SaveAnimatedWEBP", 4, ["REG/video", 16.0, False, 90, "default"], size=(480, 480), images=(frames, 0))
    return g


def note_for(name: str, usual: float, cfg: float, more: str = "") -> str:
    return (
        f"## REG with {name}\n\nREG guides less than CFG at the same cfg, most of all at high noise. This graph starts at cfg {cfg:g}, where "
        f"people usually take {usual:g} without REG; neither is tuned. To compare fairly look at *effective cfg* in the log after a run, "
        f"and compare with form `schedule`, which costs nothing.{more}\n\n`strength` 0 or form `off` gives plain CFG, to the bit."
    )


PROMPT = "a lighthouse on a cliff at dawn, heavy sea, photograph, fine detail"
HF = "https://huggingface.co"
FLUX = (
    "\n\nFlux dev is usually run at cfg 1 with a *distilled* guidance of 3.5: there is no difference of two predictions then, and REG has nothing to "
    "rectify. Here the distilled guidance is 1 and cfg is real, so a step costs two model rows, and the negative prompt counts."
)
WORKFLOWS = workflows_digits.WORKFLOWS | {
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
    "REG with Flux and real cfg": lambda: text_to_image(
        ("flux1-dev-fp8.safetensors", f"{HF}/Comfy-Org/flux1-dev/resolve/main/flux1-dev-fp8.safetensors", "checkpoints"),
        5.0, 24, "euler", "simple", "EmptySD3LatentImage", 1024, PROMPT, "blurry, text, watermark",
        note_for("Flux dev and real cfg", 3, 5, FLUX), distilled=1.0,
    ),
    "REG with Wan 2.1 video": wan,
}  # fmt: skip


def for_comfy_test() -> Graph:
    """A graph that comfy-test can read: it takes widgets by position, so those of KSampler and REGGuidance stay at their defaults, and knows no notes."""
    g = Graph()
    model = g.add("REGDemoModel", 0, ["digits"])
    positive, negative = (g.add("REGDemoPrompt", 0, [text]) for text in ("0 to 9 in turn", "any digit"))
    latent = g.add("REGDemoLatent", 0, [10])
    reg = g.add("REGGuidance", 1, [], model=(model, 0))
    sampler = g.add("KSampler", 2, [], model=(reg, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
    image = g.add("REGDemoDecode", 2, [8, 5], latent=(sampler, 0))
    plot = g.add("REGTracePlot", 3, [], trace=(reg, 1), latent=(sampler, 0))
    for picture in (image, plot):
        g.add("PreviewImage", 4, [], images=(picture, 0))
    return g


def write(folder: Path, name: str, workflow: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    for name, build in WORKFLOWS.items():
        write(FOLDER, name, build().json())
    write(SUBGRAPHS, blueprint.NAME, blueprint.json())
    write(COMFY_TEST, "reg_digits", for_comfy_test().json())


if __name__ == "__main__":
    main()
