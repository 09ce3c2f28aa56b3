"""Every touch of ComfyUI's internals, with the other host_*.py: model calls, differentiation under inference mode.

What the other files of this folder need of ComfyUI they take from here.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import torch

from ..reg_core.guidance import Branches
from ..reg_core.jacobian import JacobianError
from .attention import differentiable_attention
from .blocks import blocks
from .checkpoint import Recompute
from .draws import Draws
from .memory import ReverseMemory, divisible, rows_of
from .thaw import Thaw, control_modules, private_saved_tensors, thawed_cond

WrappersMP = comfy.patcher_extension.WrappersMP
Interrupted = comfy.model_management.InterruptProcessingException
clone_options = comfy.model_patcher.create_model_options_clone
log = logging.getLogger("ComfyUI-REG")

# Caches see a probe as one more step and would answer it from memory; compiled graphs have no derivative.
STATEFUL_WRAPPERS = ("easycache", "lazycache")
OPAQUE_WRAPPERS = ("torch.compile",)
# What a probe may add to the peak: bytes, or a share of it (by ComfyUI's estimate, which is up to 1.4 times what is taken); more
# where every call has one. A call of its own costs as much as guidance itself where launching is what takes the time.
JOIN_ALWAYS, JOIN_SHARE, JOIN_SHARE_EVERY_CALL = 64 * 2**20, 0.12, 0.175
FEW_ROWS = 8  # samples whose layers do not yet fill a CPU
MULTIGPU_OPTIONS = ("multigpu_clones", "multigpu_thread_pool")


# Model calls


class ModelBranches(Branches):
    """The conditional and unconditional prediction of a ComfyUI model, evaluated as ComfyUI does.

    `bounds`: what the run has learned about its memory; without it every call starts anew, on the safe side.
    `every_call`: there is a probe at each.
    """

    def __init__(self, model, conds, model_options, bounds: ReverseMemory | None = None, every_call: bool = False):
        self.model = model
        self.join_share = JOIN_SHARE_EVERY_CALL if every_call else JOIN_SHARE
        self.conds = conds
        self.options = model_options
        self._bounds = bounds
        self.previous = model_options.get("sampler_calc_cond_batch_function")
        self.cached = bool(caches(model_options))
        self._probing = None  # (options, conds) of a pass that others' caches must not see
        self._draws = Draws()

    def evaluate(self, conds, x, sigma, options=None):
        comfy.model_management.throw_exception_if_processing_interrupted()  # older hosts ask once a step only
        options = self.options if options is None else options
        with self._draws.repeated(x.device):
            if self.previous is not None:
                args = {"conds": conds, "input": x, "sigma": sigma, "model": self.model, "model_options": options}
                return self.previous(args)
            return comfy.samplers.calc_cond_batch(self.model, conds, x, sigma, options)

    def both(self, x, sigma):
        denoised, reference = self.evaluate(self.conds, x, sigma)
        return denoised, reference

    def only(self, x, sigma):
        return self.evaluate([self.conds[0], None], x, sigma)[0]

    def reference(self, x, sigma):
        return self.evaluate([None, self.conds[1]], x, sigma)[1]

    def cond(self, x, sigma):
        options, positive = self._probing or (quiet(self.options, STATEFUL_WRAPPERS), self.conds[0])
        return self.evaluate([positive, None], x, sigma, options)[0]

    def both_and_probe(self, x, sigma, step):
        """One call for three: cond, uncond and cond at x + step, in ComfyUI's own batching (areas, masks, memory)."""
        if not (self._joinable() and self._room_for_three(x)):
            denoised, reference = self.both(x, sigma)
            if self.cached:  # what a cache answered is no neighbour of a fresh probe
                return denoised, reference, denoised + self.cond(x + step, sigma) - self.cond(x, sigma)
            return denoised, reference, self.cond(x + step, sigma)
        options = clone_options(self.options)
        options["model_function_wrapper"] = _shifted_rows(step, options.get("model_function_wrapper"))
        positive, negative = self.conds
        denoised, reference, probe = self.evaluate([positive, negative, positive], x, sigma, options)
        return denoised, reference, probe

    def only_and_probe(self, x, sigma, step):
        if not self._joinable():
            return self.only(x, sigma), self.cond(x + step, sigma)
        options = clone_options(self.options)
        options["model_function_wrapper"] = _shifted_rows(step, options.get("model_function_wrapper"))
        positive = self.conds[0]
        denoised, _, probe = self.evaluate([positive, None, positive], x, sigma, options)
        return denoised, probe

    def _joinable(self) -> bool:
        # A control net's output was computed for x, a chained function expects two conds, workers hold other models.
        controlled = any(c.get("control") is not None for cond in self.conds for c in cond)
        parallel = any(self.options.get(key) for key in MULTIGPU_OPTIONS)
        return not (controlled or parallel or self.cached or self.previous is not None)

    def _room_for_three(self, x) -> bool:
        """The probe may join the other two while that raises the peak, weights included, by little; else it goes alone."""
        if plentiful(x):
            return True
        pair, three = (self.model.memory_required([rows * len(x), *x.shape[1:]]) for rows in (2, 3))
        patcher = self.model.current_patcher
        weights = patcher.model_size() if patcher is not None else comfy.model_management.module_size(self.model)
        return three - pair <= max(JOIN_ALWAYS, self.join_share * (weights + pair))

    def compute_dtype(self, x):
        dtype = self.model.manual_cast_dtype or self.model.get_dtype()
        return dtype if dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16) else torch.bfloat16

    @property
    def bounds(self) -> ReverseMemory:
        if self._bounds is None:
            self._bounds = ReverseMemory(copies=True)
        return self._bounds

    @property
    def notes(self):
        return self.bounds.notes

    def reverse(self, x, sigma, alpha, cotangent):
        """(denoised, J^T u) within memory; `bounds.notes` say what that took."""
        return self.bounds.product(self, x, sigma, alpha, cotangent)

    @contextmanager
    def differentiable(self, engine, x=None, rows=None):
        """Attention with a derivative, no caches, and for reverse mode weights that autograd may save.

        `x`: the batch that will be differentiated, `rows` (slice) the samples of it; both may be left out.
        """
        if any(c.get("hooks") is not None for c in self.conds[0]):
            raise JacobianError("the prompt carries hooks, which patch weights in the middle of a pass")
        options = quiet(self.options, STATEFUL_WRAPPERS + OPAQUE_WRAPPERS)
        options["transformer_options"]["optimized_attention_override"] = differentiable_attention
        positive, recompute = self.conds[0], None
        count = 1 if x is None else len(x[rows]) if rows else len(x)
        with ExitStack() as stack:
            stack.enter_context(_training_kernels())
            stack.enter_context(_no_offload_streams())
            if engine == "reverse":
                stack.enter_context(torch.inference_mode(False))
                positive = [thawed_cond(c if rows is None else rows_of(c, rows)) for c in positive]
                roots = [self.model, *control_modules(positive)]
                dynamic = self._dynamic()
                self.bounds.copies |= dynamic  # the pages of its weights are taken back when a layer has run
                thaw = Thaw() if dynamic else self.bounds.thaw
                weights = stack.enter_context(thaw.over(roots))
                recompute = self._recompute(x, count, thaw)
                if recompute is not None:
                    options["transformer_options"]["optimized_attention_override"] = recompute.attention
                    stack.enter_context(recompute.over(thaw.fact("blocks", lambda: [block for root in roots for block in blocks(root)])))
                if self.bounds.copies:
                    stack.enter_context(private_saved_tensors(weights))
            self._probing = (options, positive)
            try:
                yield
            finally:
                self._probing = None
            if recompute is not None:
                self.bounds.learn(recompute, count)

    def _recompute(self, x, count, thaw):
        """What the bounds allow a reverse pass of `count` samples to keep; None: everything."""
        network = self.model.diffusion_model
        example = next(network.parameters()) if x is None else x
        required = 0.0 if x is None else self.memory_required(x) * count / len(x)
        size = thaw.fact("size", lambda: sum(p.nbytes for p in network.parameters()))
        casts = thaw.fact(("casts", example.device), lambda: self._casts(example.device))
        plan = self.bounds.plan(self.free_memory(example), required, size, casts, count)
        if not plan.recompute:
            return None
        tick = comfy.model_management.throw_exception_if_processing_interrupted
        budgets = plan.blocks, plan.attention, plan.arguments
        return Recompute(differentiable_attention, thaw.storages, self.bounds.copies, *budgets, self.bounds.verify(), tick)

    def _dynamic(self) -> bool:
        """True where weights are paged in and out layer by layer."""
        return bool(getattr(self.model.current_patcher, "is_dynamic", bool)())

    def _casts(self, device) -> bool:
        """True when layers convert or move their weights at use."""
        dtype = self.model.manual_cast_dtype or self.model.get_dtype()
        layers = (m for m in self.model.diffusion_model.modules() if getattr(m, "comfy_cast_weights", False))
        return any(isinstance(w := getattr(m, "weight", None), torch.Tensor) and (w.dtype != dtype or w.device != device) for m in layers)

    def free_memory(self, x) -> float:
        return comfy.model_management.get_free_memory(x.device)

    def memory_required(self, x) -> float:
        """ComfyUI's estimate of a forward pass, bytes."""
        return self.model.memory_required(list(x.shape))

    def out_of_memory(self, error) -> bool:
        text = str(error).lower()
        return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text

    def free_cache(self):
        comfy.model_management.soft_empty_cache()

    def divisible(self) -> bool:
        """True when samples may be differentiated a few at a time: nothing in the pass knows the whole batch."""
        options = quiet(self.options, STATEFUL_WRAPPERS + OPAQUE_WRAPPERS)
        transformer = options["transformer_options"]
        wrappers = transformer.get("wrappers", {})
        foreign = [self.previous, options.get("model_function_wrapper"), options.get("context_handler")]
        foreign += [transformer.get("patches"), transformer.get("patches_replace")]
        foreign += [any(wrappers.get(kind, {}).values()) for kind in (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)]
        return not any(foreign) and all(divisible(c) for c in self.conds[0])


