"""Fronts: scores, the journal, one trial, and what is concluded from many.

Oracles: Heun's method with CFG written out here, scipy's t-test, counted rows, fronts whose FID is a known function of IS, closed forms of integrals.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("prdc")

from reg_core.demo_models.loading import load_model
from reg_core.lab.fronts import __main__ as command
from reg_core.lab.fronts import bets, cuda_noise, quality, setups, survey, trials
from reg_core.lab.fronts.analysis import Difference, Front, at_best, at_matched, band, fronts
from reg_core.lab.fronts.journal import Journal, run
from reg_core.lab.fronts.setups import SETUPS
from reg_core.lab.fronts.strength import estimated_ratio, measured_ratio
from reg_core.lab.fronts.survey import FASHION, FULL, QUICK, SAMPLED_FORMS, SURVEYS, Where
from reg_core.lab.fronts.trials import Size, Trial
from reg_core.trace import WINDOW

ROOT = Path(__file__).resolve().parents[2]
SMALL = Size(20, 4, "")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Scores


def test_manifold_of_the_same_and_of_far_points():
    real = normal(40, 3)
    same, far = quality.manifold(real.clone(), real), quality.manifold(real + 100, real)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


@pytest.mark.parametrize(
    "call",
    [
        lambda: quality.manifold(normal(5, 3), normal(40, 3)),
        lambda: quality.score(torch.full((10, 1, 8, 8), torch.nan), torch.arange(10)),
    ],
)
def test_scores_refuse_what_they_cannot_measure(call):
    with pytest.raises(ValueError, match=r"\d"):
        call()


# The journal


def jobs(count):
    return [(f"job {i}", [("value", i * i)]) for i in range(count)]


WANT = {f"job {i}": {"value": i * i} for i in range(5)}


def test_a_run_that_failed_goes_on_and_does_nothing_twice(tmp_path):
    done = []

    def work(job):
        if len(done) == 2:
            raise RuntimeError("power cut")
        done.append(job)
        return dict(job)

    with pytest.raises(RuntimeError, match="power cut"):
        run(Journal(tmp_path / "a.jsonl", {}), jobs(5), work)
    journal = Journal(tmp_path / "a.jsonl", {})
    assert journal.results == {key: WANT[key] for key in ("job 0", "job 1")}
    asked = []
    assert run(journal, jobs(5), lambda job: (asked.append(job), dict(job))[1]) == WANT
    assert asked == [job for _, job in jobs(5)[2:]]
    keys = [json.loads(line)["key"] for line in (tmp_path / "a.jsonl").read_text().splitlines()[1:]]
    assert sorted(keys) == sorted(WANT), "each once"


def test_processes_change_nothing_but_the_order_in_the_file(tmp_path):
    assert run(Journal(tmp_path / "two.jsonl", {}), jobs(5), dict, processes=2) == WANT
    assert Journal(tmp_path / "two.jsonl", {}).results == WANT


def test_a_killed_process_loses_at_most_the_point_it_was_at(tmp_path):
    code = """
import sys, time
from reg_core.lab.fronts.journal import Journal, run
def work(job):
    time.sleep(0.2 if job < 3 else 60)
    return {"value": job}
run(Journal(sys.argv[1], {"a": 1}), [(str(i), i) for i in range(5)], work)
"""
    path = tmp_path / "killed.jsonl"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while time.monotonic() < end and (not path.is_file() or len(path.read_text().splitlines()) < 4):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with path.open("a") as file:
        file.write('{"key": "3", "resu')  # what a kill within a write leaves
    with pytest.warns(UserWarning, match="cut short"):
        journal = Journal(path, {"a": 1})
    assert journal.results == {str(i): {"value": i} for i in range(3)}
    run(journal, [(str(i), [("value", i)]) for i in range(5)], dict)
    assert Journal(path, {"a": 1}).results == {str(i): {"value": i} for i in range(5)}


def test_damage_in_the_middle_and_other_settings_are_refused(tmp_path):
    path = tmp_path / "b.jsonl"
    run(Journal(path, {"steps": 4}), jobs(3), dict)
    with pytest.raises(ValueError, match="steps.*5"):
        Journal(path, {"steps": 5})
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        Journal(path, {"steps": 4})


def test_keys_given_twice_and_no_process_are_refused(tmp_path):
    with pytest.raises(ValueError, match="job 0"):
        run(Journal(tmp_path / "c.jsonl", {}), jobs(1) * 2, dict)
    with pytest.raises(ValueError, match="0"):
        run(Journal(tmp_path / "c.jsonl", {}), jobs(1), dict, processes=0)


# One trial


def heun_with_cfg(model, labels, weight, steps, x):
    """EDM's Algorithm 1 without churn on D_c + w (D_c - D_u) from noise x of unit size, noise levels after its Eq. 5 (Karras et al. 2022)."""
    top = 80.0 if x.shape[-1] == 28 else 20.0
    high, low = top ** (1 / 7), 0.01 ** (1 / 7)
    levels = [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]

    def slope(x, sigma):
        cond, uncond = model(x, torch.full((len(x),), sigma), labels), model(x, torch.full((len(x),), sigma))
        return (x - cond - weight * (cond - uncond)) / sigma

    x = top * x
    with torch.no_grad():
        for sigma, following in zip(levels[:-1], levels[1:], strict=True):
            first = slope(x, sigma)
            second = slope(x + (following - sigma) * first, following) if following else first
            x = x + (following - sigma) * (first + second) / 2
    return x


