"""The pages: what they say follows from the numbers.

Oracles: results with a known winner, and the same with the loser's name; the published page itself.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("prdc")
pytest.importorskip("matplotlib")

from PIL import Image

from reg_core.lab.evidence import __main__ as evidence
from reg_core.lab.evidence import claims, fashion, page, points, published, tables
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
    assert claims._count("it wins", cases) == ("mixed", "it wins in 1 of 4 cases, equal in 1. Not for: a at w 2, 4")
    assert claims._count("it wins", {("a", 1.0): (1.0, 2.0)})[0] == "better" and claims._count("it wins", {("a", 1.0): (3.0, 2.0)})[0] == "worse"


def test_ways_to_compute_row_sum_are_compared_at_equal_is():
    """Oracle: scores that are known functions of w. A way that is as good and half as strong costs nothing at matched IS, and wants twice the weight."""

    def front(strength, offset, rows, **way):
        made = {}
        for w in (0.5, 1.0, 2.0, 4.0, 8.0):
            for seed in range(3):
                score = 9 - 2 / (1 + strength * w)
                made[Trial("weak", "constant", "row_sum", w, seed, **way)] = {"fid": 1 + (score - 8.4) ** 2 + offset + 0.1 * seed, "is_": score, "rows": rows}
        return made

    unguided = {Trial("weak", "constant", "off", 0.0, seed): {"fid": 2.96 + 0.1 * seed, "is_": 7.0, "rows": 23} for seed in range(3)}
    results = unguided | front(1, 0, 46, engine="reverse") | front(0.5, 0, 50, **survey.NODE) | front(1, 0.2, 37, **survey.NODE_SKIPPING)
    found = fronts(results)
    exact, default, skipping = ([cell.strip() for cell in line.split("|")[1:-1]] for line in tables.row_sum_ways(found, results).splitlines()[2:])
    assert exact[:2] == ["exact (reverse), every call", "46"] and exact[4:] == ["", "", ""]
    assert default[:2] == ["every 8th call, the node's default", "50"] and float(default[6]) == pytest.approx(2, abs=0.05)
    assert abs(float(default[5].split()[0])) < 0.01
    assert skipping[1] == "37" and skipping[6] == "1.00" and skipping[4] == "+0.200 ± 0.000 worse" and skipping[5].endswith("worse")
    text = claims.default_claim(found)
    assert "The node's default, less the exact product at every call" in text and "With `skip_below` 0.05" in text and "+0.200 ± 0.000 worse" in text
    assert "not compared" in claims.default_claim({})


def test_the_default_that_is_measured_is_the_nodes():
    """Oracle: the text of the node."""
    assert f'whole("refresh", {survey.NODE["refresh"]}, ' in (DOCS.parent / "nodes" / "guidance.py").read_text()


TINY = survey.Survey(
    "quick", steps=3, seeds=2, images={"weak": 12},
    constant={"weak": survey.Weights((0.5, 2.0), (1.5, 6.0))}, schedules={}, scheduled=survey.Weights((1.0,), (1.0,)),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole report at a tiny size; the second run samples nothing."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "QUICK", TINY)
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
    text = (made / "evidence-more.md").read_text()
    assert not (made / "evidence.md").exists(), "it is of Fashion-MNIST, which is not here"
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
    results = published.results_of(data)
    best = np.mean([results[Trial("weak", "constant", "row_sum", 6.0, seed)]["fid"] for seed in range(TINY.seeds)])
    line = next(v for v in (made / "evidence-more.md").read_text().splitlines() if v.startswith("| weak | constant | row_sum | 6"))
    assert float(line.split("|")[5].split()[0]) == pytest.approx(best, rel=2e-3)
    assert {p.suffix for p in (made / "evidence").iterdir()} == {".png", ".json"}


@pytest.mark.parametrize("bad", [["--quick"], ["--processes", "0"]])
def test_bad_arguments_are_refused(bad, capsys):
    with pytest.raises(SystemExit):
        evidence.main(bad)
    assert bad[0] in capsys.readouterr().err


# Fashion-MNIST


def clothes(setup, schedule, method, offset, seeds, pace=1.0):
    """A front of `known`, gone along at `pace` times the weight, with some of its seeds."""
    front = known(method, offset, setup)
    values = {name: value[:, : len(seeds)] for name, value in front.values.items()}
    return Front(setup, schedule, method, pace * front.weights, values, seeds)


THREE, TWO, ONE = ("cuda 0", "cuda 1", "cuda 2"), ("cuda 0", "cuda 1"), ("cuda 0",)
SIGMAS = [8.0, 4.0, 2.0, 1.0, 0.0]  # Heun calls 1, 2, 2 and 2 times: 4 of 7 at sigma <= 2


def wardrobe(schedule=-0.5, auto=0.1):
    made = [
        clothes("fashion_weak", "constant", "off", 0.0, THREE),
        clothes("fashion_weak", "below_2", "off", -0.45, TWO),
        clothes("fashion_weak", "below_4", "off", -0.2, TWO),
        clothes("fashion_weak", "constant", "schedule", schedule, THREE, pace=4),
        clothes("fashion_weak", "constant", "row_sum, engine reverse", -0.3, THREE, pace=1.5),
        clothes("fashion_weak", "constant", "row_sum", -9.0, THREE),  # finite differences are another method
        clothes("fashion_auto", "constant", "off", 0.0, ONE),
        clothes("fashion_auto", "constant", "schedule", auto, ONE),
    ]
    return {(f.setup, f.schedule, f.method): f for f in made}


def test_the_table_of_fashion_follows_the_numbers():
    """FID is 1 + offset at its best, so differences are those of the offsets; the best interval stands for all."""
    lines = fashion.main_table(wardrobe(), ("fashion_weak", "fashion_auto"), SIGMAS).splitlines()[2:]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = {(cells[0], cells[1]): cells[2:] for cells in table}
    weak = "small model"
    assert [cells[1] for cells in table if cells[0] == weak] == ["CFG", "CFG, sigma <= 2 only", "`schedule`", "`row_sum`"]
    cost, weight, best, _, _, seeds, less_plain, less_interval = rows[weak, "`schedule`"]
    assert (cost, weight, seeds) == ("1", "8", "3") and float(best.split()[0]) == pytest.approx(0.52, abs=0.01)
    assert less_plain == "-0.50 ± 0.00, better" and less_interval == "-0.05 ± 0.00, better"
    assert rows[weak, "CFG, sigma <= 2 only"][0] == f"{(1 + 4 / 7) / 2:.2f}" and rows[weak, "CFG, sigma <= 2 only"][6] == "-0.45 ± 0.00, better"
    assert rows[weak, "CFG"][6:] == ["", "+0.45 ± 0.00, worse"] and rows[weak, "`row_sum`"][0] == "1 + backward"
    auto = "large by small: autoguidance"
    assert rows[auto, "autoguidance in an interval"][0] == "not sampled" and rows[auto, "`schedule`"][5:] == ["1", "+0.10", ""]


@pytest.mark.parametrize(
    ("schedule", "first", "told"),
    [(-0.5, "schedule", "is worse"), (-0.35, "schedule", "is better"), (-0.1, "row_sum", "is better")],
)
def test_the_verdict_follows_the_numbers(schedule, first, told):
    """The form of least FID is named, and the interval beside it, whichever wins."""
    use, costs, avoid = claims.verdict(wardrobe(schedule), survey.FASHION.images, SIGMAS).splitlines()
    assert f"**Use `{first}` first**" in use and use.endswith("No form has a smaller one there.")
    pace = {"schedule": 4.0, "row_sum": 1.5}[first]
    assert f"about {pace:.1f} times CFG's weight" in costs and told in costs and f"saves {100 * 3 / 14:.0f} %" in costs
    assert ("no more model evaluations" in costs) == (first == "schedule")
    assert "overlap" in avoid and (first == "row_sum" or "does not surely help (FID at equal IS +0.100, one seed)" in avoid)


def test_the_negative_control_says_when_it_fails():
    control = {"pair": "overlapping", "sigmas": [2, 10], "forms": {"row_sum": {"relative_rms": 1.86}, "schedule": {"relative_rms": 2.07}}}
    assert "REG is worse than CFG" in (line := claims.negative({"controls": [control]})) and "1.9" in line and "2.1" in line
    control["forms"]["schedule"]["relative_rms"] = 0.9
    assert "should be worse than CFG and is not" in claims.negative({"controls": [control]})


def test_ratios_stand_beside_their_estimates():
    curves = {"fashion_weak": {"schedule": {"sigma": [0.01, 80], "c": [0.2, 0.2]}, "product": {"sigma": [0.01, 80], "c": [0.5, 0.5]}}}
    table, apart = fashion.ratios(wardrobe(), curves, {"fashion_weak": 0.7})
    assert "| `schedule` | 4.0 / 5.0 |" in table and "| `product` |  |" in table, "product was not sampled"
    assert "1.25 to 1.25 times" in apart and "1 of 1 are right" in apart


def test_what_is_missing_is_counted():
    made = survey.FASHION.trials()
    half = {t: {} for t in made if t.setup != "fashion_good"}
    table = fashion.missing(survey.FASHION, half)
    cells = {line.split("|")[1].strip(): re.findall(r"(\d+) of (\d+)", line) for line in table.splitlines()[2:]}
    assert sum(int(n) for pairs in cells.values() for _, n in pairs) == len(made)
    assert all(have == ("0" if name == "large model" else n) for name, pairs in cells.items() for have, n in pairs)
    assert len(cells) == 4 and len(cells["small model"]) == 4 and len(cells["large model"]) == 2


def test_bets_stand_beside_schedule_and_the_interval(tmp_path):
    """Results with a known winner: `schedule` less 0.2 at every IS, at half the cost. They are kept and read again."""
    results = {}
    made = (("constant", "off", 0.0, 46), ("below_2", "off", -0.3, 33), ("constant", "schedule", -0.3, 46), ("constant", "power_2", -0.5, 23))
    for schedule, form, offset, rows in made:
        for w in (0.0, 0.5, 1.0, 2.0, 4.0) if form == "off" and schedule == "constant" else (0.5, 1.0, 2.0, 4.0):
            for seed in range(2):
                score = 9 - 2 / (1 + w)
                fid = 1 + (score - 8.2) ** 2 + (offset if w else 0) + 0.01 * seed
                results[Trial("fashion_weak", schedule, form, w, seed)] = {"fid": fid, "is_": score, "rows": rows, "notes": []}
    lines = points.bets(results).splitlines()
    row = next([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "power_2" in line)
    assert row[:3] == ["`power_2`", "0.50", "2"] and row[4].startswith("-0.20 ± 0.00, better") and row[5].startswith("-0.20")
    assert "at equal IS less `schedule`" in lines[0] and "less CFG at sigma <= 2" in lines[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in points.bet_points(results).splitlines()]
    assert ["`power_2`", "0.50", "2"] == next(c[:3] for c in cells if c[0] == "`power_2`" and c[2] == "2")
    assert next(c[-1] for c in cells if c[0] == "`power_2`" and c[2] == "2").startswith("-0.20 ± 0.00")
    kept, words = published.bets(tmp_path, results)
    assert "square" in words["power_2"] and list(kept) == list(results) == list(published.bets(tmp_path)[0])


def test_what_is_cheaper_than_cfg_stands_beside_the_same_form_at_every_call():
    """Scores given: 0.1 more FID at 32 of 46 rows, each form at its best weight. What was not sampled has no row."""
    results = {}
    given = (
        ("constant", "off", {}, 0.5, 3.0, 46),
        ("constant", "row_sum", {"refresh": 8}, 1.0, 2.0, 50),
        ("constant", "row_sum", {"refresh": 8}, 2.0, 2.5, 50),
    )
    fewer = ("below_2", "row_sum", {"refresh": 8, "skip_below": 0.1}, 1.5, 2.1, 32)
    for schedule, form, way, w, fid, rows in (*given, fewer):
        for seed in range(3):
            results[Trial("fashion_weak", schedule, form, w, seed, **way)] = {"fid": fid + 0.3 * seed, "is_": 8.0, "rows": rows, "notes": []}
            if schedule == "below_2":  # the others were sampled where the real pictures were not
                results[Trial("fashion_weak", schedule, form, w, seed, **way)] |= {"precision": 0.5, "recall": 0.6, "density": 0.7, "coverage": 0.8}
    alone, less = ([cell.strip() for cell in line.split("|")[1:-1]] for line in points.cheaper(results).splitlines()[2:])
    name, shares = "`row_sum`, finite differences, refresh 8", ["0.50", "0.60", "0.70", "0.80"]
    assert alone == [name, "1.09", "1", "8.00", "2.30", *[""] * 4, ""]
    assert points.bound_alone(results) == "", "CFG below that bound was not sampled"
    given_cfg = {Trial("fashion_weak", "below_2", "off", 2.0, seed): {"fid": 2.0 + 0.3 * seed, "is_": 8.0, "rows": 33, "notes": []} for seed in range(3)}
    assert points.bound_alone(results | given_cfg).endswith("less CFG: +0.10 ± 0.00, worse.")
    without_cfg = {t: r for t, r in results.items() if t.form != "off"}
    assert points.cheaper(without_cfg).splitlines()[2].split("|")[2].strip() == "", "a run that ended early has no cost"
    assert less == [f"{name}, skip below 0.1, sigma <= 2 only", "0.70", "1.5", "8.00", "2.40", *shares, "+0.10 ± 0.00, worse"]


# What is published


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """(digits, mixtures, toys, corrections, Fashion-MNIST) of docs/evidence."""
    folder, work = DOCS / "evidence", tmp_path_factory.mktemp("work")
    published.restore(survey.FULL, folder, work, [])
    results = survey.finished(survey.FULL, work)
    assert len(results) == len(survey.FULL.trials()), "nothing is left to be sampled"
    names = ("mixtures_full", "toy_1d_full", "toy_2d_full", "corrections_full")
    mixtures, *toys, curves = (json.loads((work / f"{name}.json").read_text()) for name in names)
    return results, mixtures, toys, curves, published.fashion_results(folder)


def test_the_published_pages_are_what_the_published_results_say(kept):
    """Oracle: the pages, made once and kept. Their pictures lie beside them."""
    digits, mixtures, toys, curves, dressed = kept
    folder = DOCS / "evidence"
    pictures = {path.stem: f"evidence/{path.name}" for path in folder.glob("*.png")}
    text = page.document(survey.FULL, digits, mixtures, toys, pictures, published.candidates(folder), dressed, published.bets(folder), published.checks(folder))
    assert text == (DOCS / "evidence-more.md").read_text(encoding="utf-8")
    text = page.main_page(survey.FASHION, dressed, digits, mixtures, curves, published.source(folder), published.checks(folder), published.bets(folder)[0])
    assert text == (DOCS / "evidence.md").read_text(encoding="utf-8")
    assert (folder / "fashion.png").is_file() and len(text.splitlines()) < 100, "three screens"


def test_links_between_the_pages_lead_somewhere():
    for name in ("evidence.md", "evidence-more.md"):
        for target in re.findall(r"\]\(([^)h][^)]*)\)", (DOCS / name).read_text(encoding="utf-8")):
            file, _, place = target.partition("#")
            assert (DOCS / file).is_file(), target
            heads = re.findall(r"^#+ (.+)$", (DOCS / file).read_text(encoding="utf-8"), re.M) if place else []
            slugs = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
            assert not place or place in slugs, target


def test_the_study_is_published_as_it_was():
    """Oracle: numbers of the study by hand: its points, and two of its best FIDs as the mean of their seeds."""
    found = published.fashion_results(DOCS / "evidence")
    study = published.study(published.spread_out(json.loads((DOCS / "evidence" / "fashion.json").read_text())))
    assert len(study) == 229 and all(found[t] == r for t, r in study.items())
    mean = {}
    for form, w in (("off", 0.5), ("schedule", 2.5)):
        trials = [Trial("fashion_weak", "constant", form, w, seed) for seed in range(3)]
        mean[form, w] = np.mean([found[t]["fid"] for t in trials])
    assert mean["off", 0.5] == pytest.approx(2.41, abs=0.005) and mean["schedule", 2.5] == pytest.approx(0.99, abs=0.005)
    bounded = [r["fid"] for t, r in found.items() if t.schedule == "below_2" and t.weight == 2 and t.setup == "fashion_weak" and t.form == "off"]
    assert np.mean(bounded) == pytest.approx(1.02, abs=0.005)
    assert {t.engine for t in study if t.form in ("row_sum", "scalar", "product")} == {"reverse"}


def test_this_code_samples_the_studys_points():
    """Oracle: the study, sampled on a GPU by other code. From its noise FID is within 3 %, and as many pictures are of their class."""
    pairs = published.checks(DOCS / "evidence")
    assert {t.method for t in pairs} >= {"off", "schedule", "row_sum, engine reverse"}
    for theirs, ours in pairs.values():
        assert ours["fid"] == pytest.approx(theirs["fid"], rel=0.03) and ours["fid_other"] == pytest.approx(theirs["fid_other"], rel=0.03)
        assert ours["is_"] == pytest.approx(theirs["is_"], rel=0.003) and ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.002)
    apart = max(abs(ours["fid"] - theirs["fid"]) / theirs["fid"] for theirs, ours in pairs.values())
    assert f"sampled {len(pairs)} again" in page.check_claim(pairs) and f"{100 * apart:.1f} % at most" in page.check_claim(pairs)


def test_points_sampled_later_are_added_to_the_published_ones(tmp_path):
    """A trial of the study keeps the study's numbers, others are written beside it and read again."""
    folder = tmp_path / "evidence"
    folder.mkdir()
    shutil.copy(DOCS / "evidence" / "fashion.json", folder)
    before = published.fashion_results(folder)
    old = next(iter(before))
    new = next(t for t in survey.FASHION.trials() if t not in before)
    scores = {"fid": 0.5, "is_": 8.0, "rows": 46, "notes": []}
    after = published.fashion_results(folder, {old: scores, new: scores})
    assert after[old] == before[old] and len(after) == len(before) + 1 and after[new]["fid"] == 0.5
    assert published.fashion_results(folder) == after


def test_what_the_pages_say_of_the_models_is_theirs():
    from reg_core.demo_models.loading import load_model

    digits, dressed = load_model("digits_weak"), load_model("fashion_weak")
    assert (digits.sigma_data, dressed.sigma_data) == (page.DIGITS_STD, published.FASHION_STD)
    assert (dressed.sigma_min, dressed.sigma_max) == page.FASHION_LEVELS


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
    from reg_core.lab.fronts.setups import labels
    from reg_core.lab.fronts.trials import Size, sampler

    for form in published.candidates(DOCS / "evidence").forms:
        with pytest.raises(ValueError, match=f"got '{form}'"):
            sampler(Trial("weak", "constant", form, 1.0, 0), Size(10, 3, ""), labels(10))
