"""Guiders: how they call the model, and a run's wrappers around those calls."""

from contextlib import contextmanager

import comfy.patcher_extension
import comfy.samplers

from .options import WrappersMP

CFGGuider = comfy.samplers.CFGGuider
CALLS = ("__call__", "outer_predict_noise")  # of a guider, on the way to its predict_noise


@contextmanager
def calls_through(guider, key: str, predict_noise):
    """Within it, which is one run, the guider's model calls go through the wrapper `predict_noise`.

    A guider that does not ask ComfyUI for its wrappers is given to the sampler in a shell that does.
    """
    asks = is_stock(guider, CALLS)
    kind = WrappersMP.PREDICT_NOISE if asks else WrappersMP.SAMPLER_SAMPLE
    wrapper = predict_noise if asks else _shelled(predict_noise)
    options = guider.model_options  # the guider's private copy for this run
    comfy.patcher_extension.add_wrapper_with_key(kind, key, wrapper, options, True)
    try:
        yield
    finally:
        options["transformer_options"]["wrappers"][kind][key].remove(wrapper)


def is_stock(guider, methods=("predict_noise", *CALLS)) -> bool:
    """Whether a guider calls the model as ComfyUI's own does, with its `cfg` as the scale."""
    return all(getattr(type(guider), name) is getattr(CFGGuider, name) for name in methods)


def _shelled(predict_noise):
    def sampler_sample(executor, guider, *args, **kwargs):
        return executor(Shell(guider, predict_noise), *args, **kwargs)

    return sampler_sample


class Shell:
    """A guider as a sampler sees it, called through `predict_noise`."""

    def __init__(self, guider, predict_noise):
        vars(self).update(guider=guider, predict_noise_of=predict_noise)

    def __call__(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        def call(x, timestep, model_options, seed):
            return self.guider(x, timestep, model_options=model_options, seed=seed)

        return self.predict_noise_of(call, x, timestep, model_options, seed)

    def __getattr__(self, name):
        return getattr(self.guider, name)

    def __setattr__(self, name, value):
        setattr(self.guider, name, value)


def reads_cfg(guider) -> bool:
    """Whether the code of a guider reads its `cfg`."""
    codes = [getattr(getattr(type(guider), name), "__code__", None) for name in ("predict_noise", *CALLS)]
    return any(code is None or "cfg" in code.co_names for code in codes)


def in_the_way(guider) -> str:
    """Who keeps a guider's predictions from passing through ComfyUI's own functions, by name."""
    for name in ("sampling_function", "calc_cond_batch"):
        if (module := _module_of(getattr(comfy.samplers, name))) != "comfy.samplers":
            return f"{name} of {module}"
    for name in ("predict_noise", *CALLS):
        if (module := _module_of(getattr(type(guider), name))) != "comfy.samplers":
            return f"{type(guider).__name__}.{name} of {module}"
    wrappers = guider.model_options.get("transformer_options", {}).get("wrappers", {})
    keys = [str(key) for key in wrappers.get(WrappersMP.PREDICT_NOISE, {}) if not str(key).startswith("reg")]
    return f"a wrapper of predict_noise ({', '.join(keys)})" if keys else "the sampler"


def _module_of(function) -> str:
    return function.__module__.replace("\\", "/").rsplit("/", 1)[-1]  # that of a pack is its folder


def sample_arguments(args, kwargs) -> dict:
    """What CFGGuider.outer_sample was called with, by name."""
    names = ("noise", "latent_image", "sampler", "sigmas", "denoise_mask", "callback", "disable_pbar", "seed")
    return dict(zip((*names, "latent_shapes"), args, strict=False)) | kwargs