def test_plain_guidance_is_heuns_method_written_out():
    images = heun_with_cfg(load_model("digits_weak"), setups.labels(20), 1.5, 4, normal(20, 1, 8, 8, seed=3))
    want = quality.score(images, setups.labels(20))
    got = trials.evaluate((Trial("weak", "constant", "off", 1.5, 3), SMALL))
    assert {k: got[k] for k in want} == pytest.approx(want, rel=1e-3, abs=1e-4)
    assert got["rows"] == 2 * 7  # cond and uncond at every one of 2 * 4 - 1 calls


def test_fashion_is_sampled_in_batches_from_noise_of_its_own_recipe(monkeypatch):
    """Seed 1000 s for the first 2500 pictures, 1000 s + 2500 for the next: here in chunks of 6. Pictures end between -1 and 1."""
    monkeypatch.setattr(setups, "CHUNK", 6)
    start = torch.cat([cuda_noise.randn((6, 1, 28, 28), 2000), cuda_noise.randn((2, 1, 28, 28), 2006)])
    images = heun_with_cfg(load_model("fashion_weak"), setups.labels(8), 0.5, 3, start)
    seen = {}
    monkeypatch.setattr(trials, "score", lambda images, *rest: seen.update(images=images, rest=rest) or {"fid": 1.0})
    got = trials.evaluate((Trial("fashion_weak", "constant", "off", 0.5, 2), Size(8, 3, "", batch=3)))
    assert torch.allclose(seen["images"], images, atol=2e-3) and seen["rest"][1:] == ("fashion", None)
    assert got["rows"] == 2 * 5


