"""What is refused, and how: words, numbers, files. Oracle: the rule that a refusal is one short line with what is wrong."""

import json
import logging
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reg_core import Band, Calibration, Cosine, Curve, Guided, Linear, Point, Settings, Space, calibrate, karras_sigmas, to_denoised
from reg_core.calibration import FORMAT
from reg_core.checks import MOST, shortened
from reg_core.demo_models.loading import WeightsError, load_model
from reg_core.drawing import plot_run, plot_schedule
from reg_core.engines import FallBack
from reg_core.evaluation import __main__ as command
from reg_core.evaluation import report
from reg_core.evaluation import template as templates
from reg_core.evaluation.features import read
from reg_core.evaluation.metrics import Statistics
from reg_core.evaluation.plan import Plan, points, read_prompts, read_table
from reg_core.evaluation.server import check_url
from reg_core.evaluation.store import Store
from reg_core.files import FileError, check_place
from reg_core.lab.toys.checkpoint import load_toy
from reg_core.presets import CfgSchedule, cosine, interval, linear

LONG = "x" * 10_000
HUGE, UNPRINTABLE = 10**400, 10**5000  # no float holds the first, Python does not print the second
WORKFLOW = {"1": {"class_type": "Text", "inputs": {"text": "x", "seed": 1}}, "2": {"class_type": "SaveImage", "inputs": {}}}
ONE = torch.ones(1)


def refused(make, *words, error=ValueError) -> str:
    """What `make` raises says all `words`, on one line, with at most 200 characters of a value."""
    with pytest.raises(error) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400 and all(str(word) in message for word in words), message
    return message


def table(sigma=ONE, factor=0.5 * ONE, error=0 * ONE, form="scalar", **more):
    return Calibration(sigma, factor, error, form, **more)


# Words


@pytest.mark.parametrize("word", ["timestpe", LONG, 3, None, ["step"], torch.ones(2), b"step"], ids=lambda w: str(w)[:10])
@pytest.mark.parametrize(
    "make,one",
    [
        (lambda w: Settings(form=w), "row_sum"), (lambda w: Settings(engine=w), "reverse"), (lambda w: Space(w), "flow"),
        (lambda w: CfgSchedule(Linear(), w), "timestep"), (lambda w: linear(w, 0, 1), "edm2"), (lambda w: cosine(w, 1), "t2i_plain"),
        (lambda w: interval(w, 0.2, 0.8), "dit"), (lambda w: to_denoised(w, ONE, ONE, ONE), "eps"), (lambda w: table(form=w), "product"),
        (lambda w: plot_run(None, axis=w), "sigma"), (lambda w: plot_run(None, theme=w), "dark"), (lambda w: plot_schedule([1], axis=w), "timestep"),
    ],
)  # fmt: skip
def test_every_word_is_checked_where_it_is_used(make, one, word):
    refused(lambda: make(word), "one of", one, shortened(word)[:80])


# Numbers


NO_NUMBERS = [math.nan, -math.inf, 1e200, -1e308, HUGE, -HUGE, UNPRINTABLE, True, "1", None, 1j, [1.0], Fraction(1, 2)]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda v: shortened(v)[:12])
@pytest.mark.parametrize(
    "make",
    [
        *[lambda v, name=name: Settings(**{name: v}) for name in ("gain", "strength", "skip_below", "refresh", "data_std")],
        lambda v: Linear(v, 1), lambda v: Linear(0, v), lambda v: Cosine(v), lambda v: Curve(((0.0, v),)), lambda v: Curve(((v, 1.0),)),
        lambda v: karras_sigmas(v, 0.1, 1), lambda v: karras_sigmas(3, v, 1), lambda v: karras_sigmas(3, 0.1, v), lambda v: karras_sigmas(3, 0.1, 1, v),
        lambda v: Guided(torch.add, torch.add, v),
    ],
)  # fmt: skip
def test_what_is_no_usable_number_is_refused_by_value(make, value):
    refused(lambda: make(value), shortened(value)[:80])


@pytest.mark.parametrize("value", [math.nan, -1.0, HUGE, True, "1", None], ids=lambda v: shortened(v)[:12])
@pytest.mark.parametrize(
    "make",
    [
        lambda v: Settings(sigma_start=v), lambda v: Settings(sigma_end=v), lambda v: Band(v, math.inf), lambda v: Band(0, v),
        lambda v: interval("sigma", v, 0), lambda v: interval("sigma", math.inf, v), lambda v: Point.of(torch.ones(1, 2), v),
    ],
)  # fmt: skip
def test_noise_levels_are_checked_too(make, value):
    refused(lambda: make(value), shortened(value)[:80])


def test_schedules_that_end_beyond_all_numbers_are_refused_before_sampling():
    refused(lambda: linear("dit", 1e6, -1e6), "start", "3000000")
    curve = Curve(((0.0, 1e6), (1.0, -1e6)))
    assert all(math.isfinite(curve(p)) for p in (0.0, 0.3, 1.0))


def test_numbers_of_other_kinds_are_taken():
    assert Settings(gain=np.float32(2), refresh=8.0, strength=np.float16(0.5)).title == "REG row_sum, gain 2, strength 0.5"


@pytest.mark.parametrize(
    "changes,words",
    [
        (dict(factor=3e38 * ONE), ("3e+38", "sigma 1")), (dict(factor=math.nan * ONE), ("nan",)),
        (dict(sigma=1e-40 * ONE), ("sigma",)), (dict(sigma=1e38 * ONE), ("e+37",)),
        (dict(factor=ONE.to(torch.complex64)), ("factor", "complex64")), (dict(sigma=ONE.to(torch.float8_e4m3fn)), ("sigma", "float8_e4m3fn")),
        (dict(error=ONE.long()), ("error", "int64")), (dict(sigma=ONE[0], factor=ONE[0], error=ONE[0]), ("[K]", "()")), (dict(sigma=[1.0]), ("sigma", "[1.0]")),
        (dict(model=5), ("model", "5")),
        (dict(sigma=torch.ones(9999), factor=torch.ones(9999), error=torch.ones(9999)), ("increasing",)),
    ],
)  # fmt: skip
def test_tables_that_give_no_number_are_refused(changes, words):
    refused(lambda: table(**changes), *words)


@pytest.mark.parametrize("form", ["schedule", "calibrated", "scalar", "row_sum"])
def test_no_setting_within_bounds_makes_an_infinite_picture(form):
    """The largest and the smallest of every number that multiplies guidance, at noise levels from 0 to beyond any model's."""
    x = torch.full((2, 1, 4, 4), 3.0)
    for size in (1e-6, 1e6):
        held = table(factor=2.5 * ONE) if form == "calibrated" else None
        settings = Settings(form=form, gain=1e6, strength=size, data_std=size, calibration=held)
        for sigma in (0.0, 1e-20, 1.0, 1e20, 1e38):
            guided = Guided(lambda x, s: 0.5 * x, lambda x, s: 0.1 * x, 2.0, settings)
            assert torch.isfinite(guided(x, sigma)).all(), (size, sigma)


# Work lost at the end


def test_what_calibrate_would_refuse_at_its_end_is_refused_before_the_first_call():
    calls = []
    guided = Guided(lambda x, s: calls.append(1) or x, lambda x, s: x, 1.0, Settings(form="schedule"))
    refused(lambda: calibrate(guided, [torch.ones(1, 2)], karras_sigmas(3, 0.1, 1)), "'schedule'")
    guided = Guided(lambda x, s: calls.append(1) or x, lambda x, s: x)
    refused(lambda: calibrate(guided, [torch.ones(1, 2)], karras_sigmas(3, 0.1, 1), model=3), "model", "3")
    refused(lambda: calibrate(guided, [torch.ones(1, 2)], karras_sigmas(3, 0.1, 1), modle="x"), "modle", error=TypeError)
    assert not calls


def test_scores_are_not_computed_for_a_report_that_cannot_be_made(tmp_path, capsys):
    with Store(tmp_path) as store:
        store.begin(Plan(points({"cfg": [2.0]}), ({"prompt": "a"},)))
    score = ["score", "--out", str(tmp_path), "--reference", "nowhere", "--features", "digits"]
    (tmp_path / "file").write_text("")
    for more, word in ((["--baseline", "form=of"], "form=of"), (["--sweep", "cgf"], "cgf"), (["--save-stats", str(tmp_path / "file" / "x.npz")], "file")):
        assert command.main([*score, *more]) == 2
        said = capsys.readouterr().err.strip()
        assert word in said and "nowhere" not in said and "\n" not in said


