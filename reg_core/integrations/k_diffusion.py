"""REG for samplers in k-diffusion's manner: `sample_x(model, x, sigmas, extra_args=...)` calling model(x, sigma, **extra_args).

    model = CFGDenoiser(wrapped_network, Settings(form="row_sum"))
    x = k_diffusion.sampling.sample_dpmpp_2m(model, noise * sigmas[0], sigmas, extra_args={"cond": c, "uncond": u, "cond_scale": 8.0})
    print(model.trace)

k-diffusion itself is never imported here. Where conditions are closed over, `reg_core.Guided` is such a model already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..guidance import Branches
from ..rectifier import Rectifier
from ..rectify import Settings
from ..space import VE, Space, as_batch
from ..trace import Row, Trace


class CFGDenoiser:
    """model(x [B, ...], sigma [B], cond=, uncond=, cond_scale=, ...) -> D_u + cond_scale (D_c - D_u), rectified.

    `inner_model`: called as inner_model(x, sigma, cond=..., **others) -> D in x's shape, which is what k-diffusion's wrappers
    of eps and v networks do. cond_scale 1 does not evaluate the unconditional prediction. `reset()` starts a new run.
    """

    def __init__(self, inner_model, settings: Settings | None = None, space: Space = VE):
        if not callable(inner_model):
            raise ValueError(f"inner_model must be callable, got {inner_model!r}")
        self.inner_model, self.settings, self.space = inner_model, settings or Settings(), space
        self.trace = Trace()
        self.reset()

    def reset(self) -> None:
        self._rectifier = Rectifier(self.settings, self.space)
        self.trace.start(self._rectifier.run)

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor, cond=None, uncond=None, cond_scale: float = 1.0, **others) -> Tensor:
        sigma = as_batch(sigma, x)

        def denoiser(condition):
            return lambda z, level: self.inner_model(z, level, cond=condition, **others)

        branches, run = Branches(denoiser(cond), denoiser(uncond)), self._rectifier.run
        if cond_scale == 1:
            run.add(Row(_sigma=sigma, cfg=1.0, note="cond_scale 1: unconditional prediction not evaluated"))
            return branches.only(x, sigma)
        if not self.settings.enabled or (self.settings.bounded and not self.settings.covers(float(sigma.max()))):
            denoised, reference = branches.both(x, sigma)
            run.add(Row(_sigma=sigma, cfg=float(cond_scale), note="plain guidance"))
            return reference + cond_scale * (denoised - reference)
        return self._rectifier(branches, x, sigma, cond_scale - 1).guided(cond_scale - 1)
