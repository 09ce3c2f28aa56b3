"""Fronts on the digits: scores, the journal, one trial, and what is concluded from many.

Oracles: Heun's method with CFG written out here, scipy's t-test, counted rows, fronts whose FID is a known function of IS.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("prdc")

from reg_core.demo_models.loading import load_model
from reg_core.lab.fronts import quality, trials
from reg_core.lab.fronts.analysis import Difference, Front, at_best, at_matched, band, fronts
from reg_core.lab.fronts.journal import Journal, run
from reg_core.lab.fronts.survey import FULL, QUICK, SAMPLED_FORMS
from reg_core.lab.fronts.trials import Size, Trial

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


def heun_with_cfg(model, labels, weight, steps, seed):
    """EDM's Algorithm 1 without churn on D_c + w (D_c - D_u), noise levels after its Eq. 5 (Karras et al. 2022)."""
    high, low = 20.0 ** (1 / 7), 0.01 ** (1 / 7)
    levels = [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]

    def slope(x, sigma):
        cond, uncond = model(x, torch.full((len(x),), sigma), labels), model(x, torch.full((len(x),), sigma))
        return (x - cond - weight * (cond - uncond)) / sigma

    x = 20.0 * torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for sigma, following in zip(levels[:-1], levels[1:], strict=True):
            first = slope(x, sigma)
            second = slope(x + (following - sigma) * first, following) if following else first
            x = x + (following - sigma) * (first + second) / 2
    return x


def test_plain_guidance_is_heuns_method_written_out():
    images = heun_with_cfg(load_model("digits_weak"), trials.labels(20), 1.5, 4, seed=3)
    want = asdict(quality.score(images, trials.labels(20)))
    got = trials.evaluate((Trial("weak", "constant", "off", 1.5, 3), SMALL))
    assert {k: got[k] for k in want} == pytest.approx(want, rel=1e-3, abs=1e-4)
    assert got["rows"] == 2 * 7  # cond and uncond at every one of 2 * 4 - 1 calls


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
        inside = sum(0.42 <= float(s) <= 4.35 for i, s in enumerate(SMALL.sigmas[:-1]) for _ in range(1 if i == 0 else 2))
        rows = 7 + inside
    assert got["rows"] == rows == sum(seen) / 20
    plain = trials.evaluate((Trial("weak", "constant", "off", 2.0, 0), SMALL))
    assert abs(got["fid"] - plain["fid"]) > 1e-3
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize("bad", [{"setup": "strong"}, {"schedule": "cubic"}, {"form": "rowsum"}, {"dtype": "float16"}, {"engine": "forward"}])
def test_trials_that_cannot_be_made_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad.values()))):
        trials.sampler(Trial(**{"setup": "weak", "schedule": "constant", "form": "row_sum", "weight": 1.0, "seed": 0} | bad), SMALL)


def test_surveys_hold_every_trial_once_with_its_key():
    for survey in (QUICK, FULL):
        made = survey.trials()
        assert len({t.key for t in made}) == len(made) and survey.seeds >= 3
        for base in ("constant", "linear", "cosine", "interval"):
            assert {t.form for t in made if t.schedule == base and t.setup == "weak"} >= set(SAMPLED_FORMS), base


# Conclusions


def known_front(form, offset, weights=(0, 0.5, 1, 2, 4), seeds=(0.0, 0.02, -0.01), jitter=0.0):
    """IS 9 - 2 / (1 + w), and FID a parabola of IS with its least value at 8.2."""
    w = np.array(weights, dtype=float)[:, None]
    score = 9 - 2 / (1 + w) + np.zeros((1, len(seeds)))
    fid = 1 + (score - 8.2) ** 2 + offset + np.array(seeds) + jitter * np.array([1, -2, 1])
    return Front("weak", "constant", form, w[:, 0], {"fid": fid, "is_": score})


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
    assert Difference.of(np.array([1.0])).verdict == "not reached", "one seed has no error bar"


def test_fronts_leave_out_weights_that_lack_a_seed_and_other_engines():
    values = dict.fromkeys(("fid", "is_", "accuracy", "precision", "recall", "density", "coverage"), 1.0)
    made = [Trial("weak", "constant", "off", w, s) for w in (0.0, 1.0, 2.0) for s in range(3)]
    made += [Trial("weak", "constant", "off", 3.0, 0), Trial("weak", "constant", "off", 4.0, 0, engine="reverse")]
    found = fronts(dict.fromkeys(made, values))
    assert found["weak", "constant", "off"].weights.tolist() == [0, 1, 2]
