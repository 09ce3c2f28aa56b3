"""The README's code runs, and every number in it has a source. Oracles: the published results, read here without the project's own code."""

import json
import re
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from shipped import shipped

from reg_core.demo_models import __main__ as demo
from reg_core.demo_models import study

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = README.split("<!-- demo table -->")[1].split("<!-- end -->")[0]


def test_the_library_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    torch.manual_seed(0)
    scope = {}
    exec(code, scope)  # noqa: S102
    assert scope["images"].shape == (4, 3, 64, 64) and scope["images"].mean() > 1
    assert "active in 35 of 35 model calls" in capsys.readouterr().out


def test_the_table_is_what_the_demo_prints(tmp_path):
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in DEMO.strip().splitlines()[2:]]
    rows = {(name, float(cfg)): rest for name, cfg, *rest in cells}
    assert {name for name, _ in rows} == {"CFG", *(demo.NAMES[form] for form in study.RATIOS["fashion"])}
    for r in demo.main(["--out", str(tmp_path), "--forms", "off", "schedule"]):
        gain, *fids, is_, accuracy, count = rows[demo.NAMES[r.form], r.cfg]
        assert float(gain or 1) == r.gain and [float(fid) for fid in fids] == pytest.approx(r.fids, abs=0.1)
        assert float(is_) == pytest.approx(r.is_, abs=0.05) and float(accuracy.rstrip("%")) == pytest.approx(100 * r.accuracy, abs=1.1)
        assert int(count) == round(r.rows)


def published(name: str) -> list[dict]:
    packed = json.loads((ROOT / f"docs/evidence/{name}.json").read_text(encoding="utf-8"))
    return [dict(zip(packed["columns"], values, strict=True)) for values in packed["rows"]]


def points(form: str, interval: str = "0,inf") -> dict[float, tuple[float, float]]:
    """{w = cfg - 1: (Inception score, FID)} of the small model of Fashion-MNIST, means over the seeds."""
    found = {}
    for row in published("fashion"):
        if (row["setup"], row["form"], row["data_std"], row["interval"]) == ("small", form, 0.7, interval):
            found.setdefault(row["w"], []).append((row["is_"], row["fid"]))
    for row in published("fashion_points"):  # sampled later: CFG in an interval
        if (row["setup"], row["form"], row["schedule"]) == ("fashion_weak", form, interval.replace("0,", "below_")):
            found[row["weight"]].append((row["is_"], row["fid"]))
    return {w: tuple(map(mean, zip(*seeds, strict=True))) for w, seeds in found.items()}


def best_fid(form: str, interval: str = "0,inf") -> float:
    return min(fid for _, fid in points(form, interval).values())


def fid_at(level: float, form: str, interval: str = "0,inf") -> float:
    """FID at an Inception score, on straight lines between weights."""
    return float(np.interp(level, *zip(*sorted(points(form, interval).values()), strict=True)))


def ratio(kind: str, case: str, mode: str, what: str = "time") -> float:
    """Time or memory beside plain guidance, from the published benchmark."""
    cases = json.loads((ROOT / f"benchmarks/results/{kind}.json").read_text(encoding="utf-8"))["cases"]
    (found,) = (c["modes"][mode] for c in cases if c["name"] == case)
    return found["time"]["median"] if what == "time" else found["memory"]


