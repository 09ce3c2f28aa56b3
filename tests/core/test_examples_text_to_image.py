"""The text-to-image example on tiny random Stable Diffusions, loaded from a folder as real weights are, and its images scored.

Oracle: the pipeline called by hand, without or with `rectified`, which has tests of its own.
"""

import json

import hosts
import numpy as np
import pytest
import torch
from PIL import Image

import reg_core
from reg_core.evaluation.__main__ import main as evaluate
from reg_core.integrations.diffusers import rectified, run_levels

diffusers = hosts.diffusers()
from tiny_diffusers import text_to_image as tiny  # noqa: E402

example, grid = hosts.example("text_to_image"), hosts.example("grid")
KINDS = {"sd1.4": {}, "sd2.1": dict(prediction="v_prediction"), "sdxl": dict(xl=True)}
STEPS = 3


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text('{"prompt": "a fox"}\n{"prompt": "two owls", "negative": "blur"}\n')
    return path


@pytest.fixture(scope="module", params=KINDS)
def weights(request, tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("weights"), **KINDS[request.param])


def command(weights, prompts, out, *more):
    given = ["--weights", str(weights), "--prompts", str(prompts), "--out", str(out), "--steps", str(STEPS), "--device", "cpu"]
    return [*given, "--batch", "1", *map(str, more)]


def by_hand(weights, cfg, **more):
    """The second prompt's image with seed number 1."""
    pipe = diffusers.AutoPipelineForText2Image.from_pretrained(weights)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1_000_001)
    given = dict(prompt="two owls", negative_prompt="blur", generator=generator, num_inference_steps=STEPS, output_type="np")
    if "settings" not in more:
        return pipe(**given, guidance_scale=cfg).images[0]
    with rectified(pipe, more["settings"]):
        return pipe(**given, guidance_scale=cfg).images[0]


def test_a_grid_of_images(weights, prompts, tmp_path):
    forms, schedules = "--form off row_sum schedule", "--schedule constant --schedule interval 1e6 0 --schedule linear 0 0"
    example.main(command(weights, prompts, tmp_path, "--seeds", 0, 1, "--cfg", 30, "--gain", 2, *forms.split(), *schedules.split()))
    assert len(hosts.made(tmp_path)) == 2 * 2 * 3 * 3
    found = {}
    for folder in (tmp_path / "images").iterdir():
        point = dict(axis.split("=", 1) for axis in folder.name.split(","))
        found[point["form"], point["schedule"]] = np.asarray(Image.open(folder / "00001_001.png")).astype(int)
    for form in ("off", "row_sum", "schedule"):
        settings = reg_core.Settings(form=form, engine="reverse", gain=1.0 if form == "off" else 2.0)
        expected = 255 * by_hand(weights, 30.0, **({} if form == "off" else {"settings": settings}))
        assert np.abs(found[form, "constant"] - expected).max() <= 1 and np.ptp(expected) > 20
        assert np.abs(found[form, "interval_1e6_0"] - expected).max() <= 1, "everything lies inside"
        nothing = 255 * by_hand(weights, 1 + 1e-6)
        assert np.abs(found[form, "linear_0_0"] - nothing).max() <= 1
    different = [np.abs(found["off", "constant"] - found[other]).max() for other in (("row_sum", "constant"), ("off", "linear_0_0"))]
    assert min(different) > 3


def test_it_goes_on_after_a_kill_and_is_scored(prompts, tmp_path, capsys):
    """Oracle: the run that nobody stopped. Scores are evaluation's, which has its own tests; here they arrive."""
    weights = tiny(tmp_path / "weights")
    given = "--seeds 0 1 --cfg 3 6 --form off row_sum schedule".split()
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    example.main(command(weights, prompts, alone, *given))
    hosts.run_and_kill("text_to_image", command(weights, prompts, stopped, *given), 5)
    assert len(list(stopped.rglob("*.png"))) == 5
    example.main(command(weights, prompts, stopped, *given))
    assert hosts.made(stopped) == hosts.made(alone)
    reference = stopped / "images" / "cfg=3,form=off,gain=1,schedule=constant"
    assert evaluate(["score", "--out", str(stopped), "--reference", str(reference), "--features", "digits"]) == 0
    report = json.loads((stopped / "report.json").read_text())
    assert len(report["points"]) == 6 and report["images_per_point"] == 4
    assert report["points"][0]["metrics"]["fid"]["all"] == pytest.approx(0, abs=1e-6)
    assert {tuple(row["labels"].values()) for row in report["points"]} >= {(6, "row_sum", 1, "constant")}
    shares = {row["labels"]["form"]: row["share"] for row in report["points"]}
    assert shares["off"] is None and 0 < shares["schedule"] < 1
    assert "row_sum" in capsys.readouterr().out


def test_the_cfg_in_force_follows_the_authors_variable(prompts, tmp_path):
    """Linear over the timestep of the run, from the weight w to 2 w. Oracle: the formula on the scheduler's own timesteps."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    guide = grid.Guide(5.0, reg_core.Settings(form="schedule"), grid.schedule(["linear", "1", "2"], "t2i"))
    _, run = example.sample(pipe, [{"prompt": "a fox"}], [torch.Generator().manual_seed(0)], guide, 4)
    times = pipe.scheduler.timesteps.tolist()
    expected = [1 + 4 * (1 + (times[0] - t) / (times[0] - times[-1])) for t in times]
    assert [row.cfg for row in run.rows] == pytest.approx(expected, rel=1e-4)
    assert run_levels(pipe.scheduler).sigmas == pytest.approx(pipe.scheduler.sigmas[:-1].tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(weights="nowhere"), "model_index.json, got 'nowhere'"),
        (dict(prompts="nowhere.txt"), "--prompts: .*nowhere.txt"),
        (dict(schedule="sine"), "constant, linear, cosine, interval, got 'sine'"),
    ],
)
def test_bad_options_are_named(prompts, tmp_path, change, message):
    weights = change.get("weights") or tiny(tmp_path / "weights")
    with pytest.raises(SystemExit, match=message):
        example.main(command(weights, change.get("prompts", prompts), tmp_path / "out", "--schedule", change.get("schedule", "constant")))
