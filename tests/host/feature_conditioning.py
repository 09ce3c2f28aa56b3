"""Cases of features.py: what conditioning can carry."""

import dataclasses

import comfy.context_windows
import comfy.controlnet
import comfy.gligen
import comfy.hooks
import comfy.model_patcher
import torch
from comfy.t2i_adapter.adapter import Adapter

from . import tiny, tiny_families
from .features import Setup, case, generator

KIND = "conditioning"
HOOKED = dict(engines=("finite_difference",), why="the prompt carries hooks")


def halves():
    """A pixel mask of the left half."""
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1
    return mask


@case(KIND, "areas")
def areas(w):
    t, set_area = tiny.build("sd3"), w.host.nodes.ConditioningSetArea().append
    left = set_area(t.conditioning("left"), 64, 128, 0, 0, 0.7)[0]
    right = set_area(t.conditioning("right", tokens=9), 96, 96, 32, 32, 1.3)[0]
    return Setup(t, values=dict(positive=left + right + t.positive, batch=2), flow=True)


@case(KIND, "masks")
def masks(w):
    t = tiny.build("sd3")
    masked = w.host.nodes.ConditioningSetMask().append(t.conditioning("masked"), halves(), "default", 0.8)[0]
    return Setup(t, values=dict(positive=masked + t.positive, batch=2), flow=True)


@case(KIND, "several positives")
def several_positives(w):
    t = tiny.build("sd15")
    return Setup(t, values=dict(positive=t.positive + t.conditioning("second", tokens=9) + t.conditioning("third")))


@case(KIND, "timestep ranges")
def timestep_ranges(w):
    t = tiny.build("sd3")
    ranged = w.host.nodes.ConditioningSetTimestepRange().set_range(t.conditioning("ranged"), 0.3, 1.0)[0]
    return Setup(t, values=dict(positive=t.positive + ranged, steps=4), flow=True)


@case(KIND, "ControlNet")
def control_net(w):
    return _controlled(w, tiny.build("sd15"), tiny.build_controlnet())


@case(KIND, "T2I-adapter")
def t2i_adapter(w):
    """Its features fit two residual blocks a level, as Stable Diffusion has; they do not depend on x."""
    recipe = tiny.RECIPES["sd15"]
    tiny.RECIPES["sd15"] = dataclasses.replace(
        recipe, keys=recipe.keys | dict(num_res_blocks=[2, 2], transformer_depth=[1] * 4, transformer_depth_output=[1] * 6)
    )
    try:
        t = tiny.build("sd15")
    finally:
        tiny.RECIPES["sd15"] = recipe
    net = Adapter(cin=3 * 64, channels=[32, 64, 128, 128], nums_rb=2, ksize=1, sk=True, use_conv=False, xl=False).eval()
    tiny_families.fill(net, 1)
    return _controlled(w, t, comfy.controlnet.T2IAdapter(net, 3, 8, "nearest-exact"))


def _controlled(w, t, net):
    hint = torch.rand(1, 128, 128, 3, generator=generator(5))
    positive, negative = w.host.nodes.ControlNetApplyAdvanced().apply_controlnet(t.positive, t.negative, net, hint, 1.0, 0.0, 1.0)
    return Setup(t, values=dict(positive=positive, negative=negative))


@case(KIND, "GLIGEN")
def gligen(w):
    """A box with a text of its own. ComfyUI's loader, on a checkpoint with a gate for each transformer block."""
    t, state = tiny.build("sd15"), {}
    for name, block in t.patcher.model.diffusion_model.named_modules():
        if type(block).__name__ == "BasicTransformerBlock":
            width = block.norm1.normalized_shape[0]
            gate = comfy.gligen.GatedSelfAttentionDense(width, 768, 8, width // 8)
            tiny_families.fill(gate, len(state))
            state |= {f"{name}.fuser.{key}": value for key, value in gate.state_dict().items()}
    position = comfy.gligen.PositionNet(768, 768)
    tiny_families.fill(position, 3)
    state |= {f"position_net.{key}": value for key, value in position.state_dict().items()}
    patcher = comfy.model_patcher.ModelPatcher(comfy.gligen.load_gligen(state), t.patcher.load_device, t.patcher.offload_device)
    text = torch.randn(1, 768, generator=generator(6))
    ((context, entries),) = t.positive
    return Setup(t, values=dict(positive=[[context, entries | {"gligen": ("position", patcher, [(text, 8, 8, 2, 4)])}]]))


def _keyframes(hooks):
    """Off in the first half, then on."""
    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
    frames.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.5))
    hooks.set_keyframes_on_hooks(frames)
    return hooks


