"""Every touch of ComfyUI's internals: the hook, model calls, differentiation under inference mode, the demo model.

Sampling calls us in a chain (ComfyUI's names): OUTER_SAMPLE once a run -> PREDICT_NOISE per model call ->
sampler_calc_cond_batch_function, where the conditional and unconditional predictions are made. There we return
[d, d - R (d - u)]: any cfg function then computes d + (cfg - 1) R (d - u), and whatever follows composes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from contextlib import ExitStack, contextmanager

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import comfy.supported_models_base
import torch
import torch.nn.functional as F

from ..reg_core import jacobian
from ..reg_core.guidance import Branches
from ..reg_core.rectifier import Rectifier
from ..reg_core.rectify import Settings
from ..reg_core.schedule import Schedule, SigmaInterval, sigma_position, step_position, within
from ..reg_core.space import expand
from ..reg_core.trace import Row, Run, Trace
from .attention import differentiable_attention
from .thaw import control_modules, private_saved_tensors, thawed, thawed_cond

WrappersMP = comfy.patcher_extension.WrappersMP
Interrupted = comfy.model_management.InterruptProcessingException
log = logging.getLogger("ComfyUI-REG")

KEY = "reg"  # of our wrappers on a MODEL
RUN = "reg_run"  # of the run's state in the guider's own copy of model_options
SCHEDULE = "reg_schedule"
DAMPED = "reg_damped"

# Caches see a probe as one more step and would answer it from memory; compiled graphs have no derivative.
STATEFUL_WRAPPERS = ("easycache", "lazycache")
OPAQUE_WRAPPERS = ("torch.compile",)
MULTIGPU_OPTIONS = ("multigpu_clones", "multigpu_thread_pool")


# REG on a MODEL


def rectified_model(model, settings: Settings, start_percent: float, end_percent: float):
    """A clone of MODEL whose guidance is rectified, and the trace its sampling runs will fill. The last one applied wins."""
    patched = model.clone()
    trace = Trace()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE):
        patched.remove_wrappers_with_key(kind, KEY)
    if not settings.enabled:
        return patched, trace
    hook = _Hook(settings, start_percent, end_percent, trace)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, hook.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, hook.predict_noise)
    return patched, trace


class _Hook:
    """The two wrappers of one patched MODEL. Holds settings only; what belongs to a run lives in the run."""

    def __init__(self, settings, start_percent, end_percent, trace):
        self.settings = settings
        self.percents = (start_percent, end_percent)
        self.trace = trace

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        rectifier = self._new_run(guider)
        guider.model_options[RUN] = rectifier  # the guider's private copy, made for this sampling
        try:
            return executor(*args, **kwargs)
        finally:
            guider.model_options.pop(RUN, None)
            _report(rectifier.run, guider)

    def _new_run(self, guider):
        sampling = guider.model_patcher.get_model_object("model_sampling")
        start, end = self.percents
        settings = dataclasses.replace(
            self.settings,
            sigma_start=math.inf if start <= 0 else float(sampling.percent_to_sigma(start)),
            sigma_end=0.0 if end >= 1 else float(sampling.percent_to_sigma(end)),
        )
        run = self.trace.start(Run(settings.form, settings.engine, settings.strength))
        return Rectifier(settings, run=run, fatal=(Interrupted,))

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        guider, model_options = executor.class_obj, model_options or {}
        # A guider driven without sample() has no run: rectify all the same, with a state of its own.
        rectifier = model_options.get(RUN) or self._new_run(guider)
        call = _Call(rectifier, guider, model_options)
        result = executor(x, timestep, call.options(), seed)
        if not call.reached:
            name = type(guider).__name__
            rectifier.run.add(Row(_sigma=timestep, note=f"{name} does not ask for the conditional and unconditional pair"))
        return result


class _Call:
    """One model call: its private model_options, and the pair of predictions made in place of ComfyUI's."""

    def __init__(self, rectifier, guider, model_options):
        self.rectifier = rectifier
        self.guider = guider
        self.given = model_options
        self.reached = False
        self.uncond = None

    def options(self):
        options = comfy.model_patcher.create_model_options_clone(self.given)
        options["sampler_calc_cond_batch_function"] = self.calc_cond_batch
        if "sampler_post_cfg_function" in options:
            options["sampler_post_cfg_function"] = [self._with_true_uncond(f) for f in options["sampler_post_cfg_function"]]
        return options

    def calc_cond_batch(self, args):
        self.reached = True
        model, conds, x, sigma = args["model"], args["conds"], args["input"], args["sigma"]
        cfg = float(getattr(self.guider, "cfg", math.nan))
        note = self._why_not(conds, cfg, sigma)
        branches = _ModelBranches(model, conds, self.given)
        if note is not None:
            self.rectifier.run.add(Row(_sigma=sigma, cfg=cfg, note=note))
            return branches.evaluate(conds, x, sigma)
        alpha, s = alpha_and_s(model.model_sampling, sigma, x)
        prediction = self.rectifier(branches, x, sigma, cfg - 1, alpha, s)
        self.uncond = prediction.reference
        return [prediction.denoised, (prediction.denoised - prediction.rectified).to(prediction.denoised.dtype)]

    def _why_not(self, conds, cfg, sigma):
        if len(conds) != 2 or conds[1] is None or conds[0] is None:
            return "cfg 1: no guidance to rectify" if math.isclose(cfg, 1.0) else "no unconditional pass: no guidance to rectify"
        if math.isclose(cfg, 1.0):
            return "cfg 1: no guidance to rectify"
        if self.rectifier.settings.bounded and not self.rectifier.settings.covers(float(sigma.max())):
            return "outside start and end"
        return None

    def _with_true_uncond(self, post_cfg):
        """CFG++ samplers and others take the unconditional prediction from here: give them the model's own."""

        def call(args):
            return post_cfg(args if self.uncond is None else {**args, "uncond_denoised": self.uncond})

        return call


