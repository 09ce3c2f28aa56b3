"""REGGuidance in real graphs: what it computes, what it leaves alone, what it says. Oracle: tests/host/reg.py."""

import logging
import re

import comfy.samplers
import pytest
import torch

from . import reg, tiny

SAMPLERS = ["euler", "heun", "dpmpp_2m", "uni_pc", "ddim", "euler_cfg_pp", "lcm"]


@pytest.fixture(scope="module")
def sd15():
    return tiny.build("sd15")


@pytest.fixture(scope="module")
def sd3():
    return tiny.build("sd3")


# What it computes


@pytest.mark.parametrize("arch,flow", [("sd21v", False), ("sd3", True), ("wan", True)])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_row_sum_against_an_independent_implementation(host, pack, arch, flow, batch):
    t = tiny.build(arch)
    out = tiny.sample(t, reg.apply(pack, t.patcher)[0], batch=batch)
    want = tiny.sample(t, reg.oracle_model(t.patcher, flow), batch=batch)
    plain = tiny.sample(t, batch=batch)
    assert reg.relative(out, want) < 0.02 < reg.relative(plain, want)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_against_a_plain_cfg_function(host, pack, sd3, sampler):
    """`schedule` is c(sigma) g with c = V/(V + sigma_ve^2): a cfg function of three lines must give the same latents.

    CFG++ samplers take the unconditional prediction from a post-cfg function: it has to be the model's own.
    """
    model, trace = reg.apply(pack, sd3.patcher, "schedule", data_std=0.8)
    oracle = reg.oracle_model(sd3.patcher, factor=lambda s: 0.64 / (0.64 + (s / (1 - s)) ** 2))
    out = tiny.sample(sd3, model, sampler=sampler, steps=4, scheduler="simple")
    want = tiny.sample(sd3, oracle, sampler=sampler, steps=4, scheduler="simple")
    assert torch.isfinite(out).all()
    assert reg.relative(out, want) < 1e-4
    assert reg.relative(tiny.sample(sd3, sampler=sampler, steps=4, scheduler="simple"), want) > 1e-3
    assert len(trace.last.active) == len(trace.last.rows) >= 4
    active = reg.apply(pack, sd3.patcher)[0]
    assert torch.isfinite(tiny.sample(sd3, active, sampler=sampler, steps=4)).all()


def test_conditions_with_areas_masks_and_ranges(host, pack, sd3):
    """Two positives with areas, masks and strengths, a timestep range: batched by ComfyUI as it likes, same result."""
    nodes = host.nodes
    left = nodes.ConditioningSetArea().append(sd3.conditioning("left"), 64, 128, 0, 0, 0.7)[0]
    right = nodes.ConditioningSetArea().append(sd3.conditioning("right", tokens=9), 96, 96, 32, 32, 1.3)[0]
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    masked = nodes.ConditioningSetMask().append(sd3.conditioning("masked"), mask, "default", 0.8)[0]
    ranged = nodes.ConditioningSetTimestepRange().set_range(sd3.conditioning("ranged"), 0.3, 1.0)[0]
    for positive in (left + right + sd3.positive, masked + sd3.positive, sd3.positive + ranged):
        out = tiny.sample(sd3, reg.apply(pack, sd3.patcher)[0], positive=positive, batch=2)
        want = tiny.sample(sd3, reg.oracle_model(sd3.patcher, flow=True), positive=positive, batch=2)
        assert reg.relative(out, want) < 0.02 < reg.relative(tiny.sample(sd3, positive=positive, batch=2), want)
        for engine in ("reverse",):
            model, trace = reg.apply(pack, sd3.patcher, "scalar", engine)
            tiny.sample(sd3, model, positive=positive)
            assert {r.engine for r in trace.last.rows} == {engine}, trace


def test_inpainting_mask(host, pack, sd3):
    latent = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    options = dict(latent=latent, noise_mask=mask)
    out = tiny.sample(sd3, reg.apply(pack, sd3.patcher)[0], **options)
    want = tiny.sample(sd3, reg.oracle_model(sd3.patcher, flow=True), **options)
    assert reg.relative(out, want) < 0.02
    assert torch.allclose(out[..., :8], latent[..., :8], atol=1e-4), "the kept half stays"


