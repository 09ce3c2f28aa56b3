"""REG beside the other guidance and model patches of ComfyUI's core: once a step, in any order, their state untouched.

Oracle: the other order; and for caches the same cache without REG.
"""

import pytest
import torch

from . import reg, tiny

UNET = [
    "RescaleCFG", "APG", "TCFG", "CFGZeroStar", "CFGNorm", "Mahiro", "FreSca", "PerturbedAttentionGuidance", "SelfAttentionGuidance",
    "HyperTile", "FreeU", "FreeU_V2", "TomePatchModel", "RenormCFG", "NAGuidance", "CFGOverride",
]  # fmt: skip
DIT = ["SkipLayerGuidanceSD3", "SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple", "APG", "CFGNorm", "FreSca"]
VALUES = {
    "SkipLayerGuidanceSD3": {"layers": "0", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiT": {"double_layers": "0", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "0", "single_layers": "", "start_percent": 0.0},
    "CFGOverride": {"cfg": 2.5, "start_percent": 0.0, "end_percent": 0.6}, "RescaleCFG": {"multiplier": 0.7},
    "APG": {"eta": 0.5, "norm_threshold": 5.0, "momentum": -0.5}, "HyperTile": {"tile_size": 32},
}  # fmt: skip
NO_EFFECT = ("HyperTile", "TomePatchModel")  # on latents as small as these


def defaults(node):
    """A node's widgets at their defaults, read from its own declaration."""
    values = {}
    for name, spec in node.INPUT_TYPES().get("required", {}).items():
        options = spec[1] if len(spec) > 1 else {}
        if spec[0] == "MODEL":
            continue
        choices = spec[0] if isinstance(spec[0], list) else options.get("options")
        values[name] = options.get("default", choices[0] if choices else None)
    return values


def patch(nodes, name, model):
    """`model` through the core node `name`."""
    node = nodes[name]
    values = {k: v for k, v in (defaults(node) | VALUES.get(name, {})).items() if k in defaults(node)}
    if hasattr(node, "PREPARE_CLASS_CLONE"):
        result = node.execute(model=model, **values)
        return getattr(result, "result", result)[0]
    return getattr(node(), node.FUNCTION)(model=model, **values)[0]


_tiny = {}


def built(arch):
    return _tiny.setdefault(arch, tiny.build(arch))


@pytest.mark.parametrize("arch,name", [("sd15", n) for n in UNET] + [("sd3", n) for n in DIT])
@pytest.mark.parametrize("form", ["row_sum", "scalar"])
def test_once_a_step_in_any_order(host, pack, all_nodes, arch, name, form):
    if name not in all_nodes:
        pytest.skip(f"this ComfyUI has no {name}")
    t = built(arch)
    before, trace = reg.apply(pack, patch(all_nodes, name, t.patcher), form)
    out = tiny.sample(t, before, steps=4)
    after, other_trace = reg.apply(pack, t.patcher, form)
    assert torch.allclose(out, tiny.sample(t, patch(all_nodes, name, after), steps=4), rtol=1e-4, atol=1e-4)
    for run in (trace.last, other_trace.last):
        assert len(run.rows) == 4
        assert len(run.active) == (4 if name != "CFGOverride" else len([r for r in run.rows if r.cfg > 1])), run.table()
    assert torch.isfinite(out).all()
    if name not in NO_EFFECT:
        assert not torch.equal(out, tiny.sample(t, reg.apply(pack, t.patcher, form)[0], steps=4)), "the other patch must act"
    assert not torch.equal(out, tiny.sample(t, patch(all_nodes, name, t.patcher), steps=4)), "REG must act"


def test_cfg_override_is_what_the_trace_reports(host, pack, all_nodes):
    if "CFGOverride" not in all_nodes:
        pytest.skip("this ComfyUI has no CFGOverride")
    t = built("sd15")
    model, trace = reg.apply(pack, patch(all_nodes, "CFGOverride", t.patcher))
    tiny.sample(t, model, steps=6, cfg=4.0)
    assert {round(r.cfg, 3) for r in trace.last.rows} == {2.5, 4.0}


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
@pytest.mark.parametrize("form,engine", [("row_sum", "auto"), ("scalar", "auto"), ("scalar", "reverse"), ("scalar", "forward")])
def test_caches_do_not_see_the_probes(host, pack, all_nodes, name, form, engine):
    """With a threshold never reached the cache must change nothing; with one always reached it skips as often as without REG."""
    t, node = built("sd3"), all_nodes[name]

    def cached(model, threshold):
        return node.execute(model=model, reuse_threshold=threshold, start_percent=0.0, end_percent=1.0, verbose=False).result[0]

    values = dict(steps=8)
    never = tiny.sample(t, reg.apply(pack, cached(t.patcher, 0.0), form, engine)[0], **values)
    assert reg.relative(never, tiny.sample(t, reg.apply(pack, t.patcher, form, engine)[0], **values)) < 0.01

    def calls(model):
        with reg.counted(t.patcher) as seen:
            out = tiny.sample(t, model, **values)
        assert torch.isfinite(out).all()
        return seen["calls"]

    plain, skipping = calls(t.patcher), calls(cached(t.patcher, 3.0))
    model, trace = reg.apply(pack, cached(t.patcher, 3.0), form, engine)
    with_reg = calls(model)
    if name == "LazyCache":  # EasyCache judges tiny random networks too changeable to skip
        assert skipping < plain
    if engine == "auto" and name == "LazyCache":  # it leaves out whole steps: REG's probes go with them
        assert len(trace.last.rows) < 8
    assert {r.engine for r in trace.last.active} == {"finite_difference" if engine == "auto" else engine}
    assert all(-3 < r.correction_mean < 3 for r in trace.last.active), trace
    assert with_reg > skipping
    assert torch.equal(tiny.sample(t, cached(t.patcher, 3.0), **values), tiny.sample(t, cached(t.patcher, 3.0), **values))
