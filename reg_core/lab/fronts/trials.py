"""One sampling run on small models: what it is, and what comes of it.

A trial is a setup (which prediction is guided by which), a base schedule, a form, a weight and a seed. The
seed makes the noise, the same for every method, so that methods are compared in pairs."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from ...branches import Branches
from ...calibration import Calibration
from ...checks import one_of
from ...guided import Guided, calibrate
from ...sampling import karras_sigmas, sample_heun
from ...schedule import Band, Cosine, Linear, step_position
from ...settings import Settings
from . import bets
from .quality import score
from .setups import SETUPS, denoisers, labels, model, noise

BELOW = (0.5, 1.0, 2.0, 4.0)  # upper ends of the intervals that begin at 0
SCHEDULES = ("constant", "linear", "cosine", "interval", *(f"below_{high:g}" for high in BELOW))
# EDM2's interval (0.28, 2.90] of sigma at sigma_data 0.5 (Kynkaanniemi et al. 2024), in units of the data.
INTERVAL = (0.28 / 0.5, 2.90 / 0.5)
# (pictures, seed, engine) that the table of `calibrated` is measured with; no trial has these seeds.
CALIBRATION = {"digits": (200, 10_000, "auto"), "fashion": (1000, 99, "reverse")}


@dataclass(frozen=True)
class Trial:
    """One sampling run. `engine`, `refresh`, `skip_below`: see Settings. `dtype`: of the network.

    `data_std` 0: the data's. Raises ValueError for a setup, a schedule or a dtype that does not exist."""

    setup: str
    schedule: str
    form: str
    weight: float
    seed: int
    engine: str = "auto"
    refresh: int = 1
    skip_below: float = 0.0
    dtype: str = "float32"
    data_std: float = 0.0

    def __post_init__(self):
        dtypes = ("float32", "bfloat16")
        for name, valid in (("setup", SETUPS), ("schedule", SCHEDULES), ("dtype", dtypes)):
            one_of(name, getattr(self, name), valid)

    @property
    def key(self) -> str:
        """Readable and unique: fields at their defaults are left out."""
        values = ((f, getattr(self, f.name)) for f in fields(self))
        return " ".join(f"{f.name}={value}" for f, value in values if value != f.default)

    @property
    def method(self) -> str:
        """The form, and after commas how it was computed, where that is not the default."""
        ways = [f for f in fields(self)[5:] if getattr(self, f.name) != f.default]
        return ", ".join([self.form, *(f"{f.name} {getattr(self, f.name)}" for f in ways)])


@dataclass(frozen=True)
class Size:
    """How much is sampled: images a trial and Heun steps, `batch` at a time (0: all) on `device`.

    `folder`: where models lie that do not ship. `pictures`: where the data sets lie that do not ship."""

    images: int
    steps: int
    folder: str
    batch: int = 0
    device: str = "cpu"
    pictures: str | None = None


def levels(setup: str, size: Size) -> Tensor:
    """Noise levels of the setup's sampler [steps + 1]."""
    main = model(SETUPS[setup].main, size.folder, device=size.device)
    return karras_sigmas(size.steps, main.sigma_min, main.sigma_max)


def base(name: str, setup: str, size: Size):
    """A base schedule as the multiplier of the weight at sigma."""
    if name == "constant":
        return lambda sigma: 1.0
    if name == "interval":
        unit = model(SETUPS[setup].main, size.folder, device=size.device).sigma_data
        return Band(INTERVAL[0] * unit, INTERVAL[1] * unit)
    if name.startswith("below_"):
        return Band(0.0, float(name.removeprefix("below_")))
    sigmas, schedule = levels(setup, size).tolist(), {"linear": Linear(), "cosine": Cosine()}[name]
    return lambda sigma: schedule(step_position(sigma, sigmas))


@lru_cache(maxsize=8)
def table(setup: str, size: Size, images: int | None = None) -> Calibration:
    """The table of `calibrated` for a setup, measured under the plain schedule at w = 1 on other noise."""
    count, seed, engine = CALIBRATION[SETUPS[setup].data]
    count = images or count
    cond, reference = denoisers(setup, labels(count).to(size.device), size.folder)
    guided = Guided(cond, reference, 1.0, Settings(form="scalar", engine=engine))
    start = noise(setup, count, seed, size.folder, size.device)
    return calibrate(guided, [start], levels(setup, size), model=setup)


class _Coarse(Branches):
    """Branches of a network that works in bfloat16 behind a float32 interface, as hosts have them."""

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        return torch.bfloat16


def settings(trial: Trial, size: Size) -> Settings:
    """How a trial rectifies."""
    own = model(SETUPS[trial.setup].main, size.folder, device=size.device).sigma_data
    same = {name: getattr(trial, name) for name in ("engine", "refresh", "skip_below")}
    same["data_std"] = trial.data_std or own
    if trial.form in bets.BETS:
        return bets.Bet(form="schedule", factor=bets.BETS[trial.form], **same)
    known = table(trial.setup, size) if trial.form == "calibrated" else None
    form = "schedule" if trial.form == bets.PROJECTED else trial.form
    return Settings(form=form, calibration=known, **same)


def sampler(trial: Trial, size: Size, label: Tensor) -> Guided:
    """The guided denoiser of a trial for labels [B]."""
    cond, reference = denoisers(trial.setup, label, size.folder, trial.dtype)
    multiplier = base(trial.schedule, trial.setup, size)
    guided = Guided(cond, reference, lambda sigma: trial.weight * multiplier(sigma), settings(trial, size))
    if trial.dtype == "bfloat16":
        guided.branches = _Coarse(cond, reference)
    if trial.form == bets.PROJECTED:
        guided.branches = bets.Projected(cond, reference)
    return guided


def evaluate(job: tuple[Trial, Size]) -> dict:
    """Scores, model rows an image, seconds, and at seed 0 the correction by sigma: JSON-able."""
    trial, size = job
    begin, label = time.perf_counter(), labels(size.images).to(size.device)
    start = noise(trial.setup, size.images, trial.seed, size.folder, size.device)
    images, rows, runs = [], 0.0, []
    for first in range(0, size.images, size.batch or size.images):
        part = slice(first, first + (size.batch or size.images))
        guided = sampler(trial, size, label[part])
        images.append(sample_heun(guided, start[part], levels(trial.setup, size)))
        runs.append(guided.trace.last)
        # cond at every call, the reference where the weight is not 0, and what the form asks for beyond
        taken = sum(1 + (row.cfg != 1) + row.extra_rows for row in runs[-1].rows)
        rows += taken * len(images[-1]) / size.images
    scores = score(torch.cat(images), label, SETUPS[trial.setup].data, size.pictures)
    result: dict = {name: round(value, 5) for name, value in scores.items()}
    result["rows"] = int(rows) if rows == int(rows) else round(rows, 2)
    result["seconds"] = round(time.perf_counter() - begin, 1)
    result["notes"] = sorted({note for run in runs for note in run.notes})
    if trial.seed == 0 and trial.form != "off":
        names = ("sigma", "correction_mean", "correction_low", "correction_high")
        seen = sorted(runs[0].active, key=lambda row: row.sigma)
        result["correction"] = [[float(f"{getattr(row, name):.4g}") for name in names] for row in seen]
    return result
