"""REG in diffusers pipelines, by a forward hook on the pipeline's denoising network.

    with rectified(pipe, Settings(form="row_sum")) as trace:
        image = pipe("a photo of a fox", guidance_scale=12.0).images[0]
    print(trace)

Whatever a pipeline or a guider does with its two predictions, it begins with c and u in the network's own
coordinates (noise, velocity, clean sample). These are affine in the denoised prediction with the same x. So
the hook can give u' = c - R (c - u) for u, and `u' + cfg (c - u')` is c + (cfg - 1) R (c - u). Nothing of the
pipeline is replaced. Its callbacks, offloading and guiders stay as they are, and leaving the `with` removes
the hook. diffusers itself is never imported here."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..branches import Branches
from ..checks import one_of
from ..point import Point
from ..presets import Levels
from ..rectifier import Rectifier
from ..settings import Settings
from ..space import FLOW, VP, Space, from_denoised, to_denoised
from ..trace import Trace
from .network_call import NetworkCall, sample_of, with_sample

log = logging.getLogger(__name__)

BATCHED, SWAPPED, SEPARATE = "uncond, cond", "cond, uncond", "separate"
# In which order a pipeline asks for its two predictions. Only pipelines are listed whose network predicts
# what its scheduler says. (Some transformers predict the negative velocity, and the pipeline turns it round.)
LAYOUTS = {
    "StableDiffusionPipeline": BATCHED,
    "StableDiffusionImg2ImgPipeline": BATCHED,
    "StableDiffusionInpaintPipeline": BATCHED,
    "StableDiffusionXLPipeline": BATCHED,
    "StableDiffusionXLImg2ImgPipeline": BATCHED,
    "StableDiffusionXLInpaintPipeline": BATCHED,
    "StableDiffusion3Pipeline": BATCHED,
    "StableDiffusion3Img2ImgPipeline": BATCHED,
    "PixArtAlphaPipeline": BATCHED,
    "PixArtSigmaPipeline": BATCHED,
    "DiTPipeline": SWAPPED,
    "FluxPipeline": SEPARATE,
    "QwenImagePipeline": SEPARATE,
    "WanPipeline": SEPARATE,
    "StableDiffusionXLModularPipeline": SEPARATE,
    "WanModularPipeline": SEPARATE,
}
NETWORKS = ("unet", "transformer", "transformer_2")
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@contextmanager
def rectified(
    pipe, settings: Settings | None = None, *, layout: str = "auto", cfg: float | None = None
) -> Iterator[Trace]:
    """Rectifies the guidance of every sampling run of `pipe` inside this context; yields their trace.

    - `layout`: how the pipeline asks for its predictions: one batch "uncond, cond" or "cond, uncond", or
      "separate" calls, cond first, as pipelines with `true_cfg_scale` and modular ones do. "auto" knows the
      pipelines in `LAYOUTS`.
    - `cfg`: for the trace only, where the pipeline does not say.
    - `settings.sigma_start`, `sigma_end`: s/alpha for noise, v and clean-sample prediction, and sigma in
      [0, 1] for flow.

    Raises ValueError for an unknown pipeline, layout or scheduler. Warns at the end when nothing was
    rectified."""
    settings = settings or Settings()
    if layout == "auto":
        names = [c.__name__ for c in type(pipe).__mro__]
        layout = next((LAYOUTS[name] for name in names if name in LAYOUTS), "")
        if not layout:
            way_out = f"say layout='{BATCHED}', '{SWAPPED}' or '{SEPARATE}'"
            raise ValueError(f"{names[0]} is not one of {', '.join(LAYOUTS)}: {way_out}")
    one_of("layout", layout, ("auto", BATCHED, SWAPPED, SEPARATE))
    networks = [network for name in NETWORKS if (network := getattr(pipe, name, None)) is not None]
    if not networks:
        raise ValueError(f"{type(pipe).__name__} has none of {', '.join(NETWORKS)}")
    hook, handles = _Hook(pipe, settings, layout, cfg), []
    if settings.enabled:
        handles = [network.register_forward_hook(hook, with_kwargs=True) for network in networks]
    try:
        yield hook.trace
    finally:
        for handle in handles:
            handle.remove()
        hook.forget()
    if handles and not any(run.active for run in hook.trace.runs):
        why = "no call asked for a conditional and an unconditional prediction (cfg 1?)"
        log.warning("REG: nothing was rectified: %s, layout '%s'", why, layout)


def noise_level(scheduler, timestep: Tensor, rows: int) -> tuple[str, Space, Tensor]:
    """(prediction, space, sigma [rows]) of a network call, from the scheduler and the timestep in the call.

    The network of a variance preserving scheduler sees alpha x0 + s noise of its training timestep, whatever
    the scheduler scales by itself. There sigma = s/alpha is read from alphas_cumprod, log-linear between
    timesteps. Flow networks take their time in differing units, so sigma is the scheduler's own. Raises
    ValueError for other schedulers."""
    config = scheduler.config
    name = type(scheduler).__name__
    predicts = config.get("prediction_type", "flow_prediction" if name.startswith("FlowMatch") else "")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas") or predicts == "flow_prediction":
        index = next((i for i in (scheduler.step_index, scheduler.begin_index) if i is not None), 0)
        sigma = scheduler.sigmas[index].to(device=timestep.device, dtype=torch.float32)
        return "flow", FLOW, sigma.expand(rows)
    known = hasattr(scheduler, "alphas_cumprod") and predicts in PREDICTIONS
    if not known or config.get("timestep_type") == "continuous":
        raise ValueError(f"REG does not know the noise levels of {name} with prediction_type {predicts!r}")
    # The last abar may be 0 (zero terminal SNR): a very large sigma instead of an infinite one.
    abar = scheduler.alphas_cumprod.to(device=timestep.device, dtype=torch.float64).clamp_min(2.0**-24)
    log_sigma = ((1 - abar) / abar).log() / 2
    t = timestep.to(torch.float64).reshape(-1).clamp(0, len(abar) - 1)
    low = t.floor().long()
    high = (low + 1).clamp_max(len(abar) - 1)
    sigma = torch.lerp(log_sigma[low], log_sigma[high], t - low).exp().float()
    return PREDICTIONS[predicts], VP, sigma.expand(rows) if len(sigma) == 1 else sigma


def run_levels(scheduler) -> Levels:
    """The noise levels of the run that the scheduler has planned, in the sampler's sigma."""
    timesteps = scheduler.timesteps
    prediction, _, first = noise_level(scheduler, timesteps, len(timesteps))
    sigmas = scheduler.sigmas[: len(timesteps)] if prediction == "flow" else first
    sigmas, times = (np.array(values.tolist()) for values in (sigmas, timesteps))
    last = 1000 if prediction == "flow" else len(scheduler.alphas_cumprod) - 1
    if prediction == "flow":
        largest = 1.0
    else:
        largest = float(noise_level(scheduler, timesteps.new_tensor([last]), 1)[2])

    def percent(sigma: float) -> float:
        return 1 - float(np.interp(sigma, sigmas[::-1], times[::-1])) / last

    return Levels(tuple(sigmas.tolist()), largest, percent)