def _attention_weights(t):
    state = t.patcher.model.state_dict()
    return {k: state[k] for k in state if k.endswith("attn.qkv.weight")}


@case(KIND, "LoRA hooks with keyframes")
def lora_hooks(w):
    """A LoRA on the positive only, switched on halfway: ComfyUI patches the weights between its calls."""
    t, g = tiny.build("sd3"), generator(1)
    lora = {k[: -len(".weight")] + ".diff": 0.2 * torch.randn(v.shape, generator=g) for k, v in _attention_weights(t).items()}
    hooks = _keyframes(comfy.hooks.create_hook_lora(lora=lora, strength_model=1.0, strength_clip=0.0))
    return Setup(t, values=dict(positive=comfy.hooks.set_hooks_for_conditioning(t.positive, hooks), steps=4), flow=True, **HOOKED)


@case(KIND, "model hooks with keyframes")
def model_hooks(w):
    """Another model's weights on the positive only (Create Hook Model as LoRA)."""
    t, g = tiny.build("sd3"), generator(2)
    other = {k: v + 0.2 * torch.randn(v.shape, generator=g) for k, v in _attention_weights(t).items()}
    hooks = _keyframes(comfy.hooks.create_hook_model_as_lora(other, None, 1.0, 0.0))
    return Setup(t, values=dict(positive=comfy.hooks.set_hooks_for_conditioning(t.positive, hooks), steps=4), flow=True, **HOOKED)


@case(KIND, "inpaint mask")
def inpaint_mask(w):
    t = tiny.build("sd3")
    return Setup(t, values=dict(latent=torch.randn(1, 16, 16, 16, generator=generator(1)), noise_mask=halves()[:, None, ::8, ::8]), flow=True)


@case(KIND, "inpaint model with concat")
def inpaint_model(w):
    """SD 1.5 inpainting takes 9 channels: 4 noisy, a mask, 4 of the masked image."""
    t = tiny.build("sd15")
    model = t.patcher.model
    first = model.diffusion_model.input_blocks[0][0]
    wide = torch.cat([first.weight, 0.1 * torch.randn(first.weight.shape[0], 5, 3, 3, generator=generator(2))], 1)
    first.weight = torch.nn.Parameter(wide, requires_grad=False)
    model.set_inpaint()
    latent = torch.randn(1, 4, 16, 16, generator=generator(1))
    mask = halves()[:, None, ::8, ::8]
    values = dict(latent=latent, noise_mask=mask)
    for key in ("positive", "negative"):
        ((context, entries),) = getattr(t, key)
        values[key] = [[context, entries | {"concat_latent_image": latent, "concat_mask": mask}]]
    return Setup(t, values=values)


@case(KIND, "attention patches (IP-adapter)")
def ip_adapter(w):
    """Extra keys and values chosen per row by cond_or_uncond: the probe takes the cond's."""
    t = tiny.build("sd21v")
    tokens = torch.randn(2, 3, 16, generator=generator(4))  # of cond and of uncond

    def adapter(q, k, v, extra):
        rows = q.shape[0] // len(extra["cond_or_uncond"])
        more = torch.cat([tokens[i : i + 1].expand(rows, -1, -1) for i in extra["cond_or_uncond"]]).to(k)
        return q, torch.cat([k, more], 1), torch.cat([v, more], 1)

    model = t.patcher.clone()
    model.set_model_attn2_patch(adapter)
    return Setup(t, model, values=dict(batch=2))


@case(KIND, "context windows")
def context_windows(w):
    """Wan in overlapping windows of frames, each its own call, blended by ComfyUI."""
    t, windows = tiny.build("wan"), comfy.context_windows
    model = t.patcher.clone()
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"), fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=4, context_overlap=2, context_stride=1, closed_loop=False, dim=2,
    )  # fmt: skip
    windows.create_prepare_sampling_wrapper(model)
    return Setup(t, model, values=dict(latent=torch.zeros(1, 16, 7, 8, 8)), flow=True)
