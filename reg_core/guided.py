"""Guidance for any sampler of (x, sigma) -> D: the five-line door to REG."""

import math
from copy import copy

import torch
from torch import Tensor

from .branches import Branches
from .calibration import Calibration, Measurement
from .checks import number, shortened
from .jacobian import Denoiser
from .point import Point
from .rectifier import Rectifier
from .sampling import sample_heun
from .settings import Settings
from .space import VE, Space
from .trace import Trace


class Guidance:
    """What the doors for libraries share: a Rectifier for each run, plain guidance where REG does not act.

    `trace.last` tells what happened. A run ends when noise goes up by more than a step, or with `reset()`.
    `dtype`: what the network computes in; None: x's, or that of an autocast around the call. Finite
    differences of a network in half precision are longer. Raises ValueError for what are no settings, no
    space and no floating dtype.
    """

    def __init__(self, settings: Settings | None = None, space: Space = VE, observe=None, dtype=None):
        if not isinstance(settings, (Settings, type(None))) or not isinstance(space, Space):
            given = f"{shortened(settings)} and {shortened(space)}"
            raise ValueError(f"want Settings and a Space (VE, VP or FLOW), got {given}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be a floating dtype of torch, got {shortened(dtype)}")
        self.dtype = dtype
        self.settings = settings or Settings()
        self.space = space
        self.observe = observe
        self.trace = Trace()
        self.reset()

    def reset(self) -> None:
        """Begin a new run: nothing of the last one is reused."""
        self._rectifier = Rectifier(self.settings, observe=self.observe)
        self._first = self._latest = math.inf  # sigma of the run's first and latest call
        self._higher = math.inf  # sigma of the step before the latest
        self.trace.start(self._rectifier.run)

    def guide(self, branches: Branches, point: Point, weight: float) -> Tensor:
        """D_c + w R (D_c - D_ref) at `point`. Where w is 0 the reference is not evaluated."""
        self._follow(float(point.sigma.max()))
        why = self.settings.why_plain(weight, point.sigma)
        if not why:
            return self._rectifier(branches, point, weight).guided(weight)
        self._rectifier.run.plain(point.sigma, 1 + weight, why)
        if weight == 0:
            return branches.only(point)
        denoised, reference = branches.both(point)
        return denoised + weight * (denoised - reference)

    def _follow(self, sigma: float) -> None:
        back_to_the_start = self._latest < self._first / 1.0001 <= sigma
        if back_to_the_start or sigma > self._higher * 1.0001:
            self.reset()
        if self._first == math.inf:
            self._first = self._higher = sigma
        elif sigma < self._latest:
            self._higher = self._latest
        self._latest = sigma


class Guided(Guidance):
    """A guided denoiser (x [B, ...], sigma) -> D_c + w R (D_c - D_ref).

    `cond`, `reference`: callables (x [B, ...], sigma [B]) -> D in x's shape; see Branches. `weight`: w = cfg
    - 1, a number or a function of sigma. `observe`: see Rectifier. `dtype`: see Guidance. Raises ValueError
    for anything else.
    """

    def __init__(
        self, cond, reference, weight=1.0, settings=None, space: Space = VE, observe=None, dtype=None
    ):
        for name, value in (("cond", cond), ("reference", reference)):
            if not callable(value):
                raise ValueError(f"{name} must be a callable (x, sigma) -> denoised, got {shortened(value)}")
        self.weight = weight if callable(weight) else one_weight(weight)
        super().__init__(settings, space, observe, dtype)
        self.branches = Branches(_checked("cond", cond), _checked("reference", reference), dtype)

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma) -> Tensor:
        point = Point.of(x, sigma, self.space)
        weight = one_weight(self.weight(float(point.sigma.max()))) if callable(self.weight) else self.weight
        return self.guide(self.branches, point, weight)


def calibrate(guided: Guided, noises, sigmas: Tensor, **about) -> Calibration:
    """The table of form `calibrated` for a guided denoiser: one Heun run over `sigmas` from each of `noises`.

    `noises`: x [B, ...] at sigmas[0], a few batches. `about`: its further fields, such as `model`. Raises
    ValueError before the first run for what would be refused after the last.
    """
    one = torch.ones(1)
    Calibration(one, one, one, guided.settings.form, **about)
    measurement, measured = Measurement(), copy(guided)
    measured.observe, measured.trace = measurement, Trace()
    for noise in noises:
        measured.reset()
        sample_heun(measured, noise, sigmas)
    return measurement.table(guided.settings.form, **about)


def one_weight(weight) -> float:
    """`weight` as a float. Raises ValueError unless it is one number for the whole batch."""
    value = weight.item() if isinstance(weight, Tensor) and weight.numel() == 1 else weight
    return number("weight (one for the whole batch)", value)


def _checked(name: str, denoiser: Denoiser) -> Denoiser:
    """The denoiser, refusing predictions that would broadcast silently."""

    def call(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoiser(x, sigma)
        if denoised.shape != x.shape:
            raise ValueError(f"{name} returned shape {tuple(denoised.shape)} for x of shape {tuple(x.shape)}")
        return denoised

    return call
