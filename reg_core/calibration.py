"""A correction measured once: c(sigma) as a small table, free at use.

R g is replaced by c(sigma_ve) g. Here c is the multiple of v = D_c - D_ref nearest to R v over all samples of
that noise level (least squares): c = sum <R v, v> / sum <v, v>.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .files import whole_file
from .forms import PRODUCT_FORMS, carries
from .space import flat

FAR = 2.0  # from the middle of 0 and 1, beyond which no denoiser is measured
FORMAT = "reg-calibration-1"
TENSORS = ("sigma", "factor", "error")
NAMES = ("form", "prediction", "latent", "model")


@dataclass(frozen=True, eq=False)
class Calibration:
    """c over sigma_ve = s / alpha, with where it came from.

    `sigma` [K]: noise levels, increasing, > 0. `factor` [K]: c there. `error` [K]: its standard error.
    `form`: what was measured. `prediction` and `latent`: the kind of model ("" = any). `model` is for people.
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
        shapes = [tuple(t.shape) for t in (self.sigma, self.factor, self.error)]
        if self.sigma.ndim != 1 or len(self.sigma) == 0 or len(set(shapes)) != 1:
            raise ValueError(f"calibration: want sigma, factor and error of one shape [K], got {shapes}")
        if self.form not in PRODUCT_FORMS:
            raise ValueError(f"calibration: want a form out of {', '.join(PRODUCT_FORMS)}, got {self.form!r}")
        levels = [0.0, *self.sigma.tolist(), math.inf]
        if any(not low < high for low, high in zip(levels, levels[1:], strict=False)):
            raise ValueError(f"calibration: sigma must be finite, > 0 and increasing, got {levels[1:-1]}")
        if not torch.isfinite(self.factor).all():
            raise ValueError(f"calibration: factor must be finite, got {self.factor.tolist()}")

    def __call__(self, sigma_ve: Tensor) -> Tensor:
        """c [B] at sigma_ve [B], linear in log sigma; below the table constant, above odds as 1/sigma^2."""
        sigma_ve = sigma_ve.to(torch.promote_types(sigma_ve.dtype, torch.float32))
        grid, table = self.sigma.to(sigma_ve), self.factor.to(sigma_ve)
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
                kinds = f"was measured with {what} {ours!r}, the model has {theirs!r}"
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
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError with the name of another file."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no calibration table at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a .safetensors file: {error}") from None
        if metadata.pop("format", None) != FORMAT or not set(TENSORS) <= tensors.keys():
            held = ", ".join(sorted(tensors)) or "nothing"
            raise ValueError(f"{path} is not a REG calibration table (it holds {held})")
        known = {name: metadata.pop(name, "") for name in NAMES}
        try:
            return cls(*(tensors[name] for name in TENSORS), **known, notes=metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def summary(self) -> str:
        """One line for people."""
        ends = " to ".join(f"{self.factor[i]:.3f} at sigma {self.sigma[i]:.3g}" for i in (-1, 0))
        worst = self.error.nan_to_num(math.inf).max()
        name = f"calibration of {self.model or 'a model'} ({self.form})"
        return f"{name}: c from {ends}, standard error up to {worst:.3f}"


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
        usable = torch.isfinite(sigma) & (sigma > 0) & torch.isfinite(dot + norm) & (norm > 0)
        sigma, dot, norm = sigma[usable], dot[usable], norm[usable]
        # Runs of one schedule share their noise levels up to rounding.
        grid, group = torch.unique((sigma.log() * 1e4).round(), return_inverse=True)
        if len(grid) == 0:
            raise ValueError("calibration: guidance was zero or not finite in every call: nothing to measure")
        rows = [_fit(sigma[group == i], dot[group == i], norm[group == i]) for i in range(len(grid))]
        level, factor, error = (torch.stack(part).float() for part in zip(*rows, strict=True))
        worst = int((factor - 0.5).abs().argmax())
        if abs(float(factor[worst]) - 0.5) > FAR:
            found = f"c = {float(factor[worst]):.3g} at sigma {float(level[worst]):.3g}"
            raise ValueError(f"calibration: {found} is not a correction: that lies between 0 and 1")
        return Calibration(level, factor, error, form, **about)


def _fit(sigma: Tensor, dot: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares over samples, and its jackknife standard error (nan of a single sample)."""
    factor = dot.sum() / norm.sum()
    if len(sigma) < 2:
        return sigma.mean(), factor, torch.full_like(factor, math.nan)
    without = (dot.sum() - dot) / (norm.sum() - norm)
    spread = (without - without.mean()).square().mean()
    return sigma.mean(), factor, ((len(sigma) - 1) * spread).sqrt()
