"""Turns the test process into a ComfyUI host, before anything imports comfy.

COMFYUI_PATH           a ComfyUI checkout (default: a fixed one is fetched, see setup_host.py)
REG_TEST_ATTENTION     `pytorch` for scaled_dot_product_attention, what most users run; anything else: sub-quadratic,
                       what a CPU host takes by itself
REG_TEST_DEVICE        `cuda` for test_cuda.py on a GPU, which is all that runs then, `cuda-dynamic` with dynamic VRAM (a ComfyUI that
                       has it, and comfy-aimdo); anything else: the CPU
"""

import asyncio
import atexit
import importlib
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from .setup_host import REPO, host_path
from .site import sitecustomize  # noqa: F401  (makes torchvision importable)

HERE = Path(__file__).resolve().parent
ON_CUDA = os.environ.get("REG_TEST_DEVICE", "").startswith("cuda")
DYNAMIC = os.environ.get("REG_TEST_DEVICE") == "cuda-dynamic"


def _prepare() -> Path:
    """Host on the path and its command line parsed. ComfyUI reads sys.argv once, at import: pytest's must not leak."""
    host = host_path()
    clash = {"nodes", "execution", "server", "folder_paths", "utils", "app"} & set(sys.modules)
    if clash:
        raise RuntimeError(f"{sorted(clash)} imported before ComfyUI: they hide its modules of the same name")
    if str(host) in sys.path:
        sys.path.remove(str(host))
    sys.path.insert(0, str(host))  # first: the repository has a nodes/ folder, ComfyUI a nodes.py
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    base = Path(tempfile.mkdtemp(prefix="reg-host-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    for name in ("custom_nodes", "input", "models", "output", "temp", "user"):
        (base / name).mkdir()
    argv = ["x", "--base-directory", str(base), "--disable-api-nodes"]
    if not ON_CUDA:
        argv.append("--cpu")
    if os.environ.get("REG_TEST_ATTENTION") == "pytorch":
        argv.append("--use-pytorch-cross-attention")

    if DYNAMIC:  # before torch, as ComfyUI's main.py does
        import comfy_aimdo.control

        comfy_aimdo.control.init()
    pytest_argv, sys.argv = sys.argv, argv
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = pytest_argv
    if DYNAMIC:
        import comfy.model_management

        if not comfy_aimdo.control.init_devices([comfy.model_management.get_torch_device().index or 0]):
            raise RuntimeError("REG_TEST_DEVICE=cuda-dynamic: comfy-aimdo does not work here")
    if not Path(comfy.cli_args.__file__).is_relative_to(host):
        raise RuntimeError(f"comfy was imported from {comfy.cli_args.__file__}, not from {host}")
    return base


BASE_DIRECTORY = _prepare()

collect_ignore = ["test_cuda.py"]
# Texts, pictures and servers are the same with either attention: once is enough.
if os.environ.get("REG_TEST_ATTENTION") == "pytorch":
    collect_ignore += [
        f"test_{name}.py"
        for name in (
            "benchmark",
            "demo_nodes",
            "evaluation",
            "evaluation_score",
            "help",
            "locales",
            "plots",
            "presets",
            "random_nodes",
            "soak",
            "start",
            "sweep",
            "tiny",
            "workflow",
        )
    ]

if ON_CUDA:  # the others build tensors on the CPU, or play a GPU through there
    collect_ignore = [path.name for path in HERE.glob("test_*.py") if path.name != "test_cuda.py"]

import torch  # noqa: E402

torch.set_num_threads(1)  # tiny models gain nothing from more, and lose much where cores are shared

from . import tiny as tiny_models  # noqa: E402
from .server import ComfyServer  # noqa: E402


@pytest.fixture(scope="session")
def host() -> SimpleNamespace:
    """ComfyUI's modules: host.samplers, host.nodes, ... and host.path, host.version, host.base_directory."""
    names = (
        "controlnet", "hooks", "k_diffusion.sampling", "ldm.modules.attention", "model_base", "model_management",
        "model_patcher", "model_sampling", "ops", "patcher_extension", "sample", "sampler_helpers", "samplers", "sd",
        "supported_models", "utils",
    )  # fmt: skip
    modules = {name.replace(".", "_"): importlib.import_module(f"comfy.{name}") for name in names}
    return SimpleNamespace(
        **modules,
        comfy=importlib.import_module("comfy"),
        nodes=importlib.import_module("nodes"),
        folder_paths=importlib.import_module("folder_paths"),
        io=importlib.import_module("comfy_api.latest").io,
        path=host_path(),
        version=importlib.import_module("comfyui_version").__version__,
        base_directory=BASE_DIRECTORY,
        attention="pytorch" if os.environ.get("REG_TEST_ATTENTION") == "pytorch" else "sub_quad",
    )


def load_pack(host, folder: Path) -> SimpleNamespace:
    """Load a node pack as ComfyUI does at start-up. Raises with what ComfyUI only logs when a pack is broken."""
    before = dict(host.nodes.NODE_CLASS_MAPPINGS)
    messages = _Messages()
    logging.getLogger().addHandler(messages)
    try:
        loaded = asyncio.run(host.nodes.load_custom_node(str(folder), module_parent="custom_nodes"))
    finally:
        logging.getLogger().removeHandler(messages)
    if not loaded:
        raise RuntimeError(f"ComfyUI did not load {folder}:\n" + "\n".join(messages.lines))
    new = {k: v for k, v in host.nodes.NODE_CLASS_MAPPINGS.items() if before.get(k) is not v}
    module = sys.modules[str(folder).replace(".", "_x_")]
    return SimpleNamespace(module=module, package=module.__name__, nodes=new, warnings=messages.lines)


class _Messages(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture(scope="session")
def pack(host) -> SimpleNamespace:
    """This repository, loaded by ComfyUI's own loader.

    pack.nodes: {node_id: class}; pack.module: the pack's top module; pack.import_("nodes.host.branches"): a submodule of it,
    the very one the nodes use; pack.warnings: what was logged while loading.
    """
    try:
        pack = load_pack(host, REPO)
    except RuntimeError as error:
        pytest.exit(str(error), returncode=3)  # every further test would only repeat it
    pack.import_ = lambda name: importlib.import_module(f"{pack.package}.{name}")
    return pack


@pytest.fixture(scope="session")
def testpack(host) -> SimpleNamespace:
    """The test-only nodes (testpack/), loaded by ComfyUI's loader."""
    return load_pack(host, HERE / "testpack")


@pytest.fixture(scope="session")
def all_nodes(host) -> dict:
    """NODE_CLASS_MAPPINGS with ComfyUI's own extra nodes (RescaleCFG, APG, SamplerCustomAdvanced, ...)."""
    asyncio.run(host.nodes.init_builtin_extra_nodes())
    return host.nodes.NODE_CLASS_MAPPINGS


@pytest.fixture(scope="session")
def tiny():
    """tiny.build("sd15"), tiny.sample(t), ... : the module, for tests that do not import it themselves."""
    return tiny_models


@pytest.fixture(scope="session")
def server():
    """A running ComfyUI with this pack and the test pack, shared by all tests of the session."""
    with ComfyServer() as running:
        yield running


@pytest.fixture(autouse=True)
def as_in_comfyui():
    """Each test runs as a node does: in inference mode, which is where autograd fails; and from a fixed seed."""
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