def _report(run: Run, guider) -> None:
    """One line a run, and a warning when REG did nothing or had to fall back."""
    if run.active:
        log.info("REG: %s", run.summary())
        bad = [row for row in run.active if row.nonfinite]
        if bad and run.remark(f"non-finite correction in {len(bad)} of {len(run.active)} active calls: plain guidance there"):
            log.warning("REG: %s", run.notes[-1])
        return
    reasons = list(dict.fromkeys(row.note for row in run.rows if row.note))
    why = "; ".join(reasons) or "the model was never called"
    if run.remark(f"did nothing: {why}"):
        log.warning("REG did nothing with %s (cfg %s): %s", type(guider).__name__, getattr(guider, "cfg", "?"), why)


# Model calls


class _ModelBranches(Branches):
    """The conditional and unconditional prediction of a ComfyUI model, evaluated as ComfyUI does."""

    def __init__(self, model, conds, model_options):
        self.model = model
        self.conds = conds
        self.options = model_options
        self.previous = model_options.get("sampler_calc_cond_batch_function")
        wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
        self.stateful = any(key in by_key for by_key in wrappers.values() for key in STATEFUL_WRAPPERS)
        self._probing = None  # (options, conds) of a pass that others' caches must not see

    def evaluate(self, conds, x, sigma, options=None):
        comfy.model_management.throw_exception_if_processing_interrupted()  # older hosts ask once a step only
        options = self.options if options is None else options
        if self.previous is not None:
            args = {"conds": conds, "input": x, "sigma": sigma, "model": self.model, "model_options": options}
            return self.previous(args)
        return comfy.samplers.calc_cond_batch(self.model, conds, x, sigma, options)

    def both(self, x, sigma):
        denoised, reference = self.evaluate(self.conds, x, sigma)
        return denoised, reference

    def reference(self, x, sigma):
        return self.evaluate([None, self.conds[1]], x, sigma)[1]

    def cond(self, x, sigma):
        options, positive = self._probing or (quiet(self.options, STATEFUL_WRAPPERS), self.conds[0])
        return self.evaluate([positive, None], x, sigma, options)[0]

    def both_and_probe(self, x, sigma, step):
        """One call for three: cond, uncond and cond at x + step, in ComfyUI's own batching (areas, masks, memory)."""
        if not self._joinable():
            denoised, reference = self.both(x, sigma)
            if self.stateful:  # what a cache answered is no neighbour of a fresh probe
                return denoised, reference, denoised + self.cond(x + step, sigma) - self.cond(x, sigma)
            return denoised, reference, self.cond(x + step, sigma)
        options = comfy.model_patcher.create_model_options_clone(self.options)
        options["model_function_wrapper"] = _shifted_rows(step, options.get("model_function_wrapper"))
        positive, negative = self.conds
        denoised, reference, probe = self.evaluate([positive, negative, positive], x, sigma, options)
        return denoised, reference, probe

    def _joinable(self) -> bool:
        # A control net's output was computed for x, a chained function expects two conds, workers hold other models.
        controlled = any(c.get("control") is not None for cond in self.conds for c in cond)
        parallel = any(self.options.get(key) for key in MULTIGPU_OPTIONS)
        return not (controlled or parallel or self.stateful or self.previous is not None)

    def compute_dtype(self, x):
        dtype = self.model.manual_cast_dtype or self.model.get_dtype()
        return dtype if dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16) else torch.bfloat16

    @contextmanager
    def differentiable(self, engine):
        """Attention with a derivative, no caches, and for reverse mode weights that autograd may save."""
        options = quiet(self.options, STATEFUL_WRAPPERS + OPAQUE_WRAPPERS)
        options["transformer_options"]["optimized_attention_override"] = differentiable_attention
        positive = self.conds[0]
        with ExitStack() as stack:
            stack.enter_context(_training_kernels())
            if engine == "reverse":
                stack.enter_context(torch.inference_mode(False))
                weights = stack.enter_context(thawed([self.model, *control_modules(positive)]))
                stack.enter_context(private_saved_tensors(weights))
                positive = [thawed_cond(c) for c in positive]
            self._probing = (options, positive)
            try:
                yield
            finally:
                self._probing = None


