"""REG for samplers in k-diffusion's manner: `sample_x(model, x, sigmas, extra_args=...)`.

They call model(x, sigma, **extra_args).

    model = CFGDenoiser(wrapped_network, Settings(form="row_sum"))
    extra_args = {"cond": c, "uncond": u, "cond_scale": 8.0}
    x = k_diffusion.sampling.sample_dpmpp_2m(model, noise * sigmas[0], sigmas, extra_args=extra_args)
    print(model.trace)

k-diffusion itself is never imported here. `reg_core.Guided` is such a model already, with conditions closed
over."""

from __future__ import annotations

import torch
from torch import Tensor

from ..branches import Branches
from ..checks import shortened
from ..guided import Guidance, one_weight
from ..point import Point
from ..settings import Settings
from ..space import VE, Space


class CFGDenoiser(Guidance):
    """model(x [B, ...], sigma [B], cond=, uncond=, cond_scale=, ...) -> D_c + (cond_scale - 1) R (D_c - D_u).

    `inner_model`: called as inner_model(x, sigma, cond=..., **others) -> D in x's shape, as k-diffusion's
    wrappers of eps and v networks are. cond_scale 1 does not evaluate the unconditional prediction. See
    Guidance for runs, trace and `dtype`."""

    def __init__(self, inner_model, settings: Settings | None = None, space: Space = VE, dtype=None):
        if not callable(inner_model):
            raise ValueError(f"inner_model must be callable, got {shortened(inner_model)}")
        self.inner_model = inner_model
        super().__init__(settings, space, dtype=dtype)

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma, cond=None, uncond=None, cond_scale=1.0, **others) -> Tensor:
        def denoiser(condition):
            return lambda z, level: self.inner_model(z, level, cond=condition, **others)

        branches = Branches(denoiser(cond), denoiser(uncond), self.dtype)
        point = Point.of(x, sigma, self.space)
        return self.guide(branches, point, one_weight(cond_scale) - 1)
