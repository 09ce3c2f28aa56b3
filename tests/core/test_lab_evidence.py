"""The page: what it says follows from the numbers.

Oracles: results with a known winner, and the same with the loser's name; the published page itself.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("prdc")
pytest.importorskip("matplotlib")

from PIL import Image

from reg_core.lab.evidence import __main__ as evidence
from reg_core.lab.evidence import claims, page, published, tables
from reg_core.lab.fronts import survey
from reg_core.lab.fronts.analysis import METRICS, Front, fronts
from reg_core.lab.fronts.trials import Trial
from reg_core.lab.mixtures import study
from reg_core.lab.mixtures.study import Amount

DOCS = Path(__file__).resolve().parents[2] / "docs"


def known(form, offset, setup="weak"):
    weights = np.array([0, 0.5, 1, 2, 4.0])
    score = 9 - 2 / (1 + weights[:, None]) + np.zeros((1, 3))
    values = {m: score * 0 + 0.5 for m in METRICS}
    return Front(setup, "constant", form, weights, values | {"is_": score, "fid": 1 + (score - 8.2) ** 2 + offset + np.array([0, 0.01, -0.01])})


def test_claims_follow_the_numbers():
    def said(row_sum, schedule):
        found = {("weak", "constant", f): known(f, o) for f, o in (("off", 0.0), ("schedule", schedule), ("row_sum", row_sum))}
        said = claims.claims_fronts(found)
        matched, best = ([c for c in said if what in c[1]] for what in ("matched IS", "best FID"))
        pair = re.compile(r"weak, constant: `(\w+)` less `?(\w+)")
        made = [{pair.match(text).groups(): verdict for verdict, text in part} for part in (matched, best)]
        assert made[0] == made[1], "the offset is the same everywhere on the front"
        return made[0]

    assert said(-0.3, -0.1) == {("schedule", "CFG"): "better", ("row_sum", "CFG"): "better", ("row_sum", "schedule"): "better"}
    assert said(0.2, -0.1) == {("schedule", "CFG"): "better", ("row_sum", "CFG"): "worse", ("row_sum", "schedule"): "worse"}
    text = claims.summary(claims.claims_fronts({("weak", "constant", f): known(f, o) for f, o in (("off", 0.0), ("row_sum", 0.2))}))
    assert "Does not hold" in text and "Holds" not in text


def test_mixtures_are_counted_case_by_case():
    cases = {("a", 1.0): (1.0, 2.0), ("a", 2.0): (3.0, 2.0), ("b", 1.0): (2.0, 2.0), ("a", 4.0): (9.0, 2.0)}
    assert claims._count("it wins", cases) == ("mixed", "it wins in 1 of 4 cases, equal in 1; not for a at w 2, 4")
    assert claims._count("it wins", {("a", 1.0): (1.0, 2.0)})[0] == "better" and claims._count("it wins", {("a", 1.0): (3.0, 2.0)})[0] == "worse"


def test_the_default_is_judged_by_the_spread_between_seeds():
    def results(fid=0.0, is_=0.0, accuracy=0.0, **way):
        exact = {s: {"fid": 1 + 0.1 * s, "is_": 9 + 0.2 * s, "accuracy": 0.9, "rows": 20} for s in range(3)}  # std 0.1, 0.2, and 0.015 of 400 images
        mine = {s: r | {"fid": r["fid"] + fid, "is_": r["is_"] + is_, "accuracy": r["accuracy"] + accuracy} for s, r in exact.items()}
        ways = ((exact, {"engine": "reverse"}), (mine, {"refresh": 4} | way))
        return {Trial("weak", "constant", "row_sum", 1.5, s, **w): row for rows, w in ways for s, row in rows.items()}

    mode = replace(survey.FULL, variants=(1.5,))
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
        assert f"at {inside:d} of 1 weights, and is worse at {worse:d}" in claims.default_claim(found, mode)
    both = claims.default_claim(results() | results(fid=0.3, skip_below=0.05), mode)
    assert "default stays" in both and "skip_below` 0.05 it stays" in both and "at 1 of 1" in both and "at 0 of 1" in both
    assert "not compared" in claims.default_claim({}, mode)


TINY = survey.Survey(
    "quick", steps=3, seeds=2, images={"weak": 12},
    constant={"weak": survey.Weights((0.5, 2.0), (1.5, 6.0))}, schedules={}, scheduled=survey.Weights((1.0,), (1.0,)), variants=(1.5,),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole report at a tiny size; the second run samples nothing."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "QUICK", TINY)
        patch.setattr(survey, "weaker", lambda folder: folder)
        little = Amount(points=(8, 4, 8), weights=(1.0, 4.0), sigmas=(0.3, 2.0), pairs=("toy", "correlated"), terminal=("nested",), starts=50, steps=8)
        patch.setattr(study, "QUICK", little)
        patch.setattr(evidence, "TOYS", ())
        argv = ["--quick", "--out", str(out), "--work", str(work)]
        evidence.main(argv)
        before = (work / "fronts_quick.jsonl").read_bytes()
        evidence.main(argv)
        assert (work / "fronts_quick.jsonl").read_bytes() == before, "sampled again"
    return out


def test_the_page_is_the_same_from_what_is_published_and_chosen_points_are_sampled_again(made, tmp_path, monkeypatch):
    """Oracle: the first report. Its pages may differ where numbers were cut to four digits, not in what was sampled."""
    out, work, sampled = tmp_path / "out", tmp_path / "work", []
    shutil.copytree(made, out)
    evaluate = survey.evaluate
    monkeypatch.setattr(survey, "QUICK", TINY)
    monkeypatch.setattr(survey, "weaker", lambda folder: folder)
    monkeypatch.setattr(survey, "evaluate", lambda job: sampled.append(job[0]) or evaluate(job))
    monkeypatch.setattr(evidence, "TOYS", ())
    evidence.main(["--quick", "--out", str(out), "--work", str(work), "--again", "skip_below=0.1"])
    assert sampled and all(p.skip_below == 0.1 for p in sampled)
    before, after = (json.loads((folder / "evidence" / "fronts.json").read_text()) for folder in (made, out))
    assert before == after
    mixtures = [json.loads((folder / "evidence" / "mixtures.json").read_text()) for folder in (made, out)]
    assert mixtures[0] == mixtures[1]
    (out / "evidence" / "fronts.json").write_text(json.dumps(after | {"header": {}}))
    with pytest.raises(ValueError, match="other settings"):
        evidence.main(["--quick", "--out", str(out), "--work", str(tmp_path / "other"), "--again"])


def test_the_page_has_its_pictures_its_tables_and_the_free_schedule(made):
    text = (made / "evidence.md").read_text()
    pictures = re.findall(r"!\[[^]]+\]\((evidence/[^)]+)\)", text)
    assert {"evidence/toy.png", "evidence/maps.png", "evidence/fronts.png", "evidence/corrections.png"} <= set(pictures)
    for picture in pictures:
        assert Image.open(made / picture).width > 300 and (made / picture).stat().st_size < 150_000
    for section in ("### Best FID", "### FID at matched IS", "## Mixtures"):
        assert "schedule" in text.split(section)[1].split("\n## ")[0], section
    assert "in quick mode" in text and "nan" not in text.lower().split("what holds")[1]


def test_the_json_beside_it_has_every_point_and_the_page_its_numbers(made):
    data = json.loads((made / "evidence" / "fronts.json").read_text())
    assert len(data["rows"]) == len(TINY.trials())
    column = data["columns"].index
    rows = [r for r in data["rows"] if r[column("form")] == "row_sum" and r[column("weight")] == 6.0 and r[column("engine")] == "auto"]
    best = np.mean([r[column("fid")] for r in rows])
    line = next(v for v in (made / "evidence.md").read_text().splitlines() if v.startswith("| weak | constant | row_sum | 6"))
    assert float(line.split("|")[5].split()[0]) == pytest.approx(best, rel=2e-3)
    assert {p.suffix for p in (made / "evidence").iterdir()} == {".png", ".json"}


@pytest.mark.parametrize("bad", [["--quick"], ["--processes", "0"]])
def test_bad_arguments_are_refused(bad, capsys):
    with pytest.raises(SystemExit):
        evidence.main(bad)
    assert bad[0] in capsys.readouterr().err


# What is published


def test_the_published_page_is_what_the_published_results_say(tmp_path):
    """Oracle: docs/evidence.md, made once and kept. Its pictures lie beside it."""
    folder = DOCS / "evidence"
    published.restore(survey.FULL, folder, tmp_path, [])
    results = survey.finished(survey.FULL, tmp_path)
    assert len(results) == len(survey.FULL.trials()), "nothing is left to be sampled"
    mixtures, *toys = (json.loads((tmp_path / f"{name}_full.json").read_text()) for name in ("mixtures", "toy_1d", "toy_2d"))
    pictures = {path.stem: f"evidence/{path.name}" for path in folder.glob("*.png")}
    text = page.document(survey.FULL, results, mixtures, toys, pictures, published.candidates(folder))
    assert text == (DOCS / "evidence.md").read_text(encoding="utf-8")


def test_candidates_that_lost_are_results_only():
    """Their tables follow from their own rows and those of their rivals. Oracle: one cell by hand, from the files."""
    folder = DOCS / "evidence"
    kept = published.candidates(folder)
    results = published.results_of(json.loads((folder / "fronts.json").read_text()))
    assert published.candidates(folder / "nowhere") is None
    found = fronts(results | kept.results)
    assert tables.winners(found, kept.forms) == {}
    rows = [r for t, r in kept.results.items() if t.form == "sign_sum" and t.weight == 1.5]
    line = next(line for line in tables.candidates(found, kept.forms).splitlines() if line.startswith("| weak | sign_sum | 1 | 1.5 |"))
    assert len(rows) == 3 and f"{np.mean([r['fid'] for r in rows]):.3f} ±" in line
    cost = {"off": 0, "row_sum": 1} | {name: about["extra rows a call"] for name, about in kept.forms.items()}
    calls = 2 * 12 - 1
    for trial, result in (results | kept.results).items():
        if trial.form in cost and trial.weight and trial == Trial(trial.setup, "constant", trial.form, trial.weight, trial.seed):
            assert result["rows"] == calls * (2 + cost[trial.form]), trial


def test_no_candidate_can_be_sampled():
    from reg_core.lab.fronts.trials import Size, sampler

    for form in published.candidates(DOCS / "evidence").forms:
        with pytest.raises(ValueError, match=f"got '{form}'"):
            sampler(Trial("weak", "constant", form, 1.0, 0), Size(10, 3, ""))
