"""The example workflows that need no download: the model of handwritten digits that ships with the pack."""

from __future__ import annotations

if __package__:
    from .graph import Graph
else:
    from graph import Graph

DATA_STD = 0.75  # of the digits
SEED = 7


def sources(g: Graph, variant: str, batch: int, note: str, prompts=("0 to 9 in turn", "any digit")):
    """First column: model, prompts, latent and the note."""
    model = g.add("REGDemoModel", 0, variant=variant)
    prompts = [g.add("REGDemoPrompt", 0, title, digit=text) for text, title in zip(prompts, ("Positive", "Negative"), strict=False)]
    latent = g.add("REGDemoLatent", 0, batch_size=batch)
    g.note(0, note)
    return model, *prompts, latent


def sampled(g: Graph, column: int, title: str, cfg: float, **links) -> dict:
    return g.add("KSampler", column, title, seed=SEED, steps=18, cfg=cfg, sampler_name="heun", scheduler="karras", **links)


def shown(g: Graph, column: int, sampler: dict, title: str, prefix: str) -> dict:
    """Decoded beside its sampler, as one sheet, and saved. The decoder."""
    image = g.add("REGDemoDecode", column, beside=sampler, latent=(sampler, 0))
    g.add("SaveImage", column + 1, title, size=(440, 250), beside=sampler, filename_prefix=f"REG/{prefix}", images=(image, 0))
    return image


