"""The README's code runs and its numbers are those the scripts print."""

import re
from pathlib import Path

import pytest
import torch

from reg_core.demo_models import __main__ as demo

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    torch.manual_seed(0)
    scope = {}
    exec(code, scope)  # noqa: S102
    assert scope["images"].shape == (4, 3, 64, 64) and scope["images"].mean() > 1
    assert "active in 35 of 35 model calls" in capsys.readouterr().out


def test_the_table_is_what_the_demo_prints(tmp_path):
    table = README.split("<!-- demo table -->")[1].split("<!-- end -->")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    rows = {(name, float(cfg)): rest for name, cfg, *rest in cells}
    results = demo.main(["--out", str(tmp_path), "--cfg", "4"]) + demo.main(["--out", str(tmp_path), "--cfg", "1.3", "2", "--forms", "off"])
    assert set(rows) == {(demo.NAMES[r.form], r.cfg) for r in results}
    for r in results:
        effective, accuracy, frechet, count = rows[demo.NAMES[r.form], r.cfg]
        assert float(effective) == pytest.approx(r.effective_cfg, abs=0.02)
        assert float(accuracy.rstrip("%")) == pytest.approx(100 * r.accuracy, abs=0.6)
        assert float(frechet) == pytest.approx(r.frechet, abs=0.1)
        assert int(count) == r.rows


def test_every_file_the_readme_points_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target
