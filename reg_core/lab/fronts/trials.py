"""Quality against guidance weight on the digits models: which points are sampled, and how one of them is.

A point is a setup (which prediction is guided by which), a base schedule, a form, a weight and a seed. The seed makes the noise,
the same for every method, so that methods are compared in pairs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..calibration import Calibration
from ..guidance import Branches
from ..guided import Guided, calibrate
from ..rectify import FORMS, Settings
from ..sampling import karras_sigmas, sample_heun
from ..schedule import Constant, Cosine, Linear, SigmaInterval, step_position
from .bets import BetGuided, Prior
from .data import load_split
from .evaluate import SIGMA_MAX, SIGMA_MIN
from .metrics import score
from .models import load_digits_model
from .networks import IMAGE_SHAPE, NUM_CLASSES, SIGMA_DATA

SETUPS = {
    "weak": "classifier-free guidance of the weak model",
    "good": "classifier-free guidance of the good model",
    "auto": "autoguidance: the good model by the weak one",
    "auto_weak": "autoguidance: the weak model by one trained for a fifth of its steps",
}
# EDM2's interval (0.28, 2.90] of sigma at sigma_data 0.5 (Kynkaanniemi et al. 2024), in units of these data.
INTERVAL = SigmaInterval(2.90 * SIGMA_DATA / 0.5, 0.28 * SIGMA_DATA / 0.5)
SCHEDULES = {"constant": Constant(), "linear": Linear(), "cosine": Cosine(), "interval": INTERVAL}
CALIBRATION_SEED = 10_000  # not among the seeds of the points
WEAKER_STEPS = 100


@dataclass(frozen=True)
class Point:
    """One sampling run. `form`: of reg_core, or "bet:NAME" of bets.BETS. `dtype`: of the network."""

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
        for name, value, valid in (("setup", self.setup, SETUPS), ("schedule", self.schedule, SCHEDULES), ("dtype", self.dtype, ("float32", "bfloat16"))):
            if value not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}, got {value!r}")
        if self.form not in FORMS and not self.form.startswith("bet:"):
            raise ValueError(f"form must be one of {', '.join(FORMS)} or bet:NAME, got {self.form!r}")

    @property
    def key(self) -> str:
        """Readable and unique: fields at their defaults are left out."""
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default)


@dataclass(frozen=True)
class Size:
    """How much is sampled: images a point and Heun steps. `folder`: where the weaker reference lies."""

    images: int
    steps: int
    folder: str

    @property
    def sigmas(self) -> Tensor:
        return karras_sigmas(self.steps, SIGMA_MIN, SIGMA_MAX)


def labels(count: int) -> Tensor:
    """0..9 in turn [count]."""
    return torch.arange(count) % NUM_CLASSES


def weaker(folder: str | Path) -> Path:
    """Folder of the reference of `auto_weak`; trains it where it is absent (seconds)."""
    from .models import DENOISERS, save_weights
    from .train import WEAK, replace, train_denoiser

    path = Path(folder) / f"{DENOISERS[1]}.safetensors"
    if not path.is_file():
        model, _ = train_denoiser(replace(WEAK, steps=WEAKER_STEPS), 1, "weaker reference", 1)
        save_weights(path, model, seed=1, steps=WEAKER_STEPS)
    return Path(folder)


@lru_cache(maxsize=8)
def _model(name: str, dtype: str, folder: str | None = None):
    return load_digits_model(name, getattr(torch, dtype), weights_dir=folder)


def denoisers(setup: str, label: Tensor, folder: str, dtype: str = "float32"):
    """(D_c, D_ref) of a setup as callables (x, sigma) -> D for these labels [B]."""
    main = _model("digits" if setup in ("good", "auto") else "digits_weak", dtype)
    if setup in ("weak", "good"):
        return lambda x, sigma: main(x, sigma, label), lambda x, sigma: main(x, sigma)
    reference = _model("digits_weak", dtype, None if setup == "auto" else folder)
    return lambda x, sigma: main(x, sigma, label), lambda x, sigma: reference(x, sigma, label)


@lru_cache(maxsize=8)
def table(setup: str, size: Size, images: int = 200) -> Calibration:
    """The table of `calibrated` for a setup, measured under the plain schedule at w = 1 on noise of its own."""
    noise = SIGMA_MAX * torch.randn(images, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(CALIBRATION_SEED))
    return calibrate(*denoisers(setup, labels(images), size.folder), [noise], size.sigmas, 1.0, model=setup)


def cosine_basis(n: int = IMAGE_SHAPE[-1]) -> Tensor:
    """Rows: the two-dimensional orthonormal cosine transform (DCT-II) of n x n images [n^2, n^2], float64."""
    from scipy.fft import dct

    one = torch.from_numpy(dct(torch.eye(n, dtype=torch.float64).numpy(), norm="ortho", axis=0))
    return torch.kron(one, one)


def within_class_covariance() -> Tensor:
    """[64, 64] float64, pooled over the classes of the training part."""
    data = load_split("train")
    x = data.images.flatten(1).double()
    means = torch.stack([x[data.labels == k].mean(0) for k in range(NUM_CLASSES)])
    offset = x - means[data.labels]
    return offset.T @ offset / len(offset)


@lru_cache(maxsize=8)
def priors(setup: str, size: Size, images: int = 40, points: int = 12) -> dict[str, Prior]:
    """What the bets know of the data and the model: `spectrum` (with its measured table) and `full`."""
    covariance, basis = within_class_covariance(), cosine_basis()
    variances, axes = torch.linalg.eigh(covariance)
    data = load_split("train")
    generator = torch.Generator().manual_seed(CALIBRATION_SEED)
    chosen = torch.randperm(len(data.images), generator=generator)[:images]
    cond, _ = denoisers(setup, data.labels[chosen], size.folder)
    grid = torch.logspace(-2, 1.3, points, dtype=torch.float64).float()
    rows = []
    with torch.no_grad():
        for level in grid:
            sigma = level.expand(images)
            x = data.images[chosen] + level * torch.randn(images, *IMAGE_SHAPE, generator=generator)
            rows.append(torch.stack([_diagonal(cond, x, sigma, b.float()) for b in basis]))
    measured = Calibration(grid, torch.stack(rows), torch.zeros(points, len(basis)), "product", model=setup)
    return {
        "spectrum": Prior(basis, (basis @ covariance @ basis.T).diagonal(), measured),
        "full": Prior(axes.T, variances.clamp_min(0)),
    }


def _diagonal(cond, x: Tensor, sigma: Tensor, direction: Tensor) -> Tensor:
    """Mean over the batch of u^T J u for a unit vector u [64], to both sides."""
    step = 0.02 * float(sigma[0]) * direction.reshape(1, *IMAGE_SHAPE) * len(direction) ** 0.5
    change = (cond(x + step, sigma) - cond(x - step, sigma)).flatten(1) @ direction
    return (change / (2 * step.norm())).mean()


class _Coarse(Branches):
    """Branches of a network that works in bfloat16 behind a float32 interface, as hosts have them."""

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        return torch.bfloat16


def sampler(point: Point, size: Size):
    """(guided denoiser, its weight as a function of sigma) of a point. The denoiser has `.run` or `.trace.last`."""
    cond, reference = denoisers(point.setup, labels(size.images), size.folder, point.dtype)
    sigmas, schedule = size.sigmas, SCHEDULES[point.schedule]

    def weight(sigma: float) -> float:
        return point.weight * schedule(sigma if isinstance(schedule, SigmaInterval) else step_position(sigma, sigmas))

    if point.form.startswith("bet:"):
        return BetGuided(cond, reference, weight, point.form[4:], priors(point.setup, size))
    settings = Settings(
        form=point.form,
        engine=point.engine,
        refresh=point.refresh,
        skip_below=point.skip_below,
        data_std=SIGMA_DATA,
        calibration=table(point.setup, size) if point.form == "calibrated" else None,
    )
    guided = Guided(cond, reference, weight, settings)
    if point.dtype == "bfloat16":
        guided.branches = _Coarse(guided.branches.cond, guided.branches.reference)
    return guided


def evaluate(job: tuple[Point, Size]) -> dict:
    """Scores, effective cfg, model rows an image, and at seed 0 the correction by sigma: JSON-able."""
    point, size = job
    generator = torch.Generator().manual_seed(point.seed)
    noise = SIGMA_MAX * torch.randn(size.images, *IMAGE_SHAPE, generator=generator)
    guided = sampler(point, size)
    images = sample_heun(guided, noise, size.sigmas)
    run = guided.run if point.form.startswith("bet:") else guided.trace.last
    result = {name: round(value, 5) for name, value in asdict(score(images, labels(size.images))).items()}
    plain = point.form == "off"
    result["effective_cfg"] = None if plain or not run.active else round(run.effective_cfg, 4)
    # cond at every call, the reference where the weight is not 0, and what the form asks for beyond
    result["rows"] = sum(1 + (row.cfg != 1) + row.extra_rows for row in run.rows)
    result["notes"] = list(run.notes) if not point.form.startswith("bet:") else []
    if point.seed == 0 and not plain:
        rows = sorted(run.active, key=lambda row: row.sigma)
        result["correction"] = [[_short(v) for v in (r.sigma, r.correction_mean, r.correction_low, r.correction_high)] for r in rows]
    return result


def _short(value: float) -> float:
    return float(f"{value:.4g}")
