"""Which ways of guiding are compared, on which models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

CFG = "cfg"  # the baseline of every ratio
ALONE = "reverse_alone"
SKIP_BELOW = 0.05  # of the skipping rows: share of the largest |g|. docs/evidence-more.md has its quality
ALWAYS = {"refresh": 1, "skip_below": 0.0}
REVERSE = ALWAYS | {"engine": "reverse"}


@dataclass(frozen=True)
class Mode:
    """Inputs of REGGuidance that differ from what it ships with (None: plain guidance), and the ratios to reach.

    `backward`: see nodes.backward.reverse.BackwardPass; users get "auto", which is one of the two.
    """

    title: str
    inputs: dict | None
    time: dict = field(default_factory=dict)  # {device: highest ratio to plain guidance}
    memory: dict = field(default_factory=dict)
    backward: str = "auto"
    alone: bool = False  # PyTorch's reverse mode without the pack, see alone.py


def _same(ratio):
    return {"cpu": ratio, "cuda": ratio}


_REVERSE = {"cpu": 2.2, "cuda": 1.7}
MODES = {
    CFG: Mode("plain guidance", None),
    "schedule": Mode("`schedule`", {"form": "schedule"}, _same(1.01), _same(1.01)),
    "calibrated": Mode("`calibrated`", {"form": "calibrated"}, _same(1.01), _same(1.01)),
    "default": Mode("default (`row_sum`)", {}, _same(1.15), _same(1.10)),
    "skipping": Mode(f"default, `skip_below` {SKIP_BELOW}", {"skip_below": SKIP_BELOW}, _same(0.90), _same(1.05)),
    "calibrated_skipping": Mode(f"`calibrated`, `skip_below` {SKIP_BELOW}", {"form": "calibrated", "skip_below": SKIP_BELOW}),
    "every_call": Mode("`row_sum`, probe at every call", ALWAYS, _same(1.50), _same(1.15)),
    "scalar": Mode("`scalar`, probe at every call", ALWAYS | {"form": "scalar"}),
    "product": Mode("`product`, probe at every call", ALWAYS | {"form": "product"}),
    "reverse_checkpoint": Mode("reverse, checkpointed", REVERSE, _REVERSE, _same(1.35), backward="checkpoint"),
    "reverse_resident": Mode("reverse, resident", REVERSE, {"cpu": 2.0, "cuda": 1.5}, backward="resident"),
    ALONE: Mode("reverse, resident, by PyTorch alone", None, alone=True),
    "reverse_refreshed": Mode("reverse, checkpointed, default refresh", {"engine": "reverse"}, _REVERSE, _same(1.35), backward="checkpoint"),
}
ALL = tuple(MODES)
# What depends on the run: how many steps it has, and how J falls with noise. Then what costs the same at every step.
ADAPTIVE = (CFG, "default", "skipping", "reverse_refreshed")
CONSTANT = (CFG, "schedule", "calibrated", "every_call", "scalar", "reverse_checkpoint", "reverse_resident", ALONE)
USUAL = (CFG, "schedule", "default", "skipping", "every_call")
CLOSE = (CFG, "schedule", "calibrated", "every_call")  # targets that a few rounds cannot tell from what they measure
SCALED = (CFG, "default", "every_call", "reverse_checkpoint")


@dataclass(frozen=True)
class Case:
    """One model at one size, sampled with every mode in turn, `rounds` times, after a round that measures memory."""

    name: str
    title: str
    network: str  # see models.build
    size: tuple  # of the latent [C, H, W]
    modes: tuple = ALL
    batch: int = 1
    steps: int = 8
    rounds: int = 3
    close: int = 0  # further rounds of CLOSE only
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "karras"
    dtype: str = "float32"
    memory_steps: int = 2  # of the run that measures memory, from the first noise level to the last: probes, a reuse, a skip
    beside: int = 1  # plain guidance is timed after every so many steps; it must divide them
    compared: bool = True  # with the ratios to reach, which are those to two rows of one model
    axis: str = ""  # part of the plot over this


def _latent(pixels: int) -> tuple:
    return (4, pixels // 8, pixels // 8)


_DIGITS = Case("digits", "Digits (the demo model), 8x8, batch 256", "digits", (1, 8, 8), batch=256, steps=20, rounds=5, close=10, cfg=4.0, memory_steps=20)
CPU = (
    Case("sd15_v_256", "SD1.5 (860 M), v, 256x256 pixels", "sd15_v", _latent(256), ADAPTIVE, steps=20, rounds=2, cfg=5.0, memory_steps=3, beside=4),
    Case("sd15_v_512", "SD1.5 (860 M), v, 512x512 pixels", "sd15_v", _latent(512), ADAPTIVE, steps=20, rounds=1, cfg=5.0, memory_steps=3, beside=2),
    Case("sd15_eps_256", "SD1.5 (860 M), eps, 256x256 pixels", "sd15", _latent(256), CONSTANT, steps=8, rounds=2, beside=2),
    Case(
        "sd15_eps_512",
        "SD1.5 (860 M), eps, 512x512 pixels",
        "sd15",
        _latent(512),
        (CFG, "every_call", "reverse_checkpoint", "reverse_resident", ALONE),
        steps=6,
        rounds=1,
        memory_steps=1,
        beside=2,
    ),
    _DIGITS,
    replace(
        _DIGITS,
        name="digits_autoguidance",
        network="digits_autoguidance",
        modes=tuple(name for name in ALL if name not in ("calibrated_skipping", ALONE)),
        rounds=3,
        close=0,
        compared=False,
        title="Digits, autoguidance: the second row is a smaller model, so a row of the first is more than half of plain guidance",
    ),
)


def _cuda(name, title, network, pixels, batch, modes=CONSTANT, **more):
    title = f"{title}, {pixels}x{pixels} pixels, batch {batch}, fp16"
    steps = dict(steps=20, beside=4, memory_steps=6, cfg=5.0) if modes is ADAPTIVE else dict(steps=8, beside=2, memory_steps=3)
    return Case(f"{name}_{pixels}_b{batch}", title, network, _latent(pixels), modes, batch, dtype="float16", **steps | more)


CUDA = (
    _cuda("sd15_v", "SD1.5, v", "sd15_v", 512, 1, ADAPTIVE),
    _cuda("sd15_v", "SD1.5, v", "sd15_v", 512, 5, ADAPTIVE),
    _cuda("sd15_eps", "SD1.5, eps", "sd15", 512, 1),
    _cuda("sd15_eps", "SD1.5, eps", "sd15", 512, 5),
    _cuda("sd21_v", "SD2.1, v", "sd21_v", 768, 5),
    _cuda("sdxl_v", "SDXL, v", "sdxl_v", 1024, 1, ADAPTIVE),
    _cuda("sdxl_eps", "SDXL, eps", "sdxl", 1024, 1),
    _cuda("sdxl_eps", "SDXL, eps", "sdxl", 1024, 5, rounds=2),
)


def _scaling(network, sizes, batches, steps, size, rounds, **more):
    base = Case("", "", network, _latent(size), SCALED, steps=4, rounds=rounds, **more)
    cases = [replace(base, size=_latent(n), axis="size", name=f"size_{n}") for n in sizes]
    cases += [replace(base, batch=n, axis="batch", name=f"batch_{n}") for n in batches]
    cases += [replace(base, steps=n, axis="steps", name=f"steps_{n}", modes=(CFG, "default", "skipping")) for n in steps]
    return tuple(replace(case, title=f"scaling: {case.axis} {case.name.split('_')[1]}") for case in cases)


# The small variant (77 M) has SD1.5's layers at 96 channels in place of 320.
CPU_SCALING = _scaling("sd15_small_v", (128, 256, 384), (1, 2, 4, 8), (4, 8, 16, 32), 128, rounds=2)
CUDA_SCALING = _scaling("sd15_v", (256, 512, 1024, 1536), (1, 2, 4, 8, 16), (4, 8, 16, 32), 512, rounds=2, dtype="float16", beside=2)

# The CUDA suite's path on a CPU, in seconds: so that it cannot rot where there is no GPU.
_SHRUNK = dict(size=(4, 8, 8), steps=2, rounds=1, dtype="float32", memory_steps=2, beside=1)
_FEW = (CFG, "default", "reverse_checkpoint")
_CUDA = {case.name: case for case in CUDA}
TINY = (
    replace(_CUDA["sd15_eps_512_b1"], network="tiny_sd15", name="tiny_eps", title="tiny SD1.5, eps", modes=ALL, **_SHRUNK),
    replace(_CUDA["sd21_v_768_b5"], network="tiny_sd21_v", name="tiny_v", title="tiny SD2.1, v", modes=_FEW, **_SHRUNK),
    replace(_CUDA["sdxl_eps_1024_b5"], network="tiny_sdxl", name="tiny_sdxl", title="tiny SDXL, batch 5", modes=_FEW, **_SHRUNK),
    replace(_DIGITS, name="tiny_digits", title="digits", batch=4, steps=12, rounds=1, close=1, modes=USUAL, memory_steps=12),
    replace(
        _DIGITS,
        name="tiny_auto",
        title="digits, autoguidance",
        network="digits_autoguidance",
        batch=4,
        steps=2,
        rounds=1,
        modes=_FEW,
        memory_steps=2,
        compared=False,
    ),
    replace(CPU_SCALING[0], network="tiny_sd15", name="size_64", title="scaling: size 64", **_SHRUNK),
    replace(CPU_SCALING[1], network="tiny_sd15", name="size_128", title="scaling: size 128", **_SHRUNK | {"size": (4, 16, 16)}),
)
SUITES = {"cpu": CPU + CPU_SCALING, "cuda": CUDA + CUDA_SCALING, "tiny": TINY}