def test_ksampler_advanced_in_two_parts_equals_one_run(host, pack, sd3):
    model, trace = reg.apply(pack, sd3.patcher)
    node = host.nodes.KSamplerAdvanced()
    args = (4.0, "euler", "normal", sd3.positive, sd3.negative)
    whole = node.sample(model, "enable", 5, 6, *args, sd3.empty_latent(2), 0, 6, "disable")[0]
    first = node.sample(model, "enable", 5, 6, *args, sd3.empty_latent(2), 0, 3, "enable")[0]
    assert len(trace.last.rows) == 3
    second = node.sample(model, "disable", 5, 6, *args, first, 3, 6, "disable")[0]
    assert reg.relative(second["samples"], whole["samples"]) < 1e-4
    assert [len(r.rows) for r in trace.runs] == [6, 3, 3]


def test_sampler_custom_advanced_with_cfg_guider(host, pack, all_nodes, sd3):
    from comfy_extras import nodes_custom_sampler as custom

    model, trace = reg.apply(pack, sd3.patcher)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(sd3.positive, sd3.negative)
    guider.set_cfg(4.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    execute = custom.SamplerCustomAdvanced.execute if hasattr(custom.SamplerCustomAdvanced, "execute") else custom.SamplerCustomAdvanced().sample
    result = execute(custom.Noise_RandomNoise(0), guider, comfy.samplers.sampler_object("euler"), sigmas, sd3.empty_latent())
    latent = getattr(result, "result", result)[0]["samples"]
    assert torch.allclose(latent, tiny.sample(sd3, model, cfg=4.0), atol=1e-5)
    assert all(len(run.active) == 3 for run in trace.runs)


def test_batch_of_three_is_one_call_of_three_rows(host, pack, sd15):
    with reg.counted(sd15.patcher) as plain:
        tiny.sample(sd15, batch=2)
    with reg.counted(sd15.patcher) as ours:
        tiny.sample(sd15, reg.apply(pack, sd15.patcher)[0], batch=2)
    assert (plain["calls"], plain["rows"]) == (3, 12)
    assert (ours["calls"], ours["rows"]) == (4, 18 + 4)  # in the first step also the sampler's own pair, to compare with
    with reg.counted(sd15.patcher) as apart:  # prompts of unequal length cannot share a call: probes still may
        negative = sd15.conditioning("longer", tokens=2 * 7 + 1)
        model = reg.apply(pack, sd15.patcher)[0]
        tiny.sample(sd15, model, negative=negative)
    assert apart["rows"] == 9 + 2


def test_attention_patches_see_the_probe_as_cond(host, pack, sd15):
    """Patches index by cond_or_uncond, as IP-Adapter does: no third kind may appear."""
    seen = []
    model = sd15.patcher.clone()
    model.set_model_attn2_patch(lambda q, k, v, extra: (seen.append(tuple(extra["cond_or_uncond"])), (q, k, v))[1])
    tiny.sample(sd15, reg.apply(pack, model)[0])
    assert {tuple(sorted(s)) for s in seen} == {(0, 1), (0, 0, 1)}


def test_a_model_function_wrapper_is_chained(host, pack, sd15):
    calls = []

    def wrapper(apply_model, args):
        calls.append((args["input"].shape[0], list(args["cond_or_uncond"])))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = sd15.patcher.clone()
    model.set_model_unet_function_wrapper(wrapper)
    out = tiny.sample(sd15, reg.apply(pack, model)[0])
    assert torch.equal(out, tiny.sample(sd15, reg.apply(pack, sd15.patcher)[0]))
    assert [rows for rows, _ in calls] == [2, 3, 3, 3] and all(set(which) == {0, 1} for _, which in calls)


def test_refresh_saves_rows(host, pack, sd15):
    model, trace = reg.apply(pack, sd15.patcher, refresh=2)
    with reg.counted(sd15.patcher) as ours:
        tiny.sample(sd15, model, steps=8)
    assert [r.fresh for r in trace.last.rows][:4] == [True, False, True, False]
    assert ours["rows"] == 8 * 2 + sum(r.fresh for r in trace.last.rows) + 2  # two probes, and once the pair that joined rows are compared with


def test_start_and_end_percent(host, pack, sd3):
    model, trace = reg.apply(pack, sd3.patcher, start=0.2, end=0.7)
    tiny.sample(sd3, model, steps=6)
    sampling = model.get_model_object("model_sampling")
    high, low = sampling.percent_to_sigma(0.2), sampling.percent_to_sigma(0.7)
    for row in trace.last.rows:
        assert row.active == (low <= row.sigma <= high), trace
    assert 0 < len(trace.last.active) < 6


# What it leaves alone


@pytest.mark.parametrize("settings", [dict(strength=0.0), dict(form="off")])
def test_off_is_bit_identical_without_extra_calls(host, pack, sd15, settings):
    with reg.counted(sd15.patcher) as plain:
        want = tiny.sample(sd15, batch=2)
    with reg.counted(sd15.patcher) as ours:
        out = tiny.sample(sd15, reg.apply(pack, sd15.patcher, **settings)[0], batch=2)
    assert torch.equal(out, want) and ours == plain


def test_cfg_one_is_bit_identical_without_extra_calls_and_says_so(host, pack, sd15, caplog):
    with reg.counted(sd15.patcher) as plain:
        want = tiny.sample(sd15, cfg=1.0)
    model, trace = reg.apply(pack, sd15.patcher)
    with reg.counted(sd15.patcher) as ours, caplog.at_level(logging.WARNING):
        out = tiny.sample(sd15, model, cfg=1.0)
    assert torch.equal(out, want) and ours == plain
    assert any("did nothing" in m and "cfg 1" in m for m in caplog.messages)
    assert trace.last.active == [] and "cfg 1" in str(trace)


def test_cfg_one_costs_nothing_even_where_a_patch_wants_the_unconditional_pass(host, pack, sd15):
    model = sd15.patcher.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=True)
    with reg.counted(sd15.patcher) as plain:
        want = tiny.sample(sd15, model, cfg=1.0)
    with reg.counted(sd15.patcher) as ours:
        out = tiny.sample(sd15, reg.apply(pack, model)[0], cfg=1.0)
    assert torch.equal(out, want) and ours == plain and plain["rows"] == 6


