"""What the registry, the Manager and other people's machines ask of the files. Oracles: their published rules, applied to the tree."""

import ast
import re

from shipped import ROOT, shipped, tracked

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def scanned_by_manager() -> set:
    """Node ids as ComfyUI-Manager finds them: syntax only, a base `ComfyNode`, the literal node_id of Schema(...) in define_schema."""
    found = set()
    for path in ROOT.rglob("nodes/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            bases = getattr(node, "bases", [])
            if not any(getattr(b, "id", getattr(b, "attr", "")) == "ComfyNode" for b in bases):
                continue
            (define,) = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "define_schema"]
            calls = [c for c in ast.walk(define) if isinstance(c, ast.Call) and getattr(c.func, "id", getattr(c.func, "attr", "")) == "Schema"]
            (id_,) = [k.value.value for k in calls[0].keywords if k.arg == "node_id" and isinstance(k.value, ast.Constant)]
            found.add(id_)
            assert id_ == node.name
    return found


def test_the_manager_finds_every_node():
    """ComfyUI gets the node classes of the modules that nodes/__init__.py lists: those are all there are."""
    tree = ast.parse((ROOT / "nodes/__init__.py").read_text(encoding="utf-8"))
    (listed,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "MODULES"]
    nodes = {}
    for path in ROOT.glob("nodes/*.py"):
        classes = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)]
        names = {c.name for c in classes if any(getattr(b, "attr", getattr(b, "id", "")) == "ComfyNode" for b in c.bases)}
        nodes |= {path.stem: names} if names else {}
    assert {name.id for name in listed.elts} == set(nodes)
    assert scanned_by_manager() == set().union(*nodes.values()) and len(scanned_by_manager()) > 20


def test_the_registry_finds_what_it_requires():
    assert re.search(r'^name = "[A-Za-z][A-Za-z0-9._-]{0,98}"$', PROJECT, re.M) and "comfyui" not in re.search(r'^name = "(.*)"', PROJECT, re.M)[1].lower()
    assert re.search(r'^version = "\d+\.\d+\.\d+"$', PROJECT, re.M)
    assert re.search(r'^Repository = "https://', PROJECT, re.M) and re.search(r'^PublisherId = "\S+"', PROJECT, re.M)
    assert re.search(r'^requires-comfyui = ">=\d+\.\d+\.\d+"', PROJECT, re.M)


def test_versions_agree():
    import reg_core

    version = re.search(r'^version = "(.*)"', PROJECT, re.M)[1]
    assert reg_core.__version__ == version and f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_what_ships_runs_and_what_does_not_is_left_out():
    files = shipped()
    assert {"__init__.py", "nodes/guidance.py", "nodes/host/options.py", "reg_core/rectifier.py", "pyproject.toml", "LICENSE", "README.md"} <= set(files)
    assert any(f.startswith("example_workflows/") for f in files) and any(f.endswith(".safetensors") for f in files)
    assert not [f for f in files if f.startswith(("tests/", "tools/", ".ci/", "benchmarks/"))]
    assert sum((ROOT / f).stat().st_size for f in files) < 24e6


def test_no_file_that_ships_runs_code_from_text_or_installs():
    """The registry's security rules (ruff S102, S307, E702) and the Manager's: no exec, no eval, no pip, no shell, no pickle."""
    banned = {"exec", "eval", "system", "popen", "Popen", "check_call", "check_output"}
    for name in (f for f in shipped() if f.endswith(".py")):
        text = (ROOT / name).read_text(encoding="utf-8")
        for call in (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)):
            called = getattr(call.func, "id", getattr(call.func, "attr", ""))
            evaluates_mode = called == "eval" and isinstance(call.func, ast.Attribute) and not call.args  # module.eval()
            assert called not in banned or evaluates_mode, (name, call.lineno, called)
        assert not re.search(r"^\s*(import|from) (subprocess|ctypes)\b", text, re.M) or name.startswith("reg_core/evaluation"), name


def test_python_files_print_on_any_windows_console():
    for name in (f for f in tracked() if f.endswith(".py")):
        (ROOT / name).read_text(encoding="utf-8").encode("cp1252")


def test_pip_installs_every_package_and_its_data():
    """Oracle: the folders of reg_core that hold Python, and the files there that are none."""
    folders = {path.parent for path in (ROOT / "reg_core").rglob("*.py")}
    listed = re.search(r"^packages = \[(.*?)\]", PROJECT, re.M | re.S)[1]
    assert set(re.findall(r'"([\w.]+)"', listed)) == {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    data = re.search(r"^\[tool.setuptools.package-data\]\n(.*?)\n\n", PROJECT, re.M | re.S)[1]
    patterns = {package: re.findall(r'"([^"]+)"', globs) for package, globs in re.findall(r'^"([\w.]+)" = \[(.*)\]$', data, re.M)}
    matched = {path for package, globs in patterns.items() for pattern in globs for path in (ROOT / package.replace(".", "/")).glob(pattern)}
    files = {ROOT / name for name in tracked() if name.startswith("reg_core/") and not name.endswith((".py", ".toml"))}
    assert matched == files and len(files) == 10


def test_comfy_test_finds_nothing_forbidden():
    """Its rule for all files: no torch.nn layer by that name, no device by name, no autocast, no files of torch's own format but through ComfyUI."""
    layers = r"(?<![\w.])(?:torch\.)?nn\.(Linear|Conv[123]d|ConvTranspose[12]d|LayerNorm|GroupNorm|Embedding)\s*\("
    forbidden = re.compile(layers + r"""|\.cuda\s*\(|\.to\s*\(\s*(torch\.device\s*\(\s*)?["']cuda|torch\.(cuda\.)?(amp\.)?autocast""")
    for name in (f for f in tracked() if f.endswith(".py") and f != "tests/core/test_packaging.py"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        found = [(name, i) for i, line in enumerate(lines, 1) if not line.lstrip().startswith("#") and forbidden.search(line)]
        assert not found


def test_comfy_test_finds_its_workflow():
    config = (ROOT / "comfy-test.toml").read_text(encoding="utf-8")
    (named,) = re.findall(r'^run = \["(.*)"\]$', config, re.M)
    assert (ROOT / "workflows" / "tests" / named).is_file()


def test_pack_imports_are_relative():
    """The folder's name is the user's: the Manager, git and a download all choose another."""
    for path in [ROOT / "__init__.py", *ROOT.glob("nodes/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            assert not [m for m in modules if m.split(".")[0] in ("reg_core", "nodes")], path


def test_documents_point_to_files_that_exist():
    for path in [ROOT / "README.md", ROOT / "DEVELOPERS.md", *ROOT.glob("docs/*.md"), *ROOT.glob("web/docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert target.startswith(("https://", "http://")) or (path.parent / target).is_file(), (path.name, target)