def evaluations(below: float) -> float:
    """Model evaluations of CFG that guides at sigma <= `below` only, beside CFG's: Heun's 12 steps from 80 to 0.01 (Karras, rho 7)."""
    levels = [(80 ** (1 / 7) + i / 11 * (0.01 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(12)]
    calls = [levels[0], *(level for level in levels[1:] for _ in range(2))]
    return mean(2 if level <= below else 1 for level in calls) / 2


def rows_of_bet(schedule: str, form: str, refresh: int, skip_below: float) -> float:
    """Model rows of a bet over those of CFG."""
    taken = {(r["schedule"], r["form"], r["refresh"], r["skip_below"]): r["rows_an_image"] for r in published("bets")}
    return taken[schedule, form, refresh, skip_below] / taken["constant", "off", 1, 0.0]


AUTHORS = 1.21, 1.88  # as docs/cost.md quotes them
FORMS = ("row_sum", "product", "scalar", "calibrated", "schedule")
RATIOS = [
    *(ratio("cuda", "sdxl_eps_1024_b1", mode) for mode in ("schedule", "calibrated", "reverse_checkpoint")),
    *(ratio("cpu", "sd15_eps_256", mode) for mode in ("schedule", "calibrated", "reverse_checkpoint")),
    ratio("cuda", "sdxl_v_1024_b1", "default"),
    ratio("cpu", "sd15_v_256", "default"),
    ratio("cuda", "sdxl_eps_1024_b5", "schedule"),
    ratio("cuda", "sd15_eps_512_b1", "calibrated"),
    ratio("cuda", "sd15_v_512_b5", "default"),
    ratio("cuda", "sdxl_v_1024_b1", "default", "memory"),
    ratio("cuda", "sdxl_eps_1024_b1", "reverse_checkpoint", "memory"),
    ratio("cuda", "sdxl_eps_1024_b5", "reverse_checkpoint"),
    ratio("cpu", "sd15_v_512", "skipping"),
    ratio("cuda", "sdxl_v_1024_b1", "skipping"),
]
MEASURED = [rows_of_bet("constant", "schedule", 1, 0.02), best_fid("off", "0,2"), fid_at(8.0, "off", "0,2"), evaluations(2.0), *RATIOS, *AUTHORS]
MEASURED += [points(form)[w][1] for form, cfgs in {"schedule": (1.0, 1.5, 2.5, 4.0), "off": (1.0, 1.5)}.items() for w in cfgs]
MEASURED += [value for form in ("off", *FORMS) for value in (best_fid(form), fid_at(8.0, form))]
# Numbers that were not measured, and where they are stated.
STATED = {
    r"[1235]|1\.[357]|2\.[125]|3\.5|4\.3": ("reg_core/demo_models/study.py", "RATIOS"),  # cfg, gain, batch: settings
    r"256|512|1024|20": ("docs/cost.md", "{} ?(?:x|steps)"),
    r"0\.02": ("reg_core/lab/evidence/points.py", "skip_below {}"),
    r"0\.05": ("benchmarks/suites.py", "SKIP_BELOW = {}"),
    r"8": ("tests/core/test_readme.py", "fid_at\\({}\\.0, form\\)"),
    r"130": ("reg_core/demo_models/__main__.py", 'add\\("--each", type=int, default=13,'),  # of each of ten classes
    r"5,000": ("docs/evidence.md", "{} (?:samples|pictures)"),
    r"2,500": ("DEVELOPERS.md", "--batch 2500"),
    r"0\.3\.64": ("pyproject.toml", 'requires-comfyui = ">={}"'),
    r"3\.10": ("pyproject.toml", 'requires-python = ">={}"'),
    r"2025": ("README.md", "year = .{}"),
}


def test_every_number_has_a_source():
    """Two decimals: measured, and computed here from the published results. Others: settings, stated where the table says."""
    text = re.sub(r"<!-- demo table -->.*?<!-- end -->|```.*?```|`[^`]*`|\]\([^)]*\)", "", README, flags=re.S)
    numbers = set(re.findall(r"(?<![\w.])\d[\d,.]*\d|(?<![\w.])\d", text))
    measured = {number for number in numbers if re.fullmatch(r"\d+\.\d\d", number)} - {"0.02", "0.05", "3.10"}
    assert measured == {f"{value:.2f}" for value in MEASURED}
    for number in numbers - measured:
        (found,) = [place for pattern, place in STATED.items() if re.fullmatch(pattern, number)]
        assert re.search(found[1].format(re.escape(number)), (ROOT / found[0]).read_text(encoding="utf-8")), number


def test_gains_for_the_strength_of_cfg():
    rows = re.findall(r"^\| `(\w+)`[^|]*\| [\d.]+ \| [\d.]+ \| ([\d.]+) \|$", README, re.M)
    assert {form: float(gain) for form, gain in rows} == {form: study.RATIOS["fashion"][form] for form in FORMS}


def test_high_cfg_is_forgiven():
    """`schedule` from cfg 2 to 5 against the best of plain CFG, and every form against CFG at equal strength."""
    high = points("schedule")
    assert max(high[w][1] for w in (1.0, 1.5, 2.5, 4.0)) < best_fid("off")
    assert all(fid_at(level, form) < fid_at(level, "off") for form in FORMS for level in (7.8, 8.0, 8.2))


def test_the_pages_that_ship_link_to_what_ships():
    """A link to a file that .comfyignore leaves out is broken in an installed pack."""
    files = set(shipped())
    for page in [name for name in files if re.fullmatch(r"README\.md|docs/[\w-]+\.md", name)]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            relative = (ROOT / page).parent.joinpath(target).resolve()
            assert target.startswith("https://") or str(relative.relative_to(ROOT)) in files, (page, target)