def digits(g: Graph) -> None:
    """CFG beside REG on the model shipped with the pack, same seed."""
    text = (
        "## REG on handwritten digits\n\nNo download: the model comes with the pack. Press **Run**.\n\n"
        "Above, REG; below, plain CFG from the same noise and with the same cfg. REG guides less at high noise; **gain** 2.5 makes up for it.\n\n"
        "Try another form, gain or cfg, or a single digit."
    )
    model, positive, negative, latent = sources(g, "digits_weak", 40, text)
    reg = g.add("REGGuidance", 1, gain=2.5, data_std=DATA_STD, model=(model, 0))
    for branch, source in (("REG", reg), ("CFG", model)):
        inputs = dict(model=(source, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
        sampler = sampled(g, 2, f"Sample with {branch}", 8.0, **inputs)
        shown(g, 3, sampler, branch, f"digits_{branch}")


def autoguidance(g: Graph) -> None:
    """A good model guided by its difference to a bad one, rectified and not."""
    text = (
        "## Autoguidance\n\nNot prompt against no prompt: a good model against a *worse version of itself*, on the same prompt (Karras et al. 2024). The "
        "difference shows where the good model still errs, so variety is kept.\n\nAbove, rectified by REG; below, as it is. **REG Guidance** goes before "
        "the guider.\n\nFor a model of which there is no bad version, **REG Weak Model** makes one without memory."
    )
    model, positive, latent = sources(g, "digits", 40, text, ("0 to 9 in turn",))
    reg = g.add("REGGuidance", 1, data_std=DATA_STD, model=(model, 0))
    weak = g.add("REGDemoModel", 1, "A worse model", variant="digits_weak")
    guiders = {}
    for branch, source in (("REG", reg), ("plain", model)):
        inputs = dict(model=(source, 0), weak_model=(weak, 0), positive=(positive, 0))
        guiders[branch] = g.add("REGAutoguidance", 2, f"Autoguidance, {branch}", scale=3.0, **inputs)
    noise = g.add("RandomNoise", 2, noise_seed=SEED)
    sampler = g.add("KSamplerSelect", 2, sampler_name="heun")
    sigmas = g.add("BasicScheduler", 2, scheduler="karras", steps=18, model=(model, 0))
    for branch, guider in guiders.items():
        inputs = dict(noise=(noise, 0), guider=(guider, 0), sampler=(sampler, 0), sigmas=(sigmas, 0), latent_image=(latent, 0))
        done = g.add("SamplerCustomAdvanced", 3, f"Sample, {branch}", **inputs)
        shown(g, 4, done, f"Autoguidance, {branch}", f"autoguidance_{branch}")
        g.level(3, 4, 5)


def reward(g: Graph) -> None:
    """A model that is given no prompt, led by a classifier's gradient through the denoiser and not."""
    text = (
        "## Reward guidance\n\nThe model gets **no prompt**. A classifier leads it instead: 0, 1, 2, ... over the batch.\n\nThe reward is known for clean "
        "images only. Above, its gradient passes through the denoiser's Jacobian, as the chain rule asks. Below, it does not, and the scale is a fortieth "
        "as large: raise it to 1 and see the digits burst.\n\nFor other models there are **REG Reward: Image Similarity** and **Latent Target**."
    )
    model, positive, negative, latent = sources(g, "digits", 40, text, ("any digit", "any digit"))
    goal = g.add("REGRewardDigit", 1, "Reward: 0, 1, 2, ... in turn", digit=-1)
    for branch, rectified, scale in (("rectified", True, 4.0), ("unrectified", False, 0.1)):
        title = f"Reward guidance, {branch}"
        guided = g.add("REGRewardGuidance", 2, title, scale=scale, rectified=rectified, model=(model, 0), reward=(goal, 0))
        inputs = dict(model=(guided, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
        sampler = sampled(g, 3, f"Sample, {branch}", 1.0, **inputs)
        shown(g, 4, sampler, f"Reward, {branch}", f"reward_{branch}")
        g.level(2, 3, 4, 5)


def sweep(g: Graph) -> None:
    """Forms down, gains across, one seed, one sampler."""
    text = (
        "## A grid of forms and gains\n\n**REG Sweep** gives lists; KSampler and the decoder run once for every entry, all from the same seed; **REG Grid** "
        "collects them on one labelled sheet. Cancel ends them all.\n\nPlain CFG comes first. Below it, take the gain whose picture follows the prompt as "
        "well.\n\n"
        "The other settings of the runs, such as *data_std*, are those of **REG Guidance** in front.\n\n"
        "For another model replace the four nodes called REG Demo by your loader, prompts, latent and VAE Decode."
    )
    model, positive, negative, latent = sources(g, "digits_weak", 20, text)
    reg = g.add("REGGuidance", 1, "Settings of every run", data_std=DATA_STD, model=(model, 0))
    runs = g.add("REGSweep", 1, cfgs="4", model=(reg, 0))
    inputs = dict(model=(runs, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
    sampler = sampled(g, 2, "Sample, once for every entry", (runs, 1, 4.0), **inputs)
    image = g.add("REGDemoDecode", 2, scale=4, columns=5, latent=(sampler, 0))
    grid = g.add("REGGrid", 2, images=(image, 0), labels=(runs, 2))
    g.add("SaveImage", 3, "The sheet", size=(700, 700), filename_prefix="REG/sweep", images=(grid, 0))


def compared(g: Graph) -> None:
    """REG against CFG of the same cfg, with and without a gain, with the trace."""
    text = (
        "## REG against CFG\n\nThree pictures from the same noise at cfg 4: REG with gain 2.5, REG as in the paper, plain CFG. The first and the last are "
        "about equally strong.\n\n**REG Trace Plot** shows what became of guidance at each noise level, and estimates the gain. The **heat map** shows where "
        "in the image guidance was kept."
    )
    model, positive, negative, latent = sources(g, "digits_weak", 40, text)
    reg = g.add("REGGuidance", 1, gain=2.5, data_std=DATA_STD, model=(model, 0))
    paper = g.add("REGGuidance", 1, "As in the paper", data_std=DATA_STD, model=(model, 0))
    branches = {}
    for branch, source in (("REG_gain_2.5", reg), ("REG_gain_1", paper), ("CFG", model)):
        inputs = dict(model=(source, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
        branches[branch] = sampled(g, 2, f"Sample: {branch.replace('_', ' ')}", 4.0, **inputs)
        shown(g, 3, branches[branch], branch.replace("_", " "), f"compared_{branch}")
        g.level(2, 3, 4)
    done = branches["REG_gain_2.5"]
    single = g.add("REGDemoDecode", 3, "One image each", scale=24, columns=0, latent=(done, 0))
    plot = g.add("REGTracePlot", 1, size=(620, 840), trace=(reg, 1), latent=(done, 0), image=(single, 0))
    g.add("PreviewImage", 4, "Heat map: where guidance was kept", size=(440, 360), images=(plot, 1))


def calibration(g: Graph) -> None:
    """The correction measured once, then used for nothing."""
    text = (
        "## Calibration: REG for free\n\n**REG Calibrate** measures once by what REG multiplies guidance, noise level by noise level, and saves a table to "
        "`output/reg_calibration`. Form `calibrated` then needs no model row beyond plain CFG.\n\nAbove, the table; below, the form it was measured on. "
        "The log names the extra rows of both.\n\nNext time take **REG Load Calibration** instead; one table serves every prompt and seed of a model."
    )
    model, positive, negative, latent = sources(g, "digits_weak", 40, text)
    few = g.add("REGDemoLatent", 1, "Measured on 4 images", batch_size=4)
    values = dict(form="scalar", cfg=4.0, steps=18, runs=2, filename_prefix="reg_calibration/digits", sampler_name="heun", scheduler="karras")
    table = g.add("REGCalibrate", 1, **values, model=(model, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(few, 0))
    g.add("PreviewAny", 1, "What was measured", source=(table, 1))
    free = g.add("REGGuidance", 2, "REG from the table", form="calibrated", data_std=DATA_STD, model=(model, 0), calibration=(table, 0))
    live = g.add("REGGuidance", 2, "REG as it goes", form="scalar", data_std=DATA_STD, model=(model, 0))
    for branch, source in (("calibrated", free), ("scalar", live)):
        inputs = dict(model=(source, 0), positive=(positive, 0), negative=(negative, 0), latent_image=(latent, 0))
        sampler = sampled(g, 3, f"Sample, {branch}", 4.0, **inputs)
        shown(g, 4, sampler, f"Form {branch}", f"calibration_{branch}")
        g.level(3, 4, 5)


WORKFLOWS = {
    "REG on handwritten digits": digits,
    "REG against CFG with the trace": compared,
    "REG on autoguidance": autoguidance,
    "REG calibration": calibration,
    "REG reward guidance": reward,
    "REG sweep of forms and gains": sweep,
}