def _shifted_rows(step, previous):
    """A model_function_wrapper that adds `step` to the rows of cond list 2, which the model is to see as cond list 0."""

    def call(apply_model, args):
        x, which = args["input"], args["cond_or_uncond"]
        rows = x.shape[0] // len(which)
        shift = torch.cat([(step if i == 2 else torch.zeros_like(step)).expand(rows, *step.shape[1:]) for i in which])
        seen = [0 if i == 2 else i for i in which]
        c = {**args["c"], "transformer_options": {**args["c"]["transformer_options"], "cond_or_uncond": seen}}
        args = {**args, "input": (x + shift.to(x.device)).to(x.dtype), "c": c, "cond_or_uncond": seen}
        return previous(apply_model, args) if previous else apply_model(args["input"], args["timestep"], **c)

    return call


def alpha_and_s(sampling, sigma, x):
    """alpha and s [B] of x = alpha x0 + s noise, from the sampling class's own `noise_scaling`: any prediction type."""
    sigma = sigma.reshape(-1).expand(x.shape[0]).to(torch.promote_types(x.dtype, torch.float32))
    zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)  # noise_scaling adds in place: fresh tensors each
    alpha = sampling.noise_scaling(sigma, zero.clone(), one.clone())
    return alpha.reshape(-1).expand(x.shape[0]), sampling.noise_scaling(sigma, one.clone(), zero.clone()).reshape(-1).expand(x.shape[0])


def quiet(model_options, dropped):
    """model_options for a pass of our own: without the wrappers named and without worker GPUs."""
    options = comfy.model_patcher.create_model_options_clone({k: v for k, v in model_options.items() if k not in MULTIGPU_OPTIONS})
    wrappers = options.setdefault("transformer_options", {}).get("wrappers", {})
    for by_key in wrappers.values():
        for key in dropped:
            by_key.pop(key, None)
    return options


# Differentiation under inference mode


@contextmanager
def _training_kernels():
    """Newer hosts swap fused kernels, whose tangent is silently zero, for plain ones while `in_training` is set."""
    management = comfy.model_management
    if not hasattr(management, "in_training"):
        yield
        return
    before = management.in_training
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = before


# Schedules: cfg as a function of the noise level, through the guider


def scheduled_model(model, schedule: Schedule, axis: str, label: str):
    """A clone of MODEL under which the guider's cfg becomes 1 + (cfg - 1) * multiplier at every model call.

    Several schedules multiply. At cfg 1 ComfyUI leaves the unconditional pass out.
    """
    patched = model.clone()
    hook = _ScheduleHook(schedule, axis, label)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, SCHEDULE, hook.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, SCHEDULE, hook.predict_noise)
    return patched


