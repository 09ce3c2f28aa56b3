"""Guidance for any sampler of (x, sigma) -> D: the five-line door to REG."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .calibration import Calibration, Measurement
from .guidance import Branches
from .jacobian import Denoiser
from .rectifier import Rectifier
from .rectify import Settings
from .sampling import sample_heun
from .space import VE, Space, as_batch
from .trace import Row, Trace


class Guided:
    """A guided denoiser: D_c + w R (D_c - D_ref).

    `cond`, `reference`: callables (x [B, ...], sigma [B]) -> D in x's shape. The reference is the unconditional
    model for classifier-free guidance, a worse model for autoguidance. `weight`: w = cfg - 1, a number or a function
    of sigma (a float) -> w; where it is 0 the reference is not evaluated. `settings`: see rectify.Settings.
    `observe`: called as observe(sigma_ve [B], v, R v) with every correction computed afresh.
    `trace.last` tells what happened; `reset()` starts a new run (state of one run must not leak into the next).
    """

    def __init__(self, cond: Denoiser, reference: Denoiser, weight=1.0, settings: Settings | None = None, space: Space = VE, observe=None):
        for name, value in (("cond", cond), ("reference", reference)):
            if not callable(value):
                raise ValueError(f"{name} must be a callable (x, sigma) -> denoised, got {value!r}")
        if not callable(weight) and not (isinstance(weight, (int, float)) and math.isfinite(weight)):
            raise ValueError(f"weight must be a finite number or a function of sigma, got {weight!r}")
        if not isinstance(settings, (Settings, type(None))) or not isinstance(space, Space):
            raise ValueError(f"want settings=reg_core.Settings(...) and space=reg_core.VE, VP or FLOW, got {settings!r} and {space!r}")
        self.branches = Branches(_checked("cond", cond), _checked("reference", reference))
        self.weight = weight
        self.settings = settings or Settings()
        self.space = space
        self.observe = observe
        self.trace = Trace()
        self.reset()

    def reset(self) -> None:
        """Forget corrections kept for reuse and open a new run in the trace."""
        self._rectifier = Rectifier(self.settings, self.space, observe=self.observe)
        self.trace.start(self._rectifier.run)

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma) -> Tensor:
        sigma = as_batch(sigma, x)
        varying = callable(self.weight) or self.settings.bounded
        level = float(sigma.max()) if varying else 0.0
        weight = self.weight(level) if callable(self.weight) else self.weight
        run = self._rectifier.run
        if weight == 0:
            run.add(Row(_sigma=sigma, cfg=1.0, note="weight 0: reference not evaluated"))
            return self.branches.cond(x, sigma)
        if not self.settings.enabled or not self.settings.covers(level):
            denoised, reference = self.branches.both(x, sigma)
            run.add(Row(_sigma=sigma, cfg=1 + float(weight), note="plain guidance"))
            return denoised + weight * (denoised - reference)
        return self._rectifier(self.branches, x, sigma, weight).guided(weight)


def calibrate(
    cond: Denoiser,
    reference: Denoiser,
    noises,
    sigmas: Tensor,
    weight=1.0,
    form: str = "scalar",
    engine: str = "auto",
    space: Space = VE,
    per_channel: bool = False,
    **about,
) -> Calibration:
    """The table of form `calibrated` for a pair of denoisers: one Heun run over `sigmas` from each of `noises`.

    `noises`: x [B, ...] at sigmas[0], a few batches. The runs follow the rectified guidance that they measure.
    `about`: further fields of Calibration (model, notes, ...).
    """
    measurement = Measurement(per_channel)
    for noise in noises:
        sample_heun(Guided(cond, reference, weight, Settings(form=form, engine=engine), space, measurement), noise, sigmas)
    return measurement.table(form, **about)


def _checked(name: str, denoiser: Denoiser) -> Denoiser:
    """The denoiser, refusing predictions that would broadcast silently."""

    def call(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoiser(x, sigma)
        if denoised.shape != x.shape:
            raise ValueError(f"{name} returned shape {tuple(denoised.shape)} for x of shape {tuple(x.shape)}")
        return denoised

    return call