class _Hook:
    """Called after every forward pass of the network; keeps the state of the run that goes on."""

    def __init__(self, pipe, settings: Settings, layout: str, cfg: float | None):
        self.pipe, self.settings, self.layout, self.cfg = pipe, settings, layout, cfg
        self.trace = Trace()
        self.forget()

    def forget(self) -> None:
        self.rectifier: Rectifier | None = None
        self.timesteps = None
        self.waiting: tuple[NetworkCall, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, module, args, kwargs, output):
        timesteps = self.pipe.scheduler.timesteps  # made anew for every run
        if self.rectifier is None or self.timesteps is not timesteps:
            self.rectifier, self.timesteps, self.waiting = Rectifier(self.settings), timesteps, None
            self.trace.start(self.rectifier.run)
        out = sample_of(output)
        if getattr(self.pipe, "do_classifier_free_guidance", True) is False:
            return None
        call = NetworkCall(module, args, kwargs)
        if self.layout == SEPARATE:
            return self._second_call(call, out, output)
        n = len(call.x) // 2
        first, second = slice(0, n), slice(n, 2 * n)
        # Guidance of pipelines doubles the batch: without it, or with a third prediction, the halves differ.
        if len(call.x) % 2 or n == 0 or not torch.equal(call.x[first], call.x[second]):
            return None
        cond, uncond = (first, second) if self.layout == SWAPPED else (second, first)
        replaced = self._rectify(call.rows(cond), out[cond], out[uncond])
        if replaced is None:
            return None
        pair = [out[cond], replaced] if self.layout == SWAPPED else [replaced, out[cond]]
        return with_sample(output, torch.cat(pair))

    def _second_call(self, call: NetworkCall, out: Tensor, output):
        waiting, self.waiting = self.waiting, None
        if waiting is None or waiting[0].x.shape != call.x.shape or not torch.equal(waiting[0].x, call.x):
            self.waiting = (call, out)
            return None
        replaced = self._rectify(*waiting, out)
        return None if replaced is None else with_sample(output, replaced)

    def _rectify(self, call: NetworkCall, cond: Tensor, uncond: Tensor) -> Tensor | None:
        """c - R (c - u) in the network's coordinates, for c and u [B, ...] of this call; None: stay plain."""
        prediction, space, sigma = noise_level(self.pipe.scheduler, call.timestep, len(call.x))
        weight = self._weight()
        if why := self.settings.why_plain(weight, sigma):
            self.rectifier.run.plain(sigma, 1 + weight, why)
            return None
        # Learned variance: more channels out than in. Inpainting: more channels in, the latents first.
        channels = min(cond.shape[1], call.x.shape[1])
        x, held = _wide(call.x[:, :channels]), call.x[:, channels:]
        if x.shape != cond[:, :channels].shape:
            shapes = f"x of shape {tuple(call.x.shape)} into {tuple(cond.shape)}"
            raise ValueError(f"the network turns {shapes}: REG wants the same but for channels")

        def denoise(z: Tensor, level: Tensor) -> Tensor:
            inner = z.to(call.x.dtype)
            out = call.run(torch.cat([inner, held], 1) if held.shape[1] else inner)
            return to_denoised(prediction, _wide(out[:, :channels]), z, level, space)

        def known(out: Tensor) -> Tensor:
            return to_denoised(prediction, _wide(out[:, :channels]), x, point.sigma, space)

        point = Point.of(x, sigma, space)
        branches = _Known(denoise, known(cond), known(uncond), call.x.dtype)
        # Both predictions are made already: nothing is gained by skipping one.
        result = self.rectifier(branches, point, weight, may_skip=False)
        # The network's output is affine in D: its linear part takes R v along, exactly, where R v is 0.
        moved = from_denoised(prediction, result.rectified, torch.zeros_like(x), point.sigma, space)
        replaced = (_wide(cond[:, :channels]) - moved).to(cond.dtype)
        return torch.cat([replaced, uncond[:, channels:]], 1) if cond.shape[1] > channels else replaced

    def _weight(self) -> float:
        """cfg - 1, for the trace: R is linear. A distilled guidance scale of the same name is not read."""
        cfg = self.cfg
        if cfg is None and "true_cfg_scale" not in inspect.signature(type(self.pipe).__call__).parameters:
            cfg = getattr(getattr(self.pipe, "guider", self.pipe), "guidance_scale", None)
        if cfg is None:
            why = "the pipeline does not say its cfg: 2 is assumed; pass rectified(..., cfg=...)"
            self.rectifier.run.remark(why)
        return 1.0 if cfg is None else float(cfg) - 1


class _Known(Branches):
    """Both predictions at x are there already; only probes and derivatives run the network again."""

    def __init__(self, cond, denoised: Tensor, reference: Tensor, dtype: torch.dtype):
        super().__init__(cond, lambda x, sigma: reference)
        self.known, self.dtype = (denoised, reference), dtype

    def both(self, point):
        self.rows += 2  # the pipeline's own
        return self.known

    def apart(self, point):
        return False

    def compute_dtype(self, x):
        return self.dtype


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))
