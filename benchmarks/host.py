"""This process as a ComfyUI host with the pack in it, without a server and without ComfyUI's nodes.

Needs the folder of a ComfyUI checkout (`COMFYUI_PATH`; else the one `nox -s test` fetched), torch, and what ComfyUI's
sampling imports: `python -m benchmarks --imports` lists it. Nothing of ComfyUI is replaced; where torchvision's compiled
operators do not fit the installed torch (a CPU-only machine), tests/host/site makes it importable.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import runpy
import shutil
import sys
import tempfile
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

REPO = Path(__file__).resolve().parents[1]
FETCHED = REPO / ".host" / "ComfyUI-0.3.75"
# The kernel that most users run, and the one REG's derivatives take: the same arithmetic in every mode.
ATTENTION = "--use-pytorch-cross-attention"


def comfyui_path() -> Path:
    """The ComfyUI checkout. Raises FileNotFoundError when there is none."""
    path = Path(os.environ.get("COMFYUI_PATH", FETCHED)).expanduser().resolve()
    if not (path / "comfy").is_dir():
        raise FileNotFoundError(f"no ComfyUI at {path}: set COMFYUI_PATH to the root of a checkout, or run `python tests/host/setup_host.py` once")
    return path


def start(cpu: bool) -> SimpleNamespace:
    """Import ComfyUI for this device and load the pack. Returns its node classes by id as `nodes`, and `import_`."""
    host = comfyui_path()
    runpy.run_path(str(REPO / "tests" / "host" / "site" / "sitecustomize.py"))
    sys.path.insert(0, str(host))  # first: the repository has a nodes/ folder
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    base = Path(tempfile.mkdtemp(prefix="reg-bench-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    for name in ("custom_nodes", "input", "models", "output", "temp", "user"):
        (base / name).mkdir()
    given, sys.argv = sys.argv, ["main.py", ATTENTION, "--base-directory", str(base), *(["--cpu"] if cpu else [])]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # reads sys.argv at import
    finally:
        sys.argv = given
    import comfy.sample  # noqa: F401

    return load_pack()


def load_pack() -> SimpleNamespace:
    """This repository, as ComfyUI's loader does it: imported from its path, asked for its nodes."""
    name = str(REPO).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, REPO / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def classes():
        extension = await module.comfy_entrypoint()
        return await extension.get_node_list()

    nodes = {cls.GET_SCHEMA().node_id: cls for cls in asyncio.run(classes())}
    return SimpleNamespace(nodes=nodes, import_=lambda submodule: importlib.import_module(f"{name}.{submodule}"))


def imported() -> list[str]:
    """The distributions that were imported so far, with their versions: what a bare machine has to have."""
    owners = packages_distributions()
    tops = {name.partition(".")[0] for name in sys.modules}
    found = {owner for top in tops for owner in owners.get(top, ())}
    return sorted(f"{name}=={importlib.metadata.version(name)}" for name in found)