def test_fashion_is_scored_in_two_feature_spaces(monkeypatch):
    """Oracle: Gaussians that differ by a shift of the mean: the distance is its square. A picture beyond -1 and 1 is cut."""
    features = normal(400, 3, seed=1)

    class Judge:
        def features(self, x):
            assert float(x.abs().max()) <= 1
            return features[: len(x)]

        def head(self, f):
            return 30 * torch.eye(10)[torch.arange(len(f)) % 10]

    real = {"fashion": quality.Statistics.of(features + 2), "fashion_other": quality.Statistics.of(features + 1)}
    monkeypatch.setattr(quality, "_judge", lambda name, device: (Judge(), real[name]))
    got = quality.score(3 * normal(400, 1, 28, 28), torch.arange(400) % 10, "fashion")
    assert got["fid"] == pytest.approx(12, rel=1e-3) and got["fid_other"] == pytest.approx(3, rel=1e-3)
    assert got["is_"] == pytest.approx(10, rel=1e-2) and got["accuracy"] == 1
    assert "precision" not in got, "no real pictures are there"
    there = lambda part, folder: SimpleNamespace(images=torch.zeros(500, 1, 28, 28)) if (part, folder) == ("train", Path("here")) else None  # noqa: E731
    monkeypatch.setattr(quality, "load_fashion", there)
    quality.real_features.cache_clear()
    with_real = quality.score(3 * normal(400, 1, 28, 28), torch.arange(400) % 10, "fashion", "here")
    assert with_real["precision"] == with_real["coverage"] == 1 and with_real["fid"] == got["fid"], "the features are the same 400"
    quality.real_features.cache_clear()


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"form": "schedule"}, 14),
        ({"form": "calibrated"}, 14),
        ({"form": "row_sum"}, 21),
        ({"form": "row_sum", "refresh": 2}, 14 + 4),
        ({"form": "row_sum", "dtype": "bfloat16"}, 21),
        ({"form": "off", "schedule": "interval"}, 7 + 4),
    ],
)
def test_every_method_moves_the_images_and_costs_what_it_says(changes, rows, monkeypatch):
    seen = []
    counted = trials.denoisers

    def denoisers(*args, **kwargs):
        def wrap(call):
            return lambda x, sigma: (seen.append(len(x)), call(x, sigma))[1]

        return tuple(wrap(c) for c in counted(*args, **kwargs))

    table = trials.table("weak", SMALL, 20)
    monkeypatch.setattr(trials, "table", lambda setup, size: table)
    monkeypatch.setattr(trials, "denoisers", denoisers)
    trial = Trial(**{"setup": "weak", "schedule": "constant", "weight": 2.0, "seed": 0} | changes)
    got = trials.evaluate((trial, SMALL))
    if "interval" in changes.values():  # EDM2's, 0.28 to 2.90 at sigma_data 0.5, in units of 0.75
        inside = sum(0.42 <= float(s) <= 4.35 for i, s in enumerate(trials.levels("weak", SMALL)[:-1]) for _ in range(1 if i == 0 else 2))
        rows = 7 + inside
    assert got["rows"] == rows == sum(seen) / 20
    plain = trials.evaluate((Trial("weak", "constant", "off", 2.0, 0), SMALL))
    assert abs(got["fid"] - plain["fid"]) > 1e-3
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize("bad", [{"setup": "strong"}, {"schedule": "cubic"}, {"form": "rowsum"}, {"dtype": "float16"}, {"engine": "forward"}])
def test_trials_that_cannot_be_made_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad.values()))):
        trials.sampler(Trial(**{"setup": "weak", "schedule": "constant", "form": "row_sum", "weight": 1.0, "seed": 0} | bad), SMALL, setups.labels(4))


def test_surveys_hold_every_trial_once_with_its_key():
    for made in (each.trials() for each in SURVEYS.values()):
        assert len({t.key for t in made}) == len(made) == len({(t.setup, t.schedule, t.method, t.weight, t.seed) for t in made})
    for each in (QUICK, FULL, FASHION):
        setup = "fashion_weak" if each is FASHION else "weak"
        for base in ("constant", "linear", "cosine", "interval"):
            assert {t.form for t in each.trials() if t.schedule == base and t.setup == setup} >= set(SAMPLED_FORMS), base
        assert each.seeds >= 3


def test_every_setup_of_fashion_has_its_forms_and_its_intervals():
    """The rows without which no table of the page appears, at the weights of the study."""
    made = FASHION.trials()
    for setup in FASHION.images:
        mine = [t for t in made if t.setup == setup]
        assert {t.form for t in mine if t.schedule == "constant"} == set(SAMPLED_FORMS)
        assert {t.schedule for t in mine if t.form == "off"} >= {"below_1", "below_2", "below_4", "interval"}
        assert {t.engine for t in mine if t.form == "product" and t.method != "product"} >= {"reverse"}
    assert {t.data_std for t in made} == {0.0, 0.35, 1.4}
    exact = [t for t in made if (t.setup, t.schedule, t.method) == ("fashion_weak", "constant", "scalar, engine reverse")]
    assert {t.weight for t in exact} == {0.3, 0.6, 1.0, 1.5, 2.5, 4.0}


def test_shards_share_the_trials_and_are_found_together(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "evaluate", lambda job: {"fid": job[0].weight})
    for i in (1, 2, 3):
        survey.make(QUICK, tmp_path, where=Where(shard=(i, 3)))
    lines = [len(path.read_text().splitlines()) - 1 for path in sorted(tmp_path.glob("fronts_quick_*of3.jsonl"))]
    assert len(lines) == 3 and max(lines) - min(lines) <= 1
    found = survey.finished(QUICK, tmp_path)
    assert list(found) == QUICK.trials() and all(r == {"fid": t.weight} for t, r in found.items())
    for bad in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match=f"{bad[0]}/3"):
            Where(shard=bad)


@pytest.mark.parametrize("bad", [["--shard", "5/4"], ["--batch", "-1"], ["--data", "nowhere"]])
def test_bad_options_are_refused(bad, capsys):
    with pytest.raises(SystemExit):
        command.parse(["fashion", *bad])
    assert bad[1] in capsys.readouterr().err


