"""One sampling run on the digits models: what it is, and what comes of it.

A trial is a setup (which prediction is guided by which), a base schedule, a form, a weight and a seed. The
seed makes the noise, the same for every method, so that methods are compared in pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...branches import Branches
from ...calibration import Calibration
from ...demo_models.data import DIGITS
from ...demo_models.loading import load_model, save_weights
from ...guided import Guided, calibrate
from ...sampling import karras_sigmas, sample_heun
from ...schedule import Band, Cosine, Linear, step_position
from ...settings import Settings
from .quality import score

SETUPS = {
    "weak": "classifier-free guidance of the weak model",
    "good": "classifier-free guidance of the good model",
    "auto": "autoguidance: the good model by the weak one",
    "auto_weak": "autoguidance: the weak model by one trained for a fifth of its steps",
}
# EDM2's interval (0.28, 2.90] of sigma at sigma_data 0.5 (Kynkaanniemi et al. 2024), in units of these data.
INTERVAL = Band(0.28 * DIGITS.sigma_data / 0.5, 2.90 * DIGITS.sigma_data / 0.5)
SCHEDULES = {"constant": Band(), "linear": Linear(), "cosine": Cosine(), "interval": INTERVAL}
CALIBRATION_SEED = 10_000  # not among the seeds of the trials
WEAKER_STEPS = 100


@dataclass(frozen=True)
class Trial:
    """One sampling run. `engine`, `refresh`, `skip_below`: see Settings. `dtype`: of the network."""

    setup: str
    schedule: str
    form: str
    weight: float
    seed: int
    engine: str = "auto"
    refresh: int = 1
    skip_below: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        dtypes = ("float32", "bfloat16")
        for name, valid in (("setup", SETUPS), ("schedule", SCHEDULES), ("dtype", dtypes)):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}")

    @property
    def key(self) -> str:
        """Readable and unique: fields at their defaults are left out."""
        values = ((f, getattr(self, f.name)) for f in fields(self))
        return " ".join(f"{f.name}={value}" for f, value in values if value != f.default)


@dataclass(frozen=True)
class Size:
    """How much is sampled: images a trial and Heun steps. `folder`: where the weaker reference lies."""

    images: int
    steps: int
    folder: str

    @property
    def sigmas(self) -> Tensor:
        return karras_sigmas(self.steps, DIGITS.sigma_min, DIGITS.sigma_max)


def labels(count: int) -> Tensor:
    """0..9 in turn [count]."""
    return torch.arange(count) % len(DIGITS.names)


def noise(count: int, seed: int) -> Tensor:
    """Starts at the highest noise level [count, 1, 8, 8]."""
    generator = torch.Generator().manual_seed(seed)
    return DIGITS.sigma_max * torch.randn(count, *DIGITS.shape, generator=generator)


def weaker(folder: str | Path) -> Path:
    """Folder of the reference of `auto_weak`; trains it where it is absent (seconds)."""
    from ...demo_models.data import load_split
    from ...demo_models.train import RECIPES, replace, train_denoiser

    path = Path(folder) / "digits_weak.safetensors"
    if not path.is_file():
        recipe, pictures = RECIPES["digits_weak"], (load_split("train"), load_split("test"))
        recipe = replace(recipe, steps=WEAKER_STEPS)
        model, _ = train_denoiser(recipe, *pictures, 1, "weaker reference", 1)
        save_weights(path, model, seed=1, steps=WEAKER_STEPS)
    return Path(folder)


@lru_cache(maxsize=8)
def _model(name: str, dtype: str, folder: str | None = None):
    return load_model(name, getattr(torch, dtype), weights_dir=folder)


def denoisers(setup: str, label: Tensor, folder: str, dtype: str = "float32"):
    """(D_c, D_ref) of a setup as callables (x, sigma) -> D for these labels [B]."""
    main = _model("digits" if setup in ("good", "auto") else "digits_weak", dtype)
    if setup in ("weak", "good"):
        return lambda x, sigma: main(x, sigma, label), lambda x, sigma: main(x, sigma)
    reference = _model("digits_weak", dtype, None if setup == "auto" else folder)
    return lambda x, sigma: main(x, sigma, label), lambda x, sigma: reference(x, sigma, label)


@lru_cache(maxsize=8)
def table(setup: str, size: Size, images: int = 200) -> Calibration:
    """The table of `calibrated` for a setup, measured under the plain schedule at w = 1 on other noise."""
    cond, reference = denoisers(setup, labels(images), size.folder)
    guided = Guided(cond, reference, 1.0, Settings(form="scalar"))
    return calibrate(guided, [noise(images, CALIBRATION_SEED)], size.sigmas, model=setup)


class _Coarse(Branches):
    """Branches of a network that works in bfloat16 behind a float32 interface, as hosts have them."""

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        return torch.bfloat16


def sampler(trial: Trial, size: Size) -> Guided:
    """The guided denoiser of a trial."""
    cond, reference = denoisers(trial.setup, labels(size.images), size.folder, trial.dtype)
    sigmas, schedule = size.sigmas.tolist(), SCHEDULES[trial.schedule]

    def weight(sigma: float) -> float:
        place = sigma if trial.schedule == "interval" else step_position(sigma, sigmas)
        return trial.weight * schedule(place)

    known = table(trial.setup, size) if trial.form == "calibrated" else None
    same = {name: getattr(trial, name) for name in ("form", "engine", "refresh", "skip_below")}
    guided = Guided(cond, reference, weight, Settings(**same, data_std=DIGITS.sigma_data, calibration=known))
    if trial.dtype == "bfloat16":
        guided.branches = _Coarse(cond, reference)
    return guided


def evaluate(job: tuple[Trial, Size]) -> dict:
    """Scores, effective cfg, model rows an image, and at seed 0 the correction by sigma: JSON-able."""
    trial, size = job
    guided = sampler(trial, size)
    images = sample_heun(guided, noise(size.images, trial.seed), size.sigmas)
    run, plain = guided.trace.last, trial.form == "off"
    scores = asdict(score(images, labels(size.images)))
    result: dict = {name: round(value, 5) for name, value in scores.items()}
    result["effective_cfg"] = None if plain or not run.active else round(run.effective_cfg, 4)
    # cond at every call, the reference where the weight is not 0, and what the form asks for beyond
    result["rows"] = sum(1 + (row.cfg != 1) + row.extra_rows for row in run.rows)
    result["notes"] = list(run.notes)
    if trial.seed == 0 and not plain:
        names = ("sigma", "correction_mean", "correction_low", "correction_high")
        rows = sorted(run.active, key=lambda row: row.sigma)
        result["correction"] = [[float(f"{getattr(row, name):.4g}") for name in names] for row in rows]
    return result
