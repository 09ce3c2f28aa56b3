"""REGSchedule* in real runs: cfg seen by a cfg function against the formulas, skipped passes by counting rows."""

import logging
import math

import comfy.patcher_extension
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import reg, tiny

STEPS = 6


@pytest.fixture(scope="module")
def sd15():
    return tiny.build("sd15")


def seen_cfg(t, model, cfg=5.0, sampler="euler", steps=STEPS):
    """[(sigma, cfg)] of every model call that CFG takes part in, as any other pack sees them."""
    seen = []

    def note(args):
        seen.append((float(args["sigma"].max()), float(args["cond_scale"])))
        return args["denoised"]

    model = model.clone()
    model.set_model_sampler_post_cfg_function(note)
    tiny.sample(t, model, cfg=cfg, steps=steps, sampler=sampler)
    return seen


def execute(pack, name, model, **values):
    return pack.nodes[name].execute(model, **values).result[0]


@pytest.mark.parametrize("axis", ["step", "timestep", "sigma"])
def test_linear_and_cosine_follow_their_formula(host, pack, sd15, axis):
    sampling = sd15.patcher.get_model_object("model_sampling")
    linear = seen_cfg(sd15, execute(pack, "REGScheduleLinear", sd15.patcher, start=0.5, end=1.5, axis=axis))
    cosine = seen_cfg(sd15, execute(pack, "REGScheduleCosine", sd15.patcher, power=2.0, axis=axis))
    assert len(linear) == len(cosine) == STEPS
    for i, ((sigma, a), (_, b)) in enumerate(zip(linear, cosine, strict=True)):
        position = {
            "step": i / (STEPS - 1),
            "timestep": 1 - float(sampling.timestep(torch.tensor([sigma]))) / 999,
            "sigma": 1 - sigma / float(sampling.sigma_max),
        }[axis]
        assert a == pytest.approx(1 + 4 * (0.5 + position), abs=0.01)
        assert b == pytest.approx(1 + 4 * (1 - math.cos(math.pi * position**2)) / 2, abs=0.01)


def test_interval_skips_the_unconditional_pass(host, pack, sd15):
    model = execute(pack, "REGScheduleInterval", sd15.patcher, start=0.3, end=0.7, axis="step")
    seen = seen_cfg(sd15, model, steps=11)
    active = [i for i, (_, cfg) in enumerate(seen) if cfg == 5.0]
    assert active == [3, 4, 5, 6, 7] and all(cfg in (1.0, 5.0) for _, cfg in seen)
    with reg.counted(sd15.patcher) as rows:
        tiny.sample(sd15, model, steps=11)
    assert rows["rows"] == 11 + 5
    with reg.counted(sd15.patcher) as rows:
        tiny.sample(sd15, reg.apply(pack, model)[0], steps=11)
    assert rows["rows"] == 11 + 2 * 5 + 2, "REG asks nothing where there is no guidance"


def test_interval_in_sigma_is_closed(host, pack, sd15):
    levels = [s for s, _ in seen_cfg(sd15, sd15.patcher)]
    model = execute(pack, "REGScheduleInterval", sd15.patcher, start=levels[1], end=levels[3], axis="sigma")
    assert [cfg for _, cfg in seen_cfg(sd15, model)] == [1, 5, 5, 5, 1, 1]


def test_curve_and_second_order_samplers(host, pack, sd15):
    model = execute(pack, "REGScheduleCurve", sd15.patcher, points="0:1, 0.5:0.5, 1:2", axis="step")
    seen = seen_cfg(sd15, model, sampler="heun", steps=5)
    by_sigma = {}
    for sigma, cfg in seen:
        by_sigma.setdefault(round(sigma, 4), set()).add(round(cfg, 4))
    assert all(len(v) == 1 for v in by_sigma.values()), "heun's second call at a level must see that level's cfg"
    assert [max(v) for v in by_sigma.values()] == pytest.approx([5, 4, 3, 6, 9])