@pytest.mark.parametrize(("name", "want"), [("below_2", [0, 0, 1, 1]), ("interval", [0, 1, 1, 0]), ("constant", [1, 1, 1, 1])])
def test_base_schedules_of_fashion(name, want):
    """EDM2's interval in units of the data: 0.28 to 2.90 at sigma_data 0.5, so 0.392 to 4.06 at 0.7."""
    chosen = trials.base(name, "fashion_weak", Size(4, 4, ""))
    assert [chosen(sigma) for sigma in (4.1, 4.0, 2.0, 0.39)] == want


# Bets


@pytest.mark.parametrize(
    ("form", "want"),
    [("power_2", (0.25, 0.04)), ("power_1.5", (0.5**1.5, 0.2**1.5)), ("floor_0.1", (0.5, 0.2)), ("floor_0.02", (0.5, 0.2))],
)
def test_bets_are_other_factors_of_schedule(form, want):
    """V / (V + sigma^2) is 1/2 at sigma = data_std and 1/5 at twice that; at 100 times the floors hold."""
    made = trials.settings(Trial("fashion_weak", "constant", form, 1.0, 0), Size(4, 4, ""))
    assert made.free and made.free_factor(torch.tensor([0.7, 1.4])).tolist() == pytest.approx(want)
    least = float(form.split("_")[1]) if form.startswith("floor") else 0.0
    assert float(made.free_factor(torch.tensor([70.0]))) == pytest.approx(least, abs=1e-4)


def test_projected_guidance_has_no_part_along_the_prediction():
    from reg_core.point import Point

    cond, reference = normal(3, 1, 4, 4, seed=1), normal(3, 1, 4, 4, seed=2)
    branches = bets.Projected(lambda x, sigma: cond, lambda x, sigma: reference)
    denoised, other = branches.both(Point.of(normal(3, 1, 4, 4), torch.ones(3), trials.Guided(cond_of, cond_of).space))
    v, plain = denoised - other, cond - reference
    assert torch.equal(denoised, cond)
    assert torch.allclose((v * cond).flatten(1).sum(1), torch.zeros(3), atol=1e-5)
    rest = plain - v  # what was taken away is a multiple of D_c
    assert torch.allclose(rest / cond, (rest / cond)[:, :, :1, :1].expand_as(rest), rtol=1e-3)


def cond_of(x, sigma):
    return x


# Conclusions


def known_front(form, offset, weights=(0, 0.5, 1, 2, 4), seeds=(0.0, 0.02, -0.01), jitter=0.0):
    """IS 9 - 2 / (1 + w), and FID a parabola of IS with its least value at 8.2."""
    w = np.array(weights, dtype=float)[:, None]
    score = 9 - 2 / (1 + w) + np.zeros((1, len(seeds)))
    fid = 1 + (score - 8.2) ** 2 + offset + np.array(seeds) + jitter * np.array([1, -2, 1])
    return Front("weak", "constant", form, w[:, 0], {"fid": fid, "is_": score})


def test_the_weight_ratio_is_read_off_two_fronts():
    """The same curve gone along at a third of the pace: 3 at every level. Without common levels there is none."""
    plain = known_front("off", 0)
    slow = Front("weak", "constant", "row_sum", 3 * plain.weights, plain.values)
    ratio = measured_ratio(slow, plain)
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((3, 3, 3), rel=1e-6)
    assert measured_ratio(known_front("row_sum", 0, weights=(0, 4, 5)), known_front("off", 0, weights=(0, 0.2, 0.4))) is None


def test_the_estimate_is_a_mean_over_log_sigma():
    """Closed form: the integral of 1 / (1 + u^2) over ln u is ln u - ln(1 + u^2) / 2."""
    sigma = np.geomspace(0.01, 80, 2000)
    low, high = WINDOW
    inside = math.log(high / low) - 0.5 * math.log((1 + high**2) / (1 + low**2))
    assert estimated_ratio(sigma, 0.49 / (0.49 + sigma**2), 0.7) == pytest.approx(math.log(high / low) / inside, rel=1e-3)
    assert estimated_ratio([0.01, 80], [0.25, 0.25], 0.7) == pytest.approx(4)
    with pytest.raises(ValueError, match="-0.5"):
        estimated_ratio([0.01, 80], [-0.5, -0.5], 0.7)


