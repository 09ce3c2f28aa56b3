"""model_options, and how ComfyUI's wrappers are called."""

from contextlib import contextmanager

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch

WrappersMP = comfy.patcher_extension.WrappersMP
Interrupted = comfy.model_management.InterruptProcessingException
clone_options = comfy.model_patcher.create_model_options_clone

PAIR = "sampler_calc_cond_batch_function"  # the slot where both predictions are made
POST_CFG = "sampler_post_cfg_function"
# Caches see a probe as one more step and would answer it from memory; compiled graphs may have no derivative.
CACHES = ("easycache", "lazycache")
OPAQUE = ("torch.compile",)
MULTIGPU = ("multigpu_clones", "multigpu_thread_pool")


def is_cached(model_options) -> bool:
    """Whether a cache answers in place of the model."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    return any(key in by_key for key in CACHES for by_key in wrappers.values())


def quiet(model_options, dropped=CACHES):
    """model_options for a pass of our own: without the wrappers named, and on one GPU."""
    options = clone_options({k: v for k, v in model_options.items() if k not in MULTIGPU})
    wrappers = options.setdefault("transformer_options", {}).get("wrappers", {})
    for by_key in wrappers.values():
        for key in dropped:
            by_key.pop(key, None)
    return options


def with_shifted_rows(model_options, step):
    """model_options under which the rows of cond list 2 are those of cond list 0 at x + `step`."""
    options = clone_options(model_options)
    previous = options.get("model_function_wrapper")

    def call(apply_model, args):
        x, which = args["input"], args["cond_or_uncond"]
        rows = x.shape[0] // len(which)
        parts = [step if i == 2 else torch.zeros_like(step) for i in which]
        shift = torch.cat([part.expand(rows, *step.shape[1:]) for part in parts])
        seen = [0 if i == 2 else i for i in which]
        c = {**args["c"], "transformer_options": {**args["c"]["transformer_options"], "cond_or_uncond": seen}}
        args = {**args, "input": (x + shift.to(x.device)).to(x.dtype), "c": c, "cond_or_uncond": seen}
        return previous(apply_model, args) if previous else apply_model(args["input"], args["timestep"], **c)

    options["model_function_wrapper"] = call
    return options


def hooked(model, key: str, outer_sample, alone: bool = True):
    """A clone of MODEL whose sampling runs go through the wrapper `outer_sample` (None: through none).

    `alone`: in place of earlier ones under `key`.
    """
    patched = model.clone()
    if alone:
        patched.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, key)
    if outer_sample is not None:
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, outer_sample)
    return patched


def hooks_of(model, key: str) -> list:
    """The objects whose methods are the wrappers of `hooked`, outermost first."""
    return [wrapper.__self__ for wrapper in model.get_wrappers(WrappersMP.OUTER_SAMPLE, key)]


@contextmanager
def calls_through(guider, key: str, predict_noise):
    """Within it, which is one run, the guider's model calls go through the wrapper `predict_noise`."""
    options = guider.model_options  # the guider's private copy for this run
    comfy.patcher_extension.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, predict_noise, options, True)
    try:
        yield
    finally:
        options["transformer_options"]["wrappers"][WrappersMP.PREDICT_NOISE][key].remove(predict_noise)


def sample_arguments(args, kwargs) -> dict:
    """What CFGGuider.outer_sample was called with, by name."""
    names = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback", "disable_pbar", "seed")
    return dict(zip((*names, "latent_shapes"), args, strict=False)) | kwargs
