"""Optional libraries that tests run against, imported or skipped with the reason; and the examples."""

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def diffusers():
    """The diffusers package; skips without it, or without transformers, which its text-to-image pipelines import."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network
    for name in ("diffusers", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (pip install reg-guidance[diffusers])", allow_module_level=True)
    _torchvision_without_operators()
    return importlib.import_module("diffusers")


def torchmetrics():
    """transformers, beside a torchmetrics that can be imported; skips without either."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _torchvision_without_operators()
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (pip install reg-guidance[eval])")
    return pytest.importorskip("transformers", reason="transformers is not installed (pip install reg-guidance[eval])")


def k_diffusion_sampling():
    """k_diffusion.sampling alone: the package's __init__ wants training code, pinned to old versions of everything."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            pytest.skip("k_diffusion is not installed")
        _torchvision_without_operators()
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
    return pytest.importorskip("k_diffusion.sampling", reason="k_diffusion's dependencies are not installed", exc_type=ImportError)


def example(name: str):
    """examples/NAME.py as a module; like a script it finds its neighbours."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


KILLED = """
import importlib, os, signal, sys
sys.path[:0] = sys.argv[1:3]
script, grid = importlib.import_module(sys.argv[3]), importlib.import_module("grid")
put, left = grid.Store.put, int(sys.argv[4])
def counted(*args, **kwargs):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return put(*args, **kwargs)
grid.Store.put = counted
script.main(sys.argv[5:])
"""


def run_and_kill(name: str, command: list[str], images: int) -> None:
    """An example in a process that is killed once it has written so many images."""
    folders = [str(ROOT / "examples"), str(ROOT)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "tests" / "host" / "site")}
    code = subprocess.run([sys.executable, "-c", KILLED, *folders, name, str(images), *command], env=env).returncode
    assert code == -signal.SIGKILL


def made(out) -> dict:
    """{image: sha256} by a finished run's manifest."""
    manifest = json.loads((Path(out) / "manifest.json").read_text(encoding="utf-8"))
    return {key: entry["images"][0]["sha256"] for key, entry in manifest.items()}


def places(sheet, image):
    """Where an image lies on a sheet, exactly."""
    whole, part = (np.asarray(Image.open(path).convert("RGB")) for path in (sheet, image))
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)[:, :, 0]
    return list(zip(*np.where((windows == part).all((2, 3, 4))), strict=True))


def _torchvision_without_operators():
    """As the host tests do: transformers imports torchvision, whose compiled part may not fit a CPU torch."""
    if "torchvision" in sys.modules or any(type(finder).__name__ == "_BeforeTorchvision" for finder in sys.meta_path):
        return
    path = ROOT / "tests" / "host" / "site" / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("reg_host_sitecustomize", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["reg_host_sitecustomize"] = module  # keeps its operator library alive
