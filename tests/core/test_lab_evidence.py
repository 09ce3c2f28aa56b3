"""Bets, the study of mixtures, and the page: what it says follows from the numbers.

Oracles: Gaussians, where J is known and all bets must agree; mirror images; error.compare; a scan over weights; results with a known
winner, and the same with the loser's name.
"""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("ignite")
pytest.importorskip("prdc")
pytest.importorskip("matplotlib")

from PIL import Image

from reg_core.lab import evidence, plan, report, study, tables
from reg_core.lab.analysis import METRICS, Front
from reg_core.lab.bets import BETS, BetGuided, Prior
from reg_core.lab.error import compare
from reg_core.lab.fronts import Point
from reg_core.lab.study import Amount, channels, control, ends, errors, shift
from reg_core.lab.zoo import pair

POINTWISE = [name for name, bet in BETS.items() if not bet.trajectory]


def draws(p, sigma, count=12):
    return p.cond.noisy(count, sigma, generator=torch.Generator().manual_seed(1))


# Bets


@pytest.mark.parametrize("name", POINTWISE)
def test_on_isotropic_gaussian_data_every_bet_is_the_schedule(name):
    p = pair("isotropic")
    x = draws(p, 0.8)
    assert torch.allclose(shift(p, x, 0.8, f"bet:{name}"), shift(p, x, 0.8, "schedule"), atol=1e-9), name


def test_the_full_wiener_filter_is_the_exact_product_on_gaussian_data():
    for p in (pair("correlated"), channels(), pair("digits")):
        x = draws(p, 0.6)
        assert torch.allclose(shift(p, x, 0.6, "bet:wiener_full"), shift(p, x, 0.6, "product"), atol=1e-9), p.name


def test_tables_and_spectra_are_the_diagonal_of_the_product_in_their_basis():
    p, sigma = channels(), 0.5
    cov = p.cond.cov
    diagonal = (cov @ torch.linalg.inv(cov + sigma**2 * torch.eye(4))).diagonal()
    x = draws(p, sigma)
    v = shift(p, x, sigma, "off")
    assert torch.allclose(shift(p, x, sigma, "bet:table_spectrum"), diagonal * v, atol=1e-9)
    variances = cov.diagonal()
    assert torch.allclose(shift(p, x, sigma, "bet:wiener_spectrum"), variances / (variances + sigma**2) * v, atol=1e-9)


def test_sign_sum_does_not_change_when_the_latent_is_mirrored_and_row_sum_does():
    p, mirrored = pair("correlated"), pair("correlated_mirror")
    x = draws(p, 0.5)
    flip = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    for form, same in (("bet:sign_sum", True), ("row_sum", False), ("scalar", True)):
        assert torch.allclose(shift(mirrored, x * flip, 0.5, form), shift(p, x, 0.5, form) * flip, atol=1e-9) == same, form


def test_row_mean_and_row_sum_by_hand():
    p, sigma = pair("correlated"), 0.5
    x = draws(p, sigma)
    j, v = p.cond.jacobian(x, sigma), shift(p, x, sigma, "off")
    assert torch.allclose(shift(p, x, sigma, "bet:row_mean"), j.sum((1, 2))[:, None] / 2 * v)
    z = torch.where(v < 0, -1.0, 1.0).double()
    assert torch.allclose(shift(p, x, sigma, "bet:sign_sum"), torch.einsum("bij,bi,bj->bi", j, z, z) * v)


def test_lagged_bets_use_the_call_before_and_sampling_uses_finite_differences():
    """A linear denoiser D = A x: J = A exactly, v = (A - B) x."""
    a = torch.tensor([[0.5, 0.2], [0.2, 0.3]])
    guided = BetGuided(lambda x, s: x @ a, lambda x, s: torch.zeros_like(x), 2.0, "lagged_scalar", {})
    x = torch.tensor([[1.0, -2.0]])
    ones = torch.ones(2)
    first = guided(x, 1.0)
    assert torch.allclose(first, x @ a + 2 * (ones @ a @ ones / 2) * (x @ a), rtol=1e-3)
    y = torch.tensor([[0.3, 1.0]])
    v = (x @ a)[0]
    assert torch.allclose(guided(y, 0.9), y @ a + 2 * (v @ a @ v / (v @ v)) * (y @ a), rtol=1e-3)
    assert [r.extra_rows for r in guided.run.rows] == [1, 1] and guided.run.effective_cfg < 3


