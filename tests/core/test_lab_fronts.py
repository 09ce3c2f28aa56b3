"""Fronts on the digits: metrics, the resumable sweep, one point, and what is concluded from many.

Oracles: scipy's matrix square root and t-test, formulas by hand, Heun by the library's first CFG loop, fronts whose FID is a known
function of IS.
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

pytest.importorskip("ignite")
pytest.importorskip("prdc")

from reg_core.lab import evaluate as first_loop
from reg_core.lab import fronts, metrics
from reg_core.lab.analysis import Difference, Front, at_best, at_matched, band
from reg_core.lab.analysis import fronts as make_fronts
from reg_core.lab.fronts import Point, Size
from reg_core.lab.models import load_digits_model
from reg_core.lab.plan import FULL, QUICK
from reg_core.lab.sweep import Store, run

ROOT = Path(__file__).resolve().parents[2]
SMALL = Size(20, 4, "")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Metrics


def test_frechet_is_the_formula_with_scipys_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = normal(300, 5).double(), (normal(200, 5, seed=1) @ normal(5, 5, seed=2) + 0.3).double()
    ca, cb = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = linalg.sqrtm(ca @ cb).real
    want = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(ca + cb - 2 * root)
    assert metrics.frechet(a.float(), b.float()) == pytest.approx(want, rel=1e-5)


def test_inception_score_by_hand_and_at_its_ends():
    p = torch.softmax(normal(50, 10).double() * 3, 1)
    want = (p * (p / p.mean(0)).log()).sum(1).mean().exp().item()
    assert metrics.inception_score(p.log().float()) == pytest.approx(want, rel=1e-5)
    assert metrics.inception_score(1000 * torch.eye(10)) == pytest.approx(10, rel=1e-4)
    assert metrics.inception_score(torch.zeros(8, 10)) == pytest.approx(1, rel=1e-6)


def test_manifold_of_the_same_and_of_far_points():
    real = normal(40, 3)
    same, far = metrics.manifold(real.clone(), real), metrics.manifold(real + 100, real)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.frechet(normal(10, 3), normal(10, 4)),
        lambda: metrics.frechet(normal(1, 3), normal(10, 3)),
        lambda: metrics.inception_score(normal(10)),
        lambda: metrics.manifold(normal(5, 3), normal(40, 3)),
        lambda: metrics.score(torch.full((10, 1, 8, 8), torch.nan), torch.arange(10)),
    ],
)
def test_metrics_refuse_what_they_cannot_measure(call):
    with pytest.raises(ValueError, match=r"\d"):
        call()


# The sweep


def jobs(count):
    return [(f"job {i}", [("value", i * i)]) for i in range(count)]


WANT = {f"job {i}": {"value": i * i} for i in range(5)}


def test_a_sweep_that_failed_goes_on_and_does_nothing_twice(tmp_path):
    done = []

    def work(job):
        if len(done) == 2:
            raise RuntimeError("power cut")
        done.append(job)
        return dict(job)

    with pytest.raises(RuntimeError, match="power cut"):
        run(Store(tmp_path / "a.jsonl", {}), jobs(5), work)
    store = Store(tmp_path / "a.jsonl", {})
    assert store.results == {key: WANT[key] for key in ("job 0", "job 1")}
    asked = []
    assert run(store, jobs(5), lambda job: (asked.append(job), dict(job))[1]) == WANT
    assert asked == [job for _, job in jobs(5)[2:]]
    keys = [json.loads(line)["key"] for line in (tmp_path / "a.jsonl").read_text().splitlines()[1:]]
    assert sorted(keys) == sorted(WANT), "each once"


def test_processes_change_nothing_but_the_order_in_the_file(tmp_path):
    assert run(Store(tmp_path / "two.jsonl", {}), jobs(5), dict, processes=2) == WANT
    assert Store(tmp_path / "two.jsonl", {}).results == WANT


def test_a_killed_process_loses_at_most_the_point_it_was_at(tmp_path):
    code = """
import sys, time
from reg_core.lab.sweep import Store, run
def work(job):
    time.sleep(0.2 if job < 3 else 60)
    return {"value": job}
run(Store(sys.argv[1], {"a": 1}), [(str(i), i) for i in range(5)], work)
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
        store = Store(path, {"a": 1})
    assert store.results == {str(i): {"value": i} for i in range(3)}
    run(store, [(str(i), [("value", i)]) for i in range(5)], dict)
    assert Store(path, {"a": 1}).results == {str(i): {"value": i} for i in range(5)}


def test_damage_in_the_middle_and_other_settings_are_refused(tmp_path):
    path = tmp_path / "b.jsonl"
    run(Store(path, {"steps": 4}), jobs(3), dict)
    with pytest.raises(ValueError, match="steps.*5"):
        Store(path, {"steps": 5})
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        Store(path, {"steps": 4})


