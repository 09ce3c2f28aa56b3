"""A correction measured once: c(sigma) as a small table, free at use.

R g is replaced by c(sigma_ve) g. Here c is the multiple of v = D_c - D_ref nearest to R v over all samples of
that noise level (least squares): c = sum <R v, v> / sum <v, v>.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .checks import cut, one_of, shortened
from .files import FileError, reading, whole_file
from .forms import PRODUCT_FORMS, carries
from .space import flat

FAR = 2.0  # from the middle of 0 and 1, beyond which no denoiser is measured
LEVELS = (1e-9, 1e9)  # of sigma_ve
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FORMAT = "reg-calibration-1"
TENSORS = ("sigma", "factor", "error")
NAMES = ("form", "prediction", "latent", "model")


@dataclass(frozen=True, eq=False)
class Calibration:
    """c over sigma_ve = s / alpha, with where it came from.

    `sigma` [K]: noise levels, increasing, within LEVELS. `factor` [K]: c there. `error` [K]: its standard
    error. `form`: what was measured. `prediction` and `latent`: the kind of model ("" = any). `model` is for
    people.
    Raises ValueError for a table that makes no sense.
    """

    sigma: Tensor
    factor: Tensor
    error: Tensor
    form: str
    prediction: str = ""
    latent: str = ""
    model: str = ""
    notes: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in TENSORS:
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
                found = tensor.dtype if isinstance(tensor, Tensor) else shortened(tensor)
                raise ValueError(f"calibration: want {name} as floats [K], got {found}")
        shapes = [tuple(t.shape) for t in (self.sigma, self.factor, self.error)]
        if self.sigma.ndim != 1 or len(self.sigma) == 0 or len(set(shapes)) != 1:
            found = shortened(shapes)
            raise ValueError(f"calibration: want sigma, factor and error of one shape [K], got {found}")
        one_of("calibration: form", self.form, PRODUCT_FORMS)
        for name in NAMES:
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"calibration: {name} must be a text, got {shortened(getattr(self, name))}")
        levels, (low, high) = self.sigma.tolist(), LEVELS
        rising = all(a < b for a, b in zip(levels, levels[1:], strict=False))
        if not (rising and low <= levels[0] and levels[-1] <= high):
            want = f"from {low:g} to {high:g} and increasing"
            raise ValueError(f"calibration: sigma must be {want}, got {shortened(levels)}")
        for level, factor in zip(levels, self.factor.tolist(), strict=True):
            if not abs(factor - 0.5) <= FAR:
                found = f"c = {factor:.3g} at sigma {level:.3g}"
                raise ValueError(f"calibration: {found} is not a correction: that lies between 0 and 1")

    def __call__(self, sigma_ve: Tensor) -> Tensor:
        """c [B] at sigma_ve [B], linear in log sigma; below the table constant, above odds as 1/sigma^2."""
        sigma_ve = sigma_ve.to(torch.promote_types(sigma_ve.dtype, torch.float32))
        grid, table = _moved(self, sigma_ve.device, sigma_ve.dtype)
        inside = sigma_ve.clamp(grid[0], grid[-1])
        if len(grid) == 1:
            value = table.expand_as(inside)
        else:
            right = torch.searchsorted(grid, inside).clamp(1, len(grid) - 1)
            part = (inside / grid[right - 1]).log() / (grid[right] / grid[right - 1]).log()
            value = torch.lerp(table[right - 1], table[right], part)
        beyond = (sigma_ve / grid[-1]).clamp_min(1).square()  # infinite at flow's sigma 1, where c becomes 0
        return torch.where(carries(value), value / (value + (1 - value) * beyond), value / beyond)

    def check(self, prediction: str, latent: str) -> None:
        """Raises ValueError unless the table was measured on this kind of model."""
        for what, theirs in (("prediction", prediction), ("latent", latent)):
            ours = getattr(self, what)
            if ours and theirs and ours != theirs:
                kinds = f"was measured with {what} {shortened(ours)}, the model has {shortened(theirs)}"
                raise ValueError(f"this calibration {kinds}: measure it on this model")

    def save(self, path) -> Path:
        """Write a .safetensors file with its metadata."""
        from safetensors.torch import save_file

        metadata = {"format": FORMAT, **{k: str(v) for k, v in self.notes.items()}}
        metadata |= {name: getattr(self, name) for name in NAMES}
        tensors = {name: getattr(self, name).float().cpu().contiguous() for name in TENSORS}
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata)
        return Path(path)

    @classmethod
    def load(cls, path) -> "Calibration":
        """Read what `save` wrote. Raises FileNotFoundError, or FileError with the name of another file."""
        from safetensors import safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no calibration table at {path}")
        with reading(path, "a .safetensors file"), safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if metadata.pop("format", None) != FORMAT or not set(TENSORS) <= tensors.keys():
            held = cut(", ".join(sorted(tensors)) or "nothing")
            raise FileError(f"{path}: want a REG calibration table, got a file that holds {held}")
        known = {name: metadata.pop(name, "") for name in NAMES}
        try:
            return cls(*(tensors[name] for name in TENSORS), **known, notes=metadata)
        except ValueError as error:
            raise FileError(f"{path}: {error}") from None

    def summary(self) -> str:
        """One line for people."""
        ends = " to ".join(f"{self.factor[i]:.3f} at sigma {self.sigma[i]:.3g}" for i in (-1, 0))
        worst = self.error.nan_to_num(math.inf).max()
        name = f"calibration of {self.model or 'a model'} ({self.form})"
        return f"{name}: c from {ends}, standard error up to {worst:.3f}"


@lru_cache(maxsize=4)
def _moved(table: Calibration, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Its sigma and factor on a device. Kept: a GPU waits for each copy."""
    return table.sigma.to(device, dtype), table.factor.to(device, dtype)