def plentiful(x) -> bool:
    """True where a few more rows are no concern: main memory, for which ComfyUI's estimates are many times too large.

    A large batch keeps every core busy by itself: there a call of its own costs no time and saves the memory.
    """
    return x.device.type == "cpu" and len(x) <= FEW_ROWS


def caches(model_options) -> list[str]:
    """Which of the caches that answer in place of the model are on."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    return [key for key in STATEFUL_WRAPPERS if any(key in by_key for by_key in wrappers.values())]


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


def coordinates(sampling):
    """A function (sigma, x) -> alpha and s [B] of x = alpha x0 + s noise. Asked once of the sampling class, the usual two need
    no arithmetic afterwards."""

    def general(sigma, x):
        return alpha_and_s(sampling, sigma, x)

    try:
        probe = torch.tensor([0.0625, 0.5, 1.0, 14.0])
        alpha, s = general(probe, probe)
    except RuntimeError:  # tables on a device
        return general
    flow = torch.equal(alpha, 1 - probe)
    if not torch.equal(s, probe) or not (flow or torch.equal(alpha, torch.ones_like(probe))):
        return general

    def usual(sigma, x):
        s = sigma.reshape(-1).expand(x.shape[0]).to(torch.promote_types(x.dtype, torch.float32))
        return 1 - s if flow else torch.ones_like(s), s

    return usual


def alpha_and_s(sampling, sigma, x):
    """alpha and s [B] of x = alpha x0 + s noise, from the sampling class's own `noise_scaling`: any prediction type."""
    count = x.shape[0]
    sigma = sigma.reshape(-1).expand(count).to(torch.promote_types(x.dtype, torch.float32)).repeat(2)
    latent = torch.zeros_like(sigma)  # fresh: noise_scaling adds in place
    latent[:count] = 1
    return sampling.noise_scaling(sigma, 1 - latent, latent).reshape(-1).expand(2 * count).split(count)


def quiet(model_options, dropped):
    """model_options for a pass of our own: without the wrappers named and without worker GPUs."""
    options = clone_options({k: v for k, v in model_options.items() if k not in MULTIGPU_OPTIONS})
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


@contextmanager
def _no_offload_streams():
    """Weights left in main memory come to the device on the stream that computes. On streams of its own ComfyUI takes their
    memory back once a layer has run, and a backward pass reads them after that (seen as wrong products on CUDA)."""
    management = comfy.model_management
    before, management.NUM_STREAMS = getattr(management, "NUM_STREAMS", 0), 0
    try:
        yield
    finally:
        management.NUM_STREAMS = before


def percent_of(sampling, sigma: float) -> float:
    """The inverse of ComfyUI's `percent_to_sigma`, by bisection: 0 at pure noise, 1 clean, for every sampling class."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) >= sigma else (low, middle)
    return round((low + high) / 2, 9)


def sample_arguments(args, kwargs) -> dict:
    """What CFGGuider.outer_sample was called with, by name."""
    names = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback", "disable_pbar", "seed", "latent_shapes")
    return dict(zip(names, args, strict=False)) | kwargs


def cfg_guider(model, positive, negative, cfg):
    """A GUIDER of ComfyUI's own kind."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider
