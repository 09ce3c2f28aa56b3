"""Plans, templates, the folder of images and the report's arithmetic of reg_core.evaluation."""

import json
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import reg_core
from reg_core.evaluation import report
from reg_core.evaluation import template as templates
from reg_core.evaluation.plan import GridPoint, Job, Plan, PlanError, points, read_prompts
from reg_core.evaluation.server import share_of
from reg_core.evaluation.store import Store

REPO = Path(__file__).resolve().parents[2]
WORKFLOW = {
    "1": {"class_type": "Loader", "inputs": {"name": "a"}},
    "2": {"class_type": "Text", "inputs": {"text": "x", "clip": ["1", 1]}, "_meta": {"title": "Positive v1.0"}},
    "3": {"class_type": "Text", "inputs": {"text": "y", "clip": ["1", 1]}, "_meta": {"title": "Negative"}},
    "4": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": 1, "cfg": 3.0, "mode.steps": 20, "positive": ["2", 0]}},
    "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
}
GRID = {
    "inputs": {"prompt": "Positive v1.0.text", "seed": "4.seed", "cfg": "KSampler.cfg", "steps": "4.mode.steps", "model": "4.model"},
    "grid": {"cfg": [2, 4.5], "steps": [10], "model": {"plain": {"link": ["Loader", 0]}, "other": {"link": ["1", 2]}}},
}


def files(tmp_path, workflow=WORKFLOW, grid=GRID):
    (tmp_path / "w.json").write_text(json.dumps(workflow))
    (tmp_path / "g.json").write_text(json.dumps(grid))
    return tmp_path / "w.json", tmp_path / "g.json"


def plan_of(n_points=2, n_prompts=3, seeds=(0, 1)):
    return Plan(points({"cfg": [2.0 + i for i in range(n_points)]}), tuple({"prompt": str(i)} for i in range(n_prompts)), seeds)


# --- the plan ---


def test_every_image_has_one_key_whatever_else_is_planned():
    """Oracle: the keys are counted and compared with those of a larger plan, written by hand for one job."""
    small, large = plan_of(), plan_of(3, 5, (2, 0, 1))
    keys = {small.key(job): job.noise_seed for job in small.jobs()}
    assert len(keys) == 2 * 3 * 2
    assert keys["cfg=3/00002_001"] == 1_000_002
    assert keys.items() <= {large.key(job): job.noise_seed for job in large.jobs()}.items()
    for point in (0, 1):
        assert len({job.noise_seed for job in small.jobs() if job.point == point}) == 6, "no two images of a point share their noise"
    assert Plan.from_json(json.loads(json.dumps(large.to_json()))) == large


def test_stopped_early_leaves_whole_comparisons():
    assert [job.point for job in plan_of().jobs()[:2]] == [0, 1]
    assert {job.seed for job in plan_of().jobs()[:6]} == {0}


def test_point_names_are_folders_everywhere():
    names = [GridPoint({"sampler": s}, {}).name for s in ("a/b", "a\\b", 'a"b', "x" * 300, "é ö", "..")]
    assert len(set(names)) == len(names)
    assert all(len(n) < 130 and not set(n) & set('/\\:*?"<>|') and n[-1] not in ". " for n in names)
    assert GridPoint({"cfg": 4.0, "form": "row_sum"}, {}).name == "cfg=4,form=row_sum"


@pytest.mark.parametrize(
    "grid, extra, message",
    [
        ({"cfg": 3}, [], "'cfg' must be a list of values or a table of named values, got 3"),
        ({"cfg": []}, [], "'cfg'"),
        ({"cfg": [[1]]}, [], r"'cfg': want a number, a word or .*, got \[1\]"),
        ({"prompt": ["a"]}, [], "'prompt' is set for each image"),
        ({"m": {"a": 1}}, [{"m": "b"}], "'m' has no 'b', only a"),
        ({}, [{"seed": 4}], "seed"),
    ],
)
def test_bad_grids(grid, extra, message):
    with pytest.raises(PlanError, match=message):
        points(grid, extra)


