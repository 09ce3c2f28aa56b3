"""What ships, copied into an empty custom_nodes under any name, on a real server. Oracles: the files that ship, and this repository's own
pack in this process."""

import ast
import json
import shutil
import tempfile
import urllib.error
import urllib.parse
from pathlib import PurePosixPath

import pytest

from ..core.shipped import ROOT, shipped
from . import server, workflow
from .test_server import TROUBLE
from .test_workflows import FIRST, nodes_of, pixels

WINDOWS = "my REG pack (1)"  # every text file of this one has Windows' line ends
NAMES = ["reg-guidance", WINDOWS, "1 rég.test"]  # as the Manager calls it, as a second download is called, as nobody should
TEXT = {".js", ".json", ".md", ".py", ".toml"}
OURS = {"benchmarks", "examples", "reg_core", "tests", "tools"}  # importable in a checkout, not in an installation


def install(name, custom_nodes):
    """What ships, in custom_nodes/name; nothing else."""
    for file in shipped():
        path, data = custom_nodes / name / file, (ROOT / file).read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in TEXT:
            data = data.replace(b"\r\n", b"\n")
            data = data.replace(b"\n", b"\r\n") if name == WINDOWS else data
        path.write_bytes(data)
    return custom_nodes / name


@pytest.fixture(scope="module", params=NAMES)
def installed(request, tmp_path_factory):
    """(server, folder): ComfyUI with one installation, on a path with blanks; an import of this checkout's own packages fails in it."""
    home = tmp_path_factory.mktemp("Zoë's own") / "Comfy UI"
    for name in OURS:
        (home / "trap" / name).mkdir(parents=True)
        (home / "trap" / name / "__init__.py").write_text(f"raise ImportError('{name} is no part of an installation')\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(home))
        patch.setattr(server, "_link", shutil.copytree)
        patch.setenv("PYTHONPATH", str(home / "trap"))
        with server.ComfyServer(packs={request.param: install(request.param, home)}) as running:
            yield running, running.base / "custom_nodes" / request.param


def fetched(running, *path):
    """The file behind a route, or None."""
    try:
        return running.get("/" + "/".join(urllib.parse.quote(part) for part in path), raw=True)
    except urllib.error.HTTPError as error:
        assert error.code == 404
        return None


def test_every_import_is_of_a_file_that_ships():
    files = {PurePosixPath(name) for name in shipped()}
    for file in (f for f in files if f.suffix == ".py"):
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not OURS & {name.name.split(".")[0] for name in node.names}, (file, node.lineno)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] not in OURS, (file, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                module = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                assert files & {PurePosixPath(f"{module}.py"), module / "__init__.py"}, (file, node.lineno)


def test_it_loads(installed, pack):
    running, folder = installed
    found = {name for name, info in running.object_info().items() if info["python_module"] == f"custom_nodes.{folder.name}"}
    assert found == set(pack.nodes)
    assert not any(word in running.log for word in TROUBLE), running.tail(200)


def test_it_draws_what_this_checkout_draws(installed, pack, all_nodes):
    running, folder = installed
    prompt = workflow.to_api(folder / "example_workflows" / f"{FIRST}.json", running.object_info())
    prompt = workflow.shrink(prompt, steps=6)
    (latent,) = nodes_of(prompt, "REGDemoLatent").values()
    latent["inputs"]["batch_size"] = 10
    result, pictures = running.run(prompt), []
    for key, save in nodes_of(prompt, "SaveImage").items():
        (image,) = result.images(key)
        pictures.append(pixels(running.view(image)))
        want = workflow.execute(prompt, save["inputs"]["images"][0], all_nodes)[0]
        assert abs(pictures[-1] - (255 * want[0].numpy()).clip(0, 255).astype(int)).max() <= 1
    assert len(pictures) == 2 and abs(pictures[0] - pictures[1]).mean() > 1
    assert "Traceback" not in running.log, running.tail(200)


def test_the_page_finds_texts_and_workflows(installed, host):
    """Help and workflows: from a folder whose name needs no quoting in an address; others ComfyUI's own routes may not find."""
    running, folder = installed
    names = sorted(path.stem for path in folder.glob("example_workflows/*.json"))
    assert len(names) > 10 and {key: sorted(value) for key, value in running.get("/workflow_templates").items()} == {folder.name: names}
    for route, path in (
        (("extensions", folder.name, "docs"), folder / "web/docs/REGGuidance.md"),
        (("extensions", folder.name, "js"), folder / "web/js/reg.js"),
        (("api", "workflow_templates", folder.name), folder / f"example_workflows/{FIRST}.json"),
    ):
        got = fetched(running, *route, path.name)
        assert got == path.read_bytes() or (got is None and folder.name != urllib.parse.quote(folder.name)), path
    assert f"/extensions/{urllib.parse.quote(folder.name)}/js/reg.js" in running.get("/extensions")
    texts = {path.parent.name: {"nodeDefs": json.loads(path.read_text(encoding="utf-8"))} for path in folder.glob("locales/*/nodeDefs.json")}
    assert running.get("/i18n") == texts and len(texts) == 4
    if (host.path / "app" / "subgraph_manager.py").is_file():
        (file,) = folder.glob("subgraphs/*.json")
        ((key, entry),) = ((k, v) for k, v in running.get("/global_subgraphs").items() if v["source"] == "custom_node")
        assert (entry["name"], entry["info"]["node_pack"]) == (file.stem, f"custom_nodes.{folder.name}")
        assert json.loads(running.get(f"/global_subgraphs/{key}")["data"]) == json.loads(file.read_text(encoding="utf-8"))
