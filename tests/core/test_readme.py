"""The README's code runs and its numbers are those the scripts print."""

import re
from pathlib import Path

import pytest
import torch

from reg_core.lab import demo

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)

    def gaussian(mean):
        return lambda x, sigma: mean + (x - mean) / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    scope = {"cond": gaussian(1.0), "uncond": gaussian(0.0), "noise": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    exec(code, scope)  # noqa: S102
    assert scope["images"].shape == (2, 3, 8, 8) and scope["images"].mean() > 1
    assert "active in 35 of 35 model calls" in capsys.readouterr().out


def test_the_table_is_what_the_demo_prints(tmp_path):
    table = README.split("<!-- demo table -->")[1].split("<!-- end -->")[0]
    rows = {cells[0]: cells[1:] for line in table.strip().splitlines()[2:] for cells in [[c.strip() for c in line.strip("|").split("|")]]}
    results = demo.main(["--out", str(tmp_path), "--cfg", "4"])
    assert set(rows) == {demo.NAMES[r.form] for r in results}
    for r in results:
        effective, accuracy, frechet, count = rows[demo.NAMES[r.form]]
        assert float(effective) == pytest.approx(r.effective_cfg, abs=0.02)
        assert float(accuracy.rstrip("%")) == pytest.approx(100 * r.accuracy, abs=0.6)
        assert float(frechet) == pytest.approx(r.frechet, abs=0.1)
        assert int(count) == r.rows


def test_every_file_the_readme_points_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target