class _ScheduleHook:
    def __init__(self, schedule, axis, label):
        self.schedule = schedule
        self.axis = axis
        self.label = label

    def outer_sample(self, executor, *args, **kwargs):
        guider = executor.class_obj
        sigmas = kwargs.get("sigmas", args[3] if len(args) > 3 else None)
        if sigmas is not None and len(sigmas) > 1:
            self._announce(guider, sigmas)
        return executor(*args, **kwargs)

    def _announce(self, guider, sigmas):
        sampling = guider.model_patcher.get_model_object("model_sampling")
        factors = [self.multiplier(float(v), sampling, sigmas) for v in sigmas[:-1]]
        on = [i for i, factor in enumerate(factors) if factor != 0]
        steps = f"steps {on[0] + 1} to {on[-1] + 1} ({len(on)}) of {len(factors)}" if on else f"none of {len(factors)} steps"
        base = float(getattr(guider, "cfg", math.nan))
        log.info("REG: %s guides in %s, cfg %.3g to %.3g", self.label, steps, *(1 + (base - 1) * f for f in (min(factors), max(factors))))
        if not on or math.isclose(base, 1.0):
            log.warning("REG: %s has no effect: %s", self.label, "it guides in no step" if not on else f"cfg is {base}")

    def predict_noise(self, executor, x, timestep, model_options=None, seed=None):
        guider, model_options = executor.class_obj, model_options or {}
        base = getattr(guider, "cfg", None)
        if base is None:
            return executor(x, timestep, model_options, seed)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
        guider.cfg = 1 + (base - 1) * self.multiplier(float(timestep.max()), sampling, sigmas)
        try:
            return executor(x, timestep, model_options, seed)
        finally:
            guider.cfg = base

    def multiplier(self, sigma, sampling, sigmas):
        if isinstance(self.schedule, SigmaInterval):
            return self.schedule(sigma)
        if self.axis == "step" and sigmas is not None:
            return self.schedule(step_position(sigma, sigmas))
        if self.axis == "sigma":
            return self.schedule(sigma_position(sigma, float(sampling.sigma_max)))
        return self.schedule(percent_of(sampling, sigma))


def percent_of(sampling, sigma: float) -> float:
    """The inverse of ComfyUI's `percent_to_sigma`, by bisection: 0 at pure noise, 1 clean, for every sampling class."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) >= sigma else (low, middle)
    return round((low + high) / 2, 9)


# Rewards: classifier guidance on the denoised prediction


def rewarded_model(model, reward, scale: float, rectified: bool, start_percent: float, end_percent: float):
    """A clone of MODEL whose denoised prediction is moved by scale * sigma_ve^2 * (J^T) grad log_prob(D_cond).

    sigma_ve = s / alpha, limited to 20.
    """
    patched = model.clone()
    if scale == 0:
        return patched
    keep_loaded = getattr(reward, "models", None)
    if keep_loaded is not None:
        patched.set_additional_models(f"reg_reward_{id(reward)}", keep_loaded())
    patched.set_model_sampler_post_cfg_function(_RewardHook(reward, scale, rectified, (start_percent, end_percent)))
    return patched


MAX_REWARD_SIGMA = 20.0


class _RewardHook:
    def __init__(self, reward, scale, rectified, percents):
        self.reward, self.scale, self.rectified, self.percents = reward, scale, rectified, percents
        self.warned = False

    def __call__(self, args):
        model, x, sigma = args["model"], args["input"], args["sigma"]
        sampling = model.model_sampling
        high, low = (float(sampling.percent_to_sigma(p)) for p in self.percents)
        if self.percents != (0.0, 1.0) and not within(float(sigma.max()), low, high):
            return args["denoised"]
        alpha, s = alpha_and_s(sampling, sigma, x)
        # Infinite for flow at sigma = 1, and beyond 20 nothing is known of the image: a real model's J is noise there.
        sigma_ve = (s / alpha.clamp_min(1e-9)).clamp_max(MAX_REWARD_SIGMA)

        def gradient(denoised):
            # Latent formats are affine per element, with tensors autograd may not save: their slope by hand.
            slope = model.process_latent_out(torch.ones_like(denoised)) - model.process_latent_out(torch.zeros_like(denoised))
            x0 = model.process_latent_out(denoised)
            with torch.inference_mode(False), torch.enable_grad():
                x0 = x0.clone().requires_grad_(True)
                return torch.autograd.grad(self.reward.log_prob(x0).sum(), x0)[0] * slope

        direction = self._through_denoiser(args, gradient, alpha, s) if self.rectified else gradient(args["cond_denoised"])
        shift = self.scale * expand(sigma_ve**2, x) * direction
        good = torch.isfinite(shift).flatten(1).all(1)
        return args["denoised"] + torch.where(expand(good, x), shift, 0).to(args["denoised"].dtype)

    def _through_denoiser(self, args, gradient, alpha, s):
        """J^T gradient; where there is no backward pass J gradient by finite differences, as J is symmetric in theory."""
        branches = _ModelBranches(args["model"], [args["cond"], None], _without_reg(args["model_options"]))
        x, sigma = args["input"], args["sigma"]
        try:
            with branches.differentiable("reverse"):
                return jacobian.reverse(branches.cond, x, sigma, alpha, gradient)[1]
        except Interrupted:
            raise
        except (RuntimeError, NotImplementedError) as error:
            if not self.warned:
                self.warned = True
                log.warning("REG reward: no backward pass (%s): finite differences", str(error).split("\n")[0][:200])
        return jacobian.finite_difference(branches.cond, x, sigma, alpha, gradient(args["cond_denoised"]), s, args["cond_denoised"])[1]


def _without_reg(model_options):
    """model_options as they were before this call was rectified: our own extra passes are nobody's guidance."""
    hooked = getattr(model_options.get("sampler_calc_cond_batch_function"), "__self__", None)
    return hooked.given if isinstance(hooked, _Call) else model_options