@pytest.mark.parametrize("seeds, message", [((0, 0), "seed 0 twice"), ((-1,), "-1"), ((0.5,), "0.5"), ((), "at least one")])
def test_bad_seeds(seeds, message):
    with pytest.raises(PlanError, match=message):
        plan_of(seeds=seeds)


def test_points_that_differ_in_case_only_would_share_a_folder():
    with pytest.raises(PlanError, match="twice"):
        Plan(points({"m": ["A", "a"]}), ({"prompt": "x"},))


def test_prompts(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a cat\n\n  ein Ölbild \n", encoding="utf-8")
    assert read_prompts(path) == ({"prompt": "a cat"}, {"prompt": "ein Ölbild"})
    lines = tmp_path / "p.jsonl"
    lines.write_text('{"prompt": "a", "negative": "b"}\n')
    assert read_prompts(lines) == ({"prompt": "a", "negative": "b"},)
    lines.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(PlanError, match="line 2"):
        read_prompts(lines)
    path.write_text("\n")
    with pytest.raises(PlanError, match="no prompt"):
        read_prompts(path)


# --- the template ---


def test_values_go_where_the_grid_says(tmp_path):
    template, found = templates.load(*files(tmp_path))
    plan = Plan(found, ({"prompt": "a cat"},), (7,))
    templates.check(template, plan)
    assert template.output == "5" and len(found) == 4
    job = next(job for job in plan.jobs() if plan.points[job.point].labels == {"cfg": 4.5, "steps": 10, "model": "other"})
    filled = template.fill(plan.values(job))
    expected = json.loads(json.dumps(WORKFLOW))
    expected["2"]["inputs"]["text"] = "a cat"
    expected["4"]["inputs"] |= {"seed": 7_000_000, "cfg": 4.5, "mode.steps": 10, "model": ["1", 2]}
    assert filled == expected
    assert template.workflow == WORKFLOW, "the template itself stays"


def test_toml_says_the_same(tmp_path):
    pytest.importorskip("tomllib", reason="Python 3.11")
    workflow, grid = files(tmp_path)
    toml = tmp_path / "g.toml"
    toml.write_text(
        '[inputs]\nprompt = "Positive v1.0.text"\nseed = "4.seed"\ncfg = "KSampler.cfg"\nsteps = "4.mode.steps"\nmodel = "4.model"\n'
        '[grid]\ncfg = [2, 4.5]\nsteps = [10]\n[grid.model]\nplain = {link = ["Loader", 0]}\nother = {link = ["1", 2]}\n'
    )
    assert templates.load(workflow, toml) == templates.load(workflow, grid)


@pytest.mark.parametrize(
    "address, message",
    [
        ("cfg", "Title.input or id.input, got 'cfg'"),
        ("Nobody.text", "no node 'Nobody'; there are node 1"),
        ("Text.text", "'Text' is the name of nodes 2, 3: use the id"),
        ("Negative.txt", r"'Negative.txt': node 3 \(Negative\) has no input 'txt', only text, clip"),
        (3, "got 3"),
    ],
)
def test_bad_addresses(address, message):
    with pytest.raises(PlanError, match=message):
        templates.resolve(WORKFLOW, address)


def test_ui_format_is_refused_with_the_way_out(tmp_path):
    """A real saved workflow of this pack."""
    saved = json.loads((REPO / "example_workflows" / "1 REG on clothes.json").read_text(encoding="utf-8"))
    with pytest.raises(PlanError, match=r"UI format.*Export \(API\)"):
        templates.load(*files(tmp_path, saved))
    for other in ({}, {"prompt": WORKFLOW}):
        with pytest.raises(PlanError, match="API format"):
            templates.load(*files(tmp_path, other))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"inputs": {"prompt": "2.text"}}, "where seed go"),
        ({"ouput": "5"}, "unknown sections ouput"),
        ({"grid": {"cfg": [2], "steps": [1], "model": ["x"]}}, r"'model' is connected .* got 'x'"),
        ({"grid": {"cfg": [{"link": ["1", 0]}], "steps": [1], "model": {"a": {"link": ["1", 0]}}}}, "'cfg' is a plain value"),
        ({"grid": {"cfg": [2], "steps": [1], "model": {"a": {"link": ["9", 0]}}}}, "no node '9'"),
        ({"grid": {"cfg": [2], "steps": [1], "model": {"a": {"link": ["1"]}}}}, r"a link is \[node"),
        ({"grid": {"cfg": [2]}}, "names model, steps, but neither"),
        ({"grid": GRID["grid"] | {"colour": ["red"]}}, "no input is named colour"),
        ({"grid": GRID["grid"], "points": [{"cfg": 7}]}, "every point must set the same inputs"),
        ({"output": "Nobody"}, "no node 'Nobody'"),
    ],
)
def test_bad_grid_files(tmp_path, change, message):
    with pytest.raises(PlanError, match=message):
        template, found = templates.load(*files(tmp_path, grid=GRID | change))
        templates.check(template, Plan(found, ({"prompt": "a"},)))


