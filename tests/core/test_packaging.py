"""What the registry, the Manager and other people's machines ask of the files. Oracles: their published rules, applied to the tree."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from shipped import ROOT, shipped, tracked

from tools.address import moved, present

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
    for key, shape in (("Icon", 1), ("Banner", 21 / 9)):
        address = re.search(rf'^{key} = "{address_of_repository()}/blob/main/(docs/images/.*)\?raw=true"$', PROJECT, re.M)[1]
        width, height = Image.open(ROOT / address).size
        assert width / height == pytest.approx(shape) and (key != "Icon" or width <= 400)


def address_of_repository() -> str:
    return re.search(r'^Repository = "(.*)"', PROJECT, re.M)[1]


def test_the_project_can_be_moved_to_another_address():
    """Oracle: no tracked text names the old owner any more, and links lead to the new repository."""
    old, new = present(), ("https://github.com/someone/Another.Name", "a-publisher")
    assert old[0] == address_of_repository()
    owner, others = old[0].split("/")[-2], 0
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" not in data and owner in (text := data.decode("utf-8")):
            changed, others = moved(text, old, new), others + 1
            assert owner not in changed and ("someone" in changed or new[1] in changed), name
    assert others >= 3 and 'PublisherId = "a-publisher"' in moved(PROJECT, old, new)


def test_versions_agree():
    import reg_core

    version = re.search(r'^version = "(.*)"', PROJECT, re.M)[1]
    assert reg_core.__version__ == version and f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_what_ships_runs_and_what_does_not_is_left_out():
    files = shipped()
    assert {"__init__.py", "nodes/guidance.py", "nodes/host/options.py", "reg_core/rectifier.py", "pyproject.toml", "LICENSE", "README.md"} <= set(files)
    assert any(f.startswith("example_workflows/") for f in files) and any(f.endswith(".safetensors") for f in files)
    assert not [f for f in files if f.startswith((".", "benchmarks/", "docs/", "examples/", "tests/", "tools/", "workflows/"))]
    python = {Path(f).parent.as_posix() for f in files if f.endswith(".py")}
    assert python == {".", "nodes", "nodes/hooks", "nodes/host", "nodes/backward", "reg_core", "reg_core/drawing", "reg_core/demo_models"}
    assert {Path(f).name for f in files if "demo_models" in f and f.endswith(".py")} == {"__init__.py", "data.py", "networks.py", "loading.py"}
    assert sum((ROOT / f).stat().st_size for f in files) < 20e6


def test_no_name_that_ships_is_quoted_by_git():
    """The command reads plain `git ls-files`, which quotes names with other letters: it would leave such a file out."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(shipped()) <= set(names)


PUBLISHED = {
    "sockets": r"\.(connect|bind|listen|accept|send|sendall|sendto|recv|recvfrom)\s*\(|(?<![\w-])(socket|socketserver|paramiko|smtplib|ftplib|telnetlib)\b",
    "http clients": r"\b(http\.client|urllib\w*|requests\.\w|import requests|aiohttp|httpx|pycurl|websockets?\.|XMLHttpRequest)|\bfetch\s*\(",
    "environment": r"\bos\.environ|\bgetenv\b|\bputenv\b|process\.env",
    "imports by name": r"\b(importlib|__import__|runpy|pkgutil|imp\.load_\w+)\b",
    "processes": r"\b(subprocess|os\.system|os\.exec\w*|os\.spawn\w*|popen|pexpect|pty\.spawn|multiprocessing|ctypes|winreg)\b",
    "code from text": r"\b(exec|compile|execfile|eval)\s*\(|\bnew Function\b",
    "pickles": r"\b(c?pickle\w*|unpickl\w*|dill|marshal|shelve|joblib|torch\.load|weights_only)\b|\.pkl\b",
    "bytes": r"read_bytes|write_bytes|\bbase64\b|\bb64decode\b|\bzlib\.decompress|fromhex\s*\(",
    "file hosts": r"raw\.githubusercontent|gist\.github|pastebin|transfer\.sh|anonfiles|file\.io|discord(app)?\.com/api/webhooks|api\.telegram",
    "shell": r"rm\s+-rf|chmod\s|\bcurl\s|\bwget\s|/bin/(ba)?sh|powershell|nohup\b|crontab|\bsudo\s|/etc/passwd",
    "programs": r"\bffmpeg\b|\bxmrig\b|stratum\+tcp|keylog",
}  # fmt: skip


def found(text) -> dict:
    hits = {kind: re.search(pattern, text, re.IGNORECASE) for kind, pattern in PUBLISHED.items()}
    return {kind: hit[0] for kind, hit in hits.items() if hit}


