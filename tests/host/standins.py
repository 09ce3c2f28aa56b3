"""Stand-ins for the kinds of patches, guiders and samplers that other packs bring. All of them work on plain ComfyUI.

A patch is a function MODEL -> MODEL. Most work on rows of the network's batch, on any architecture, outside of the
network: what other packs do inside of an attention layer asks the same of REG.
"""

import copy
from contextlib import contextmanager

import comfy.patcher_extension
import comfy.samplers
import torch

APPLY_MODEL = comfy.patcher_extension.WrappersMP.APPLY_MODEL
COND, UNCOND = 0, 1  # as ComfyUI numbers the rows of the batch in cond_or_uncond


# Patches: by rows


def _around(model, change):
    """`change(ask, x, context, which)` around the network. `which` is cond_or_uncond, and `ask(x, context)` the network.

    `ask(..., turned=n)` also turns the rows of all other inputs by n.
    """

    def wrapper(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        def ask(x, context, turned=0):
            more = {key: value.roll(turned, 0) if torch.is_tensor(value) and len(value) == len(x) else value for key, value in kwargs.items()}
            return executor(x, t, c_concat, context, control, transformer_options, **more)

        return change(ask, x, c_crossattn, transformer_options["cond_or_uncond"])

    patched = model.clone()
    patched.add_wrapper(APPLY_MODEL, wrapper)
    return patched


def one_row_of_each(model):
    """Attention couples: every cond's rows get a text of their own, and the patch knows two conds only."""

    def change(ask, x, context, which):
        if sorted(which) != [COND, UNCOND]:
            raise ValueError(f"want one cond and one uncond, got {which}")
        texts = [part * (1.1 if i == COND else 0.9) for part, i in zip(context.chunk(2), which, strict=True)]
        return ask(x, torch.cat(texts))

    return _around(model, change)


def uncond_first(model):
    """Patches that know the rows by their place: ComfyUI puts uncond's first."""

    def change(ask, x, context, which):
        if which[0] != UNCOND:
            raise IndexError(f"no uncond in front: {which}")
        out = ask(x, context)
        uncond, cond = out.chunk(2)
        return torch.cat([uncond, cond + 0.2 * (cond - uncond)])

    return _around(model, change)


def reads_the_neighbour(model):
    """Normalized attention guidance: in each attention cond's rows move away from uncond's. Alone, a row is left as it is."""

    def change(out, extra):
        which = extra["cond_or_uncond"]
        if COND not in which or UNCOND not in which:
            return out
        rows = list(out.chunk(len(which)))
        cond, uncond = which.index(COND), which.index(UNCOND)
        rows[cond] = rows[cond] + 0.5 * (rows[cond] - rows[uncond])
        return torch.cat(rows)

    patched = model.clone()
    patched.set_model_attn1_output_patch(change)
    return patched


def even_batch_only(model):
    """Kernels that take their rows in twos."""

    def change(ask, x, context, which):
        if len(x) % 2:
            raise RuntimeError(f"odd batch: {len(x)}")
        return ask(x, context)

    return _around(model, change)


def mixes_the_halves(model):
    """Networks in which the two halves of the batch see each other. Any batch goes through, and each is another network."""

    def change(ask, x, context, which):
        out = ask(x, context)
        return 0.8 * out + 0.2 * out.roll(len(out) // 2, 0)

    return _around(model, change)


def swaps_the_halves(model):
    """Networks trained with cond in front: they turn prompts and predictions around. Right only while both halves hold the same x."""

    def change(ask, x, context, which):
        half = len(x) // 2
        return ask(x, context.roll(half, 0), half).roll(-half, 0)

    return _around(model, change)


class RowCache:
    """The TeaCache kind: what the network added to each row, kept by cond_or_uncond, while its input has changed little.

    It starts anew at the first noise level, and the batch's last row decides for all. `threshold`: 0 never reuses.
    """

    def __init__(self, threshold):
        self.threshold, self.rows, self.reused = threshold, {}, 0

    def __call__(self, model):
        patched = model.clone()
        patched.add_wrapper(APPLY_MODEL, self.wrapper)
        return patched

    def wrapper(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        which = transformer_options["cond_or_uncond"]
        parts = dict(zip(which, x.chunk(len(which)), strict=True))
        if float(t.max()) >= float(transformer_options["sample_sigmas"][0]):
            self.rows.clear()
        last = self.rows.get(which[-1])
        changed = float("inf") if last is None else last["changed"] + float((parts[which[-1]] - last["x"]).norm() / last["x"].norm())
        if changed < self.threshold:
            self.reused += 1
            for i in which:
                self.rows[i] |= {"x": parts[i].detach().clone(), "changed": changed}
            return torch.cat([part + self.rows[i]["added"] for i, part in zip(which, x.chunk(len(which)), strict=True)])
        out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        for i, part, result in zip(which, x.chunk(len(which)), out.chunk(len(which)), strict=True):
            self.rows[i] = {"x": part.detach().clone(), "added": (result - part).detach(), "changed": 0.0}
        return out


def never_reusing_cache(model):
    """A cache that has nothing to give yet: it only writes."""
    return RowCache(0.0)(model)


def fixed_batch_engine(rows):
    """An engine compiled for a batch of `rows`, in the one place that ComfyUI has for it."""

    def patch(model):
        def call(apply_model, args):
            if len(args["input"]) != rows:
                raise RuntimeError(f"engine of batch {rows}, got {len(args['input'])}")
            return apply_model(args["input"], args["timestep"], **args["c"])

        patched = model.clone()
        patched.set_model_unet_function_wrapper(call)
        return patched

    return patch


def once_a_level(error=RuntimeError):
    """What knows one call a noise level only: a progress of its own, a stream of frames, a remote network."""

    def patch(model):
        levels = []

        def call(apply_model, args):
            level = float(args["timestep"].max())
            if level in levels:
                raise error("called twice at one level")
            levels.append(level)
            if level == float(args["c"]["transformer_options"]["sample_sigmas"][-2]):
                levels.clear()  # the run is over
            return apply_model(args["input"], args["timestep"], **args["c"])

        patched = model.clone()
        patched.set_model_unet_function_wrapper(call)
        return patched

    return patch


# Functions that take the place of ComfyUI's own


def sampling_function_of(module: str, scale: float = 1.0, reachable: bool = True):
    """A pack's own sampling function: no slot for the pair, no pre-cfg functions. `module`: where it says it is from.

    `reachable`: it goes through calc_cond_batch; else it asks the network by itself. `scale` multiplies cfg.
    """

    def sampling_function(model, x, timestep, uncond, cond, cond_scale, model_options={}, seed=None):  # noqa: B006
        ask = comfy.samplers.calc_cond_batch if reachable else _by_itself
        cond_out, uncond_out = ask(model, [cond, uncond], x, timestep, model_options)
        return uncond_out + scale * cond_scale * (cond_out - uncond_out)

    sampling_function.__module__ = module
    return sampling_function


def _by_itself(model, conds, x, timestep, model_options):
    """Predictions without ComfyUI's help, for prompts that need none."""
    out = []
    for i, cond in enumerate(conds):
        entries = {key: value.process_cond(batch_size=len(x), device=x.device).cond for key, value in cond[0]["model_conds"].items()}
        options = {**model_options.get("transformer_options", {}), "cond_or_uncond": [i], "sigmas": timestep}
        out.append(model.apply_model(x, timestep, transformer_options=options, **entries))
    return out


@contextmanager
def in_place_of(owner, name, function):
    """`function` as `owner.name`, taken out again afterwards; nobody else may have touched it meanwhile."""
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
        assert getattr(owner, name) is function, f"{name} was replaced"
    finally:
        setattr(owner, name, before)


def global_sampling_function(module="rival_pack.sampling", **kind):
    """A pack that puts its own sampling function into ComfyUI for everybody."""
    return in_place_of(comfy.samplers, "sampling_function", sampling_function_of(module, **kind))


# Guiders. `set_cfg` and `set_conds` are CFGGuider's


class ListGuider(comfy.samplers.CFGGuider):
    """A scale for each call of the run."""

    def set_cfg(self, cfg):
        self.cfg = [cfg, cfg, cfg]
        self.turn = 0

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        scale, self.turn = self.cfg[self.turn % 3], self.turn + 1
        pair = self.conds.get("negative"), self.conds.get("positive")
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, *pair, scale, model_options=model_options, seed=seed)


class OtherScaleGuider(comfy.samplers.CFGGuider):
    """`cfg` is something else, the scale has a name of its own."""

    def set_cfg(self, cfg):
        self.cfg, self.guidance = 1.0, cfg

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        pair = self.conds.get("negative"), self.conds.get("positive")
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, *pair, self.guidance, model_options=model_options, seed=seed)


class CallGuider(comfy.samplers.CFGGuider):
    """Its own `__call__`: predict_noise and the wrappers around it are never asked."""

    def __call__(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        pair = self.conds.get("negative"), self.conds.get("positive")
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, *pair, self.cfg, model_options=model_options, seed=seed)


class ThirdCondGuider(comfy.samplers.CFGGuider):
    """Its own predict_noise: the prompts in another order, and a third one."""

    def set_conds(self, positive, negative, third=None):
        self.inner_set_conds({"positive": positive, "negative": negative, "third": negative if third is None else third})

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        conds = [self.conds[name] for name in ("negative", "positive", "third")]
        negative, positive, third = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        return negative + self.cfg * (positive - negative) + 0.5 * (third - negative)


class OutOfReachGuider(comfy.samplers.CFGGuider):
    """It asks the network by itself: nobody can rectify it."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        conds = [self.conds["positive"], self.conds["negative"]]
        positive, negative = _by_itself(self.inner_model, conds, x, timestep, model_options)
        return negative + self.cfg * (positive - negative)


# Samplers: Euler's method, and what they do to the call


def euler(call=lambda model, x, sigma, extra: model(x, sigma, **extra), prepare=lambda x, extra: (x, extra)):
    """A sampler. `prepare`: before the loop; `call`: of each step."""

    @torch.no_grad()
    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        x, extra = prepare(x, extra_args or {})
        for i in range(len(sigmas) - 1):
            denoised = call(model, x, sigmas[i].to(x.dtype).expand(len(x)), extra)
            x = (x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])).to(x.dtype)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        return x

    return comfy.samplers.KSAMPLER(sample)


def deep_copying():
    """It keeps the arguments of its calls for itself."""
    return euler(prepare=lambda x, extra: (x, copy.deepcopy(extra)))


def dropping_options():
    """It calls the model with nothing but x, sigma and the mask."""
    return euler(call=lambda model, x, sigma, extra: model(x, sigma, denoise_mask=extra.get("denoise_mask")))


def in_half(dtype):
    """It keeps x in half precision, and with x the noise levels that it hands to the model."""
    return euler(prepare=lambda x, extra: (x.to(dtype), extra))
