"""The example workflows that need no download: the model of handwritten digits that ships with the pack."""

from __future__ import annotations

if __package__:
    from .graph import Graph
else:
    from graph import Graph

NOTE = ("#432", "#653")
GUIDANCE = ["row_sum", "auto", 1.0, 0.0, 1.0, 4, 1.0, 0.0, "auto"]  # the node's defaults
DATA_STD = 0.75  # of the digits
PLOT = ["sigma", "dark", -1]
SEED = 7


def guidance(**changes) -> list:
    names = ("form", "engine", "strength", "start_percent", "end_percent", "refresh", "data_std", "skip_below", "memory")
    return list((dict(zip(names, GUIDANCE, strict=True)) | {"data_std": DATA_STD} | changes).values())


def sources(g: Graph, variant: str, batch: int, note: str, prompts=("0 to 9 in turn", "any digit")):
    """First column: model, prompts, latent and the note."""
    model = g.add("REGDemoModel", 0, [variant])
    prompts = [g.add("REGDemoPrompt", 0, [text], title) for text, title in zip(prompts, ("Positive", "Negative"), strict=False)]
    latent = g.add("REGDemoLatent", 0, [batch])
    g.add("MarkdownNote", 0, [note], "Read me", color=NOTE)
    return model, *prompts, latent


def sampled(g: Graph, column: int, title: str, scale: float, beside=None, **inputs) -> dict:
    return g.add("KSampler", column, [SEED, "fixed", 18, scale, "heun", "karras", 1.0], title, beside=beside, **inputs)


def shown(g: Graph, column: int, sampler: dict, title: str, prefix: str) -> dict:
    """Decoded beside its sampler, as one sheet, and saved. The decoder."""
    image = g.add("REGDemoDecode", column, [8, 10], beside=sampler, latent=(sampler, 0))
    g.add("SaveImage", column + 1, [f"REG/{prefix}"], title, size=(440, 250), beside=sampler, images=(image, 0))
    return image