def test_the_registrys_scanner_finds_nothing():
    """A version with one finding cannot be installed by the Manager. All text counts: the changelog, JSON and pictures in SVG too."""
    files = {name: (ROOT / name).read_bytes() for name in shipped()}
    texts = {name: data.decode("utf-8") for name, data in files.items() if b"\0" not in data}
    assert len(texts) > 80 and {"CHANGELOG.md", "README.md", "pyproject.toml", "locales/ko/nodeDefs.json", "web/js/reg.js"} <= set(texts)
    assert not {name: hits for name, text in texts.items() if (hits := found(text))}


@pytest.mark.parametrize(
    "line",
    [
        "bound = signature.bind(*args)", "connection.connect (address)", "s.send(data)", "s.recv(4)", "socket = io.Curve.Input('curve')", "import http.client",
        "import urllib.request", "from urllib3 import x", "requests.get(url)", "os.environ['X']", "os.getenv('X')", "importlib.import_module(name)",
        "subprocess.run(['ls'])", "exec(code)", "torch.compile(model)", "import pickle", "class _PlainUnpickler(pickle.Unpickler):", "path.read_bytes()",
        "https://raw.githubusercontent.com/a/b", "rm -rf out", "by ffmpeg", "model.eval()", "torch.load(path)", "toy.pkl", "fetch('/x')",
    ],
)  # fmt: skip
def test_the_patterns_find_what_the_scanner_would(line):
    assert found(line)


def test_what_does_not_ship_is_found_by_the_patterns():
    """Oracle of the patterns: what lay in the archive and was named by the published rules."""
    parts = {"reg_core/evaluation/server.py", "reg_core/evaluation/features.py", "reg_core/lab/toys/checkpoint.py", "reg_core/integrations/network_call.py"}
    assert all(found((ROOT / name).read_text(encoding="utf-8")) for name in parts) and not parts & set(shipped())


def test_no_file_that_ships_runs_code_from_text_or_installs():
    """The registry's security rules (ruff S102, S307, E702) and the Manager's: no exec, no eval, no pip, no shell, no pickle."""
    banned = {"exec", "eval", "system", "popen", "Popen", "check_call", "check_output"}
    for name in (f for f in shipped() if f.endswith(".py")):
        text = (ROOT / name).read_text(encoding="utf-8")
        for call in (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)):
            called = getattr(call.func, "id", getattr(call.func, "attr", ""))
            evaluates_mode = called == "eval" and isinstance(call.func, ast.Attribute) and not call.args  # module.eval()
            assert called not in banned or evaluates_mode, (name, call.lineno, called)


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


def base(name: str) -> Path:
    """Where the links of a page start. ComfyUI's page takes those of the help from web/docs in every language."""
    return ROOT / "web/docs" if name.startswith("web/docs/") else (ROOT / name).parent


def unseen(pictures, pages: dict) -> list:
    """Pictures that none of `pages` {name: text} shows: `![words](path)`, in HTML, or the address of pyproject.toml."""
    home = re.escape(address_of_repository() + "/blob/main/")
    shown = set()
    for name, text in pages.items():
        shown |= set(re.findall(rf"{home}([^\s\"?)]+)\?raw=true", text))
        for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*\bsrc=\"([^\"]+)\"", text):
            shown.add((base(name) / "".join(target)).resolve().relative_to(ROOT).as_posix())
    return sorted(set(pictures) - shown)


def test_every_picture_is_on_a_page():
    """A picture that no page shows is drawn, kept and downloaded for nobody, and nobody sees that it is out of date."""
    pictures = [n for n in tracked() if n.startswith(("docs/", "web/docs/")) and n.endswith((".png", ".jpg", ".svg", ".webp", ".gif"))]
    pages = {n: (ROOT / n).read_text(encoding="utf-8") for n in tracked() if n.endswith(".md") or n == "pyproject.toml"}
    assert len(pictures) > 30 and not unseen(pictures, pages)
    some = {"docs/a.md": "![A](images/a.png) and images/b.png", "README.md": f"![C]({address_of_repository()}/blob/main/docs/c.png?raw=true)"}
    assert unseen(["docs/images/a.png", "docs/images/b.png", "docs/c.png", "c.png"], some) == ["c.png", "docs/images/b.png"]


def test_documents_point_to_files_that_exist():
    """Links within what ships lead to what ships. Links to the repository lead to its files: pyproject says where that is."""
    home, archive = re.search(r'^Repository = "(.*)"', PROJECT, re.M)[1] + "/blob/main/", set(shipped())
    names = [n for n in tracked() if n.endswith(".md") and (n in archive or n.startswith("docs/") or "/" not in n)]
    assert len(names) > 30
    for name in names:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8")):
            if target.startswith(home):
                assert (ROOT / target.removeprefix(home).removesuffix("?raw=true")).is_file(), (name, target)
            elif not target.startswith("https://"):
                found = (base(name) / target).resolve()
                assert found.is_file() and (name not in archive or found.relative_to(ROOT).as_posix() in archive), (name, target)
