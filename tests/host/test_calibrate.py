"""Calibration and skipping in real sampling runs. Oracles: the trained digits model, whose correction

vanishes in noise; runs with every correction fresh; counted model rows; ComfyUI's own cfg function.
"""

import pytest
import torch

from . import reg, tiny

OPTIONS = dict(cfg=4.0, steps=18, batch=8, sampler="heun", scheduler="karras")


@pytest.fixture(scope="module")
def digits(pack):
    def run(name, **values):
        return pack.nodes[name].execute(**values).result[0]

    prompts = {d: run("REGDemoPrompt", digit=d) for d in ("3", "no prompt")}
    return tiny.Tiny("digits", run("REGDemoModel", variant="digits"), (1, 8, 8), prompts["3"], prompts["no prompt"])


def calibrate(pack, t, model=None, **changes):
    values = dict(
        model=model or t.patcher, positive=t.positive, negative=t.negative, latent_image=t.empty_latent(4), form="scalar",
        cfg=4.0, steps=18, runs=2, seed=5, filename_prefix="", sampler_name="euler", scheduler="karras",
    )  # fmt: skip
    output = pack.nodes["REGCalibrate"].execute(**{**values, **changes})
    (saved,), (text,) = output.ui["images"], output.ui["text"]
    assert saved["filename"].endswith(".png") and text == output.result[1], "the node shows its plot"
    return output.result


def test_a_table_replaces_the_probe(host, pack, digits):
    table, text, _ = calibrate(pack, digits)
    assert (table.prediction, table.latent, table.form) == ("edm", "_DemoLatent", "scalar") and "c from 0.00" in text
    model, trace = reg.apply(pack, digits.patcher, "calibrated", calibration=table)
    with reg.counted(digits.patcher) as rows:
        out = tiny.sample(digits, model, **OPTIONS)
    assert rows["rows"] == 35 * 8 * 2 and trace.last.extra_rows == 0
    full, measured = reg.apply(pack, digits.patcher, "scalar")
    want = tiny.sample(digits, full, **OPTIONS)
    plain = tiny.sample(digits, **OPTIONS)
    assert reg.relative(out, want) < 0.3 * reg.relative(plain, want), "nearer to what it was measured on than plain guidance"
    for row, fresh in zip(trace.last.rows, measured.last.rows, strict=True):
        assert row.correction_mean == pytest.approx(fresh.correction_mean, abs=0.12)


def test_the_file_is_found_and_loaded(host, pack, digits):
    name = "reg_calibration/of digits"
    table, text, _ = calibrate(pack, digits, filename_prefix=name, steps=4, runs=1)
    again, *_ = calibrate(pack, digits, filename_prefix=name, steps=4, runs=1)
    load = pack.nodes["REGLoadCalibration"]
    options = load.define_schema().inputs[0].options
    mine = sorted(o for o in options if o.startswith("of digits"))
    assert len(mine) == 2, "numbered: the second does not overwrite the first"
    loaded = load.execute(mine[0]).result[0]
    assert torch.equal(loaded.factor, table.factor) and loaded.notes["cfg"] == "4.0"
    assert load.fingerprint_inputs(mine[0]) != load.fingerprint_inputs(mine[1])
    with pytest.raises(FileNotFoundError, match="absent.safetensors"):
        load.execute("absent.safetensors")


def test_several_prompts_are_pooled(host, pack, digits):
    other = pack.nodes["REGDemoPrompt"].execute(digit="8").result[0]
    one, *_ = calibrate(pack, digits, steps=5, runs=1, latent_image=digits.empty_latent(2))
    two, *_ = calibrate(pack, digits, steps=5, runs=1, latent_image=digits.empty_latent(2), positive_3=other)
    assert one.notes["runs"] == 1 and two.notes["runs"] == 2
    assert torch.equal(one.sigma, two.sigma) and not torch.equal(one.factor, two.factor)


def test_the_latents_standard_deviation_comes_with_the_table(host, pack, digits):
    """Oracle: that of the pixels of the real digits, 0.75, which the sampled ones share. SD3 scales its latents: its own factors."""
    digit, any_digit = (pack.nodes["REGDemoPrompt"].execute(digit=d).result[0] for d in ("all ten in turn", "no prompt"))
    same = dict(positive=digit, negative=any_digit, latent_image=digits.empty_latent(40), cfg=1.5, runs=1)
    *_, data_std = calibrate(pack, digits, **same)
    assert data_std == pytest.approx(0.75, rel=0.05)
    latent_std, sd3 = pack.import_("nodes.host.runs").latent_std, tiny.build("sd3")
    raw = torch.randn(3, 16, 8, 8) * torch.arange(1, 17).reshape(1, 16, 1, 1) + 7
    scaled = sd3.patcher.model.latent_format.scale_factor * raw
    want = torch.stack([scaled[:, i].var() for i in range(16)]).mean().sqrt()
    assert latent_std(sd3.patcher, raw) == pytest.approx(float(want), rel=1e-4)


