"""The two oracles of every family, feature and neighbour. Neither knows how REG computes.

- Transparency: at strength 1e-6 REG is invisible.
- The pair is the truth: R v is compared with central differences of the sampler's own [cond, uncond] calls.
"""

from dataclasses import dataclass

import torch

from . import reg, tiny
from .tiny_families import generator

INVISIBLE = 1e-6  # the strength
TRANSPARENT = 3e-6  # relative, float32
FORMS = ("row_sum", "scalar", "product")
STEP = 0.02  # of central differences, relative to the noise


def transparency(pack, sample, model, form="row_sum", engine="auto", **settings) -> float:
    """How far `sample(model)` moves when REG is in the model at strength 1e-6, relative."""
    return reg.relative(sample(reg.apply(pack, model, form, engine, strength=INVISIBLE, **settings)[0]), sample(model))


@dataclass(frozen=True)
class Guided:
    """Relative errors at one noise level, and REG's trace."""

    denoised: float  # of D_c
    guidance: float  # of R v, relative to v
    trace: object


def guided(pack, t, form="row_sum", engine="auto", model=None, at=1, steps=3, batch=2, calls=2, **where) -> Guided:
    """REG's D_c and R v in a real run, against the pair of the same run without REG. The worst of `calls` in a row.

    `where`: latent, positive, negative, noise_mask, cfg, make of reg.inside. Reverse mode's J^T is known by its products only:
    <J^T w, u> = <w, J u> for a random u. It holds for each row, but for the whole where rows are frames of one video.
    """
    model = t.patcher if model is None else model
    rectified, trace = reg.apply(pack, model, form, engine)
    where |= dict(at=at, steps=steps, batch=batch)
    plain, ours = Watched(model), Watched(rectified)
    seen = reg.inside(t, lambda *call: [ours.pair(*call) for _ in range(calls)], ours.model, **where)
    transposed = form != "scalar" and "reverse" in {row.engine for row in trace.last.active}  # it may have fallen back
    rows = _whole if tiny.RECIPES[t.name].frames else _rows
    truth = reg.inside(t, lambda *call: Truth(plain, form, transposed, rows, *call), plain.model, **where)
    errors = [(reg.relative(cond, truth.denoised), truth.error(cond - uncond)) for cond, uncond in seen]
    return Guided(max(e[0] for e in errors), max(e[1] for e in errors), trace)


class Watched:
    """A clone of `model` of which one sees the pair that every call hands to the pre-cfg functions."""

    def __init__(self, model):
        self.model, self.pairs = model.clone(), []
        options = self.model.model_options  # in front of others' functions, which change what they are given
        options["sampler_pre_cfg_function"] = [self.keep, *options.get("sampler_pre_cfg_function", [])]

    def keep(self, args):
        self.pairs.append([t.clone() for t in args["conds_out"]])
        return args["conds_out"]

    def pair(self, guider, x, sigma, options):
        """[D_c, D_u] of one call of the guider."""
        guider(x, sigma, model_options=options, seed=0)
        return self.pairs.pop()


class Truth:
    """D_c, v and what is known of R v, from nothing but the guider's own pairs."""

    def __init__(self, plain, form, transposed, rows, guider, x, sigma, options):
        self.denoised, reference = plain.pair(guider, x, sigma, options)
        self.v = v = self.denoised - reference
        self.z = torch.randn(x.shape, generator=generator("z")) if transposed else None
        direction = v * self.z if transposed else torch.ones_like(x) if form == "row_sum" else v
        scale = guider.inner_model.model_sampling.noise_scaling
        level, none, one = sigma.max(), torch.zeros(()), torch.ones(())
        h = STEP * scale(level, one, none) * x.numel() ** 0.5 / direction.norm()
        ahead, behind = (plain.pair(guider, x + sign * h * direction, sigma, options)[0] for sign in (1, -1))
        product = scale(level, none, one) * (ahead - behind) / (2 * h)  # J direction
        if transposed:
            self.expected = rows(product * (v if form == "product" else 1))
        elif form == "scalar":
            self.expected = v * (_rows(product * v) / _rows(v * v)).reshape(-1, *[1] * (x.ndim - 1))
        else:
            self.expected = product if form == "product" else product * v
        self.product, self.rows = form == "product", rows

    def error(self, rectified) -> float:
        """Of R v, relative to v."""
        if self.z is None:
            return float((rectified - self.expected).norm() / self.v.norm())
        found = self.rows(rectified * self.z * (self.v if self.product else 1))
        size = self.v.norm() * (self.z * (self.v if self.product else 1)).norm()
        return float((found - self.expected).norm() / size * (self.v.numel() / found.numel()) ** 0.5)


def _rows(x):
    return x.flatten(1).sum(1)


def _whole(x):
    return x.sum().reshape(1)
