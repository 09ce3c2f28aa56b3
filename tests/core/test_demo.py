"""The demonstration, at a small size: every number it prints is recomputed here from the images or from counted calls."""

import pytest
import torch
from PIL import Image

from reg_core.demo_models import __main__ as demo
from reg_core.demo_models.loading import load_digits_classifier


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, demo.main(["--out", str(out), "--per-digit", "2", "--steps", "6", "--cfg", "2", "6"])


def test_it_writes_a_grid_and_a_plot(run):
    out, results = run
    grid, plot = Image.open(out / "grid.png"), Image.open(out / "correction.png")
    assert grid.width > 800 and plot.width > 600
    assert len(set(grid.convert("L").getdata())) > 30, "images, not an empty page"
    assert len({c for _, c in plot.convert("RGB").getcolors(1 << 20)}) > 30


def test_results_are_of_the_same_noise_and_cost_what_they_say(run):
    _, results = run
    by = {(r.form, r.cfg): r for r in results}
    calls = 2 * 6 - 1
    for (form, cfg), r in by.items():
        assert r.rows == calls * (2 if form in ("off", "schedule", "calibrated") else 3), form
        labels = torch.arange(10).repeat(2)
        assert r.accuracy == pytest.approx((load_digits_classifier()(r.images).argmax(1) == labels).float().mean().item())
        assert 1 < r.effective_cfg < cfg or form == "off"
        assert (r.images - by["off", cfg].images).abs().max() < 5, "another noise would be elsewhere"
    assert not torch.equal(by["row_sum", 2.0].images, by["off", 2.0].images)


def test_the_table_has_every_run(run):
    text = demo.table(run[1])
    assert len(text.splitlines()) == 2 + 12 and "REG row_sum" in text and "schedule" in text


@pytest.mark.parametrize("bad", [["--per-digit", "0"], ["--steps", "1"], ["--forms", "rowsum"], ["--engine", "forward"]])
def test_bad_arguments_are_refused(bad, capsys):
    with pytest.raises(SystemExit):
        demo.main(bad)
    assert bad[1] in capsys.readouterr().err
