"""REGSweep and REGGrid by ComfyUI's own list execution, on a real server: every cell against a prompt of its own."""

import io

import numpy
import pytest
import torch
from PIL import Image

from . import reg

SWEEP = {"cfgs": "2, 5", "forms": "off, row_sum", "gains": "1"}
SETTINGS = {"start_percent": 0.0, "end_percent": 1.0, "skip_below": 0.0, "data_std": 0.75, "engine": "auto", "refresh": 1}  # of REG Guidance in front
STEPS = 4


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def digits(model, cfg, batch=3, columns=0):
    """Sampling of the digits model from a fixed seed, and its decoder."""
    return {
        "base": node("REGDemoModel", variant="digits"),
        "positive": node("REGDemoPrompt", digit="all ten in turn"),
        "negative": node("REGDemoPrompt", digit="no prompt"),
        "latent": node("REGDemoLatent", batch_size=batch),
        "sampler": node(
            "KSampler", model=model, cfg=cfg, seed=7, steps=STEPS, sampler_name="euler", scheduler="karras", denoise=1.0,
            positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0],
        ),
        "decode": node("REGDemoDecode", latent=["sampler", 0], scale=4, columns=columns),
        "save": node("PreviewImage", images=["decode", 0]),
    }  # fmt: skip


def sweep(**values):
    prompt = digits(["sweep", 0], ["sweep", 1])
    prompt["settings"] = node("REGGuidance", model=["base", 0], form="scalar", gain=0.3, strength=1.0, **SETTINGS)
    prompt["sweep"] = node("REGSweep", model=["settings", 0], **(SWEEP | values))
    prompt["grid"] = node("REGGrid", images=["decode", 0], labels=["sweep", 2], columns=0, theme="dark")
    prompt["save"] = node("PreviewImage", images=["grid", 0])
    return prompt


def single(form, cfg, gain=1.0):
    prompt = digits(["reg", 0], cfg)
    prompt["reg"] = node("REGGuidance", model=["base", 0], form=form, gain=gain, strength=1.0, **SETTINGS)
    return prompt


def picture(server, image):
    return numpy.asarray(Image.open(io.BytesIO(server.view(image))).convert("RGB"))


def places(sheet, image):
    """Where an image lies in a sheet, exactly."""
    h, w = image.shape[:2]
    windows = numpy.lib.stride_tricks.sliding_window_view(sheet[..., 0], (h, w))
    return [tuple(p) for p in numpy.argwhere((windows == image[..., 0]).all((-1, -2)))]


def test_every_cell_is_the_picture_of_its_own_prompt(server):
    """Oracle: REGGuidance and KSampler in prompts of their own, from the same seed. Same bytes, in the order of the labels."""
    result = server.run(sweep())
    (image,) = result.images("save")
    sheet = picture(server, image)
    assert sum(value == maximum == STEPS for _, value, maximum in result.progress) == 4, "the sampler's own bar runs for each"
    found = []
    for form in ("off", "row_sum"):
        for cfg in (2.0, 5.0):
            cells = [picture(server, entry) for entry in server.run(single(form, cfg)).images("save")]
            assert len(cells) == 3
            where = [places(sheet, cell) for cell in cells]
            assert all(len(p) == 1 for p in where), (form, cfg, where)
            found.append(where[0][0])
    (a, b, c, d) = found
    assert a[0] == b[0] < c[0] == d[0] and a[1] == c[1] < b[1] == d[1], "forms down, cfg across"


def test_traces_come_with_the_models(server):
    prompt = sweep(forms="off, row_sum, schedule", cfgs="3")
    prompt["plot"] = node("REGTracePlot", trace=["sweep", 3], latent=["sampler", 0], axis="step", theme="dark", run=-1)
    result = server.run(prompt)
    assert len(result.images("plot")) == 3
    off, row_sum, schedule = result.outputs["plot"]["text"]
    assert "No sampling run" in off and "form row_sum" in row_sum and "form schedule" in schedule
    assert f"active in {STEPS} of {STEPS} model calls" in row_sum