def digits() -> Graph:
    """CFG beside REG on the model shipped with the pack, same seed."""
    g = Graph()
    text = (
        "## REG on handwritten digits\n\nNo download: the model comes with the pack. Press **Run**.\n\n"
        "Above, REG; below, plain CFG from the same noise and with the same cfg. REG multiplies guidance by the denoiser's Jacobian, "
        "which is near 0 at high noise and near 1 at the end: it guides less, and later. "
        "The log says by how much (*effective cfg*), and so does **REG Trace Plot** on the page.\n\n"
        "Try another form, a higher cfg, or a single digit."
    )
    model, positive, negative, latent = sources(g, "digits_weak", 40, text)
    reg = g.add("REGGuidance", 1, guidance(), model=(model, 0))
    for branch, source in (("REG", reg), ("CFG", model)):
        inputs = dict(model=(source, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
        sampler = sampled(g, 2, f"Sample with {branch}", 8.0, **inputs)
        shown(g, 3, sampler, branch, f"digits_{branch}")
    return g


def autoguidance() -> Graph:
    """A good model guided by its difference to a bad one, rectified and not."""
    g = Graph()
    text = (
        "## Autoguidance\n\nNot prompt against no prompt: a good model against a *worse version of itself*, on the same prompt (Karras et al. 2024). The "
        "difference shows where the good model still errs, so variety is kept.\n\nAbove, rectified by REG; below, as it is. **REG Guidance** goes before "
        "the guider.\n\nFor a model of which there is no bad version, **REG Weak Model** makes one without memory."
    )
    model, positive, latent = sources(g, "digits", 40, text, ("0 to 9 in turn",))
    reg = g.add("REGGuidance", 1, guidance(), model=(model, 0))
    weak = g.add("REGDemoModel", 1, ["digits_weak"], "A worse model")
    guiders = {}
    for branch, source in (("REG", reg), ("plain", model)):
        inputs = dict(model=(source, 0), weak_model=(weak, 0), positive=(positive, 0))
        guiders[branch] = g.add("REGAutoguidance", 2, [3.0, 1.0], f"Autoguidance, {branch}", **inputs)
    noise = g.add("RandomNoise", 2, [SEED, "fixed"])
    sampler = g.add("KSamplerSelect", 2, ["heun"])
    sigmas = g.add("BasicScheduler", 2, ["karras", 18, 1.0], model=(model, 0))
    for branch, guider in guiders.items():
        inputs = dict(noise=(noise, 0), guider=(guider, 0), sampler=(sampler, 0), sigmas=(sigmas, 0), latent_image=(latent, 0))
        done = g.add("SamplerCustomAdvanced", 3, (), f"Sample, {branch}", **inputs)
        shown(g, 4, done, f"Autoguidance, {branch}", f"autoguidance_{branch}")
        g.level(3, 4, 5)
    return g


def reward() -> Graph:
    """A model that is given no prompt, led by a classifier's gradient through the denoiser and not."""
    g = Graph()
    text = (
        "## Reward guidance\n\nThe model gets **no prompt**. A classifier leads it instead: 0, 1, 2, ... over the batch.\n\nThe reward is known for clean "
        "images only. Above, its gradient passes through the denoiser's Jacobian, as the chain rule asks. Below, it does not, and bears a fortieth of "
        "the scale: raise it to 1 and see the digits burst.\n\nFor other models there are **REG Reward: Image Similarity** and **Latent Target**."
    )
    model, positive, negative, latent = sources(g, "digits", 40, text, ("any digit", "any digit"))
    goal = g.add("REGRewardDigit", 1, [-1], "Reward: 0, 1, 2, ... in turn")
    for branch, rectified, scale in (("rectified", True, 4.0), ("unrectified", False, 0.1)):
        guided = g.add("REGRewardGuidance", 2, [scale, rectified, 0.0, 1.0], f"Reward guidance, {branch}", model=(model, 0), reward=(goal, 0))
        inputs = dict(model=(guided, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
        sampler = sampled(g, 3, f"Sample, {branch}", 1.0, **inputs)
        shown(g, 4, sampler, f"Reward, {branch}", f"reward_{branch}")
        g.level(2, 3, 4, 5)
    return g


def sweep() -> Graph:
    """Forms down, cfg across, one seed, one sampler."""
    g = Graph()
    text = (
        "## A grid of forms and cfg\n\n**REG Sweep** gives lists; KSampler and the decoder run once for every entry, all from the same seed; **REG Grid** "
        "collects them on one labelled sheet. Cancel ends them all.\n\n`off` is plain CFG, `schedule` the free baseline. Compare pictures of equal strength, "
        "not of equal cfg: the *effective cfg* is written below each, here REG at 8 is close to CFG at 2.\n\n"
        "For another model replace the four nodes called REG Demo by your loader, prompts, latent "
        "and VAE Decode."
    )
    model, positive, negative, latent = sources(g, "digits_weak", 20, text)
    runs = g.add("REGSweep", 1, ["2, 4, 8", "off, row_sum, schedule", "1", "auto", DATA_STD, 4], model=(model, 0))
    inputs = dict(model=(runs, 0), cfg=(runs, 1), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
    sampler = sampled(g, 2, "Sample, once for every entry", 8.0, **inputs)
    image = g.add("REGDemoDecode", 2, [4, 5], latent=(sampler, 0))
    grid = g.add("REGGrid", 2, [0, "dark"], images=(image, 0), labels=(runs, 2), trace=(runs, 3))
    g.add("SaveImage", 3, ["REG/sweep"], "The sheet", size=(700, 700), images=(grid, 0))
    return g


def compared() -> Graph:
    """REG against CFG of the same cfg and of the same strength, with the trace."""
    g = Graph()
    text = (
        "## REG against CFG\n\nThree pictures from the same noise: REG at cfg 4, CFG at cfg 4, and CFG at cfg 1.3, which is as strong as REG at 4 was: see "
        "*effective cfg* in the plot.\n\n**REG Trace Plot** shows, noise level by noise level, by what guidance was multiplied and how strong it was "
        "before and after. The **heat map** shows where in the image guidance was kept.\n\nOnly the first and the third picture are a fair pair."
    )
    model, positive, negative, latent = sources(g, "digits_weak", 40, text)
    reg = g.add("REGGuidance", 1, guidance(), model=(model, 0))
    branches = {}
    for branch, source, cfg in (("REG_cfg_4", reg, 4.0), ("CFG_cfg_4", model, 4.0), ("CFG_cfg_1.3", model, 1.3)):
        inputs = dict(model=(source, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
        branches[branch] = sampled(g, 2, f"Sample: {branch.replace('_', ' ')}", cfg, **inputs)
        shown(g, 3, branches[branch], branch.replace("_", " "), f"compared_{branch}")
        g.level(2, 3, 4)
    done = branches["REG_cfg_4"]
    single = g.add("REGDemoDecode", 3, [24, 0], "One image each", latent=(done, 0))
    plot = g.add("REGTracePlot", 1, PLOT, size=(620, 840), trace=(reg, 1), latent=(done, 0), image=(single, 0))
    g.add("PreviewImage", 4, (), "Heat map: where guidance was kept", size=(440, 360), images=(plot, 1))
    return g


def calibration() -> Graph:
    """The correction measured once, then used for nothing."""
    g = Graph()
    text = (
        "## Calibration: REG for free\n\n**REG Calibrate** measures once by what REG multiplies guidance, noise level by noise level, and saves a table to "
        "`output/reg_calibration`. Form `calibrated` then needs no model row beyond plain CFG.\n\nAbove, the table; below, the form it was measured on. "
        "The log names the extra rows: 0 and 8.\n\nNext time take **REG Load Calibration** instead; one table serves every prompt and seed of a model."
    )
    model, positive, negative, latent = sources(g, "digits_weak", 40, text)
    few = g.add("REGDemoLatent", 1, [4], "Measured on 4 images")
    values = ["scalar", False, 4.0, 18, 2, 0, "fixed", "reg_calibration/digits", "heun", "karras", "auto"]
    table = g.add("REGCalibrate", 1, values, model=(model, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(few, 0))
    g.add("PreviewAny", 1, (), "What was measured", source=(table, 1))
    free = g.add("REGGuidance", 2, guidance(form="calibrated"), "REG from the table", model=(model, 0), calibration=(table, 0))
    live = g.add("REGGuidance", 2, guidance(form="scalar"), "REG as it goes", model=(model, 0))
    for branch, source in (("calibrated", free), ("scalar", live)):
        inputs = dict(model=(source, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
        sampler = sampled(g, 3, f"Sample, {branch}", 4.0, **inputs)
        shown(g, 4, sampler, f"Form {branch}", f"calibration_{branch}")
        g.level(3, 4, 5)
    return g


WORKFLOWS = {
    "REG on handwritten digits": digits,
    "REG against CFG with the trace": compared,
    "REG on autoguidance": autoguidance,
    "REG calibration": calibration,
    "REG reward guidance": reward,
    "REG sweep of forms and cfg": sweep,
}