class Measurement:
    """Collects R v beside v = D_c - D_ref, call by call, as a Rectifier's `observe`, and makes the table."""

    def __init__(self):
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, sigma_ve: Tensor, v: Tensor, rectified: Tensor) -> None:
        """Add one call: sigma_ve [B], v and R v [B, ...]."""
        v, rectified = flat(v).cpu().double(), flat(rectified).cpu().double()
        self._seen.append((sigma_ve.cpu().double(), (rectified * v).sum(1), (v * v).sum(1)))

    def table(self, form: str, **about) -> Calibration:
        """The Calibration; `about` are its further fields. Raises ValueError when nothing usable was seen."""
        if not self._seen:
            raise ValueError("calibration: no guided call was seen (cfg 1, or a guider without REG)")
        sigma, dot, norm = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        known = (sigma >= LEVELS[0]) & (sigma <= LEVELS[1])
        usable = known & torch.isfinite(dot + norm) & (norm > 0)
        sigma, dot, norm = sigma[usable], dot[usable], norm[usable]
        # Runs of one schedule share their noise levels up to rounding.
        grid, group = torch.unique((sigma.log() * 1e4).round(), return_inverse=True)
        if len(grid) == 0:
            raise ValueError("calibration: guidance was zero or not finite in every call: nothing to measure")
        rows = [_fit(sigma[group == i], dot[group == i], norm[group == i]) for i in range(len(grid))]
        level, factor, error = (torch.stack(part).float() for part in zip(*rows, strict=True))
        return Calibration(level, factor, error, form, **about)


def _fit(sigma: Tensor, dot: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares over samples, and its jackknife standard error (nan of a single sample)."""
    factor = dot.sum() / norm.sum()
    if len(sigma) < 2:
        return sigma.mean(), factor, torch.full_like(factor, math.nan)
    without = (dot.sum() - dot) / (norm.sum() - norm)
    spread = (without - without.mean()).square().mean()
    return sigma.mean(), factor, ((len(sigma) - 1) * spread).sqrt()