def test_a_bet_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="wienner"):
        BetGuided(None, None, 1.0, "wienner", {})


def test_smoothing_of_images_averages_neighbours():
    """A diagonal J of one hot pixel: its row sum spreads over the 3 x 3 around it, edges over fewer."""
    hot = torch.zeros(1, 1, 8, 8)
    hot[0, 0, 0, 0] = 4.0
    guided = BetGuided(lambda x, s: hot * x, lambda x, s: hot * x - 1, 1.0, "row_smooth", {})
    moved = guided(torch.zeros(1, 1, 8, 8), 1.0)[0, 0]
    want = torch.zeros(8, 8)
    want[0, 0], want[0, 1], want[1, 0], want[1, 1] = 4 / 4, 4 / 6, 4 / 6, 4 / 9
    assert torch.allclose(moved, want, atol=1e-3)


def test_prior_filters_in_its_basis():
    basis = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    v, gain = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.tensor([[1.0, 0.5, 0.0]] * 2)
    want = torch.stack([basis.T @ torch.diag(gain[0].double()) @ basis @ row for row in v])
    assert torch.allclose(Prior(basis, torch.ones(3)).filtered(v, gain), want)


# Mixtures


def test_errors_are_those_of_compare_and_the_tuned_weight_is_the_best():
    p, sigmas = pair("toy"), (0.3, 1.0)
    rows = errors(p, Amount(points=(40, 4, 4), weights=(1.0,), sigmas=sigmas))
    for sigma in sigmas:
        x = p.cond.noisy(40, sigma, generator=torch.Generator().manual_seed(0))
        want = compare(p, 1.0, x, sigma)
        for row in (r for r in rows if r.sigma == sigma):
            assert (row.win, row.relative_rms) == pytest.approx((want[row.form].win, want[row.form].relative_rms), rel=1e-3)
    pooled = {r.form: r for r in rows if r.sigma is None}
    from reg_core.lab.optimum import Optimum

    def carried_rms(form, weight):
        total = 0.0
        for sigma in sigmas:
            x = p.cond.noisy(40, sigma, generator=torch.Generator().manual_seed(0))
            e = weight * shift(p, x, sigma, form) - Optimum(p, 1.0).evaluate(x, sigma).shift
            variance = p.cond.data_std**2
            total += float(e.square().mean()) * variance / (variance + sigma**2)
        return total**0.5

    for form in ("row_sum", "schedule"):
        weights = [pooled[form].tuned + d for d in (-0.02, 0.0, 0.02)]
        tried = [carried_rms(form, w) for w in weights]
        assert min(tried) == tried[1], form
        plain = carried_rms("off", pooled["off"].tuned)
        assert pooled[form].tuned_rms == pytest.approx(tried[1] / plain, rel=1e-3)
        assert pooled[form].relative_rms == pytest.approx(carried_rms(form, 1.0) / carried_rms("off", 1.0), rel=1e-3)


def test_negative_controls_really_are_negative():
    toy = control("toy", 0.5, (0.7, 1.0, 1.4, 2.0), 64)["forms"]
    overlapping = control("overlapping", 1.0, (2.0, 5.0), 8)["forms"]
    assert toy["row_sum"]["relative_rms"] > 1 and overlapping["row_sum"]["relative_rms"] > 1
    assert toy["row_sum"]["win"] < 0.5 and overlapping["row_sum"]["win"] < 0.5


def test_terminal_distances_at_nominal_weight_and_at_the_best_one():
    rows = {r.form: r for r in ends(pair("nested"), Amount(starts=100, steps=20), 2.0)}
    assert rows["row_sum"].distance < 0.5 * rows["off"].distance
    assert rows["off"].tuned < 2.0 and rows["off"].tuned_distance < rows["off"].distance, "CFG wants less than its nominal weight"
    assert rows["optimum"].distance <= min(r.distance for r in rows.values() if r.form != "optimum") + 1e-3