def test_methods_are_paired_by_seeds_of_the_same_noise():
    """One method lacks a seed, another has none of the first's: only what both have is compared."""
    a, b = known_front("row_sum", -0.1, jitter=0.05), known_front("off", 0)
    short = Front("weak", "constant", "row_sum", a.weights, {k: v[:, 1:] for k, v in a.values.items()}, (1, 2))
    want = (a.values["fid"][a.best] - b.values["fid"][b.best])[1:].mean()
    assert at_best(short, b).mean == pytest.approx(want) and at_best(short, b).seeds == 2
    assert at_best(Front("weak", "constant", "row_sum", a.weights, a.values, (3, 4, 5)), b).verdict == "not reached"
    results = {Trial("fashion_auto", "constant", "off", w, 0): {"fid": w, "is_": 1.0} for w in (0.5, 1.0)}
    results[Trial("fashion_good", "constant", "off", 0.0, 0)] = {"fid": 7.0, "is_": 1.0}
    front = fronts(results)["fashion_auto", "constant", "off"]
    assert front.values["fid"][:, 0].tolist() == [7, 0.5, 1], "without guidance it is the model of fashion_good"
    assert SETUPS["fashion_auto"].main == SETUPS["fashion_good"].main


def test_fid_at_matched_is_is_read_off_the_front():
    front = known_front("off", 0)
    for level in (7.5, 8.0, 8.4):
        assert front.fid_at(level) == pytest.approx(1 + (level - 8.2) ** 2 + np.array([0.0, 0.02, -0.01]), abs=0.02)
    assert np.isnan(front.fid_at(8.7)).all(), "beyond its reach"
    assert front.is_at_best() == pytest.approx(9 - 2 / 3) and front.reach() == pytest.approx(8.6)


def test_matched_difference_does_not_see_the_weights_and_pairs_seeds():
    """The same curve gone along at a third of the pace: equal at equal IS, however unequal at equal w."""
    slow = known_front("row_sum", -0.1)
    slow = Front("weak", "constant", "row_sum", 3 * slow.weights, slow.values)
    d = at_matched(slow, known_front("off", 0), [7.6, 8.0, 8.4])
    assert d.mean == pytest.approx(-0.1, abs=1e-9) and d.half == pytest.approx(0, abs=1e-9) and d.verdict == "better"
    assert at_best(slow, known_front("off", 0)).mean == pytest.approx(-0.1)
    assert at_matched(slow, known_front("off", 0), [8.7]).verdict == "not reached"


def test_the_band_lies_where_every_front_was_sampled():
    """First weights at IS 9 - 2/1.5 and 9 - 2/2, last ones at 8.6 and 8.5: nothing below 8 or above 8.5 is compared."""
    levels = band([known_front("off", 0), known_front("row_sum", 0, weights=(0, 1, 2, 3))])
    assert 8.0 < min(levels) < max(levels) < 8.5 and levels == sorted(levels)
    apart = band([known_front("off", 0, weights=(0, 0.2, 0.4)), known_front("row_sum", 0, weights=(0, 4, 5))])
    assert apart == [] and at_matched(known_front("off", 0), known_front("row_sum", 0), apart).verdict == "not reached"


def test_intervals_are_those_of_scipys_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    a, b = np.array([1.0, 1.3, 0.9, 1.2]), np.array([1.1, 1.2, 1.3, 1.4])
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    d = Difference.of(a - b)
    assert (d.mean - d.half, d.mean + d.half) == pytest.approx((low, high)) and d.verdict == "undecided"
    assert Difference.of(b - a + 1).verdict == "worse" and Difference.of(a - b - 1).verdict == "better"
    assert Difference.of(np.array([1.0])).verdict == "one seed" and str(Difference.of(np.array([1.0]))) == "+1.000", "and no error bar"
    assert Difference.of(np.array([])).verdict == "not reached"


def test_fronts_leave_out_weights_that_lack_a_seed_and_keep_engines_apart():
    values = dict.fromkeys(("fid", "is_", "accuracy", "precision", "recall", "density", "coverage"), 1.0)
    made = [Trial("weak", "constant", "off", w, s) for w in (0.0, 1.0, 2.0) for s in range(3)]
    made += [Trial("weak", "constant", "off", 3.0, 0), Trial("weak", "constant", "off", 4.0, 0, engine="reverse")]
    found = fronts(dict.fromkeys(made, values))
    assert found["weak", "constant", "off"].weights.tolist() == [0, 1, 2]
