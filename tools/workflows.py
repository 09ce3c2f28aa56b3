"""Writes example_workflows/*.json, subgraphs/*.json and workflows/tests/*.json: `COMFYUI_PATH=... python tools/workflows.py`.

The families' graphs are made here from the table in families.py; those of the demo models are in workflows_demo.py. Sockets and widgets come
from a running ComfyUI, and families that it lacks are left alone. Run each tried version, the newest first: files then have no widget
that a supported ComfyUI lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

if __package__:
    from . import blueprint, workflows_demo
    from .families import FAMILIES, PAPERS_FORM, PAPERS_GAIN, Family
    from .graph import ROOT, Graph, Missing
else:
    import blueprint
    import workflows_demo
    from families import FAMILIES, PAPERS_FORM, PAPERS_GAIN, Family
    from graph import ROOT, Graph, Missing

FOLDER = ROOT / "example_workflows"
SUBGRAPHS = ROOT / "subgraphs"
COMFY_TEST = ROOT / "workflows" / "tests"  # where that tool looks; not a folder that ComfyUI serves
SEED = 42
SAMPLERS = 410  # px: how low they begin where much stands before them
LANE = 66  # px: room for a wire across a column
PROMPT = "a lighthouse on a cliff at dawn, heavy sea, photograph, fine detail"
FILM = "a fox runs through deep snow between birches, tracking shot, morning light"
EDIT = "make it a winter evening with snow, keep everything else"
CLIP_TYPES = {
    "Chroma": "chroma", "Qwen-Image": "qwen_image", "Qwen-Image-Edit": "qwen_image", "Z-Image": "lumina2", "Flux.2 Klein": "flux2",
    "Anima": "stable_diffusion", "Wan 2.2": "wan",
}  # fmt: skip
LATENTS = {"SD1.5": "EmptyLatentImage", "SDXL": "EmptyLatentImage", "Anima": "EmptyLatentImage", "Flux.2 Klein": "EmptyFlux2LatentImage"}
SHIFTS = {"Wan 2.2": "ModelSamplingSD3", "HunyuanVideo 1.5": "ModelSamplingSD3"}  # other families with a shift: ModelSamplingAuraFlow


def note_for(family: Family) -> str:
    """Three sentences."""
    if family.video:
        seen = "Select REG Guidance and press **Ctrl+B** to compare with plain CFG of the same seed."
    elif family.comfyui == "0.33.0":
        seen = "Above, plain CFG; below, REG with the same seed and cfg (the slider needs Nodes 2.0)."
    else:
        seen = "Above, plain CFG; below, REG with the same seed and cfg."
    gain = f"Raise **gain** where the picture follows the prompt less than plain CFG; the paper's form is **{PAPERS_FORM}**, with gain {PAPERS_GAIN:g}."
    return f"## REG with {family.name}\n\n{seen}\n\n{gain}\n\n{family.note}"


def load(g: Graph, family: Family) -> tuple[tuple, tuple, tuple | None]:
    """First column: (model, text encoder, VAE or None). The VAE of families with a file of its own is loaded where it is used."""
    if not any(file.directory == "diffusion_models" for file in family.files):
        loader = g.add("CheckpointLoaderSimple", 0, ckpt_name=family.file("checkpoints"))
        return (loader, 0), (loader, 1), (loader, 2)
    return expert(g, family, 0), text_encoder(g, family), None


def text_encoder(g: Graph, family: Family) -> tuple:
    return g.add("CLIPLoader", 0, clip_name=family.file("text_encoders"), type=CLIP_TYPES[family.name]), 0


def expert(g: Graph, family: Family, index: int, title=None) -> tuple:
    """A diffusion model with the shift of its family."""
    model = g.add("UNETLoader", 0, title, unet_name=family.file("diffusion_models", index)), 0
    if family.shift is None:
        return model
    return g.add(SHIFTS.get(family.name, "ModelSamplingAuraFlow"), 0, shift=family.shift, model=model), 0


def rectified(g: Graph, family: Family, column: int, model: tuple, title=None, **size) -> tuple:
    return g.add("REGGuidance", column, title, **size, form=family.form, gain=family.gain, model=model), 0


def prompts(g: Graph, column: int, texts, clip: tuple) -> list[tuple]:
    return [(g.add("CLIPTextEncode", column, title, text=text, clip=clip), 0) for title, text in zip(("Positive", "Negative"), texts, strict=True)]


def sampler_values(family: Family) -> dict:
    return dict(seed=SEED, steps=family.steps, cfg=family.cfg, sampler_name=family.sampler, scheduler=family.scheduler)


def sampled(g: Graph, family: Family, column: int, title: str, **links) -> tuple:
    return g.add("KSampler", column, title, **sampler_values(family), **links), 0


def custom_sampled(g: Graph, family: Family, column: int, title: str, **links) -> tuple:
    """With sampler and sigmas among the links."""
    return g.add("SamplerCustom", column, title, noise_seed=SEED, cfg=family.cfg, **links), 0


def picture(g: Graph, family: Family, more=None, sample=sampled) -> None:
    """Text to image, plain CFG above REG, with the same noise. `more`: adds to the second column what else the sampler asks for."""
    bundled = not any(file.directory == "vae" for file in family.files)
    g.reach(LANE if bundled else 0, 0)
    if more:
        g.note(0, note_for(family))
    model, clip, vae = load(g, family)
    if bundled:
        vae = g.through(2, g.through(1, vae), right=True)
    links = more(g, family) if more else {}
    top = model[0]["pos"][1]  # its wire runs level to the sampler of plain CFG
    g.reach(top, 2)
    g.reach(top + LANE, 1)
    if not more:
        g.note(0, note_for(family))
    links |= dict(zip(("positive", "negative"), prompts(g, 1, (PROMPT, family.negative), clip), strict=True))
    size = dict(zip(("width", "height"), family.size, strict=True))
    links["latent_image"] = g.add(LATENTS.get(family.name, "EmptySD3LatentImage"), 1, **size), 0
    branches(g, family, {"plain CFG": model, "REG": rectified(g, family, 1, model)}, links, vae, sample)


def branches(g: Graph, family: Family, models: dict[str, tuple], links: dict, vae: tuple | None, sample=sampled) -> None:
    """Third column: the same noise sampled with each model. Last: the pictures, one below the other."""
    compares = family.comfyui == "0.33.0"  # ComfyUI then has a node that compares
    latents = {}
    for name, model in models.items():
        if not compares:
            g.level(2, 3)
        latents[name] = sample(g, family, 2, f"Sample with {name}", model=model, **links)
        if vae is None:
            vae = g.add("VAELoader", 2, vae_name=family.file("vae")), 0
        if not compares:
            saved(g, name, 310, decoded(g, name, latents[name], vae))
    if compares:
        compared(g, latents, vae)


def compared(g: Graph, latents: dict[str, tuple], vae: tuple) -> None:
    """Nodes 2.0 alone draws the comparison, so the pictures are saved too. Each decoder stands between what it feeds."""
    first, second = latents
    picture = saved(g, first, 220)
    image = decoded(g, first, latents[first], vae)
    g.link(image, picture, "images")
    comparison = g.add("ImageCompare", 3, "Plain CFG (left), REG (right)", size=(420, 300), image_a=image)
    image = decoded(g, second, latents[second], vae)
    g.link(image, comparison, "image_b")
    saved(g, second, 220, image)


def decoded(g: Graph, name: str, latent: tuple, vae: tuple) -> tuple:
    return g.add("VAEDecode", 3, f"Decode {name}", samples=latent, vae=vae), 0


def saved(g: Graph, name: str, height: int, image: tuple | None = None) -> dict:
    return g.add("SaveImage", 3, name, size=(420, height), filename_prefix=f"REG/{name.split()[-1]}", images=image)


def klein(g: Graph, family: Family) -> dict:
    """Sampler and sigmas."""
    g.reach(LANE, 1)
    pick = g.add("KSamplerSelect", 1, sampler_name=family.sampler), 0
    size = dict(zip(("width", "height"), family.size, strict=True))
    return dict(sampler=pick, sigmas=(g.add(family.scheduler, 1, steps=family.steps, **size), 0))


def edited(g: Graph, family: Family) -> None:
    """A picture changed by a prompt."""
    vae = g.add("VAELoader", 0, vae_name=family.file("vae")), 0
    given = g.add("LoadImage", 0, "Picture to change", image="example.png"), 0
    scaled = g.add("FluxKontextImageScale", 0, image=given), 0
    clip, model = text_encoder(g, family), expert(g, family, 0)
    bus = g.through(2, g.through(1, vae), right=True)
    g.reach(LANE, 1)
    links = {}
    for title, text in (("Positive", EDIT), ("Negative", family.negative)):
        encoded = g.add("TextEncodeQwenImageEditPlus", 1, title, prompt=text, clip=clip, vae=vae, image1=scaled), 0
        method = dict(reference_latents_method="index_timestep_zero", conditioning=encoded)
        links[title.lower()] = g.add("FluxKontextMultiReferenceLatentMethod", 1, **method), 0
    links["latent_image"] = g.add("VAEEncode", 1, pixels=scaled, vae=vae), 0
    model = g.add("CFGNorm", 1, model=model), 0
    reg = rectified(g, family, 1, model)
    g.reach(LANE, 2)
    branches(g, family, {"plain CFG": model, "REG": reg}, links, bus)
    g.note(2, note_for(family))


def film(g: Graph, family: Family, column: int, images: tuple, **sound) -> None:
    """Frames as a video, saved."""
    video = g.add("CreateVideo", column, fps=float(family.fps), images=images, **sound), 0
    g.add("SaveVideo", column, "The video", size=(310, 400), filename_prefix="REG/video", video=video)


def wan(g: Graph, family: Family) -> None:
    """Image to video: one expert for the first half of the steps, the other for the second."""
    given = g.add("LoadImage", 0, "First frame", image="example.png"), 0
    vae = g.through(1, (g.add("VAELoader", 0, vae_name=family.file("vae")), 0))
    clip = text_encoder(g, family)
    high, low = (expert(g, family, index, title) for index, title in enumerate(("High noise expert", "Low noise expert")))
    g.reach(160, 1)
    positive, negative = prompts(g, 1, ("the camera moves closer, soft morning light", family.negative), clip)
    high, low = (rectified(g, family, 1, model, title, size=(None, 276)) for model, title in ((high, "REG, first expert"), (low, "REG, second expert")))
    size = dict(zip(("width", "height", "length"), (*family.size, family.frames), strict=True))
    g.reach(36, 2)
    start = g.add("WanImageToVideo", 2, **size, positive=positive, negative=negative, vae=vae, start_image=given)
    vae = g.through(3, vae, right=True)
    g.reach(SAMPLERS - LANE, 3)
    values = sampler_values(family)
    values["noise_seed"] = values.pop("seed")
    half, latent = family.steps // 2, (start, 2)
    for title, model, more in (
        ("First half", high, dict(end_at_step=half, return_with_leftover_noise="enable")),
        ("Second half", low, dict(start_at_step=half, add_noise="disable")),
    ):
        links = dict(model=model, positive=(start, 0), negative=(start, 1), latent_image=latent)
        latent = g.add("KSamplerAdvanced", 3, title, **values | more, **links), 0
    g.note(4, note_for(family))
    film(g, family, 4, (g.add("VAEDecode", 4, samples=latent, vae=vae), 0))


def hunyuan(g: Graph, family: Family) -> None:
    """Text to video."""
    model = expert(g, family, 0)
    files = {f"clip_name{i + 1}": family.file("text_encoders", i) for i in (0, 1)}
    clip = g.add("DualCLIPLoader", 0, **files, type="hunyuan_video_15"), 0
    g.note(0, note_for(family))
    reg = rectified(g, family, 1, model)
    positive, negative = prompts(g, 1, (FILM, family.negative), clip)
    size = dict(zip(("width", "height", "length"), (*family.size, family.frames), strict=True))
    empty = g.add("EmptyHunyuanVideo15Latent", 1, **size), 0
    latent = sampled(g, family, 2, "Sample with REG", model=reg, positive=positive, negative=negative, latent_image=empty)
    vae = g.add("VAELoader", 2, vae_name=family.file("vae")), 0
    film(g, family, 3, (g.add("VAEDecode", 3, samples=latent, vae=vae), 0))


def ltx(g: Graph, family: Family) -> None:
    """Text to video with sound, the first pass."""
    file = family.file("checkpoints")
    clip = g.add("LTXAVTextEncoderLoader", 0, text_encoder=family.file("text_encoders"), ckpt_name=file), 0
    g.note(0, note_for(family))
    ears = g.add("LTXVAudioVAELoader", 0, ckpt_name=file), 0
    later = g.through(3, g.through(1, ears), right=True)
    texts = prompts(g, 1, (FILM, family.negative), clip)
    g.reach(930, 0)  # its VAE's wire runs below all that is in the next columns
    loader = g.add("CheckpointLoaderSimple", 0, ckpt_name=file)
    reg = rectified(g, family, 1, (loader, 0))
    size = dict(zip(("width", "height", "length"), (*family.size, family.frames), strict=True))
    frames = g.add("EmptyLTXVLatentVideo", 1, **size), 0
    sound = g.add("LTXVEmptyLatentAudio", 1, frames_number=family.frames, frame_rate=float(family.fps), audio_vae=ears), 0
    pick = g.add("KSamplerSelect", 2, sampler_name=family.sampler, beside=texts[0][0], size=(210, None)), 0
    timed = g.add("LTXVConditioning", 2, frame_rate=float(family.fps), positive=texts[0], negative=texts[1])
    latent = g.add("LTXVConcatAVLatent", 2, beside=frames[0], video_latent=frames, audio_latent=sound), 0
    sigmas = g.add(family.scheduler, 3, beside=texts[0][0], steps=family.steps, latent=latent), 0
    links = dict(model=reg, positive=(timed, 0), negative=(timed, 1), sampler=pick, sigmas=sigmas, latent_image=latent)
    g.reach(reg[0]["pos"][1], 3)
    done = custom_sampled(g, family, 3, "Sample with REG", **links)
    parts = g.add("LTXVSeparateAVLatent", 3, av_latent=done)
    tiles = dict(tile_size=512, overlap=64, temporal_size=4096, temporal_overlap=8)
    images = g.add("VAEDecodeTiled", 3, beside=loader, **tiles, samples=(parts, 0), vae=(loader, 2)), 0
    film(g, family, 4, images, audio=(g.add("LTXVAudioVAEDecode", 4, samples=(parts, 1), audio_vae=later), 0))


OTHERS = {
    "Flux.2 Klein": partial(picture, more=klein, sample=custom_sampled), "Qwen-Image-Edit": edited, "Wan 2.2": wan, "HunyuanVideo 1.5": hunyuan, "LTX-2": ltx,
}  # fmt: skip


def title(family: Family) -> str:
    return f"REG with {family.name}"


def workflows() -> dict[str, Callable[[Graph], None]]:
    """{file name: what draws it}, in the order of the page."""
    made = {title(family): partial(OTHERS.get(family.name, picture), family=family) for family in FAMILIES}
    return {**workflows_demo.WORKFLOWS, **made}


def for_comfy_test(g: Graph) -> None:
    """A graph that comfy-test can read: it takes widgets by position, so those that the page adds to stay unwritten, and knows no notes."""
    model = g.add("REGDemoModel", 0)
    positive, negative = (g.add("REGDemoPrompt", 0, digit=text) for text in (workflows_demo.EACH, workflows_demo.NONE))
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
    """{path: workflow} of everything that is written here and that a server's object_info has the nodes for."""

    def built(build) -> dict:
        graph = Graph(info)
        build(graph)
        return graph.json()

    found = {}
    for name, build in workflows().items():
        with suppress(Missing):
            found[FOLDER / f"{name}.json"] = built(build)
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