def test_cancel_ends_the_sweep_and_the_next_one_runs(server):
    calls = []

    def stop(value, maximum):
        calls.append(value)
        if len(calls) == 2:
            server.interrupt()

    prompt = sweep(cfgs="1.5, 2.5, 3.5, 4.5, 5.5, 6.5")
    prompt["sampler"]["inputs"]["steps"] = 60
    with pytest.raises(InterruptedError):
        server.run(prompt, timeout=120, on_progress=stop)
    assert len(calls) < 6 * 60
    assert server.run(sweep(cfgs="2.5", forms="row_sum")).images("save")


def test_the_sheet_says_what_each_run_did(server, pack, monkeypatch):
    """Under each picture, by the traces of the sweep. Oracle: what the traces say of themselves, and their evaluations counted."""
    prompt = sweep(forms="off, row_sum, schedule", cfgs="4", gains="1, 2")
    bare = picture(server, server.run(prompt).images("save")[0])
    prompt["grid"]["inputs"]["trace"] = ["sweep", 3]
    written = picture(server, server.run(prompt).images("save")[0])
    assert written.shape[0] > bare.shape[0], "lines below the pictures"

    caption, core = pack.import_("reg_core.drawing").run_caption, pack.import_("reg_core")
    run = core.trace.Run(core.Settings(gain=2.0))
    for sigma, share in ((2.0, 0.25), (1.0, 0.25)):
        row = core.trace.Row(sigma=sigma, sigma_ve=sigma, share=share, guidance_norm=1.0, cfg=3.0, engine="finite_difference", extra_rows=1)
        run._rows.append(row)
    assert caption(run) == "REG row_sum, gain 2: 50 % of plain guidance, +50% model evaluations"  # 2 rows more than 4
    assert caption(None) == "plain guidance"
    images = [torch.rand(1, 8, 8, 3)] * 2
    with pytest.raises(ValueError, match="1 traces for 2 images"):
        pack.nodes["REGGrid"].execute(images=images, labels=["a", "b"], columns=[0], theme=["dark"], trace=[core.trace.Trace()])


def test_labels_that_do_not_fit_the_images_are_counted(server):
    from .server import PromptError

    prompt = sweep()
    prompt["sampler"]["inputs"] |= {"model": ["base", 0], "cfg": 3.0}
    with pytest.raises(PromptError, match="4 labels for 1 images"):
        server.run(prompt)


def run_sweep(pack, model, **values):
    return pack.nodes["REGSweep"].execute(model, **(SWEEP | values)).result


def test_the_lists(host, pack):
    model = pack.nodes["REGDemoModel"].execute(variant="digits").result[0]
    models, cfgs, labels, traces = run_sweep(pack, model, cfgs="2; 4\n8.5", forms="row_sum off", gains="1")
    assert cfgs == [2.0, 4.0, 8.5] * 2 and len(models) == len(traces) == 6
    assert labels[:4] == ["CFG | cfg 2", "CFG | cfg 4", "CFG | cfg 8.5", "row_sum | cfg 2"], "plain CFG first"
    assert len({id(m) for m in models}) == len({id(t) for t in traces}) == 6, "a trace of its own for every run"
    assert all(m.model is model.model for m in models), "one network, shared"
    _, cfgs, labels, _ = run_sweep(pack, model, cfgs="4", gains="1, 2.5")
    assert cfgs == [4.0] * 3 and labels == ["CFG, cfg 4 | gain 1", "row_sum, cfg 4 | gain 1", "row_sum, cfg 4 | gain 2.5"]
    assert run_sweep(pack, model, cfgs="4", gains="3")[2] == ["CFG | cfg 4", "row_sum, gain 3 | cfg 4"]
    schema = pack.nodes["REGSweep"].GET_SCHEMA()
    assert [o.is_output_list for o in schema.outputs] == [True] * 4 and pack.nodes["REGGrid"].INPUT_IS_LIST


