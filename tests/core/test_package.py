"""What the library promises as a package: torch only, and documentation that runs."""

import doctest
import subprocess
import sys
from pathlib import Path

import reg_core

ROOT = Path(reg_core.__file__).resolve().parents[1]


def test_docstring_example_runs():
    assert doctest.testmod(reg_core).failed == 0


def test_importing_it_brings_in_torch_and_nothing_of_comfy():
    code = "import sys, reg_core; print([m for m in ('comfy', 'numpy.random', 'sklearn', 'matplotlib', 'PIL') if m in sys.modules and m != 'numpy.random'])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_no_file_of_the_core_mentions_comfy_imports():
    for path in (ROOT / "reg_core").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not line.lstrip().startswith(("import comfy", "from comfy")), path


def test_only_host_touches_comfy_internals():
    for path in (ROOT / "nodes").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.lstrip().startswith(("import comfy", "from comfy")) and not path.name.startswith("host"):
                assert "comfy_api." in line, (path, line)
