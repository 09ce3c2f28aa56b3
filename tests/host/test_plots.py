"""REGTracePlot and REGSchedulePlot beside real sampling runs: what they say against what other hooks of ComfyUI see."""

import io
import math

import pytest
import torch
from PIL import Image

from . import reg, tiny
from .test_sweep import SETTINGS, digits, node


@pytest.fixture(scope="module")
def demo(pack):
    def run(name, **values):
        return pack.nodes[name].execute(**values).result[0]

    prompts = [run("REGDemoPrompt", digit=d) for d in ("3", "no prompt")]
    return tiny.Tiny("digits", run("REGDemoModel", variant="digits"), (1, 8, 8), *prompts)


def plot(pack, trace, latent, image=None, axis="sigma", theme="dark", run=-1):
    output = pack.nodes["REGTracePlot"].execute(latent, axis, theme, run, trace, image)
    return *output.result, output.ui


def sampled(pack, t, form="row_sum", batch=4, **values):
    model, trace = reg.apply(pack, t.patcher, form, **values)
    samples = tiny.sample(t, model, batch=batch, steps=6)
    return trace, {"samples": samples}


def test_trace_plot_shows_the_run(host, pack, demo):
    trace, latent = sampled(pack, demo)
    picture, heat, text, ui = plot(pack, trace, latent)
    assert text == str(trace) and f"active in {len(trace.last.active)} of 6" in text
    assert picture.shape[0] == 1 and picture.shape[2:] == (1024, 3) and picture.dtype == torch.float32 and 0 <= picture.min() <= picture.max() <= 1
    assert ui["text"] == (text,)
    (saved,) = ui["images"]
    shown = Image.open(f"{host.folder_paths.get_temp_directory()}/{saved['filename']}")
    assert shown.size == (1024, picture.shape[1])
    light = plot(pack, trace, latent, theme="light")[0]
    assert picture.mean() < 0.3 and light.mean() > 0.7
    # the heat map: squares on one sheet of two columns, whose brightness goes with the mean factor of the run
    scale = (heat.shape[2] - 6) // 16
    cells = [heat[0, y : y + 8 * scale, x : x + 8 * scale] for y in (0, 8 * scale + 6) for x in (0, 8 * scale + 6)]
    squares = torch.stack(cells)[:, scale // 2 :: scale, scale // 2 :: scale] @ torch.tensor([0.299, 0.587, 0.114])
    assert torch.corrcoef(torch.stack([squares.flatten(), trace.last.heat.flatten()]))[0, 1] > 0.95


def test_heat_map_over_the_decoded_images(host, pack, demo):
    trace, latent = sampled(pack, demo)
    decode = pack.nodes["REGDemoDecode"].execute
    (images,) = decode(latent, scale=64, columns=0).result
    heat, text = plot(pack, trace, latent, images)[1:3]
    assert heat.shape[0] == 1 and heat.shape[2] == 2 * 512 + 6 and "heat map" not in text
    black = plot(pack, trace, latent, torch.zeros_like(images))[1]
    for i, (y, x) in enumerate([(0, 0), (0, 518), (518, 0), (518, 518)]):
        assert torch.allclose((heat - black)[0, y : y + 512, x : x + 512], 0.3 * images[i], atol=1e-4), "the image lies under its map"
    (sheet,) = decode(latent, scale=32, columns=4).result
    heat, text = plot(pack, trace, latent, sheet)[1:3]
    black = plot(pack, trace, latent, torch.zeros_like(sheet))[1]
    assert "heat map" not in text and torch.allclose((heat - black)[:, : sheet.shape[1]], 0.3 * sheet, atol=1e-4), "the columns of the sheet"
    text = plot(pack, trace, latent, sheet[:, :-8])[2]
    assert "1 images given for 4 heat maps" in text


@pytest.mark.parametrize("form", ["scalar", "schedule", "off"])
def test_forms_without_a_map_say_so(pack, demo, form):
    trace, latent = sampled(pack, demo, form)
    picture, heat, text, _ = plot(pack, trace, latent)
    assert heat.shape == (1, 256, 512, 3) and text.endswith("heat map: no heat map") and picture.shape[2] == 1024
    assert ("No sampling run" in text) == (form == "off")


def test_which_run(pack, demo):
    model, trace = reg.apply(pack, demo.patcher)
    for steps in (3, 5):
        latent = {"samples": tiny.sample(demo, model, steps=steps)}
    texts = {run: plot(pack, trace, latent, run=run)[2] for run in (-2, -1, 0, 1)}
    chosen = pack.import_("nodes.plots")._chosen
    assert [chosen(trace.runs, run)[1] for run in (-1, -2, 1)] == ["REG row_sum", "REG row_sum - run 1 of the 2 kept", "REG row_sum - run 2 of the 2 kept"]
    assert "of 3 model calls" in texts[0] == texts[-2] and "of 5 model calls" in texts[1] == texts[-1]
    for run in (2, -3):
        with pytest.raises(ValueError, match=f"run {run} asked for, but the trace holds 2"):
            plot(pack, trace, latent, run=run)


def test_a_run_that_did_nothing(pack, demo):
    model, trace = reg.apply(pack, demo.patcher)
    latent = {"samples": tiny.sample(demo, model, cfg=1.0)}
    picture, _, text, _ = plot(pack, trace, latent, axis="step")
    assert "did nothing" in text and picture.shape[2] == 1024


def test_the_same_prompt_twice_is_nothing_to_rectify(pack, demo, caplog):
    """Oracle: the guidance is zero, as the two prompts are one."""
    for t in (demo, tiny.build("sd15")):
        model, trace = reg.apply(pack, t.patcher)
        samples = tiny.sample(t, model, positive=t.positive, negative=t.positive, steps=4)
        assert "both prompts give the same prediction: no guidance to rectify (4 calls)" in chosen_lines(pack, trace)
        text = plot(pack, trace, {"samples": samples})[2]
        assert "did nothing in 4 model calls" in text and "REG did nothing" in caplog.text and "nan %" not in text


def chosen_lines(pack, trace):
    *_, warnings = pack.import_("reg_core.drawing.traces")._headings(trace.last, "", "")
    return warnings


def test_a_bypassed_reg_guidance_is_drawn_as_such(server):
    """The page leaves the trace out of the prompt: no error, and a card in place of an old plot."""
    prompt = digits(["base", 0], 4.0)
    prompt["plot"] = node("REGTracePlot", latent=["sampler", 0], axis="sigma", theme="dark", run=-1)
    result = server.run(prompt)
    assert result.text("plot").startswith("REG: REG is bypassed") and len(result.images("plot")) == 1


def test_the_plot_follows_the_sampler_through_the_cache(server):
    """A new seed draws the new run; another theme alone draws the same run again, without sampling."""
    prompt = digits(["reg", 0], 4.0)
    prompt["reg"] = node("REGGuidance", model=["base", 0], form="row_sum", gain=1.0, strength=1.0, **SETTINGS)
    prompt["plot"] = node("REGTracePlot", trace=["reg", 1], latent=["sampler", 0], axis="sigma", theme="dark", run=-1, image=["decode", 0])
    prompt["heat"] = node("PreviewImage", images=["plot", 1])
    first = server.run(prompt)
    assert first.text("plot").count("finite_difference J 1") == 4 and len(first.images("heat")) == 1
    (image,) = first.images("plot")
    assert Image.open(io.BytesIO(server.view(image))).width == 1024
    assert "heat map:" not in first.text("plot"), "the images lie under the map"

    prompt["plot"]["inputs"]["theme"] = "light"
    second = server.run(prompt)
    assert "plot" in second.executed and "sampler" not in second.executed and second.text("plot") == first.text("plot")
    prompt["sampler"]["inputs"]["seed"] += 1
    third = server.run(prompt)
    assert "plot" in third.executed and third.text("plot") != first.text("plot") and third.text("plot").count("finite_difference J 1") == 4


# Before sampling


def table(pack, model, sigmas, cfg, axis="step"):
    """REGSchedulePlot's text, read: [(sigma, cfg, active, c, used)] a step; and the picture."""
    picture, text = pack.nodes["REGSchedulePlot"].execute(model, sigmas, cfg, axis, "dark").result

    def number(word):
        return math.nan if word == "-" else float(word)

    rows = [line.split() for line in text.splitlines() if line.split()[0].isdigit()]
    return [(float(r[1]), float(r[3]), r[5] == "yes", number(r[6]), number(r[7])) for r in rows], picture, text


SCHEDULER = {"sd15": "karras", "sd3": "normal"}  # karras: far from even in the timestep, so that the axes differ


def sigmas_of(host, t, steps=6):
    return host.samplers.calculate_sigmas(t.patcher.get_model_object("model_sampling"), SCHEDULER[t.name], steps)


def seen_cfg(t, model, cfg):
    """[(sigma, cfg)] of every model call, as other packs see them; cfg 1, where the unconditional pass is left out, included."""
    seen = []

    def note(args):
        seen.append((float(args["sigma"].max()), float(args["cond_scale"])))
        return args["denoised"]

    model = model.clone()
    model.set_model_sampler_post_cfg_function(note)
    tiny.sample(t, model, cfg=cfg, steps=6, scheduler=SCHEDULER[t.name])
    return seen


@pytest.mark.parametrize("arch", ["sd15", "sd3"])
@pytest.mark.parametrize("axis", ["step", "timestep", "sigma"])
def test_the_cfg_shown_is_the_cfg_in_force(host, pack, arch, axis):
    """Oracle: what a post-cfg function of another pack sees in a real run, two schedules on the model and REG between them."""
    t = tiny.build(arch)
    execute = {name: pack.nodes[name].execute for name in ("REGScheduleLinear", "REGScheduleInterval", "REGGuidance")}
    model = execute["REGScheduleLinear"](t.patcher, start=0.5, end=2.0, axis=axis).result[0]
    model, trace = reg.apply(pack, model, "schedule", start=0.2, end=0.7, data_std=0.9, strength=0.8, gain=2.0)
    model = execute["REGScheduleInterval"](model, start=0.1, end=0.9, axis="step").result[0]
    rows, picture, text = table(pack, model, sigmas_of(host, t), 5.0)
    seen = seen_cfg(t, model, cfg=5.0)
    assert len(rows) == len(seen) == 6 and picture.shape[2] == 1024
    run = trace.last
    assert [r[0] for r in rows] == pytest.approx([s for s, _ in seen], rel=1e-3)
    assert [r[1] for r in rows] == pytest.approx([c for _, c in seen], rel=5e-3, abs=5e-3)
    assert [r[2] for r in rows] == [row.active for row in run.rows] and 0 < sum(r[2] for r in rows) < 6
    for shown, row in zip(rows, run.rows, strict=True):
        if row.active:
            assert shown[3] == pytest.approx(row.correction_mean, abs=1e-3)
            assert shown[4] == pytest.approx((row.cfg - 1) * row.rectified_norm / row.guidance_norm, rel=5e-3, abs=2e-3)
    assert "linear schedule" in text and "interval 0.1 to 0.9" in text and "gain 2, strength 0.8" in text
    assert len(trace.runs) == 1, "drawing starts no run"


def test_calibrated_models_and_models_without_reg(host, pack, demo):
    calibration = pack.import_("reg_core.calibration").Calibration
    knots = calibration(torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0.9, 0.5, 0.1]), torch.zeros(3), "scalar")
    model, _ = reg.apply(pack, demo.patcher, "calibrated", calibration=knots)
    rows, *_ = table(pack, model, torch.tensor([10.0, 1.0, 10**-0.5, 0.0]), 3.0, "sigma")
    assert [r[3] for r in rows] == pytest.approx([0.1, 0.5, 0.7], abs=2e-3), "linear in log sigma between the knots"
    assert [r[4] for r in rows] == pytest.approx([0.2, 1.0, 1.4], abs=5e-3)
    rows, _, text = table(pack, demo.patcher, torch.tensor([10.0, 1.0, 0.0]), 3.0, "timestep")
    assert [r[1:3] for r in rows] == [(3.0, False)] * 2 and "no REG Guidance" in text
    row_sum, _ = reg.apply(pack, demo.patcher)
    rows, _, text = table(pack, row_sum, torch.tensor([10.0, 1.0, 0.0]), 3.0)
    assert all(r[2] and math.isnan(r[3]) for r in rows) and "known after sampling only" in text
    assert not any(r[2] for r in table(pack, row_sum, torch.tensor([10.0, 1.0, 0.0]), 1.0)[0]), "cfg 1 guides nowhere"


@pytest.mark.parametrize("sigmas", [torch.zeros(0), torch.tensor([1.0]), torch.tensor([1.0, math.nan]), torch.zeros(2, 2)])
def test_bad_sigmas_are_shown(pack, demo, sigmas):
    with pytest.raises(ValueError, match="want two or more finite sigmas"):
        pack.nodes["REGSchedulePlot"].execute(demo.patcher, sigmas, 4.0, "step", "dark")
    with pytest.raises(ValueError, match="cfg must be a number from 0 to 100, got nan"):
        pack.nodes["REGSchedulePlot"].execute(demo.patcher, torch.tensor([1.0, 0.0]), math.nan, "step", "dark")
