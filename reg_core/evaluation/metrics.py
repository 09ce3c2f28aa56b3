"""Frechet distance and inception score of features and class logits, whatever network they come from.

Both depend on the number of images: compare rows of one number only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checks import cut
from ..files import FileError, reading


@dataclass(frozen=True, eq=False)
class Statistics:
    """The Gaussian fitted to features: mean [F] and covariance [F, F] in float64, from `count` images."""

    mean: Tensor
    cov: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Of features [N, F]. Raises ValueError for fewer than two."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"want features [N, F] of two images or more, got {list(features.shape)}")
        wide = features.double()
        return cls(wide.mean(0), torch.cov(wide.T).reshape(wide.shape[1], -1), len(wide))

    @classmethod
    def real(cls, judge) -> Statistics:
        """Of the real pictures, as a judge of `reg_core.demo_models` carries them in its weights."""
        mean, cov = judge.real_mean.double().cpu(), judge.real_cov.double().cpu()
        return cls(mean, cov, int(judge.real_count))

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """An .npz with mu and sigma, as the code of FID's and EDM's authors writes it. Raises FileError."""
        want = "an .npz with mu [F] and sigma [F, F]"
        # numpy advises what would run code from the file
        with reading(path, want, repeat=False), np.load(path, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file.files):
                raise FileError(f"{path}: want {want}, got {cut(', '.join(file.files))}")
            mean, cov = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
            count = int(file["count"]) if "count" in file.files else 0
        if mean.ndim != 1 or cov.shape != mean.shape * 2 or not np.isfinite(mean.sum() + cov.sum()):
            found = f"{list(mean.shape)} and {list(cov.shape)}, or numbers that are not finite"
            raise FileError(f"{path}: want {want}, got {found}")
        return cls(torch.from_numpy(mean), torch.from_numpy(cov), count)

    def save(self, path: Path) -> None:
        np.savez(path, mu=self.mean.numpy(), sigma=self.cov.numpy(), count=self.count)


def frechet(a: Statistics, b: Statistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), FID for Inception's features (Heusel et al. 2017).

    Raises ValueError for different numbers of features."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"want as many features on both sides, got {len(a.mean)} and {len(b.mean)}")
    # With S = C_b^(1/2) the trace is that of (S C_a S)^(1/2), whose matrix is symmetric.
    variances, axes = torch.linalg.eigh(b.cov)
    root = (axes * variances.clamp_min(0).sqrt()) @ axes.T
    shared = torch.linalg.eigvalsh(root @ a.cov @ root).clamp_min(0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * shared)


def inception_score(logits: Tensor) -> float:
    """exp of the mean KL divergence of p(y | x) from p(y), over all of logits [N, K]: between 1 and K."""
    if logits.ndim != 2 or len(logits) < 1:
        raise ValueError(f"want logits [N, K], got {list(logits.shape)}")
    log_p = logits.double().log_softmax(1)
    log_mean = log_p.logsumexp(0) - torch.tensor(len(logits), dtype=torch.float64).log()
    return float((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())