# The page


def known(form, offset, setup="weak"):
    weights = np.array([0, 0.5, 1, 2, 4.0])
    score = 9 - 2 / (1 + weights[:, None]) + np.zeros((1, 3))
    values = {m: score * 0 + 0.5 for m in METRICS}
    return Front(setup, "constant", form, weights, values | {"is_": score, "fid": 1 + (score - 8.2) ** 2 + offset + np.array([0, 0.01, -0.01])})


def test_claims_follow_the_numbers():
    def said(row_sum, schedule):
        found = {("weak", "constant", f): known(f, o) for f, o in (("off", 0.0), ("schedule", schedule), ("row_sum", row_sum))}
        claims = report.claims_fronts(found)
        matched, best = ([c for c in claims if what in c[1]] for what in ("matched IS", "best FID"))
        pair = re.compile(r"weak, constant: `(\w+)` less `?(\w+)")
        made = [{pair.match(text).groups(): verdict for verdict, text in part} for part in (matched, best)]
        assert made[0] == made[1], "the offset is the same everywhere on the front"
        return made[0]

    assert said(-0.3, -0.1) == {("schedule", "CFG"): "better", ("row_sum", "CFG"): "better", ("row_sum", "schedule"): "better"}
    assert said(0.2, -0.1) == {("schedule", "CFG"): "better", ("row_sum", "CFG"): "worse", ("row_sum", "schedule"): "worse"}
    text = report.summary(report.claims_fronts({("weak", "constant", f): known(f, o) for f, o in (("off", 0.0), ("row_sum", 0.2))}))
    assert "Does not hold" in text and "Holds" not in text


def test_mixtures_are_counted_case_by_case():
    cases = {("a", 1.0): (1.0, 2.0), ("a", 2.0): (3.0, 2.0), ("b", 1.0): (2.0, 2.0), ("a", 4.0): (9.0, 2.0)}
    assert report._count("it wins", cases) == ("mixed", "it wins in 1 of 4 cases, equal in 1; not for a at w 2, 4")
    assert report._count("it wins", {("a", 1.0): (1.0, 2.0)})[0] == "better" and report._count("it wins", {("a", 1.0): (3.0, 2.0)})[0] == "worse"


def test_the_default_is_judged_by_the_spread_between_seeds():
    def results(fid=0.0, is_=0.0, accuracy=0.0, **way):
        exact = {s: {"fid": 1 + 0.1 * s, "is_": 9 + 0.2 * s, "accuracy": 0.9, "rows": 20} for s in range(3)}  # std 0.1, 0.2, and 0.015 of 400 images
        mine = {s: r | {"fid": r["fid"] + fid, "is_": r["is_"] + is_, "accuracy": r["accuracy"] + accuracy} for s, r in exact.items()}
        ways = ((exact, {"engine": "reverse"}), (mine, {"refresh": 4} | way))
        return {Point("weak", "constant", "row_sum", 1.5, s, **w): row for rows, w in ways for s, row in rows.items()}

    mode = replace(plan.FULL, variants=(1.5,))
    for moved, words in (
        ({"fid": 0.09, "is_": -0.19, "accuracy": -0.014}, "within"),
        ({"fid": 0.11}, "FID worse"),
        ({"fid": -0.11}, "FID better"),
        ({"is_": -0.21}, "IS worse"),
        ({"accuracy": 0.016, "is_": 0.21}, "IS better, accuracy better"),
    ):
        found = results(**moved)
        assert tables.variants(found, {"x": {"refresh": 4}}, mode).splitlines()[-1].endswith(f"| {words} |")
        inside, worse = words == "within", "worse" in words
        assert f"at {inside:d} of 1 weights, and is worse at {worse:d}" in report.default_claim(found, mode)
    both = report.default_claim(results() | results(fid=0.3, skip_below=0.05), mode)
    assert "default stays" in both and "skip_below` 0.05 it stays" in both and "at 1 of 1" in both and "at 0 of 1" in both
    assert "not compared" in report.default_claim({}, mode)


