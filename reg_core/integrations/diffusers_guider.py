"""REG as a guider of diffusers, for modular pipelines and for ordinary ones with a component `guider`.

    guider = RectifiedGuidance(guidance_scale=7.0, form="schedule", scheduler=pipe.scheduler)
    pipe.update_components(guider=guider)  # an ordinary pipeline: pipe.guider = guider
    image = pipe(prompt="a photo of a fox").images[0]
    print(guider.trace)

A guider gets the network's predictions and never x. It needs none: predictions are affine in the denoised
one with the same x, so x drops out of D_c - D_u and of D_c(x + h) - D_c(x)."""

from __future__ import annotations

import inspect
import math
from functools import partial

import torch
from diffusers import BaseGuidance
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from ..branches import Branches
from ..calibration import Calibration
from ..checks import cut, number, one_of, shortened
from ..jacobian import PROBE_ONES
from ..point import Point
from ..presets import cosine, interval, linear
from ..rectifier import Rectifier
from ..settings import Settings
from ..space import Space, expand, from_denoised, to_denoised
from ..trace import Trace
from .diffusers import noise_level, run_levels

OFFERED = ("row_sum", "schedule", "calibrated", "off")
SCHEDULES = {"linear": linear, "cosine": cosine, "interval": interval}


class RectifiedGuidance(BaseGuidance):
    """c + (guidance_scale - 1) R (c - u), for a conditional and an unconditional prediction c and u.

    - `guidance_scale`: as in ClassifierFreeGuidance; 1 is no guidance. REG guides less at an equal scale.
    - `form`: `row_sum`, the paper's Eq. 21, runs the network a third time, at x + h. `schedule` and
      `calibrated` multiply guidance by a number and run nothing. `off` is plain guidance.
    - `gain`, `data_std`, `sigma_start`, `sigma_end`: see reg_core.Settings. Sigma is s/alpha for noise, v and
      clean-sample prediction, and lies in [0, 1] for flow. None: no upper bound.
    - `calibration`: path of the table of `calibrated`, a .safetensors file.
    - `schedule`: guidance_scale over the run, as a function of reg_core.presets and its arguments:
      ["linear", "step", 0, 2]. Where it gives no guidance, only the conditional prediction is made.
    - `start`, `stop`: guidance between these fractions of the steps only, as in other guiders.
    - `scheduler`: the pipeline's. It is not saved with the configuration: set `guider.scheduler` after
      loading.

    `trace.last` tells what happened. Raises ValueError with the offending value; at the first step for a
    scheduler whose noise levels are not known, or that is not the pipeline's."""

    _input_predictions = ["pred_cond", "pred_uncond", "pred_cond_ahead"]  # the last one at x + h
    ignore_for_config = ["scheduler"]

    @register_to_config
    def __init__(
        self,
        *,
        guidance_scale: float = 7.5,
        form: str = "row_sum",
        gain: float = 1.0,
        data_std: float = 1.0,
        calibration: str | None = None,
        schedule: list | None = None,
        sigma_start: float | None = None,
        sigma_end: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        scheduler=None,
    ):
        super().__init__(start, stop, enabled)
        one_of("form of a guider", form, OFFERED)
        self.guidance_scale, self.scheduler = number("guidance_scale", guidance_scale), scheduler
        self.settings = Settings(
            form=form,
            gain=gain,
            data_std=data_std,
            calibration=None if calibration is None else Calibration.load(calibration),
            sigma_start=math.inf if sigma_start is None else sigma_start,
            sigma_end=sigma_end,
        )
        self.weights = None if schedule is None else _schedule(schedule)
        self.trace = Trace()
        self._timesteps = self._batches = None

    def new(self, **kwargs):
        guider = super().new(**kwargs)
        guider.scheduler = kwargs.get("scheduler", self.scheduler)
        return guider

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        super().set_state(step, num_inference_steps, timestep)
        self._batches = self._dtype = None
        timesteps = getattr(self.scheduler, "timesteps", None)  # made anew for every run
        if timesteps is None or not (timesteps == timestep.to(timesteps.device)).any():
            got = f"{type(self.scheduler).__name__} without the timestep {float(timestep):g}"
            raise ValueError(f"want the pipeline's scheduler (guider.scheduler = pipe.scheduler), got {got}")
        if self._timesteps is not timesteps:
            self._timesteps, self._rectifier = timesteps, Rectifier(self.settings)
            self.trace.start(self._rectifier.run)
            self._levels = None if self.weights is None else run_levels(self.scheduler)
        self._prediction, self._space, self._sigma = noise_level(self.scheduler, timestep, 1)
        self._scale = self._scale_now()

    def _scale_now(self) -> float:
        """The guidance scale in force at this step; 1 is none."""
        first, last = (int(part * self._num_inference_steps) for part in (self._start, self._stop))
        if not self._enabled or not first <= self._step < last:
            return 1.0
        if self.weights is None:
            return self.guidance_scale
        return self.weights.cfg(self.guidance_scale, float(self._sigma), self._levels)

    def prepare_inputs(self, data: dict) -> list:
        return self._prepared(partial(self._prepare_batch, data))

    def prepare_inputs_from_block_state(self, data, input_fields: dict) -> list:
        return self._prepared(partial(self._prepare_batch_from_block_state, input_fields, data))

    def _prepared(self, batch) -> list:
        names = self._input_predictions[: self._passes()]
        self._batches = [batch(int(name == "pred_uncond"), name) for name in names]
        return self._batches

    def _passes(self) -> int:
        if math.isclose(self._scale, 1):
            return 1
        plain = self.settings.free or self.settings.why_plain(self._scale - 1, self._sigma)
        pure_noise = not bool(self._space.alpha(self._sigma) > 0)  # J is 0 there
        return 2 if plain or pure_noise else 3

    @property
    def num_conditions(self) -> int:
        """Of this step between prepare_inputs and the guider's call; else of a step with guidance."""
        if self._batches is not None:
            return len(self._batches)
        return 2 if self._enabled and not math.isclose(self.guidance_scale, 1) else 1

    @property
    def is_conditional(self) -> bool:
        return self._count_prepared != 2

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        super().prepare_models(denoiser)
        if self._count_prepared == 3:
            like = self._batches[0].noise_pred
            known = [d for d in (like.dtype, getattr(denoiser, "dtype", None)) if d in PROBE_ONES]
            self._dtype = max(known, key=lambda d: torch.finfo(d).eps)  # a pipeline may widen predictions
            _shift_once(denoiser, like.shape, _step(self._point(like)))

    def _point(self, like: Tensor) -> Point:
        """This step at x = 0, of the shape of a prediction [B, ...] and in the network's precision."""
        return Point.of(torch.zeros_like(like, dtype=self._dtype), self._sigma.to(like.device), self._space)

    def forward(
        self, pred_cond: Tensor, pred_uncond: Tensor | None = None, pred_cond_ahead: Tensor | None = None
    ) -> GuiderOutput:
        """`pred_*` [B, ...]: predictions as the scheduler takes them, the last one at x + h."""
        self._batches, weight = None, self._scale - 1
        why = self.settings.why_plain(weight, self._sigma)
        if pred_uncond is None or why:
            self._rectifier.run.plain(self._sigma, self._scale, why)
            pred = pred_cond if pred_uncond is None else pred_cond + weight * (pred_cond - pred_uncond)
            return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)
        point = self._point(pred_cond)
        kind = self._prediction, self._space
        made = _Made(*kind, point, pred_cond, pred_uncond, pred_cond_ahead)
        moved = self._rectifier(made, point, weight, may_skip=False).rectified
        moved = from_denoised(kind[0], moved, torch.zeros_like(moved), point.sigma, kind[1])
        pred = (pred_cond + weight * moved).to(pred_cond.dtype)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)


