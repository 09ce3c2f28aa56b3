"""REGGuidance where things go wrong: bad values, kernels without derivative, corrections that are no numbers, Cancel."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch

from . import inputs, reg, tiny


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


# What a graph can hold in place of an input: the host checks neither words nor links

NOTHING_FITS = [
    "no such word",
    3.5e300,
    -1,
    math.nan,
    10**400,
    10**5000,
    None,
    [],
    {},
    [None],
    {"samples": None},
    [[1]],
    "x" * 10_000,
    b"x",
    torch.ones(2),
    True,
]


@pytest.fixture(scope="module")
def valid(host, pack):
    return inputs.valid(pack, host.io)


def test_the_valid_inputs_are_valid(host, valid, pack):
    for node_id, values in valid.items():
        assert pack.nodes[node_id].execute(**values).result, node_id


def test_every_input_of_every_node_is_checked(host, valid, pack):
    """Oracle: the schema. An error names node and input, on one short line; what is taken is of the input's kind and in its range."""
    refused = 0
    for node_id, values in valid.items():
        schema = pack.nodes[node_id].define_schema()
        for given in schema.inputs:
            for bad in NOTHING_FITS:
                if bad is None and given.optional:
                    continue
                try:
                    pack.nodes[node_id].execute(**{**values, given.id: [bad] if schema.is_input_list else bad})
                except ValueError as error:
                    said = str(error)
                    assert "\n" not in said and len(said) < 400, said
                    refused += said.startswith((f"{node_id}: {given.id} must be ", f"{node_id}: {given.id}: "))
                else:
                    low, high = getattr(given, "min", -math.inf), getattr(given, "max", math.inf)
                    kinds = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool, "CONDITIONING": list, "SIGMAS": torch.Tensor}
                    kind = str(given.io_type)
                    assert isinstance(bad, (kinds[kind], int) if kind == "FLOAT" else kinds[kind]), (node_id, given.id, bad)
                    assert kind not in ("INT", "FLOAT") or low <= bad <= high
    assert refused > 900


def test_a_list_where_one_list_is_wanted(valid, pack):
    for bad in (None, 5, [], torch.ones(1, 4, 4, 3)):
        with pytest.raises(ValueError, match="REGGrid: images must be a list"):
            pack.nodes["REGGrid"].execute(**{**valid["REGGrid"], "images": bad})


@pytest.mark.parametrize(
    "changes,word",
    [
        (dict(filename_prefix="../x"), "out of the output folder"), (dict(filename_prefix="/tmp/x"), "out of the output folder"),
        (dict(filename_prefix="x" * 300), "too long"), (dict(filename_prefix="a\0b"), "null"), (dict(sampler_name="eulr"), "sampler_name"),
        (dict(scheduler="karas"), "scheduler"), (dict(form="schedule"), "form"), (dict(cfg=1.0), "cfg"), (dict(runs=0), "runs"),
        (dict(latent_image=5), "latent_image"), (dict(positive_2="x"), "positive_2"),
    ],
)  # fmt: skip
def test_calibrate_refuses_before_the_first_model_call(host, valid, pack, changes, word):
    values = {**valid["REGCalibrate"], "filename_prefix": "reg_calibration/never", **changes}
    with reg.counted(values["model"]) as calls, pytest.raises(ValueError, match=word) as caught:
        pack.nodes["REGCalibrate"].execute(**values)
    assert calls["calls"] == 0 and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_calibrate_stops_after_the_first_run_of_a_model_without_a_correction(host, valid, pack):
    model = valid["REGCalibrate"]["model"].clone()
    model.set_model_unet_function_wrapper(lambda apply_model, args: math.nan * apply_model(args["input"], args["timestep"], **args["c"]))
    seen = []
    for runs in (1, 5):
        with reg.counted(model) as calls, pytest.raises(ValueError, match="zero or not finite in every call"):
            pack.nodes["REGCalibrate"].execute(**valid["REGCalibrate"] | {"model": model, "runs": runs})
        seen.append(calls["calls"])
    assert seen[0] == seen[1] > 0


def test_a_full_disk_does_not_take_the_table(host, valid, pack, monkeypatch, caplog):
    def full(self, path):
        raise OSError(28, "No space left on device", str(path))

    digit, every = (pack.nodes["REGDemoPrompt"].execute(digit=d).result[0] for d in ("3", "no prompt"))
    values = valid["REGCalibrate"] | {"positive": digit, "negative": every, "filename_prefix": "reg_calibration/full"}
    monkeypatch.setattr(pack.import_("reg_core").Calibration, "save", full)
    with caplog.at_level(logging.WARNING):
        table, text, _ = pack.nodes["REGCalibrate"].execute(**values).result
    assert len(table.sigma) == 2 and "Not saved" in text and "No space left" in text
    assert len([m for m in caplog.messages if "could not be saved" in m]) == 1


# Said once


@pytest.mark.parametrize("form,engine", [("row_sum", "auto"), ("scalar", "reverse"), ("row_sum", "reverse"), ("product", "auto"), ("schedule", "auto")])
def test_a_prediction_that_is_not_finite_is_said_once(host, pack, sd15, form, engine, caplog):
    model = sd15.patcher.clone()
    model.set_model_unet_function_wrapper(lambda apply_model, args: math.nan * apply_model(args["input"], args["timestep"], **args["c"]))
    patched, trace = reg.apply(pack, model, form, engine)
    with caplog.at_level(logging.WARNING):
        tiny.sample(sd15, patched)
    said = [m for m in caplog.messages if m.startswith("REG")]
    assert said == ["REG: the model's prediction is not finite in 3 of 3 active calls"], said
    assert trace.last.notes == [said[0][5:]]


def test_out_of_memory_in_every_backward_pass_is_one_line(host, pack, sd15, caplog):
    """Once for the run, and once where a reward needs one as well; nothing but the error where even its own gradient finds no memory."""
    model = sd15.patcher.clone()
    model.set_model_attn1_output_patch(lambda out, extra: NoMemory.apply(out))
    patched, trace = reg.apply(pack, model, "row_sum", "reverse")
    with caplog.at_level(logging.WARNING):
        tiny.sample(sd15, patched)
    (said,) = [m for m in caplog.messages if m.startswith("REG")]
    assert "out of memory" in said and said.endswith("finite differences from here on") and [said[5:]] == trace.last.notes
    target = sd15.empty_latent(1)
    reward = pack.nodes["REGRewardLatent"].execute(target=target, match="mean", tolerance=1.0).result[0]
    rewarded = pack.nodes["REGRewardGuidance"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        tiny.sample(sd15, rewarded.execute(model, reward, 0.1, True, 0.0, 1.0).result[0])
    assert len([m for m in caplog.messages if m.startswith("REG")]) == 1
    caplog.clear()
    nothing = SimpleNamespace(log_prob=lambda x0: NoMemory.apply(x0).flatten(1).sum(1))
    with caplog.at_level(logging.WARNING), pytest.raises(torch.OutOfMemoryError):
        tiny.sample(sd15, rewarded.execute(model, nothing, 0.1, True, 0.0, 1.0).result[0])
    assert not [m for m in caplog.messages if m.startswith("REG")]


class NoMemory(reg.NoDerivative):
    @staticmethod
    def backward(ctx, grad):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")