def test_schedules_multiply_and_commute_with_reg(host, pack, sd15):
    def scheduled(model):
        model = execute(pack, "REGScheduleLinear", model, start=0.0, end=2.0, axis="step")
        return execute(pack, "REGScheduleInterval", model, start=0.3, end=1.0, axis="step")

    assert [cfg for _, cfg in seen_cfg(sd15, scheduled(sd15.patcher))] == pytest.approx([1, 1, 4.2, 5.8, 7.4, 9])
    before, trace = reg.apply(pack, scheduled(sd15.patcher))
    out = tiny.sample(sd15, before, cfg=5.0, steps=STEPS)
    after = scheduled(reg.apply(pack, sd15.patcher)[0])
    assert torch.equal(out, tiny.sample(sd15, after, cfg=5.0, steps=STEPS))
    assert [r.cfg for r in trace.last.rows] == pytest.approx([1, 1, 4.2, 5.8, 7.4, 9])


def test_the_guiders_cfg_is_given_back(host, pack, sd15):
    import comfy.samplers

    model = execute(pack, "REGScheduleLinear", sd15.patcher, start=0.0, end=2.0, axis="step")
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(sd15.positive, sd15.negative)
    guider.set_cfg(5.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    guider.sample(sd15.noise(), sd15.empty_latent()["samples"], comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    assert guider.cfg == 5.0


def test_the_log_says_which_steps_are_active(host, pack, sd15, caplog):
    model = execute(pack, "REGScheduleInterval", sd15.patcher, start=0.3, end=0.7, axis="step")
    with caplog.at_level(logging.INFO):
        tiny.sample(sd15, model, steps=11)
    assert any("steps 4 to 8 (5) of 11" in m for m in caplog.messages)
    nowhere = execute(pack, "REGScheduleInterval", sd15.patcher, start=900.0, end=800.0, axis="sigma")
    with caplog.at_level(logging.WARNING):
        tiny.sample(sd15, nowhere)
    assert any("no effect" in m for m in caplog.messages)


@pytest.mark.parametrize(
    "name,values,match",
    [
        ("REGScheduleInterval", dict(start=0.8, end=0.2, axis="step"), "0.8"),
        ("REGScheduleInterval", dict(start=0.1, end=0.28, axis="sigma"), "0.28"),
        ("REGScheduleCurve", dict(points="0:1, banana", axis="step"), "banana"),
        ("REGScheduleCosine", dict(power=0.0, axis="step"), "0.0"),
        ("REGScheduleLinear", dict(start=math.nan, end=1.0, axis="step"), "nan"),
    ],
)
def test_bad_input_is_named(pack, sd15, name, values, match):
    with pytest.raises(ValueError, match=match):
        execute(pack, name, sd15.patcher, **values)


@pytest.mark.parametrize("name", ["REGScheduleLinear", "REGScheduleCosine", "REGScheduleInterval", "REGScheduleCurve"])
def test_positions_are_made_once_a_run(host, pack, sd15, monkeypatch, name):
    """At a model call nothing is looked up, and one number is read from the device. Oracle: the same run without the node."""
    node = pack.nodes[name]
    widgets = [i for i in node.define_schema().inputs if not i.optional]
    defaults = {i.id: i.default for i in widgets if getattr(i, "default", None) is not None}
    scheduled = node.execute(sd15.patcher, **defaults).result[0]
    sampling, looked_up, reads = type(sd15.patcher.get_model_object("model_sampling")), [], {}
    plain = sampling.percent_to_sigma
    monkeypatch.setattr(sampling, "percent_to_sigma", lambda self, percent: looked_up.append(percent) or plain(self, percent))

    def counted(executor, *args, **kwargs):
        before = len(looked_up)
        with HostReads() as seen:
            out = executor(*args, **kwargs)
        assert len(looked_up) == before
        reads[current].append(seen.count)
        return out

    for current, model in (("plain", sd15.patcher), ("scheduled", scheduled)):
        model, reads[current] = model.clone(), []
        model.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, counted)
        tiny.sample(sd15, model, cfg=5.0, steps=STEPS, sampler="heun")
    assert len(looked_up) <= 40 * STEPS
    assert all(there <= without + 1 for there, without in zip(reads["scheduled"], reads["plain"], strict=True)), reads


class HostReads(TorchDispatchMode):
    """Counts the numbers that the host waits for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))
