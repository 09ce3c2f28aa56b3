"""Gaussian mixtures seen through noise, in closed form: x = alpha x0 + s noise, x0 ~ sum_k pi_k N(m_k, C_k).

Float64 throughout. `x` is [B, ...] with n elements a row, `sigma` a number or [B] (rows may differ), `space`
a reg_core.Space. Component covariances are kept as eigenvectors and eigenvalues, C_k = A_k diag(l_k) A_k^T.
So every noise level costs one rotation and no factorisation. No formula divides by s or alpha: sigma = 0
(pure data) and flow's sigma = 1 (pure noise, alpha = 0) need no special case."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...space import VE, Space, as_batch


@dataclass(frozen=True)
class Mixture:
    """A mixture, or with leading dimensions a batch of them, as `posterior` returns.

    - `log_weights` [..., K]: their exponentials sum to 1.
    - `means` [..., K, n], `variances` l [..., K, n].
    - `axes` A [..., K, n, n]: eigenvectors in columns.

    The methods that take points want a single mixture."""

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor

    @classmethod
    def of(cls, weights, means, covs) -> Mixture:
        """From weights [K], means [K, n] and covariances [K, n, n], or isotropic variances [K] or a number.

        Weights are normalised. Raises ValueError for shapes that do not fit and for a covariance that is not
        positive definite."""
        weights, means, covs = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covs))
        fits = weights.ndim == 1 and means.ndim == 2 and len(means) == len(weights)
        if not fits or not bool((weights > 0).all()):
            shapes = f"weights {tuple(weights.shape)} and means {tuple(means.shape)}"
            raise ValueError(f"want K weights > 0 and means [K, n], got {shapes}")
        k, n = means.shape
        if covs.ndim < 2:
            covs = covs.expand(k)[:, None, None] * torch.eye(n, dtype=torch.float64)
        if covs.shape != (k, n, n):
            raise ValueError(f"want covariances {(k, n, n)}, got {tuple(covs.shape)}")
        variances, axes = torch.linalg.eigh((covs + covs.mT) / 2)
        if not bool((variances > 0).all()):
            least = f"the eigenvalue {float(variances.min()):.3g}"
            raise ValueError(f"covariances must be positive definite, got {least}")
        return cls((weights / weights.sum()).log(), means, variances, axes)

    @property
    def dim(self) -> int:
        """n, the dimension of x0."""
        return self.means.shape[-1]

    @property
    def weights(self) -> Tensor:
        """[..., K]."""
        return self.log_weights.exp()

    @property
    def covs(self) -> Tensor:
        """C_k [..., K, n, n]."""
        return (self.axes * self.variances[..., None, :]) @ self.axes.mT

    @property
    def mean(self) -> Tensor:
        """E[x0], [..., n]."""
        return (self.weights[..., None] * self.means).sum(-2)

    @property
    def cov(self) -> Tensor:
        """Cov(x0) of the whole mixture: mean of the covariances plus covariance of the means, [..., n, n]."""
        offset = self.means - self.mean[..., None, :]
        between = (self.weights[..., None] * offset).mT @ offset
        return (self.weights[..., None, None] * self.covs).sum(-3) + between

    @property
    def data_std(self) -> float:
        """sqrt(tr Cov(x0) / n): the one number that the `schedule` form of REG needs."""
        return math.sqrt(float(self.cov.diagonal(dim1=-2, dim2=-1).mean()))

    def mirrored(self, axis: int = 0) -> Mixture:
        """The mirror image with coordinate `axis` negated."""
        sign = torch.ones(self.dim, dtype=torch.float64)
        sign[axis] = -1
        return Mixture(self.log_weights, self.means * sign, self.variances, self.axes * sign[:, None])

    def log_prob(self, x0: Tensor) -> Tensor:
        """log p(x0) of clean points [..., n] under a single mixture -> [...]."""
        whiten = self.axes / self.variances.sqrt()[:, None, :]  # [K, n, n]
        # One large product for all components.
        z = (x0.reshape(-1, self.dim) @ whiten.permute(1, 0, 2).flatten(1)).unflatten(1, self.means.shape)
        z = z - (self.means[:, None] @ whiten)[:, 0]
        constant = self.log_weights - 0.5 * (self.variances.log() + math.log(2 * math.pi)).sum(-1)
        return torch.logsumexp(constant - 0.5 * z.square().sum(-1), -1).reshape(x0.shape[:-1])

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`count` clean points [count, n]."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.dim, generator=generator, dtype=torch.float64)
        return self.means[k] + (self.axes[k] @ (self.variances[k].sqrt() * noise)[..., None])[..., 0]

    def noisy(self, count: int, sigma, space: Space = VE, generator: torch.Generator | None = None) -> Tensor:
        """`count` draws of x = alpha x0 + s noise [count, n]: where a sampler is at noise level `sigma`."""
        x0 = self.sample(count, generator)
        sigma = levels(sigma, x0)
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        return space.alpha(sigma)[:, None] * x0 + space.s(sigma)[:, None] * noise

    # Through noise: see Seen

    def log_prob_at(self, x: Tensor, sigma, space: Space = VE) -> Tensor:
        """log p_sigma(x) [B], the marginal density of the noisy x."""
        return torch.logsumexp(Seen(self, x, sigma, space).log_joint, -1)

    def score(self, x: Tensor, sigma, space: Space = VE) -> Tensor:
        """grad_x log p_sigma(x), in x's shape."""
        seen = Seen(self, x, sigma, space)
        return (seen.responsibility[..., None] * seen.scores).sum(1).reshape(x.shape)

    def posterior(self, x: Tensor, sigma, space: Space = VE) -> Mixture:
        """p(x0 | x): a batch [B] of mixtures, the components reweighted, moved and narrowed. sigma > 0."""
        seen = Seen(self, x, sigma, space)
        log_weights = torch.log_softmax(seen.log_joint, -1)
        axes = self.axes.expand(len(seen.x), *self.axes.shape)
        return Mixture(log_weights, seen.means, seen.variances, axes)

    def denoise(self, x: Tensor, sigma, space: Space = VE) -> Tensor:
        """D = E[x0 | x] in x's shape and dtype; differentiable."""
        seen = Seen(self, x, sigma, space)
        return (seen.responsibility[..., None] * seen.means).sum(1).reshape(x.shape).to(x.dtype)

    def jacobian(self, x: Tensor, sigma, space: Space = VE) -> Tensor:
        """J = alpha dD/dx = alpha^2 / s^2 Cov(x0 | x), [B, n, n].

        Within a component alpha^2 / s^2 Cov = A diag(alpha^2 l / (alpha^2 l + s^2)) A^T. Between components
        the means differ by s^2 / alpha times the difference of the scores: their part is s^2 Cov(scores)."""
        seen = Seen(self, x, sigma, space)
        r = seen.responsibility
        gain = r[..., None] * seen.alpha**2 * self.variances / seen.noisy_variances  # [B, K, n]
        within = torch.einsum("bkm,kim,kjm->bij", gain, self.axes, self.axes)
        offset = seen.scores - (r[..., None] * seen.scores).sum(1, keepdim=True)
        return within + seen.s**2 * torch.einsum("bk,bki,bkj->bij", r, offset, offset)

    def denoiser(self, space: Space = VE) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, sigma) -> D, for everything in reg_core that takes a denoiser."""
        return lambda x, sigma: self.denoise(x, sigma, space)


class Seen:
    """A mixture at noisy points x [B, n]: log_joint [B, K] = log pi_k N(x; alpha m_k, alpha^2 C_k + s^2)."""

    def __init__(self, mixture: Mixture, x: Tensor, sigma, space: Space):
        if mixture.means.ndim != 2 or x[0].numel() != mixture.dim:
            shapes = f"x {tuple(x.shape)} and means {tuple(mixture.means.shape)}"
            raise ValueError(f"want one mixture and rows of {mixture.dim} elements, got {shapes}")
        self.mixture = mixture
        self.x = x.flatten(1).to(torch.float64)
        sigma = levels(sigma, self.x)
        self.alpha, self.s = (v[:, None, None] for v in (space.alpha(sigma), space.s(sigma)))
        self.noisy_variances = self.alpha**2 * mixture.variances + self.s**2  # [B, K, n]
        offset = self.x[:, None, :] - self.alpha * mixture.means
        self.z = torch.einsum("bkn,knm->bkm", offset, mixture.axes)
        self.log_joint = mixture.log_weights + _log_normal(self.z, self.noisy_variances)

    @property
    def responsibility(self) -> Tensor:
        """p(k | x) [B, K]."""
        return torch.softmax(self.log_joint, -1)

    @property
    def means(self) -> Tensor:
        """E[x0 | x, k]."""
        gain = self.alpha * self.mixture.variances / self.noisy_variances
        return self.mixture.means + torch.einsum("bkm,knm->bkn", gain * self.z, self.mixture.axes)

    @property
    def variances(self) -> Tensor:
        """Eigenvalues of Cov(x0 | x, k) along the component's axes [B, K, n]."""
        return self.mixture.variances * self.s**2 / self.noisy_variances

    @property
    def scores(self) -> Tensor:
        """grad_x log N(x; alpha m_k, alpha^2 C_k + s^2)."""
        return -torch.einsum("bkm,knm->bkn", self.z / self.noisy_variances, self.mixture.axes)


def levels(sigma, x: Tensor) -> Tensor:
    """`sigma` as [B] float64; a Python number takes no detour over float32, as in as_batch."""
    return as_batch(torch.as_tensor(sigma, dtype=torch.float64), x.to(torch.float64))


def _log_normal(z: Tensor, variances: Tensor) -> Tensor:
    """log density of independent N(0, variances) at z, summed over the last axis."""
    return -0.5 * (z**2 / variances + variances.log() + math.log(2 * math.pi)).sum(-1)
