"""The example workflows that need no download: the models of clothes and digits that come with the pack."""

from __future__ import annotations

if __package__:
    from .graph import Graph
else:
    from graph import Graph

DATA_STD = {"digits": 0.75, "fashion": 0.7}
EACH, NONE = "all ten in turn", "no prompt"  # prompts: each class in turn, and none
SEED = 7
LANE = 60  # px: room for a wire across a column
BELOW_TABLE = 740  # px: where prompts' wires pass REG Calibrate, which grows by its plot
CFG = 4.0  # plain CFG of the clothes loses shades and patterns here
FIRST = "1 REG on clothes"  # the page lists files by name


def sources(g: Graph, variant: str, note: str) -> tuple:
    """First column: model and note."""
    model = g.add("REGDemoModel", 0, variant=variant), 0
    g.note(0, note)
    return model


def prompts(g: Graph, column: int, data: str, batch: int, positive=EACH, negative=NONE) -> dict:
    """What a sampler asks for besides its model."""
    texts = {"positive": positive, "negative": negative}
    links = {name: (g.add("REGDemoPrompt", column, name.capitalize(), digit=text), 0) for name, text in texts.items()}
    return links | {"latent_image": (g.add("REGDemoLatent", column, batch_size=batch, pictures=data), 0)}


def sampled(g: Graph, column: int, title: str, cfg, **links) -> tuple:
    return g.add("KSampler", column, title, seed=SEED, steps=18, cfg=cfg, sampler_name="heun", scheduler="karras", **links), 0


def shown(g: Graph, column: int, latent: tuple, title: str, prefix: str, data: str = "fashion") -> None:
    """As one sheet, saved."""
    image = g.add("REGDemoDecode", column, f"Decode {title}", scale={"fashion": 3, "digits": 8}[data], columns=5, latent=latent), 0
    g.add("SaveImage", column, title, size=(350, 310), filename_prefix=f"REG/{prefix}_{title.split()[-1]}", images=image)


def beside(g: Graph, models: dict[str, tuple], links: dict, prefix: str, cfg=CFG, data: str = "fashion", column: int = 2) -> dict[str, tuple]:
    """The same noise sampled with each model, and in the next column what came out. The latents."""
    done = {}
    for name, model in models.items():
        done[name] = sampled(g, column, f"Sample with {name}", cfg, model=model, **links)
        shown(g, column + 1, done[name], name, prefix, data)
        g.level(column, column + 1)
    return done


def clothes(g: Graph) -> None:
    """CFG beside REG at equal strength."""
    text = (
        "## REG on clothes\n\nPress **Run**: no download is needed, and a CPU takes seconds.\n\n"
        "Above, plain CFG; below, REG of about the same strength from the same noise, with more shades and patterns. "
        "The gain was measured; the estimate on the node can be off by a factor of two."
    )
    model = sources(g, "fashion_weak", text)
    g.reach(LANE, 1)
    links = prompts(g, 1, "fashion", 20)
    reg = g.add("REGGuidance", 1, form="schedule", gain=4.3, data_std=DATA_STD["fashion"], model=model), 0
    beside(g, {"plain CFG": model, "REG": reg}, links, "clothes")


def traced(g: Graph) -> None:
    """The paper's form beside CFG, with what guidance did."""
    text = (
        "## A/B with the trace\n\nAbove, plain CFG; below, REG in the paper's form, of about the same strength and from the same noise.\n\n"
        "**REG Trace Plot** shows how much of plain guidance was kept at each noise level. It also estimates the gain that makes up for the rest."
    )
    g.note(0, text)
    links = prompts(g, 0, "fashion", 20)
    model = g.add("REGDemoModel", 0, variant="fashion_weak"), 0
    reg = g.add("REGGuidance", 0, gain=1.3, data_std=DATA_STD["fashion"], model=model)
    done = beside(g, {"plain CFG": model, "REG": (reg, 0)}, links, "traced", column=1)
    trace = g.through(2, g.through(1, (reg, 1)), right=True)
    latent = g.through(2, g.through(2, done["REG"]), right=True)
    g.reach(380, 3)
    g.add("REGTracePlot", 3, size=(500, 720), trace=trace, latent=latent)


def autoguidance(g: Graph) -> None:
    """A good model guided by its difference to a bad one, rectified and not."""
    text = (
        "## Autoguidance\n\nA good model is guided by its difference to a worse one on the same prompt (Karras and others, 2024).\n\n"
        "Above, as it is; below, rectified by REG: expect little difference. **REG Weak Model** makes a worse model of any other, without memory."
    )
    model = sources(g, "fashion", text)
    g.reach(LANE, 1)
    weak = g.add("REGDemoModel", 1, "A worse model", variant="fashion_weak"), 0
    positive = g.add("REGDemoPrompt", 1, "Positive", digit=EACH), 0
    reg = g.add("REGGuidance", 1, gain=1.3, data_std=DATA_STD["fashion"], model=model), 0
    guiders = {}
    for name, source in {"plain": model, "REG": reg}.items():
        guider = g.add("REGAutoguidance", 2, f"Autoguidance, {name}", scale=2.0, model=source, weak_model=weak, positive=positive, size=(240, None))
        guiders[name] = guider, 0
    links = dict(
        sigmas=(g.add("BasicScheduler", 2, size=(240, None), scheduler="karras", steps=18, model=reg), 0),
        noise=(g.add("RandomNoise", 2, size=(240, None), noise_seed=SEED), 0),
        sampler=(g.add("KSamplerSelect", 2, size=(240, None), sampler_name="heun"), 0),
        latent_image=(g.add("REGDemoLatent", 2, size=(240, None), batch_size=20, pictures="fashion"), 0),
    )  # fmt: skip
    for name, guider in guiders.items():
        done = g.add("SamplerCustomAdvanced", 3, f"Sample, {name}", guider=guider, **links), 0
        shown(g, 4, done, f"Autoguidance {name}", "autoguidance")
        g.level(3, 4)


