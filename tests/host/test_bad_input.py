"""REGGuidance where things go wrong: bad values, kernels without derivative, corrections that are no numbers, Cancel."""

import logging
import math

import pytest
import torch

from . import reg, tiny


@pytest.fixture(scope="module")
def sd15():
    return tiny.build("sd15")


@pytest.mark.parametrize(
    "bad,match",
    [
        (dict(strength=math.nan), "nan"), (dict(start=0.8, end=0.2), "0.8"), (dict(start=-0.1), "-0.1"), (dict(end=1.5), "1.5"), (dict(start=math.nan), "nan"),
        (dict(refresh=-1), "-1"), (dict(form="rowsum"), "rowsum"), (dict(engine="jvp"), "jvp"), (dict(data_std=0.0), "0.0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(pack, sd15, bad, match):
    with pytest.raises(ValueError, match=match):
        reg.apply(pack, sd15.patcher, **bad)


@pytest.mark.parametrize(
    "kind,values,message",
    [
        ("REGGuidance", dict(start_percent=0.8, end_percent=0.2), "got 0.8 and 0.2"),
        ("REGGuidance", dict(end_percent=1.5), "got 0.0 and 1.5"),
        ("REGGuidance", dict(form="calibrated"), "form 'calibrated' needs a table"),
        ("REGGuidance", dict(form="rowsum"), "'rowsum'"),
        ("REGScheduleInterval", dict(start=0.8, end=0.2), "start=0.8, end=0.2"),
        ("REGScheduleCurve", dict(points="0:0, one"), "'one'"),
        ("REGSweep", dict(cfgs="2, four"), "'four' is not a number"),
    ],
)
def test_what_can_be_seen_before_running_is_said_then(server, kind, values, message):
    """No node of the graph runs: the server refuses it, and the page marks the node."""
    from .server import PromptError
    from .test_sweep import digits, node

    given = server.object_info(kind)["input"]
    defaults = {name: spec[1]["default"] for name, spec in given["required"].items() if len(spec) > 1 and "default" in spec[1]}
    prompt = digits(["bad", 0], 4.0) | {"bad": node(kind, model=["base", 0], **(defaults | values))}
    with pytest.raises(PromptError, match="Custom validation failed") as raised:
        server.run(prompt)
    assert message in str(raised.value)


def test_a_connected_table_and_linked_values_pass_the_check(server, pack):
    """They are not known before the run. Oracle: a table that is for another model is refused by the node itself."""
    check = pack.nodes["REGGuidance"].validate_inputs
    assert check("calibrated", 0.0, 1.0, None) is True and check(None, None, 0.5) is True and "needs a table" in check("calibrated", 0.0, 1.0)
    assert pack.nodes["REGScheduleCurve"].validate_inputs("", None) is True


def test_an_unusual_strength_is_warned_of(pack, sd15, caplog):
    """Of guidance that is turned around. Oracle: 1 + strength (c - 1), with c 0 at high noise."""
    for strength, expected in ((1.0, None), (2.0, None), (5.0, -4.0), (-1.0, 2.0)):
        caplog.clear()
        model, trace = reg.apply(pack, sd15.patcher, "schedule", strength=strength)
        with caplog.at_level(logging.WARNING):
            tiny.sample(sd15, model)
        warned = [message for message in caplog.messages if "is unusual" in message]
        assert len(warned) == (expected is not None) == len(trace.last.notes)
        if expected is not None:
            assert f"strength {strength:g} " in warned[0] and f"by about {expected:g};" in warned[0]


@pytest.mark.parametrize("engine", ["reverse"])
def test_a_model_whose_attention_has_no_derivative(host, pack, sd15, engine, caplog):
    model = sd15.patcher.clone()
    model.set_model_attn1_output_patch(lambda out, extra: reg.NoDerivative.apply(out))
    want = tiny.sample(sd15, reg.apply(pack, sd15.patcher, "scalar", "finite_difference")[0])
    patched, trace = reg.apply(pack, model, "scalar", engine)
    with caplog.at_level(logging.WARNING):
        out = tiny.sample(sd15, patched)
    assert reg.relative(out, want) < 1e-4
    assert {r.engine for r in trace.last.rows} == {"finite_difference"}
    assert len([m for m in caplog.messages if f"engine {engine} failed" in m]) == 1, "said once"
    assert f"engine {engine} failed" in str(trace)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_correction_is_plain_guidance_not_a_black_image(host, pack, sd15, value, caplog):
    """The probe row alone overflows, as fp16 does."""

    def poison(apply_model, args):
        out = apply_model(args["input"], args["timestep"], **args["c"])
        rows = args["input"]
        for i in range(len(rows)):
            others = [j for j in range(len(rows)) if j != i]
            if all((rows[i] - rows[j]).abs().max() > 0 for j in others) and len(rows) == 3:
                out[i] = value
        return out

    model = sd15.patcher.clone()
    model.set_model_unet_function_wrapper(poison)
    patched, trace = reg.apply(pack, model)
    with caplog.at_level(logging.WARNING):
        out = tiny.sample(sd15, patched)
    assert reg.relative(out, tiny.sample(sd15)) < 1e-5
    assert any("non-finite correction" in m for m in caplog.messages)
    assert all(r.nonfinite == 1 for r in trace.last.rows) and "non-finite" in str(trace)


# Cancel


@pytest.mark.parametrize("engine", ["auto", "reverse"])
def test_cancel_stops_within_a_model_call_and_the_next_run_works(host, pack, sd15, engine):
    model, _ = reg.apply(pack, sd15.patcher, "row_sum", engine)
    want = tiny.sample(sd15, model, steps=6)
    before = reg.fingerprint(sd15.patcher)
    calls = []

    def cancel(module, args):
        calls.append(len(calls))
        if len(calls) == 4:
            host.model_management.interrupt_current_processing(True)

    handle = sd15.patcher.model.diffusion_model.register_forward_pre_hook(cancel)
    try:
        with pytest.raises(host.model_management.InterruptProcessingException):
            tiny.sample(sd15, model, steps=6)
    finally:
        handle.remove()
        host.model_management.interrupt_current_processing(False)
    assert len(calls) == 4, "no further model call"
    assert reg.fingerprint(sd15.patcher) == before
    assert torch.equal(tiny.sample(sd15, model, steps=6), want)
