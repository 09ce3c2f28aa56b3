"""A correction measured once: c(sigma) as a small table, free at use.

R g is replaced by c(sigma_ve) g, where c is the multiple of v = D_c - D_ref nearest to R v over all samples seen at that
noise level (least squares): c = sum <R v, v> / sum <v, v>, over the whole latent or for every channel on its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

FORMAT = "reg-calibration-1"
FORMS = ("row_sum", "scalar", "product")


@dataclass(frozen=True, eq=False)
class Calibration:
    """c over sigma_ve = s / alpha, with where it came from.

    `sigma` [K] increasing, > 0; `factor` and `error` (its standard error) [K], or [K, C] by latent channel. `form`: what
    was measured. `prediction` and `latent` name the kind of model it belongs to ("" = any), `model` is for people.
    Raises ValueError for tables that make no sense.
    """

    sigma: Tensor
    factor: Tensor
    error: Tensor
    form: str
    prediction: str = ""
    latent: str = ""
    model: str = ""
    notes: dict = field(default_factory=dict)
    _copies: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        k = len(self.sigma)
        if self.sigma.ndim != 1 or k == 0 or self.factor.ndim not in (1, 2) or len(self.factor) != k or self.error.shape != self.factor.shape:
            shapes = [tuple(t.shape) for t in (self.sigma, self.factor, self.error)]
            raise ValueError(f"calibration: want sigma [K], factor and error [K] or [K, C], got {shapes}")
        if self.form not in FORMS:
            raise ValueError(f"calibration: form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if not (self.sigma > 0).all() or not (self.sigma.diff() > 0).all() or not torch.isfinite(self.sigma).all():
            raise ValueError(f"calibration: sigma must be finite, > 0 and increasing, got {self.sigma.tolist()}")
        if not torch.isfinite(self.factor).all():
            raise ValueError(f"calibration: factor must be finite, got {self.factor.tolist()}")

    @property
    def channels(self) -> int:
        """Latent channels of a table by channel, else 0."""
        return self.factor.shape[1] if self.factor.ndim == 2 else 0

    def __call__(self, sigma_ve: Tensor) -> Tensor:
        """c at sigma_ve [B]: [B], or [B, C]. Linear in log sigma; below the table its first value, above it odds fall as 1/sigma^2."""
        grid, table = self._at(sigma_ve.device, torch.promote_types(sigma_ve.dtype, torch.float32))
        inside = sigma_ve.to(grid.dtype).clamp(grid[0], grid[-1])
        if len(grid) == 1:
            value = table[torch.zeros_like(inside, dtype=torch.long)]
        else:
            right = torch.searchsorted(grid, inside).clamp(1, len(grid) - 1)
            part = (inside / grid[right - 1]).log() / (grid[right] / grid[right - 1]).log()
            part = part.reshape(-1, *(1,) * (table.ndim - 1))
            value = torch.lerp(table[right - 1], table[right], part)
        beyond = (sigma_ve.to(grid.dtype) / grid[-1]).clamp_min(1).square().reshape(-1, *(1,) * (table.ndim - 1))
        fallen = value / (value + (1 - value) * beyond)
        return torch.where((value > 0) & (value < 1), fallen, value / beyond)

    def _at(self, device, dtype) -> tuple[Tensor, Tensor]:
        """Grid and table there; each place is copied to once, since a copy to a GPU waits for it."""
        if (device, dtype) not in self._copies:
            self._copies[device, dtype] = self.sigma.to(device, dtype), self.factor.to(device, dtype)
        return self._copies[device, dtype]

    def check(self, prediction: str, latent: str, channels: int) -> None:
        """Raises ValueError unless the table was measured on this kind of model."""
        for what, ours, theirs in (("prediction", self.prediction, prediction), ("latent", self.latent, latent)):
            if ours and theirs and ours != theirs:
                raise ValueError(f"this calibration was measured with {what} {ours!r}, the model has {theirs!r}: measure it on this model")
        if self.channels and self.channels != channels:
            raise ValueError(f"this calibration has {self.channels} latent channels, the model has {channels}: measure it on this model")

    def save(self, path) -> Path:
        """Write a .safetensors file, metadata included; a half-written one never appears under the name."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ("form", "prediction", "latent", "model")
        metadata = {"format": FORMAT, **{k: str(v) for k, v in self.notes.items()}, **{name: getattr(self, name) for name in names}}
        partial = path.with_name(path.name + ".partial")
        save_file({name: getattr(self, name).float().contiguous().cpu() for name in ("sigma", "factor", "error")}, partial, metadata)
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path) -> Calibration:
        """Read what `save` wrote. Raises ValueError, naming the file, for anything else; FileNotFoundError if absent."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no calibration table at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is no .safetensors file: {error}") from None
        if metadata.pop("format", None) != FORMAT or not {"sigma", "factor", "error"} <= tensors.keys():
            raise ValueError(f"{path} is no REG calibration table (it holds {', '.join(sorted(tensors)) or 'nothing'})")
        known = {name: metadata.pop(name, "") for name in ("form", "prediction", "latent", "model")}
        try:
            return cls(tensors["sigma"], tensors["factor"], tensors["error"], **known, notes=metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def summary(self) -> str:
        """One line for people."""
        kind = f"{self.channels} channels" if self.channels else "whole latent"
        mean = self.factor.mean(1) if self.channels else self.factor
        return (
            f"calibration of {self.model or 'a model'} ({self.form}, {kind}): c from {mean[-1]:.3f} at sigma {self.sigma[-1]:.3g} "
            f"to {mean[0]:.3f} at {self.sigma[0]:.3g}, standard error up to {self.error.nan_to_num(math.inf).max():.3f}"
        )


class Measurement:
    """Collects R v beside v = D_c - D_ref, call by call (it is a Rectifier's `observe`), and makes the table.

    `per_channel`: one c for every latent channel (dim 1) instead of one for all.
    """

    def __init__(self, per_channel: bool = False):
        self.per_channel = per_channel
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, sigma_ve: Tensor, v: Tensor, rectified: Tensor) -> None:
        """Add one call: sigma_ve [B], v and R v [B, C, ...]."""
        dims = tuple(range(2 if self.per_channel else 1, v.ndim))
        v, rectified = v.double(), rectified.double()
        dot, norm = (rectified * v).sum(dims), (v * v).sum(dims)  # [B] or [B, C]
        self._seen.append((sigma_ve.double().cpu(), dot.cpu(), norm.cpu()))

    def table(self, form: str, **about) -> Calibration:
        """The Calibration; `about` are its further fields. Raises ValueError when nothing usable was seen."""
        if not self._seen:
            raise ValueError("calibration: no guided model call was seen (cfg 1, or a guider that REG does not reach)")
        sigma, dot, norm = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        usable = torch.isfinite(sigma) & (sigma > 0) & torch.isfinite(dot + norm).reshape(len(sigma), -1).all(1)
        usable &= (norm > 0).reshape(len(sigma), -1).all(1)
        sigma, dot, norm = sigma[usable], dot[usable], norm[usable]
        # Runs of one schedule share their noise levels up to rounding.
        grid, group = torch.unique((sigma.log() * 1e4).round(), return_inverse=True)
        if len(grid) == 0:
            raise ValueError("calibration: guidance was zero or not finite in every call: nothing to measure")
        rows = [_fit(sigma[group == i], dot[group == i], norm[group == i]) for i in range(len(grid))]
        level, factor, error = (torch.stack(part) for part in zip(*rows, strict=True))
        return Calibration(level.float(), factor.float(), error.float(), form, **about)


def _fit(sigma: Tensor, dot: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares over samples, and its jackknife standard error (nan of a single sample)."""
    factor = dot.sum(0) / norm.sum(0)
    n = len(sigma)
    if n < 2:
        return sigma.mean(), factor, torch.full_like(factor, math.nan)
    without = (dot.sum(0) - dot) / (norm.sum(0) - norm)
    return sigma.mean(), factor, ((n - 1) / n * (without - without.mean(0)).square().sum(0)).sqrt()