TINY = plan.Plan(
    "quick", steps=3, seeds=2, images={"weak": 12},
    constant={"weak": plan.Grid((0.5, 2.0), (1.5, 6.0))}, schedules={}, scheduled=plan.Grid((1.0,), (1.0,)), variants=(1.5,), bets={},
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A whole report at a tiny size; the second run samples nothing."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "QUICK", TINY)
        patch.setattr(plan, "weaker", lambda folder: folder)
        little = Amount(points=(8, 4, 8), weights=(1.0, 4.0), sigmas=(0.3, 2.0), pairs=("toy", "correlated"), terminal=("nested",), starts=50, steps=8)
        patch.setattr(study, "QUICK", little)
        patch.setattr(evidence, "TOYS", ())
        argv = ["--quick", "--out", str(out), "--work", str(work)]
        evidence.main(argv)
        before = (work / "fronts_quick.jsonl").read_bytes()
        evidence.main(argv)
        assert (work / "fronts_quick.jsonl").read_bytes() == before, "sampled again"
    return out


def test_the_page_is_the_same_from_what_is_published_and_chosen_points_are_sampled_again(page, tmp_path, monkeypatch):
    """Oracle: the first report. Its pages may differ where numbers were cut to four digits, not in what was sampled."""
    out, work, sampled = tmp_path / "out", tmp_path / "work", []
    shutil.copytree(page, out)
    evaluate = plan.evaluate
    monkeypatch.setattr(plan, "QUICK", TINY)
    monkeypatch.setattr(plan, "weaker", lambda folder: folder)
    monkeypatch.setattr(plan, "evaluate", lambda job: sampled.append(job[0]) or evaluate(job))
    monkeypatch.setattr(evidence, "TOYS", ())
    evidence.main(["--quick", "--out", str(out), "--work", str(work), "--again", "skip_below=0.1"])
    assert sampled and all(p.skip_below == 0.1 for p in sampled)
    before, after = (json.loads((folder / "evidence" / "fronts.json").read_text()) for folder in (page, out))
    assert before == after
    mixtures = [json.loads((folder / "evidence" / "mixtures.json").read_text()) for folder in (page, out)]
    assert mixtures[0] == mixtures[1]
    (out / "evidence" / "fronts.json").write_text(json.dumps(after | {"header": {}}))
    with pytest.raises(ValueError, match="other settings"):
        evidence.main(["--quick", "--out", str(out), "--work", str(tmp_path / "other"), "--again"])


def test_the_page_has_its_pictures_its_tables_and_the_free_schedule(page):
    text = (page / "evidence.md").read_text()
    pictures = re.findall(r"!\[[^]]+\]\((evidence/[^)]+)\)", text)
    assert {"evidence/toy.png", "evidence/maps.png", "evidence/fronts.png", "evidence/corrections.png"} <= set(pictures)
    for picture in pictures:
        assert Image.open(page / picture).width > 300 and (page / picture).stat().st_size < 150_000
    for section in ("### Best FID", "### FID at matched IS", "## Mixtures"):
        assert "schedule" in text.split(section)[1].split("\n## ")[0], section
    assert "in quick mode" in text and "nan" not in text.lower().split("what holds")[1]


def test_the_json_beside_it_has_every_point_and_the_page_its_numbers(page):
    data = json.loads((page / "evidence" / "fronts.json").read_text())
    assert len(data["rows"]) == len(TINY.points())
    column = data["columns"].index
    rows = [r for r in data["rows"] if r[column("form")] == "row_sum" and r[column("weight")] == 6.0 and r[column("engine")] == "auto"]
    best = np.mean([r[column("fid")] for r in rows])
    line = next(v for v in (page / "evidence.md").read_text().splitlines() if v.startswith("| weak | constant | row_sum | 6"))
    assert float(line.split("|")[5].split()[0]) == pytest.approx(best, rel=2e-3)
    assert {p.suffix for p in (page / "evidence").iterdir()} == {".png", ".json"}


@pytest.mark.parametrize("bad", [["--quick"], ["--processes", "0"]])
def test_bad_arguments_are_refused(bad, capsys):
    with pytest.raises(SystemExit):
        evidence.main(bad)
    assert bad[0] in capsys.readouterr().err