class ImageReward:
    """Cosine similarity of CLIP vision embeddings / temperature, through the VAE decoder; sample by sample, at bounded size."""

    def __init__(self, clip_vision, vae, image, temperature: float, max_latent_size: int):
        self.clip, self.vae, self.temperature, self.size = clip_vision, vae, temperature, max_latent_size
        self.target = clip_vision.encode_image(image[:1])["image_embeds"]

    def models(self):
        """Kept loaded beside the sampled model."""
        return [self.vae.patcher, self.clip.patcher]

    def log_prob(self, x0):
        if x0.ndim != 4:
            raise ValueError(f"REGRewardImage: want image latents [B, C, H, W], got {list(x0.shape)}")
        with thawed([self.vae.first_stage_model, self.clip.model]) as weights, private_saved_tensors(weights):
            return torch.stack([self._one(sample[None]) for sample in x0])

    def _one(self, x0):
        scale = min(1.0, self.size / max(x0.shape[2:]))
        if scale < 1:
            x0 = F.interpolate(x0, scale_factor=scale, mode="area")
        pixels = (self.vae.first_stage_model.decode(x0.to(self.vae.vae_dtype)).float() + 1) / 2
        side = self.clip.image_size
        pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
        # ComfyUI's own preparation rounds to 8 bits, which has no gradient
        mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (self.clip.image_mean, self.clip.image_std))
        embedding = self.clip.model(pixel_values=(pixels - mean) / std, intermediate_output=-2)[2].float()
        return F.cosine_similarity(embedding, self.target.to(embedding).clone()).mean() / self.temperature


# A second model


def check_same_space(model, other) -> None:
    """Raises ValueError unless both models denoise the same latents in the same coordinates."""
    ours, theirs = (m.get_model_object("model_sampling") for m in (model, other))
    flow = [isinstance(sampling, comfy.model_sampling.CONST) for sampling in (ours, theirs)]
    if flow[0] != flow[1]:
        raise ValueError(f"the models sample in different coordinates: {type(ours).__mro__[2].__name__} and {type(theirs).__mro__[2].__name__}")
    formats = [m.model.latent_format for m in (model, other)]
    if formats[0].latent_channels != formats[1].latent_channels or type(formats[0]) is not type(formats[1]):
        raise ValueError(f"the models have different latents: {type(formats[0]).__name__} and {type(formats[1]).__name__}")


def shares_weights(model, other) -> bool:
    """True when `other` is a clone that differs by options only. Raises ValueError when it differs by patched weights."""
    if model.model is not other.model:
        return False
    if model.patches_uuid != other.patches_uuid:
        raise ValueError("both models are the same file with different weight patches (LoRA): load it by a second loader, or use REG Weak Model")
    return True


def sample_arguments(args, kwargs) -> dict:
    """What CFGGuider.outer_sample was called with, by name."""
    names = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback", "disable_pbar", "seed", "latent_shapes")
    return dict(zip(names, args, strict=False)) | kwargs