def test_a_place_is_tried_without_leaving_anything(tmp_path):
    check_place(tmp_path / "new" / "a.safetensors")
    assert [p.name for p in tmp_path.rglob("*")] == ["new"]
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "a", tmp_path / LONG, str(tmp_path / "a\0b")):
        refused(lambda bad=bad: check_place(bad), "cannot write", error=FileError)


# Files


DAMAGED = {
    "empty": b"", "latin": "Gr\xfc\xdfe\n".encode("latin-1"), "cut": b'{"points": [{"labels"', "null": b"null", "zip": b"PK\x03\x04" + bytes(40),
    "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_named_in_one_line(tmp_path, kind):
    path = tmp_path / "plan.json"
    path.write_bytes(DAMAGED[kind])
    for reader in (read_table, Calibration.load, Statistics.load, read, lambda p: Store(p.parent).plan(), lambda p: templates.load(p, p)):
        message = refused(lambda reader=reader: reader(path), "plan.json", "want", error=FileError)
        assert not any(word in message for word in ("pickle", "weights_only", "Traceback"))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_bytes(DAMAGED[kind])
    assert Store(tmp_path).record("a") is None, "made again"
    if kind in ("empty", "latin"):
        refused(lambda: read_prompts(path), "plan.json", error=FileError)


def test_missing_files_are_named(tmp_path):
    for reader in (read_table, Statistics.load, read, read_prompts):
        refused(lambda reader=reader: reader(tmp_path / "absent.txt"), "absent.txt", "No such file", error=FileError)


def test_damaged_checkpoints_are_named(tmp_path):
    from test_lab_toys import fabricate

    prefix, _ = fabricate(tmp_path)
    whole = (tmp_path / "toy_cond.pth").read_bytes()
    for data in (b"", b"x" * 99, whole[: len(whole) // 2], whole[:-30], b"PK\x03\x04" + bytes(99), whole.replace(b"torch", b"other")):
        (tmp_path / "toy_cond.pth").write_bytes(data)
        message = refused(lambda: load_toy(prefix), "toy_cond.pth: no readable state dict")
        assert "weights_only" not in message
    for name in ("digits", "digits_weak"):
        save_file({LONG: ONE}, tmp_path / f"{name}.safetensors", {"kind": "denoiser", "config": "{}", "sigma_data": "1"})
        with pytest.raises(WeightsError) as caught:
            load_model(name, weights_dir=tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_foreign_tables_are_named(tmp_path, dtype):
    for tensor in (ONE.to(dtype), ONE[0].to(dtype)):
        save_file({name: tensor.clone() for name in ("sigma", "factor", "error")}, tmp_path / "t.safetensors", {"format": FORMAT, "form": "scalar"})
        refused(lambda: Calibration.load(tmp_path / "t.safetensors"), "t.safetensors", str(dtype), error=FileError)
    save_file({name: ONE[0].clone() for name in ("sigma", "factor", "error")}, tmp_path / "t.safetensors", {"format": FORMAT, "form": "scalar"})
    refused(lambda: Calibration.load(tmp_path / "t.safetensors"), "t.safetensors", "[K]", error=FileError)


@pytest.mark.parametrize("section", ["inputs", "grid", "points"])
@pytest.mark.parametrize("value", [None, 5, "x", [None], {"prompt": None, "seed": None}, LONG], ids=lambda v: str(v)[:12])
def test_null_and_the_like_in_a_grid(tmp_path, section, value):
    grid = {"inputs": {"prompt": "1.text", "seed": "1.seed"}, "grid": {}, "points": []} | {section: value}
    (tmp_path / "w.json").write_text(json.dumps(WORKFLOW))
    (tmp_path / "g.json").write_text(json.dumps(grid))
    refused(lambda: templates.load(tmp_path / "w.json", tmp_path / "g.json"), error=FileError)


def test_null_and_the_like_in_a_workflow():
    for meta in (None, [], "x", {"title": None}, {"title": 5}):
        assert templates.find({"7": {"class_type": "Text", "inputs": {}, "_meta": meta}}, "Text") == "7"
    for node in (None, [], {"class_type": None, "inputs": {}}, {"class_type": "T", "inputs": None}):
        refused(lambda node=node: templates.check_api({"1": node}), "API format")


@pytest.mark.parametrize("data", [None, [], {}, {"points": None}, {"points": [None]}, {"points": [{"labels": 1}]}, {"points": [], "prompts": LONG, "seeds": 1}])
def test_foreign_plans(data):
    refused(lambda: Plan.from_json(data), error=FileError)


@pytest.mark.parametrize("record", [{}, {"images": None}, {"images": [None]}, {"images": [{"file": "a"}]}, {"images": [{"file": None, "bytes": 1}]}, []])
def test_foreign_records_are_made_again(tmp_path, record):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_text(json.dumps(record))
    assert Store(tmp_path).record("a") is None


def test_objects_in_statistics_are_not_unpacked(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.array([print], dtype=object), sigma=np.eye(1))
    assert "pickle" not in refused(lambda: Statistics.load(tmp_path / "s.npz"), "s.npz", "mu [F]", error=FileError)


# Messages


def test_no_message_repeats_a_long_value():
    many = list(range(100_000))
    values = (LONG, many, dict.fromkeys(many), torch.arange(100_000.0), np.arange(5000.0), UNPRINTABLE, b"x" * 9999, "a\nb" * 5000)
    for value in values:
        assert len(shortened(value)) <= MOST and "\n" not in shortened(value)
    workflow = {str(i): WORKFLOW["1"] for i in range(999)}
    refusals = (
        lambda: Curve.parse(LONG), lambda: Curve(tuple((1 - i / 1e5, 0.0) for i in range(9999))), lambda: check_url(LONG), lambda: points(many),
        lambda: points({LONG: 5}), lambda: points({"a": [many]}), lambda: points({"a": {LONG: 1}}, [{"a": "b"}]), lambda: points({}, many),
        lambda: templates.resolve(WORKFLOW, LONG), lambda: templates.resolve(workflow, f"{LONG}.a"), lambda: templates.resolve(workflow, "Text.text"),
        lambda: Plan(points({"a": [1, 2]}), ({"prompt": "a"},), tuple(-i for i in range(1, 9999))), lambda: Guided(LONG, torch.add),
        lambda: Guided(torch.add, torch.add, settings=LONG), lambda: report._baseline([{"a": 1}], [LONG]), lambda: load_model(LONG),
        lambda: Settings(calibration=LONG), lambda: table(latent="a" * 9999).check("", LONG),
    )  # fmt: skip
    for make in refusals:
        refused(make)


# Said once


def test_all_that_failed_in_one_call_is_one_line(caplog):
    """The engines of a run, of which the first two fail, at two calls."""

    def fail(words):
        raise RuntimeError(f"{words}\n{LONG}")

    run = FallBack("reverse")
    ways = dict(reverse=lambda: fail("first"), finite_difference=lambda: fail("second"), none=lambda: "plain")
    with caplog.at_level(logging.WARNING):
        assert run(**ways) == run(**ways) == "plain"
    (line,) = caplog.messages
    assert "first" in line and "second" in line and line.endswith("plain guidance from here on") and "\n" not in line and len(line) < 3 * MOST
    caplog.clear()
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="third"):
        FallBack("reverse")(**{**ways, "none": lambda: fail("third")})
    assert not caplog.messages, "the error says it"


@pytest.mark.parametrize("form", ["row_sum", "scalar", "product", "schedule"])
@pytest.mark.parametrize("engine", ["finite_difference", "reverse"])
def test_a_prediction_that_is_not_finite_is_laid_to_the_model(form, engine, caplog):
    guided = Guided(lambda x, s: x * math.nan, lambda x, s: 0.5 * x, 2.0, Settings(form=form, engine=engine))
    with caplog.at_level(logging.WARNING):
        for sigma in (3.0, 2.0, 1.0):
            guided(torch.ones(2, 1, 4, 4), sigma)
    run = guided.trace.last
    assert run.not_finite() == "the model's prediction is not finite in 3 of 3 active calls"
    assert not caplog.messages and not run.notes and {row.note for row in run.rows} == {"the model's prediction is not finite"}