@pytest.mark.parametrize("form", ["row_sum", "scalar"])
def test_controlnet_is_asked_again_at_the_probe(host, pack, sd15, form):
    """The control net's output depends on x too. Oracle: central differences of whole calls, control net and all."""
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(5))
    net = tiny.build_controlnet()
    conds = host.nodes.ControlNetApplyAdvanced().apply_controlnet(sd15.positive, sd15.negative, net, hint, 1.0, 0.0, 1.0)
    conds = dict(zip(("positive", "negative"), conds, strict=True))

    def look(guider, x, sigma, options):
        module, core = pack.import_("nodes.host.branches"), pack.import_("reg_core")
        both = [guider.conds["positive"], guider.conds["negative"]]
        branches = module.ModelBranches(guider.inner_model, both, x, sigma, options)
        result = core.Rectifier(core.Settings(form=form))(branches, core.Point.of(x, sigma))
        h = 0.01 * sigma.reshape(-1, 1, 1, 1)
        v = result.denoised - result.reference
        direction = torch.ones_like(x) if form == "row_sum" else v
        scale = 1.0 if form == "row_sum" else (direction.numel() ** 0.5 / direction.norm())
        ahead, behind = (host.samplers.calc_cond_batch(guider.inner_model, both[:1], x + d * h * scale * direction, sigma, options)[0] for d in (1, -1))
        product = (ahead - behind) / (2 * h * scale)
        return result.rectified, product * v if form == "row_sum" else (v * product).sum() / (v * v).sum() * v

    ours, want = reg.inside(sd15, look, **conds)
    assert reg.relative(ours, want) < 0.01


def test_attention_kernels_without_derivative_are_replaced_not_feared(host, pack, sd15):
    """Sage, flash and int8 attention come in by the same override: derivatives take PyTorch's own, other passes the user's."""
    used = []

    def fused(func, q, k, v, heads, **kwargs):
        used.append(1)
        return reg.NoDerivative.apply(func(q, k, v, heads, **kwargs))

    model = sd15.patcher.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = fused
    for engine in ("reverse",):
        used.clear()
        patched, trace = reg.apply(pack, model, "scalar", engine)
        out = tiny.sample(sd15, patched)
        assert {r.engine for r in trace.last.rows} == {engine} and not trace.last.notes, trace
        assert reg.relative(out, tiny.sample(sd15, reg.apply(pack, sd15.patcher, "scalar", engine)[0])) < 1e-4
        assert used, "plain passes keep the user's attention"


