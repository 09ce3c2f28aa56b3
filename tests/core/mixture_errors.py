"""Errors of guidance to the optimum of a pair, a point at a time, for the tests of the lab's mixtures and toys."""

from dataclasses import dataclass

import torch

from reg_core import VE
from reg_core.lab.mixtures.exact import MIXTURE_FORMS, difference
from reg_core.lab.mixtures.mixture import levels
from reg_core.lab.mixtures.optimum import Optimum


def rms(values):
    return float(values.square().mean().sqrt())


@dataclass
class Compared:
    """Errors [B] of a form and of CFG."""

    ours: torch.Tensor
    plain: torch.Tensor

    @property
    def win(self):
        return float((self.ours < self.plain).double().mean())

    @property
    def rms(self):
        return rms(self.ours)

    @property
    def relative_rms(self):
        return rms(self.ours) / rms(self.plain)

    @property
    def mean_ratio(self):
        return float(self.ours.mean() / self.plain.mean())


def compare(pair, weight, x, sigma, space=VE, forms=MIXTURE_FORMS, units="x0"):
    """{form: Compared} at x [B, ...] and sigma, in units of x0, or of eps: alpha / s times as large."""
    sigma = levels(sigma, x)
    want = Optimum(pair, weight).evaluate(x, sigma, space).shift
    scale = space.alpha(sigma) / space.s(sigma) if units == "eps" else torch.ones_like(sigma)
    errors = {form: (weight * difference(pair, x, sigma, form, space)[1] - want).flatten(1).norm(dim=1) * scale for form in {"off", *forms}}
    return {form: Compared(errors[form], errors["off"]) for form in forms}
