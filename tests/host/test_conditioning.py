"""Conditioning features beside areas, masks, ranges and ControlNet (test_guidance_node.py). Oracle: reg.oracle_model, by ComfyUI's own calls."""

import comfy.hooks
import pytest
import torch

from . import reg, tiny


@pytest.fixture(scope="module")
def sd3():
    return tiny.build("sd3")


def agrees(pack, t, flow, wrap=lambda model: model, bound=0.02, refused=None, **values):
    """REG against the oracle, which must differ from plain guidance; and every engine serves, or says why it does not."""
    base = wrap(t.patcher)
    out = tiny.sample(t, reg.apply(pack, base)[0], **values)
    want = tiny.sample(t, reg.oracle_model(base, flow=flow), **values)
    plain = tiny.sample(t, base, **values)
    assert reg.relative(out, want) < bound < reg.relative(plain, want)
    scalar = {}
    for engine in ("finite_difference", "forward", "reverse"):
        model, trace = reg.apply(pack, base, "scalar", engine)
        scalar[engine] = tiny.sample(t, model, **values)
        if refused is None or engine == "finite_difference":
            assert {r.engine for r in trace.last.rows} == {engine}, trace
        else:
            assert {r.engine for r in trace.last.rows} == {"finite_difference"} and refused in str(trace)
    assert reg.relative(scalar["reverse"], scalar["forward"]) < 1e-3
    assert reg.relative(scalar["finite_difference"], scalar["forward"]) < 0.05
    return plain


def test_lora_hooks_per_cond_with_keyframes(host, pack, sd3):
    """A LoRA on the positive only, switched on halfway: ComfyUI patches the weights between its calls."""
    keys = [k for k in sd3.patcher.model.state_dict() if k.endswith("attn.qkv.weight")]
    g = torch.Generator().manual_seed(1)
    lora = {k[: -len(".weight")] + ".diff": 0.2 * torch.randn(sd3.patcher.model.state_dict()[k].shape, generator=g) for k in keys}
    hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=1.0, strength_clip=0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
    frames.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.5))
    hooks.set_keyframes_on_hooks(frames)
    positive = comfy.hooks.set_hooks_for_conditioning(sd3.positive, hooks)
    before = {k: v.clone() for k, v in sd3.patcher.model.state_dict().items()}
    plain = agrees(pack, sd3, True, refused="the prompt carries hooks", positive=positive, steps=4)
    assert not torch.equal(plain, tiny.sample(sd3, steps=4)), "the hook must act"
    after = sd3.patcher.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_context_windows_over_video(host, pack):
    """Wan in overlapping windows of frames, each its own call, blended by ComfyUI."""
    import comfy.context_windows as windows

    t = tiny.build("wan")
    latent = torch.zeros(1, 16, 7, 8, 8)

    def wrap(model):
        model = model.clone()
        model.model_options["context_handler"] = windows.IndexListContextHandler(
            context_schedule=windows.get_matching_context_schedule("standard_static"), fuse_method=windows.get_matching_fuse_method("pyramid"),
            context_length=4, context_overlap=2, context_stride=1, closed_loop=False, dim=2,
        )  # fmt: skip
        windows.create_prepare_sampling_wrapper(model)
        return model

    plain = agrees(pack, t, True, wrap, latent=latent)
    assert not torch.equal(plain, tiny.sample(t, latent=latent)), "windows must act"


def test_inpaint_models_with_concatenated_latents(host, pack):
    """SD 1.5 inpainting takes 9 channels: 4 noisy, a mask, 4 of the masked image."""
    t = tiny.build("sd15")
    with torch.inference_mode():
        model = t.patcher.model
        first = model.diffusion_model.input_blocks[0][0]
        g = torch.Generator().manual_seed(2)
        wide = torch.cat([first.weight, 0.1 * torch.randn(first.weight.shape[0], 5, 3, 3, generator=g)], 1)
        first.weight = torch.nn.Parameter(wide, requires_grad=False)
        model.set_inpaint()
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 6:] = 1
    conds = {}
    for key in ("positive", "negative"):
        ((context, entries),) = getattr(t, key)
        conds[key] = [[context, entries | {"concat_latent_image": latent, "concat_mask": mask}]]
    model, trace = reg.apply(pack, t.patcher)
    out = tiny.sample(t, model, latent=latent, noise_mask=mask, **conds)
    want = tiny.sample(t, reg.oracle_model(t.patcher), latent=latent, noise_mask=mask, **conds)
    assert reg.relative(out, want) < 0.05 and torch.allclose(out[..., :6], latent[..., :6], atol=1e-3)
    assert len(trace.last.active) == 3


def test_attention_patches_as_ip_adapter_makes_them(host, pack):
    """Extra keys and values chosen per row by cond_or_uncond: the probe takes the cond's."""
    t = tiny.build("sd21v")
    g = torch.Generator().manual_seed(4)
    tokens = torch.randn(2, 3, 16, generator=g)  # of cond and of uncond

    def adapter(q, k, v, extra):
        rows = q.shape[0] // len(extra["cond_or_uncond"])
        more = torch.cat([tokens[i : i + 1].expand(rows, -1, -1) for i in extra["cond_or_uncond"]]).to(k)
        return q, torch.cat([k, more], 1), torch.cat([v, more], 1)

    def wrap(model):
        model = model.clone()
        model.set_model_attn2_patch(adapter)
        return model

    plain = agrees(pack, t, False, wrap, batch=2)
    assert not torch.equal(plain, tiny.sample(t, batch=2))