def test_the_last_node_applied_wins(host, pack, sd15):
    first, _ = reg.apply(pack, sd15.patcher, "product", "reverse")
    second, trace = reg.apply(pack, first, "schedule")
    assert torch.equal(tiny.sample(sd15, second), tiny.sample(sd15, reg.apply(pack, sd15.patcher, "schedule")[0]))
    assert len(trace.runs) == 1
    off, _ = reg.apply(pack, first, "off")
    assert torch.equal(tiny.sample(sd15, off), tiny.sample(sd15))


@pytest.mark.parametrize("name", ["RescaleCFG", "APG", "TCFG", "Mahiro", "CFGZeroStar"])
def test_order_against_core_nodes_does_not_matter(host, pack, all_nodes, sd15, name):
    """REG is active exactly once a step, before or after the other patch."""

    def other(model):
        node = all_nodes[name]
        values = {"RescaleCFG": dict(multiplier=0.7), "APG": dict(eta=0.5, norm_threshold=5.0, momentum=-0.5)}.get(name, {})
        if hasattr(node, "execute"):
            return node.execute(model=model, **values).result[0]
        return getattr(node(), node.FUNCTION)(model=model, **values)[0]

    before, trace = reg.apply(pack, other(sd15.patcher))
    after = other(reg.apply(pack, sd15.patcher)[0])
    out = tiny.sample(sd15, before)
    assert len(trace.last.active) == 3
    assert torch.equal(out, tiny.sample(sd15, after))
    assert not torch.equal(out, tiny.sample(sd15, other(sd15.patcher)))
    assert not torch.equal(out, tiny.sample(sd15, reg.apply(pack, sd15.patcher)[0]))


def test_post_cfg_functions_see_the_models_own_unconditional_prediction(host, pack, sd15):
    seen = []
    model = sd15.patcher.clone()
    model.set_model_sampler_post_cfg_function(lambda args: (seen.append(args["uncond_denoised"].clone()), args["denoised"])[1])
    tiny.sample(sd15, model, steps=1)
    tiny.sample(sd15, reg.apply(pack, model)[0], steps=1)
    assert torch.allclose(seen[0], seen[1], atol=1e-5)


def shown(server, steps=3, **settings):
    """What REG Guidance shows on itself after sampling a tiny SD1.5 on the server."""
    values = dict(
        form="row_sum", gain=1.0, strength=1.0, start_percent=0.0, end_percent=1.0, skip_below=0.0, data_std=1.0, engine="auto", refresh=1,
    )  # fmt: skip
    cfg = settings.pop("cfg", 4.0)
    sampler = dict(
        model=["reg", 0], seed=5, steps=steps, cfg=cfg, sampler_name="euler", scheduler="normal", positive=["2", 0], negative=["3", 0],
        latent_image=["4", 0], denoise=1.0,
    )  # fmt: skip
    return server.run(
        {
            "1": {"class_type": "REGTestTinyCheckpoint", "inputs": {"arch": "sd15"}},
            "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a cat"}},
            "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a dog"}},
            "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "reg": {"class_type": "REGGuidance", "inputs": {"model": ["1", 0], **values, **settings}},
            "5": {"class_type": "KSampler", "inputs": sampler},
            "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
            "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
        }
    ).shown.get("reg")


def test_the_node_says_what_it_did(server):
    """Oracle: the line that the server logs for the same run. On the node each fact has a line, which is not broken inside a word."""
    lines = shown(server).splitlines()
    said = ", ".join(lines)
    assert len(lines) == 4
    logged = re.findall(r"REG: form row_sum, .*(active in \d+ of \d+ model calls, \d+ % of plain guidance, estimated gain [\d.]+),", server.log)
    assert said.startswith(logged[-1]) and "active in 3 of 3" in said
    assert re.search(r", \+\d+% model evaluations$", said)


@pytest.mark.parametrize("settings,said", [(dict(cfg=1.0), "REG did nothing: cfg 1"), (dict(form="off"), "off: plain guidance")])
def test_the_node_says_why_nothing_happened(server, settings, said):
    assert said in shown(server, **settings)
