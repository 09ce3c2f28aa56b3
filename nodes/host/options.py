"""model_options, and how ComfyUI's wrappers are called."""

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension

WrappersMP = comfy.patcher_extension.WrappersMP
Interrupted = comfy.model_management.InterruptProcessingException
clone_options = comfy.model_patcher.create_model_options_clone

PAIR = "sampler_calc_cond_batch_function"  # the slot where both predictions are made
CFG = "sampler_cfg_function"
PRE_CFG = "sampler_pre_cfg_function"
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
    previous = model_options.get("model_function_wrapper")

    def call(apply_model, args):
        x, which = args["input"].clone(), args["cond_or_uncond"]
        for rows, i in zip(x.chunk(len(which)), which, strict=True):
            if i == 2:
                rows += step
        seen = [0 if i == 2 else i for i in which]
        c = {**args["c"], "transformer_options": {**args["c"]["transformer_options"], "cond_or_uncond": seen}}
        args = {**args, "input": x, "c": c, "cond_or_uncond": seen}
        return previous(apply_model, args) if previous else apply_model(args["input"], args["timestep"], **c)

    return {**model_options, "model_function_wrapper": call}


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


def with_watch(model_options, others: list) -> dict:
    """model_options that tell `others` of a cfg function that a guider puts in place of the given one."""
    given = model_options.get(CFG)

    def watch(args):
        found = args["model_options"].get(CFG)
        others.extend([found] if found is not given else [])
        return args["conds_out"]

    return {**model_options, PRE_CFG: [*model_options.get(PRE_CFG, []), watch]}


def with_wrapper(model_options, kind: str, key: str, wrapper) -> dict:
    """model_options with one more wrapper, the innermost."""
    transformer = model_options.get("transformer_options", {})
    wrappers = transformer.get("wrappers", {})
    of_kind = {**wrappers.get(kind, {}), key: [*wrappers.get(kind, {}).get(key, []), wrapper]}
    return {**model_options, "transformer_options": {**transformer, "wrappers": {**wrappers, kind: of_kind}}}