# --- the folder ---


def test_nothing_counts_until_all_of_it_is_there(tmp_path, monkeypatch):
    plan, job = plan_of(), Job(1, 2, 0)
    with Store(tmp_path) as store:
        store.put(plan, job, [b"image"], workflow="w")
        assert store.missing(plan) == [other for other in plan.jobs() if other != job]
        with pytest.raises(PlanError, match="already holds cfg=3/00002_000, made from another workflow"):
            store.missing(plan, {other: "v" for other in plan.jobs()})

        real, calls = os.replace, []

        def dies(source, target):  # at the second of two images
            calls.append(target)
            if len(calls) == 2:
                raise KeyboardInterrupt
            real(source, target)

        monkeypatch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            store.put(plan, Job(0, 0, 0), [b"one", b"two"])
        monkeypatch.undo()
        assert Job(0, 0, 0) in store.missing(plan)
        assert not list(tmp_path.rglob("*.partial")), "what failed leaves nothing behind"
        (tmp_path / "images" / "cfg=3" / "killed.png.partial").write_bytes(b"ima")  # a killed process does
    with Store(tmp_path) as store:
        assert not list(tmp_path.rglob("*.partial"))
        (tmp_path / "images" / "cfg=3" / "00002_000.png").write_bytes(b"ima")
        assert job in store.missing(plan), "an image cut short is made again"


def test_a_folder_without_a_plan_is_named(tmp_path):
    with pytest.raises(PlanError, match="holds no plan.json"):
        Store(tmp_path).plan()


def test_one_run_at_a_time(tmp_path):
    with Store(tmp_path), pytest.raises(PlanError, match="another run"):
        Store(tmp_path).__enter__()
    with Store(tmp_path):
        pass


def test_manifest_does_not_tell_who_did_what(tmp_path):
    plan = plan_of()
    for folder, jobs, server in (("a", plan.jobs(), "x"), ("b", plan.jobs()[::-1], "y")):
        with Store(tmp_path / folder) as store:
            for job in jobs:
                store.put(plan, job, [str(job).encode()], server=server, seconds=len(server), share=1.5)
            store.finish(plan)
    ours, theirs = ((tmp_path / folder / "manifest.json").read_bytes() for folder in "ab")
    assert ours == theirs and len(json.loads(ours)) == 12


def test_the_share_is_read_from_what_a_run_says():
    """Oracle: the run's own number."""
    guided = reg_core.Guided(lambda x, s: x / 2, lambda x, s: x / 4, 2.0, reg_core.Settings(form="schedule"))
    guided(torch.ones(1, 2), 1.0)
    run = guided.trace.last
    assert share_of({"outputs": {"3": {"images": []}, "4": {"text": [run.summary()]}}}) == pytest.approx(run.share, abs=0.006)
    assert share_of({"outputs": {"3": {"text": ["no guidance to measure"]}}}) is None


# --- the report ---


