"""What the library promises as a package: torch only, arrows that go down, and documentation that runs."""

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import reg_core
from reg_core.forms import FREE_FORMS

ROOT = Path(reg_core.__file__).resolve().parents[1]
LAYERS = {"nodes": 0, "nodes/hooks": 1, "nodes/host": 2, "nodes/backward": 3, "reg_core": 4}
SHIPPED = {"reg_core", "reg_core/drawing", "reg_core/demo_models"}  # what nodes may import


def imported(path):
    """The files and packages that a file imports relatively, as paths from the root, and the absolute modules."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            outside |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in (alias.name for alias in node.names):
                for place in (base.with_suffix(".py"), (base / name).with_suffix(".py"), base / name):
                    if place.exists():
                        inside.add(place.relative_to(ROOT).as_posix())
    return inside, outside


def layer(name):
    folder = name if (ROOT / name).is_dir() else Path(name).parent.as_posix()
    return folder if folder.startswith("nodes") else folder.split("/")[0]


def test_docstring_example_runs():
    assert doctest.testmod(reg_core).failed == 0


@pytest.mark.parametrize("name", ["reg_core", "reg_core.demo_models.loading", "reg_core.integrations.diffusers", "reg_core.integrations.k_diffusion"])
def test_importing_it_brings_in_torch_and_nothing_of_comfy_or_the_lab(name):
    heavy = ("comfy", "sklearn", "scipy", "matplotlib", "PIL", "tqdm", "diffusers", "distributed", "torchmetrics")
    code = f"import sys, torch; before = set(sys.modules); import {name}; print([m for m in {heavy} if m in set(sys.modules) - before])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_no_file_of_the_core_imports_comfy():
    for path in (ROOT / "reg_core").rglob("*.py"):
        assert not [module for module in imported(path)[1] if module.split(".")[0] in ("comfy", "comfy_api")], path


def test_only_one_folder_touches_comfy_internals():
    for path in (ROOT / "nodes").rglob("*.py"):
        comfy = [module for module in imported(path)[1] if module.split(".")[0] in ("comfy", "folder_paths", "nodes", "execution")]
        assert not comfy or path.parent.name == "host", (path, comfy)
        assert path.parent.name != "backward" or not [m for m in imported(path)[1] if m.startswith("comfy")], path


def test_arrows_go_down():
    """Doors, hooks, host, backward, reg_core: nothing imports from above. Of reg_core the nodes take what ships for them."""
    for path in (ROOT / "nodes").rglob("*.py"):
        ours = layer(path.relative_to(ROOT).as_posix())
        for name in imported(path)[0]:
            assert LAYERS[layer(name)] >= LAYERS[ours], (path, name)
            if name.startswith("reg_core"):
                assert (name if (ROOT / name).is_dir() else Path(name).parent.as_posix()) in SHIPPED, (path, name)


def test_the_core_imports_nothing_of_its_folders():
    for path in (ROOT / "reg_core").glob("*.py"):
        for name in imported(path)[0]:
            assert Path(name).parent.as_posix() == "reg_core" and (ROOT / name).is_file(), (path, name)


def test_package_imports_are_relative_and_packages_load_nothing():
    """A pack's folder has any name; and a package of the lab must not bring in what another part of it needs."""
    for path in (ROOT / "reg_core").rglob("*.py"):
        assert not [module for module in imported(path)[1] if module.split(".")[0] == "reg_core"], path
    for folder in ("demo_models", "evaluation", "integrations", "lab", "lab/mixtures", "lab/toys", "lab/fronts", "lab/evidence"):
        assert len(ast.parse((ROOT / "reg_core" / folder / "__init__.py").read_text(encoding="utf-8")).body) == 1, folder


ONE_MEANING = {  # name -> where it is defined; reg_core.trace.Row and so on
    "Plan": "reg_core/evaluation/plan.py", "Store": "reg_core/evaluation/store.py", "Row": "reg_core/trace.py",
    "Point": "reg_core/point.py", "FORMS": "reg_core/forms.py",
}  # fmt: skip


def test_names_mean_one_thing():
    files = [*(ROOT / "reg_core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    found = {}
    for path in files:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            names = [node.name] if isinstance(node, ast.ClassDef) else [t.id for t in targets if isinstance(t, ast.Name)]
            for name in names:
                found.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: found[name] for name in ONE_MEANING} == {name: [place] for name, place in ONE_MEANING.items()}
    assert "Call" not in found
    for name in ("sweep.py", "plots.py"):
        assert [path for path in files if path.name == name] == [ROOT / "nodes" / name]


def test_the_page_knows_the_free_forms():
    """Oracle: the script that hides inputs, which Python does not read."""
    script = (ROOT / "web/js/reg.js").read_text(encoding="utf-8")
    named = re.search(r"const FREE = \[(.*?)\]", script)[1]
    assert set(re.findall(r'"(\w+)"', named)) == {*FREE_FORMS, "off"}