class _Made(Branches):
    """Predictions that the pipeline has made already, as denoised ones at x = 0 and x = h."""

    def __init__(self, prediction: str, space: Space, point: Point, cond: Tensor, uncond: Tensor, ahead):
        def denoised(output: Tensor, x) -> Tensor:
            output = output.to(torch.promote_types(output.dtype, torch.float32))
            return to_denoised(prediction, output, torch.zeros_like(output) + x, point.sigma, space)

        self.made = denoised(cond, 0), denoised(uncond, 0)
        self.ahead = None if ahead is None else denoised(ahead, _step(point))

    def both(self, point):
        self.rows += 2
        return self.made

    def both_and_probe(self, point, step):
        self.rows += 3
        return *self.made, self.ahead


def _step(point: Point) -> Tensor:
    """The h of row_sum [B, 1, ...], as the engine of finite differences takes it."""
    return expand(point.s * PROBE_ONES.get(point.x.dtype, 0.4), point.x)


def _shift_once(denoiser: torch.nn.Module, shape: torch.Size, step: Tensor) -> None:
    """Adds `step` to the latents of the network's next call: those elements of its input that it predicts.

    `shape` [B, ...]: of the prediction. Some networks take more channels, the latents first."""

    def shifted(x: Tensor, where=...) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
        wide[where] += step.flatten()[0]
        return wide.to(x.dtype)

    def hook(module, args, kwargs):
        handle.remove()
        forward = inspect.signature(type(getattr(module, "_orig_mod", module)).forward)  # compiled or not
        name = list(forward.parameters)[1]
        x = args[0] if args else kwargs[name]
        if isinstance(x, list):  # a tensor for each image, all of it latents
            x = [shifted(image) for image in x]
        else:
            images = [len(shapes) for shapes in kwargs.get("img_shapes") or () if isinstance(shapes, list)]
            if (x.ndim == 3 and x.shape[1] != shape[1]) or max(images, default=1) > 1:
                got = f"an input of shape {tuple(x.shape)} for {tuple(shape)}"
                raise ValueError(f"form row_sum cannot tell latents from reference images, got {got}")
            x = shifted(x, tuple(slice(0, n) for n in shape) if x.ndim == len(shape) else ...)
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {name: x})

    handle = denoiser.register_forward_pre_hook(hook, with_kwargs=True)


def _schedule(words: list):
    """A CfgSchedule from its name and arguments. Raises ValueError for an unknown one."""
    kind, *arguments = words
    one_of("schedule", kind, SCHEDULES)
    try:
        return SCHEDULES[kind](*arguments)
    except TypeError as error:
        raise ValueError(f"schedule {shortened(list(words))}: {cut(error)}") from None
