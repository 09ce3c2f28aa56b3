"""The demonstration, at a small size: every number it prints is recomputed here from the pictures or from counted calls."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from reg_core.demo_models import __main__ as demo
from reg_core.demo_models import study
from reg_core.demo_models.loading import load_judge
from reg_core.evaluation.metrics import Statistics

FORMS = list(study.RATIOS["fashion"])
CALLS = 2 * 4 - 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, demo.main(["--out", str(out), "--each", "2", "--steps", "4", "--cfg", "1.5", "3"])


def test_it_writes_its_pictures(run):
    out, results = run
    assert {path.name for path in out.iterdir()} == {"sheet.png", "correction.png", "fronts.png"}
    for path in out.iterdir():
        picture = Image.open(path)
        assert picture.width > 600 and len(set(picture.convert("L").getdata())) > 30, "an empty page"
    # a row a run, a column a class, two pictures in each cell
    assert Image.open(out / "sheet.png").height > len(results) * 56
    assert Image.open(out / "sheet.png").width > 10 * 2 * 56


def test_the_sheet_shows_the_pictures_of_each_run_under_its_class(run):
    """The first T-shirt and the last boot of the last run are found where they belong, pixel for pixel."""
    out, results = run
    sheet = np.array(Image.open(out / "sheet.png").convert("L")).astype(int)
    places = []
    for which in (0, 9):
        picture = ((results[-1].images[which, 0] + 1) * 127.5).round().int().numpy()
        big = picture.repeat(2, 0).repeat(2, 1)
        spots = [(y, x) for y in range(sheet.shape[0] - 56) for x in range(sheet.shape[1] - 56) if abs(sheet[y, x] - big[0, 0]) < 2]
        spots = [(y, x) for y, x in spots if abs(sheet[y + 28, x + 28] - big[28, 28]) < 2 and abs(sheet[y : y + 56, x : x + 56] - big).max() < 2]
        (place,) = spots
        places.append(place)
    assert places[0][0] == places[1][0] > 0.8 * sheet.shape[0] and places[0][1] < places[1][1]


def test_results_are_of_the_same_noise_and_cost_what_they_say(run):
    _, results = run
    by = {(r.form, r.cfg): r for r in results}
    assert list(by) == [("off", 1.5), ("off", 3.0), *((form, 3.0) for form in FORMS)]
    high = sum(sigma > 2 for sigma in heun_levels(4, 0.01, 80.0))
    for (form, _), r in by.items():
        rows = 3 if form in ("row_sum", "product", "scalar") else 2
        assert r.rows == (2 * CALLS - high if form == "interval" else CALLS * rows), form
        assert r.gain == study.RATIOS["fashion"].get(form, 1.0)
        assert form == "off" or not torch.equal(r.images, by["off", 3.0].images)


def heun_levels(steps, low, high, rho=7):
    """The noise level of every call (Karras et al. 2022, Algorithm 1 and Eq. 5)."""
    levels = [(high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(steps)]
    return [level for pair in zip(levels, levels[1:], strict=False) for level in pair] + levels[-1:]


def test_scores_are_those_of_the_pictures(run):
    """FID by scipy's square root of a matrix; IS from its definition."""
    labels = torch.arange(20) % 10
    for r in run[1]:
        for name, fid in zip(("fashion", "fashion_other"), r.fids, strict=True):
            judge = load_judge(name)
            real, features = Statistics.real(judge), judge.features(r.images).double()
            cov = features.T.cov()
            root = scipy.linalg.sqrtm((cov @ real.cov).numpy() + 1e-9 * np.eye(128)).real
            want = (features.mean(0) - real.mean).square().sum() + (cov + real.cov).trace() - 2 * np.trace(root)
            assert fid == pytest.approx(float(want), rel=0.02)
        p = load_judge("fashion")(r.images).double().softmax(1)
        assert r.accuracy == pytest.approx((p.argmax(1) == labels).float().mean().item())
        assert math.log(r.is_) == pytest.approx((p * (p / p.mean(0)).log()).sum(1).mean().item(), rel=1e-4)


