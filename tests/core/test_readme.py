"""The README's code runs and its numbers are those the scripts print."""

import re
from pathlib import Path

import pytest
import torch

from reg_core.demo_models import __main__ as demo
from reg_core.demo_models import study

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
    """Two rows are sampled again, in full; all are the runs that the demo makes."""
    table = README.split("<!-- demo table -->")[1].split("<!-- end -->")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    rows = {(name, float(cfg), float(gain or 1)): rest for name, cfg, gain, *rest in cells}
    defaults, gains = demo.parse([]), study.RATIOS["fashion"]
    low, high = defaults.cfg
    runs = [("off", low, 1.0), ("off", high, 1.0), *((form, high, gain) for form, gain in gains.items())]
    assert list(rows) == [(demo.NAMES[form], cfg, gain) for form, cfg, gain in runs]
    for r in demo.main(["--out", str(tmp_path), "--cfg", str(high), "--forms", "off", "schedule"]):
        fid, other, score, accuracy, count = rows[demo.NAMES[r.form], r.cfg, r.gain]
        assert (float(fid), float(other)) == pytest.approx(r.fids, abs=0.1)
        assert float(score) == pytest.approx(r.is_, abs=0.05)
        assert float(accuracy.rstrip("%")) == pytest.approx(100 * r.accuracy, abs=1.3)
        assert int(count) == r.rows


def test_every_file_the_readme_points_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target