def test_settings_of_reg_guidance_in_front_reach_the_models(host, pack):
    """All of them but form and gain; without one, those that REG Guidance has by itself."""
    demo = pack.nodes["REGDemoModel"].execute(variant="digits").result[0]
    hooks_of = pack.import_("nodes.host.options").hooks_of
    in_front = dict(start=0.2, end=0.9, skip_below=0.05, data_std=0.3, refresh=2)
    model, _ = reg.apply(pack, demo, "scalar", "reverse", strength=0.5, gain=2.0, **in_front)
    models, *_ = run_sweep(pack, model, cfgs="3", forms="off, product, schedule", gains="3")
    assert hooks_of(models[0], "reg") == []
    for patched, form in zip(models[1:], ("product", "schedule"), strict=True):
        (hook,) = hooks_of(patched, "reg")
        s = hook.settings
        assert (s.form, s.gain, s.strength, s.engine, s.data_std, s.refresh, s.skip_below) == (form, 3.0, 0.5, "reverse", 0.3, 2, 0.05)
        assert hook.percents == (0.2, 0.9)
    (alone,), *_ = run_sweep(pack, demo, cfgs="3", forms="row_sum")
    (hook,), defaults = hooks_of(alone, "reg"), {i.id: i.default for i in pack.nodes["REGGuidance"].define_schema().inputs if hasattr(i, "default")}
    assert {name: getattr(hook.settings, name) for name in ("skip_below", "data_std", "engine", "refresh")} == {
        name: defaults[name] for name in ("skip_below", "data_std", "engine", "refresh")
    }
    assert hook.percents == (0.0, 1.0)


def test_a_table_of_reg_guidance_in_front_is_used(host, pack):
    demo = pack.nodes["REGDemoModel"].execute(variant="digits").result[0]
    hooks_of = pack.import_("nodes.host.options").hooks_of
    table = pack.import_("reg_core.calibration").Calibration(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.2]), torch.zeros(2), "row_sum")
    model, _ = reg.apply(pack, demo, "calibrated", calibration=table)
    (calibrated, plain), *_ = run_sweep(pack, model, cfgs="3", forms="calibrated, row_sum")
    assert hooks_of(calibrated, "reg")[0].settings.calibration is table and hooks_of(plain, "reg")[0].settings.calibration is None
    for model in (demo, reg.apply(pack, demo, "row_sum")[0]):
        with pytest.raises(ValueError, match="'calibrated' needs a table: put REG Guidance with one in front"):
            run_sweep(pack, model, forms="off, calibrated")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cfgs": "2, four"}, "cfgs: 'four' is not a number"),
        ({"cfgs": "2, nan"}, "between 0 and 100, got nan"),
        ({"cfgs": "-1"}, "between 0 and 100, got -1"),
        ({"cfgs": "2, 2.0"}, "2.0 is there twice"),
        ({"cfgs": " , "}, "cfgs is empty"),
        ({"forms": "off, rowsum"}, "got 'rowsum'"),
        ({"forms": "off off"}, "off is there twice"),
        ({"gains": "0"}, "between 0.05 and 100, got 0"),
        ({"cfgs": ", ".join(map(str, range(33)))}, "these are 66 sampling runs; want at most 64"),
    ],
)
def test_bad_text_is_named(pack, values, message):
    model = pack.nodes["REGDemoModel"].execute(variant="digits").result[0]
    with pytest.raises(ValueError, match=message):
        run_sweep(pack, model, **values)


def test_the_grid_takes_images_of_any_sizes_as_lists(pack):
    images = [torch.rand(1, 30, 40, 3), torch.rand(2, 50, 20, 3), torch.rand(1, 8, 8, 3)]
    (sheet,) = pack.nodes["REGGrid"].execute(images=images, labels=["a", "b", "c"], columns=[3], theme=["light"]).result
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3
    whole = (255 * sheet[0]).round().byte().numpy()
    for image in [images[0][0], *images[1], images[2][0]]:
        assert len(places(whole, (255 * image).round().byte().numpy())) == 1
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        pack.nodes["REGGrid"].execute(images=images, labels=["a", "b"], columns=[0], theme=["dark"])


def test_a_swept_model_samples_like_reg_guidance(host, pack):
    """Any model: a tiny SD1.5, in process."""
    from . import tiny

    t = tiny.build("sd15")
    models, cfgs, _, traces = run_sweep(pack, t.patcher, cfgs="4", forms="off, scalar")
    theirs, trace = reg.apply(pack, t.patcher, "scalar", refresh=4)
    assert torch.equal(tiny.sample(t, models[0], cfg=cfgs[0]), tiny.sample(t, cfg=4.0))
    assert torch.equal(tiny.sample(t, models[1], cfg=cfgs[1]), tiny.sample(t, theirs, cfg=4.0))
    assert traces[0].last is None and len(traces[1].last.active) == len(trace.last.active) > 0