class SecondModel:
    """A further MODEL, loaded beside the sampled one (set_additional_models), that denoises with conds of its own."""

    def __init__(self, patcher, guider, conds, arguments):
        self.patcher = patcher
        self.guider = guider
        self.conds = [c.copy() for c in conds]  # as convert_cond left them; process_conds writes into each
        self.arguments = arguments
        self.options = None

    def denoised(self, x, sigma):
        """The denoised prediction at x [B, ...], sigma [B]."""
        if self.options is None:  # only now are both models loaded
            self._start()
        return calc_cond_batch(self.patcher.model, [self.conds], x, sigma, self.options)[0]

    def _start(self):
        a, model, device = self.arguments, self.patcher.model, self.guider.model_patcher.load_device
        self.options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)
        self.options.setdefault("transformer_options", {})["sample_sigmas"] = a["sigmas"].to(device)
        comfy.sampler_helpers.prepare_model_patcher(self.patcher, {"reference": self.conds}, self.options)
        if model is not self.guider.model_patcher.model:
            self.patcher.pre_run()
        noise, latent, mask = a["noise"].to(device), a["latent_image"].to(device), a.get("denoise_mask")
        if torch.count_nonzero(latent) > 0:
            latent = model.process_latent_in(latent)
        if mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(mask, noise.shape, device)
        extra = {}
        if a.get("latent_shapes") is not None:  # hosts since packed latents
            extra["latent_shapes"] = model.latent_shapes = a["latent_shapes"]
        processed = comfy.samplers.process_conds(model, noise, {"reference": self.conds}, device, latent, mask, a.get("seed"), **extra)
        self.conds = processed["reference"]

    def stop(self):
        """Undo what the run changed on the second MODEL."""
        if self.options is not None and self.patcher.model is not self.guider.model_patcher.model:
            self.patcher.cleanup()
        self.options = None


def calc_cond_batch(model, conds, x, sigma, model_options):
    """ComfyUI's, on this process's devices only."""
    options = {k: v for k, v in model_options.items() if k not in MULTIGPU_OPTIONS}
    return comfy.samplers.calc_cond_batch(model, conds, x, sigma, options)


def cfg_guider(model, positive, negative, cfg):
    """A GUIDER of ComfyUI's own kind."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def damped_model(model, damping: float):
    """A MODEL that shares the weights and runs with every block's layers damped: out -> bias + (1 - damping) (out - bias).

    Costs no memory: forward hooks for the time of the pass, on the layers of repeated blocks; the layers that read
    and write latents stay as they are. Raises ValueError for a model without such layers.
    """
    layers = [m for m in _block_layers(model.model.diffusion_model)]
    if not layers:
        raise ValueError(f"REGWeakModel: {type(model.model.diffusion_model).__name__} has no repeated blocks of linear or convolution layers")
    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, DAMPED)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, DAMPED, _Damped(1 - damping))
    return patched


class _Damped:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, executor, *args, **kwargs):
        handles = [layer.register_forward_hook(self._damp) for layer in _block_layers(executor.class_obj.diffusion_model)]
        try:
            return executor(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _damp(self, layer, inputs, out):
        bias = getattr(layer, "bias", None)
        if bias is None:
            return self.factor * out
        bias = bias.to(out).reshape(-1, *[1] * (out.ndim - 2)) if layer.weight.ndim > 2 else bias.to(out)
        return bias + self.factor * (out - bias)


def _block_layers(network):
    """Linear and convolution layers inside ModuleLists, without those as narrow as latents."""
    for parent in network.modules():
        if isinstance(parent, torch.nn.ModuleList):
            for layer in parent.modules():
                weight = getattr(layer, "weight", None)
                if isinstance(weight, torch.Tensor) and weight.ndim >= 2 and min(weight.shape[:2]) >= 12 and not isinstance(layer, torch.nn.Embedding):
                    yield layer


# The demo model


def demo_model(denoiser, sigma_min: float, sigma_max: float):
    """A MODEL of the digits denoiser (reg_core.lab): a real BaseModel with ComfyUI's own EDM sampling."""
    config = _DigitsConfig(denoiser, sigma_min, sigma_max)
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EDM, device=offload)
    model.diffusion_model = _DigitsNetwork(denoiser.net)
    return comfy.model_patcher.ModelPatcher(model.to(offload).eval(), load_device=device, offload_device=offload)


class _DigitsLatent(comfy.latent_formats.LatentFormat):
    latent_channels = 1
    latent_rgb_factors = [[0.5, 0.5, 0.5]]
    latent_rgb_factors_bias = [0.5, 0.5, 0.5]


class _DigitsConfig(comfy.supported_models_base.BASE):
    latent_format = _DigitsLatent
    memory_usage_factor = 0.1

    def __init__(self, denoiser, sigma_min, sigma_max):
        super().__init__({"disable_unet_model_creation": True})
        self.sampling_settings = {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": denoiser.sigma_data}


class _DigitsNetwork(torch.nn.Module):
    """The raw network behind ComfyUI's signature. The context is a label row [B, tokens, 10], zeros for unconditional."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.dtype = torch.float32

    def forward(self, x, timesteps, context=None, **kwargs):
        return self.net(x, timesteps, context.mean(1))
