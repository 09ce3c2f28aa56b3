"""Named cond/uncond pairs of Gaussian mixtures, small enough to know everything about them.

`pair(name)` makes one; `ZOO` lists them. The docstring of each says what it is good for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import one_of
from .mixture import Mixture

CLASS_SHARE = 0.5  # of the class in the unconditional model of the 2-D sets


@dataclass(frozen=True)
class Pair:
    """`cond` p(x0 | y) and `uncond` p(x0), in the same dimension."""

    name: str
    cond: Mixture
    uncond: Mixture

    def __post_init__(self):
        if self.cond.dim != self.uncond.dim:
            raise ValueError(f"{self.name}: cond has dimension {self.cond.dim}, uncond {self.uncond.dim}")

    @property
    def dim(self) -> int:
        return self.cond.dim

    def mirrored(self, axis: int = 0) -> Pair:
        """Both mixtures with coordinate `axis` negated."""
        return Pair(f"{self.name}_mirror", self.cond.mirrored(axis), self.uncond.mirrored(axis))


def union(share: float, first: Mixture, second: Mixture) -> Mixture:
    """`share` of `first` and 1 - share of `second` in one mixture."""
    weights = torch.cat([share * first.weights, (1 - share) * second.weights])
    return Mixture.of(weights, torch.cat([first.means, second.means]), torch.cat([first.covs, second.covs]))


def toy(uncond_means=(-2.0, 0.0)) -> Pair:
    """The 1-D toy of the REG paper (Figures 1 and 5), with the uncond means of its released checkpoint.

    Its training script has -1 and 1."""
    cond = Mixture.of([0.5, 0.5], [[0.5], [1.5]], 0.25**2)
    return Pair("toy", cond, Mixture.of([0.5, 0.5], [[m] for m in uncond_means], 0.5**2))


def toy_script() -> Pair:
    """The 1-D toy with the means of the training script."""
    made = toy((-1.0, 1.0))
    return Pair("toy_script", made.cond, made.uncond)


def nested() -> Pair:
    """1-D, uncond = half cond, half another class: what classes are to a data set. R_0 stays below 2^w."""
    cond, other = Mixture.of([1.0], [[0.7]], 0.25), Mixture.of([1.0], [[-0.7]], 0.25)
    return Pair("nested", cond, union(0.5, cond, other))


def multimodal() -> Pair:
    """1-D, a class of three unequal modes of unequal width inside a wider population of two more."""
    cond = Mixture.of([0.5, 0.3, 0.2], [[-1.2], [0.3], [1.4]], [0.04, 0.09, 0.02])
    return Pair("multimodal", cond, union(0.4, cond, Mixture.of([0.5, 0.5], [[-0.4], [2.2]], [0.16, 0.25])))


def isotropic() -> Pair:
    """2-D isotropic Gaussians: all forms of REG coincide, and the optimum is in closed form."""
    return Pair("isotropic", Mixture.of([1.0], [[0.6, 0.3]], 0.25), Mixture.of([1.0], [[0.0, 0.0]], 1.0))


def correlated() -> Pair:
    """2-D Gaussians with correlation 0.95: `row_sum` depends on the basis. The mirror image has -0.95."""
    shape = torch.tensor([[[1.0, 0.95], [0.95, 1.0]]], dtype=torch.float64)
    cond, uncond = Mixture.of([1.0], [[0.5, 0.2]], 0.25 * shape), Mixture.of([1.0], [[0.0, 0.0]], shape)
    return Pair("correlated", cond, uncond)


def correlated_mirror() -> Pair:
    """`correlated` with its first coordinate negated."""
    return correlated().mirrored()


def overlapping() -> Pair:
    """2-D, classes on top of each other: REG is worse than plain guidance at high noise."""
    shape = 0.25 * torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64).expand(2, 2, 2)
    cond = Mixture.of([0.5, 0.5], [[-0.5, -0.5], [0.6, 0.4]], shape)
    other = Mixture.of([0.5, 0.5], [[0.0, 0.1], [-1.1, -1.2]], shape)
    return Pair("overlapping", cond, union(0.4, cond, other))


def moons(components: int = 10) -> Pair:
    """One of scikit-learn's two moons against both."""
    from sklearn.datasets import make_moons

    return _two_curves("moons", make_moons(n_samples=800, shuffle=False), components)


def circles(components: int = 12) -> Pair:
    """The inner of scikit-learn's two circles against both."""
    from sklearn.datasets import make_circles

    points, labels = make_circles(n_samples=800, shuffle=False, factor=0.5)
    return _two_curves("circles", (points, 1 - labels), components)


def swiss_roll(components: int = 16) -> Pair:
    """The outer half of scikit-learn's swiss roll against the whole, along its axis and shrunk tenfold."""
    from sklearn.datasets import make_swiss_roll

    points, angle = make_swiss_roll(n_samples=4000, random_state=0)
    roll = torch.from_numpy(points[angle.argsort()][:, [0, 2]] / 10)
    return _two_curves("swiss_roll", (roll.numpy(), (torch.arange(4000) < 2000).long().numpy()), components)


def digits(digit: int = 3) -> Pair:
    """64-d Gaussians with the moments of the 8x8 digits, pixels x/8 - 1.

    cond has the mean of one class and the pooled covariance within classes, uncond the mean and covariance of
    all images. 0.01 I is added, since some pixels never change."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x, y = torch.from_numpy(raw.data / 8 - 1).to(torch.float64), torch.from_numpy(raw.target)
    means = torch.stack([x[y == k].mean(0) for k in range(10)])
    ridge = 0.01 * torch.eye(64, dtype=torch.float64)
    within, total = (_moments(v)[1] + ridge for v in (x - means[y], x))
    cond = Mixture.of([1.0], means[None, digit], within[None])
    return Pair("digits", cond, Mixture.of([1.0], x.mean(0)[None], total[None]))


def _two_curves(name: str, data, components: int) -> Pair:
    """Points along curves, in order, with labels 0 (the class) and 1, as mixtures of chunks."""
    points, labels = (torch.from_numpy(v) for v in data)
    first, second = (_chunks(points[labels == k].to(torch.float64), components) for k in (0, 1))
    return Pair(name, first, union(CLASS_SHARE, first, second))


def _chunks(points: Tensor, components: int) -> Mixture:
    """A Gaussian for each of `components` pieces of a curve, its covariance widened by 0.08^2 I."""
    moments = [_moments(chunk) for chunk in points.tensor_split(components)]
    width = 0.08**2 * torch.eye(points.shape[1], dtype=torch.float64)
    covs = torch.stack([cov for _, cov in moments]) + width
    return Mixture.of(torch.ones(components), torch.stack([mean for mean, _ in moments]), covs)


def _moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [n] and covariance [n, n] of points [N, n], divided by N."""
    mean = points.mean(0)
    return mean, (points - mean).T @ (points - mean) / len(points)


MAKERS = (toy, toy_script, nested, multimodal, isotropic, correlated, correlated_mirror)
MAKERS += (overlapping, moons, circles, swiss_roll, digits)
ZOO: dict[str, Callable[[], Pair]] = {maker.__name__: maker for maker in MAKERS}


def pair(name: str) -> Pair:
    """A pair of the zoo by name. Raises ValueError for another name."""
    one_of("pair", name, ZOO)
    return ZOO[name]()