def test_keys_given_twice_and_no_process_are_refused(tmp_path):
    with pytest.raises(ValueError, match="job 0"):
        run(Store(tmp_path / "c.jsonl", {}), jobs(1) * 2, dict)
    with pytest.raises(ValueError, match="0"):
        run(Store(tmp_path / "c.jsonl", {}), jobs(1), dict, processes=0)


# One point


def test_plain_guidance_is_the_first_loops():
    """evaluate.sample_digits is another implementation of CFG, noise and schedule alike."""
    images = first_loop.sample_digits(load_digits_model("digits_weak"), fronts.labels(20), 20, 1.5, 4, seed=3)
    want = {k: round(v, 5) for k, v in asdict(metrics.score(images, fronts.labels(20))).items()}
    got = fronts.evaluate((Point("weak", "constant", "off", 1.5, 3), SMALL))
    assert {k: got[k] for k in want} == pytest.approx(want, rel=1e-3, abs=1e-4)
    assert got["rows"] == 2 * 7  # cond and uncond at every one of 2 * 4 - 1 calls


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"form": "schedule"}, 14),
        ({"form": "calibrated"}, 14),
        ({"form": "row_sum"}, 21),
        ({"form": "row_sum", "refresh": 2}, 14 + 3),
        ({"form": "bet:sign_sum"}, 21),
        ({"form": "bet:wiener_full"}, 14),
        ({"form": "row_sum", "dtype": "bfloat16"}, 21),
        ({"form": "off", "schedule": "interval"}, 7 + 4),
    ],
)
def test_every_method_moves_the_images_and_costs_what_it_says(changes, rows, monkeypatch):
    values, axes = torch.linalg.eigh(fronts.within_class_covariance())
    known = {"full": fronts.Prior(axes.T, values.clamp_min(0))}
    monkeypatch.setattr(fronts, "priors", lambda setup, size: known)
    seen = []
    counted = fronts.denoisers

    def denoisers(*args, **kwargs):
        def wrap(call):
            return lambda x, sigma: (seen.append(len(x)), call(x, sigma))[1]

        return tuple(wrap(c) for c in counted(*args, **kwargs))

    table = fronts.table("weak", SMALL, 20)
    monkeypatch.setattr(fronts, "table", lambda setup, size: table)
    monkeypatch.setattr(fronts, "denoisers", denoisers)
    point = Point(**{"setup": "weak", "schedule": "constant", "weight": 2.0, "seed": 0} | changes)
    got = fronts.evaluate((point, SMALL))
    if "interval" in changes.values():
        inside = sum(fronts.INTERVAL(float(s)) for i, s in enumerate(SMALL.sigmas[:-1]) for _ in range(1 if i == 0 else 2))
        rows = 7 + int(inside)
    assert got["rows"] == rows == sum(seen) / 20
    plain = fronts.evaluate((Point("weak", "constant", "off", 2.0, 0), SMALL))
    assert abs(got["fid"] - plain["fid"]) > 1e-3
    json.dumps(got, allow_nan=False)


def test_cosine_basis_is_orthonormal_and_starts_with_the_mean():
    basis = fronts.cosine_basis()
    assert torch.allclose(basis @ basis.T, torch.eye(64, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(basis[0], torch.full((64,), 1 / 8, dtype=torch.float64))
    row = torch.arange(64).reshape(8, 8)[1, 0]  # one half wave down, nothing across
    wave = torch.cos(torch.pi * (torch.arange(8, dtype=torch.float64) + 0.5) / 8) * (1 / 4) / 2**0.5
    assert torch.allclose(basis[row].reshape(8, 8), wave[:, None].expand(8, 8), atol=1e-12)


@pytest.mark.parametrize("bad", [{"setup": "strong"}, {"schedule": "cubic"}, {"form": "rowsum"}, {"dtype": "float16"}])
def test_points_that_do_not_exist_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad.values()))):
        Point(**{"setup": "weak", "schedule": "constant", "form": "off", "weight": 1.0, "seed": 0} | bad)


def test_plans_hold_every_point_once_with_a_key_of_its_own():
    for plan in (QUICK, FULL):
        points = plan.points()
        assert len({p.key for p in points}) == len(points) and plan.seeds >= 3
        for base in ("constant", "linear", "cosine", "interval"):
            assert {p.form for p in points if p.schedule == base and p.setup == "weak"} >= set(fronts.FORMS), base


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
    points = [Point("weak", "constant", "off", w, s) for w in (0.0, 1.0, 2.0) for s in range(3)]
    points += [Point("weak", "constant", "off", 3.0, 0), Point("weak", "constant", "off", 4.0, 0, engine="reverse")]
    found = make_fronts(dict.fromkeys(points, values))
    assert found["weak", "constant", "off"].weights.tolist() == [0, 1, 2]