def reward(g: Graph) -> None:
    """A model that is given no prompt, led by a classifier's gradient through the denoiser and not."""
    text = (
        "## Reward guidance\n\nThe model gets no prompt: a classifier of digits leads it to 0, 1, 2 and so on.\n\n"
        "Above, its gradient passes through the denoiser, as the chain rule asks. Below, it does not, so the scale has to be a fortieth."
    )
    model = sources(g, "digits", text)
    goal = g.add("REGRewardDigit", 0, "Reward: 0, 1, 2, ... in turn", digit=-1), 0
    guided = {}
    for name, rectified, scale in (("rectified", True, 4.0), ("unrectified", False, 0.1)):
        inputs = dict(scale=scale, rectified=rectified, model=model, reward=goal)
        guided[name] = g.add("REGRewardGuidance", 1, f"Reward guidance, {name}", size=(290, None), **inputs), 0
    beside(g, guided, prompts(g, 1, "digits", 20, positive=NONE), "reward", 1.0, "digits")


def sweep(g: Graph) -> None:
    """Forms down, gains across, one seed, one sampler."""
    text = (
        "## Sweep of forms and gains\n\n**REG Sweep** runs the sampler once for each form and gain; **REG Grid** puts the pictures on one sheet.\n\n"
        "Plain CFG comes first: take the gain whose picture follows the prompt as well. "
        "For another model replace all nodes of the demo: model, prompts, latent and decoder."
    )
    model = sources(g, "fashion_weak", text)
    reg = g.add("REGGuidance", 1, "Other settings (form and gain come from REG Sweep)", data_std=DATA_STD["fashion"], model=model), 0
    runs = g.add("REGSweep", 1, size=(290, None), cfgs="4", model=reg)
    links = prompts(g, 1, "fashion", 10)
    g.reach(runs["pos"][1], 2, 3)  # level with it
    labels, traces = g.through(2, (runs, 2)), g.through(2, (runs, 3))
    latent = sampled(g, 2, "Sample, once for each", (runs, 1, CFG), model=(runs, 0), **links)
    image = g.add("REGDemoDecode", 2, scale=3, columns=5, latent=latent), 0
    sheet = g.add("REGGrid", 3, images=image, labels=labels, trace=traces), 0
    g.add("SaveImage", 3, "The sheet", size=(560, 500), filename_prefix="REG/sweep", images=sheet)


def calibration(g: Graph) -> None:
    """The correction measured once, then used without an extra evaluation."""
    text = (
        "## Calibration\n\n**REG Calibrate** measures once what REG does to guidance at each noise level, and saves a table.\n\n"
        "Form **calibrated** reads the table, so it costs no extra evaluation. "
        "Next time take **REG Load Calibration**: the table lies in output/reg_calibration."
    )
    model = g.add("REGDemoModel", 0, variant="fashion_weak"), 0
    g.note(0, text)
    few = g.add("REGDemoLatent", 0, "Measured on 4 pictures", batch_size=4, pictures="fashion"), 0
    g.reach(BELOW_TABLE, 0)
    links = prompts(g, 0, "fashion", 20)
    lane = g.through(1, model, right=True)
    g.reach(LANE, 1)
    values = dict(form="scalar", cfg=CFG, steps=18, runs=2, filename_prefix="reg_calibration/clothes", sampler_name="heun", scheduler="karras")
    table = g.add("REGCalibrate", 1, size=(290, BELOW_TABLE - 2 * LANE), **values, model=model, **links | {"latent_image": few})
    g.add("PreviewAny", 2, "What was measured", size=(290, 240), source=(table, 1))
    values = dict(form="calibrated", gain=2.2, data_std=DATA_STD["fashion"])
    reg = g.add("REGGuidance", 2, "REG from the table", **values, model=lane, calibration=(table, 0)), 0
    g.reach(BELOW_TABLE, 2)
    latent = sampled(g, 2, "Sample with REG", CFG, model=reg, **links)
    shown(g, 3, latent, "Form calibrated", "calibration")


WORKFLOWS = {
    FIRST: clothes,
    "Try A B with the trace": traced,
    "Try autoguidance": autoguidance,
    "Try calibration": calibration,
    "Try reward guidance": reward,
    "Try a sweep of forms and gains": sweep,
}
