"""The numbers of guided calls, many at once and on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NUMBERS = (
    "sigma",
    "guidance_norm",
    "rectified_norm",
    "correction_mean",
    "correction_min",
    "correction_max",
    "nonfinite",
    "correction_low",
    "correction_high",
    "moved",
    "error",
)
QUANTILES = (0.05, 0.95)
SAMPLE = 1 << 12  # elements that quantiles are taken of (5 % is known to 0.4 %): sorting a whole latent would cost more than a step may


@dataclass(frozen=True, eq=False)
class Call:
    """What the numbers of a guided call are made of: sigma and `bad` [B], v, R v and factor [B, ...], w = cfg - 1 in force, and
    0-d tensors `moved` and `error` where they are known."""

    sigma: Tensor
    vector: Tensor
    rectified: Tensor
    factor: Tensor
    bad: Tensor
    weight: float | Tensor = 1.0
    moved: Tensor | None = None
    error: Tensor | None = None

    @property
    def kind(self) -> tuple:
        """Calls of one kind are measured together."""
        return self.vector.shape, self.vector.dtype, self.vector.device, self.factor.shape

    @property
    def size(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.vector, self.rectified, self.factor))


def numbers(calls: list[Call]) -> Tensor:
    """The numbers of calls of one kind, [K, 11] on the device in the order of `NUMBERS`; norms without the weight."""
    wide = torch.float32 if calls[0].vector.dtype != torch.float64 else torch.float64

    def flat(name):
        parts = [getattr(call, name) for call in calls]
        return (torch.stack(parts) if len(parts) > 1 else parts[0][None]).flatten(1).to(wide)

    def rms(t: Tensor) -> Tensor:
        return torch.linalg.vector_norm(t, dim=1) / t.shape[1] ** 0.5

    factor = flat("factor")
    ranked = factor[:, :: -(-factor.shape[1] // SAMPLE)].sort(1).values
    low, high = (ranked[:, round(q * (ranked.shape[1] - 1))] for q in QUANTILES)
    columns = [
        flat("sigma").amax(1),
        rms(flat("vector")),
        rms(flat("rectified")),
        factor.mean(1),
        factor.amin(1),
        factor.amax(1),
        flat("bad").sum(1),
        low,
        high,
    ]
    missing = torch.full_like(low[0], math.nan)
    for name in ("moved", "error"):
        columns.append(torch.stack([missing if (t := getattr(call, name)) is None else t.to(wide) for call in calls]))
    return torch.stack(columns, 1)