def scores_of(values, labels, seeds=3):
    plan = Plan(tuple(GridPoint(label, label) for label in labels), ({"prompt": "a"}, {"prompt": "b"}), tuple(range(seeds)))
    entries = [{"fid": {"all": float(np.mean(v)), "seeds": list(v)}} for v in values]
    return SimpleNamespace(plan=plan, values=entries, images=6, pairs=6, features=64, share=[None] * len(values), reference=SimpleNamespace(count=9))


def test_differences_are_paired_by_seed():
    """Oracle: scipy's standard error of the mean of the differences."""
    stats = pytest.importorskip("scipy.stats")
    labels = [{"cfg": c, "form": f} for c in (2, 4) for f in ("off", "row_sum")]
    values = np.array([[5.0, 7, 9], [4, 6.5, 7.5], [9, 10, 11], [3, 5, 4]])
    result = report.compare(scores_of(values, labels))
    rows = {row["point"]: row for row in result["points"]}
    change = rows["cfg=2,form=row_sum"]["difference"]["fid"]
    assert change["mean"] == pytest.approx((values[1] - values[0]).mean())
    assert change["standard_error"] == pytest.approx(stats.sem(values[1] - values[0]))
    assert rows["cfg=2,form=row_sum"]["baseline"] == "cfg=2,form=off"
    assert "difference" not in rows["cfg=2,form=off"]
    best = {row["method"]["form"]: row for row in result["best"]}
    assert (best["off"]["labels"]["cfg"], best["row_sum"]["labels"]["cfg"]) == (2, 4)
    assert best["row_sum"]["difference"]["fid"]["mean"] == pytest.approx((values[3] - values[0]).mean())
    text = report.markdown(result)
    assert "| 4 | row_sum |  | 4 | -6 ± 0.58 |" in text
    assert "No `schedule` row" in text and "biased" in text


def test_one_seed_has_no_error_bar():
    result = report.compare(scores_of([[5.0], [4.0]], [{"form": "off"}, {"form": "schedule"}], 1))
    assert result["points"][1]["difference"]["fid"]["standard_error"] is None
    assert "too few for an error bar" in report.markdown(result) and "No `schedule` row" not in report.markdown(result)
    with pytest.raises(PlanError, match="got 'form=product'"):
        report.compare(scores_of([[5.0], [4.0]], [{"form": "off"}, {"form": "schedule"}], 1), ["form=product"])
    with pytest.raises(PlanError, match="'cgf'"):
        report.compare(scores_of([[5.0], [4.0]], [{"form": "off"}, {"form": "schedule"}], 1), sweep="cgf")


# --- the documentation ---

PAGE = (REPO / "docs" / "evaluate.md").read_text(encoding="utf-8")


def test_the_page_says_what_the_commands_take(tmp_path):
    """Its grid fits a workflow with its titles, and its commands parse."""
    from reg_core.evaluation.__main__ import parse

    nodes = {"Positive": ["text"], "KSampler": ["seed", "cfg"], "REG Guidance": ["form"], "REG Interval": [], "PreviewImage": []}
    workflow = {name: {"class_type": name, "inputs": dict.fromkeys(inputs, 1)} for name, inputs in nodes.items()}
    workflow["KSampler"]["inputs"]["model"] = ["REG Guidance", 0]
    template, found = templates.load(*files(tmp_path, workflow, json.loads(_block("json"))))
    templates.check(template, Plan(found, ({"prompt": "a"},)))
    assert len(found) == 5 * 3 * 2 + 1

    commands = [line.replace("\\\n", " ") for line in re.findall(r"^((?:python|torchrun) (?:.*\\\n)*.*)$", PAGE, re.M)]
    assert len(commands) == 2
    assert parse(shlex.split(commands[0])[3:]).server == ["http://127.0.0.1:8188", "http://gpu2:8188"]
    assert parse(shlex.split(commands[1])[3:]).clip == "openai/clip-vit-base-patch16"


def _block(language):
    return re.search(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S).group(1)