@pytest.mark.parametrize("arch", ["sd3", "wan"])
def test_flow_models_have_tables(host, pack, arch):
    t = tiny.build(arch)
    table, *_ = calibrate(pack, t, steps=3, runs=1, form="row_sum", latent_image=t.empty_latent(1), scheduler="simple")
    assert table.prediction == "flow" and torch.isfinite(table.factor).all()
    model, trace = reg.apply(pack, t.patcher, "calibrated", calibration=table)
    assert torch.isfinite(tiny.sample(t, model, batch=2)).all() and len(trace.last.active) == 3


def test_the_last_seed_is_followed_by_the_first(host, pack, digits):
    """Seeds are numbers of 64 bits. Oracle: runs with the seeds 2^64 - 1 and 0 by themselves."""
    options = dict(steps=3, latent_image=digits.empty_latent(2))
    both, *_ = calibrate(pack, digits, runs=2, seed=2**64 - 1, **options)
    alone = [calibrate(pack, digits, runs=1, seed=seed, **options)[0].factor for seed in (2**64 - 1, 0)]
    low, high = torch.minimum(*alone), torch.maximum(*alone)
    assert ((both.factor >= low - 1e-6) & (both.factor <= high + 1e-6)).all() and not torch.equal(*alone)


def test_a_table_of_another_model_is_refused(host, pack, digits):
    table, *_ = calibrate(pack, digits, steps=3, runs=1)
    with pytest.raises(ValueError, match="'edm', the model has 'flow'"):
        reg.apply(pack, tiny.build("sd3").patcher, "calibrated", calibration=table)
    with pytest.raises(ValueError, match="needs a table"):
        reg.apply(pack, digits.patcher, "calibrated")
    model, _ = reg.apply(pack, digits.patcher, "row_sum", calibration=table)  # a table left connected does no harm
    assert torch.isfinite(tiny.sample(digits, model)).all()


def test_measuring_without_guidance_is_an_error(host, pack, digits):
    with pytest.raises(ValueError, match="cfg must be a number from 1.01 to 100, got 1.0"):
        calibrate(pack, digits, cfg=1.0, steps=2, runs=1)


def test_every_prediction_type_has_its_name(host, pack):
    name = pack.import_("nodes.host.noise_levels").prediction_type
    expected = {"sd15": "eps", "sd21v": "v", "sdxl": "eps", "sd3": "flow", "flux": "flow", "wan": "flow"}
    assert {arch: name(tiny.build(arch).patcher.get_model_object("model_sampling")) for arch in expected} == expected


@pytest.mark.parametrize("form", ["row_sum", "scalar", "schedule"])
def test_skipping_costs_less_than_plain_guidance(host, pack, digits, form):
    model, trace = reg.apply(pack, digits.patcher, form, refresh=4, data_std=0.75, skip_below=0.05)
    with reg.counted(digits.patcher) as rows:
        out = tiny.sample(digits, model, **OPTIONS)
    skipped = [r.sigma for r in trace.last.rows if r.skipped]
    assert rows["rows"] == 8 * (70 + trace.last.extra_rows) < 8 * 70
    assert len([s for s in skipped if s > 0.75]) > 6 and min(skipped) < 0.3, "in noise, and at the end"
    plain, whole = reg.apply(pack, digits.patcher, form, data_std=0.75)
    want = tiny.sample(digits, plain, **OPTIONS)
    # Call by call what a run without skipping says of its effect, |R g| times the root of |R g| / |g|
    rows_of = list(zip(trace.last.rows, whole.last.rows, strict=True))
    largest = max(r.guidance_norm for mine, r in rows_of if not mine.skipped)
    effect = [(mine.skipped, r.rectified_norm**1.5 / r.guidance_norm**0.5 / largest) for mine, r in rows_of]
    assert max(e for skips, e in effect if skips) < 0.06, "nothing that counts; 0.05 but for what is carried along"
    assert sum(e < 0.04 for skips, e in effect if not skips) <= 8 < 30 < len(effect), "and little that does not is left: what must be looked at"
    assert reg.relative(out, want) < 0.2 * reg.relative(tiny.sample(digits, **OPTIONS), want)


def test_nothing_is_skipped_from_whoever_needs_the_unconditional_prediction(host, pack, digits):
    """CFG++ renoises with it: ComfyUI's samplers of that kind switch the shortcut at cfg 1 off, and this one with it."""
    model, trace = reg.apply(pack, digits.patcher, "schedule", data_std=0.75, skip_below=0.2)
    tiny.sample(digits, model, **{**OPTIONS, "sampler": "euler_cfg_pp", "cfg": 1.8})
    assert not any(r.skipped for r in trace.last.rows) and len(trace.last.active) == 18


def test_the_trace_has_a_band_and_a_map(host, pack, digits):
    model, trace = reg.apply(pack, digits.patcher)
    tiny.sample(digits, model, **OPTIONS)
    run = trace.last
    assert run.heat.shape == (8, 8, 8)
    mean = sum(r.correction_mean for r in run.rows) / len(run.rows)
    assert float(run.heat.mean()) == pytest.approx(mean, rel=1e-3)
    for row in run.rows:
        assert row.correction_min <= row.correction_low <= row.correction_high <= row.correction_max
    assert any(row.correction_high - row.correction_low > 0.05 for row in run.rows)