def test_a_gain_is_a_larger_weight(run):
    """Oracle: plain CFG at cfg 1 + gain (cfg - 1) below sigma 2, and at cfg 1 above, written out."""
    r = run[1][-1]
    assert r.form == "interval"
    bench = demo.Bench.of("fashion_weak", 2, 4, 0)
    levels = [80.0 ** (1 / 7) + i / 3 * (0.01 ** (1 / 7) - 80.0 ** (1 / 7)) for i in range(4)]
    levels, x = [level**7 for level in levels] + [0.0], 80.0 * bench.noise

    def slope(x, sigma):
        s = torch.full((20,), sigma)
        cond, weight = bench.model(x, s, bench.labels), (1 + 3.0 * 2) - 1 if sigma <= 2 else 0.0
        return (x - cond - weight * (cond - bench.model(x, s))) / sigma

    with torch.no_grad():
        for now, then in zip(levels, levels[1:], strict=False):
            first = slope(x, now)
            second = slope(x + (then - now) * first, then) if then else first
            x = x + (then - now) * (first + second) / 2
    assert torch.allclose(r.images, x.clamp(-1, 1), atol=1e-3)


def test_the_table_has_every_run(run):
    lines = demo.table(run[1]).splitlines()
    assert len(lines) == 2 + 2 + len(FORMS)
    for r, line in zip(run[1], lines[2:], strict=True):
        assert line.startswith(demo.NAMES[r.form]) and f"{r.fids[0]:.2f}" in line and f"{r.fids[1]:.2f}" in line


def test_digits_have_the_same_table(tmp_path, capsys):
    results = demo.main(["--model", "digits_weak", "--each", "2", "--steps", "4", "--out", str(tmp_path), "--forms", "off", "row_sum"])
    out = capsys.readouterr().out
    assert "FID " in out and "REG row_sum" in out and "accuracy" in out
    assert results[0].images.shape == (20, 1, 8, 8) and len(results[0].fids) == 1 and results[-1].gain == study.RATIOS["digits"]["row_sum"]


@pytest.mark.parametrize(
    "bad",
    [["--each", "0"], ["--steps", "1"], ["--forms", "rowsum"], ["--engine", "forward"], ["--forms", "interval", "--model", "digits"]],
)
def test_bad_arguments_are_refused(bad, capsys):
    with pytest.raises(SystemExit):
        demo.main(bad)
    assert bad[1] in capsys.readouterr().err


# --- the committed study ------------------------------------------------------------------


def test_the_fronts_are_means_over_seeds():
    packed = json.loads(study.RESULTS.read_text())
    rows = [dict(zip(packed["columns"], row, strict=True)) for row in packed["rows"]]
    seeds = [r for r in rows if (r["setup"], r["form"], r["w"], r["data_std"]) == ("small", "schedule", 2.5, 0.7)]
    assert len(seeds) == 3
    want = tuple(np.mean([r[key] for r in seeds]) for key in ("is_", "fid"))
    found = study.fronts(study.results())
    assert found["small"]["schedule"][4] == pytest.approx(want)
    assert [len(found["small"][form]) for form in ("off", "interval", "product", "schedule")] == [7, 4, 6, 6]
    assert set(found) == set(study.SETUPS) and set(found["small"]) == set(study.COLORS)


@pytest.mark.parametrize("form", FORMS)
def test_ratios_are_weights_of_equal_inception_score(form):
    """From the committed results: the form's weight over CFG's where IS is equal, middle of CFG's front."""
    rows = [r for r in study.results() if r["setup"] == "small" and r["data_std"] == 0.7]

    def strength(rows):
        weights = sorted({r["w"] for r in rows})
        return weights, [np.mean([r["is_"] for r in rows if r["w"] == w]) for w in weights]

    plain = strength([r for r in rows if r["form"] == "off" and r["interval"] == "0,inf"])
    low = [r for r in rows if r["form"] == "off" and r["interval"] == "0,2"]
    weights, scores = strength(low if form == "interval" else [r for r in rows if r["form"] == form])
    ratios = [np.interp(score, scores, weights) / w for w, score in zip(*plain, strict=True) if w and scores[0] < score < scores[-1]]
    assert len(ratios) >= 3 and np.median(ratios) == pytest.approx(study.RATIOS["fashion"][form], rel=0.15), ratios
