"""Lets ComfyUI start where torchvision's compiled operators do not fit the installed torch and torchaudio is absent,
as on a CPU-only test machine. On PYTHONPATH for the test server; imported by conftest.py for the tests' own process.

ComfyUI wants torchvision for a few image transforms, and torchaudio for audio nodes: no test touches either.
"""

import importlib.machinery
import sys
import types
from pathlib import Path

_LIBRARIES = []  # a torch.library.Library undoes its declarations when it dies
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeTorchvision:
    """Declares the operators torchvision registers fake kernels for, just before it is imported. Finds nothing."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name)
            if spec is not None and not _compiled_operators_load(spec.submodule_search_locations or ()):
                import torch

                _LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
                for schema in _SCHEMAS:
                    _LIBRARIES[-1].define(schema)
        return None


def _compiled_operators_load(folders) -> bool:
    import torch

    for folder in folders:
        for path in (*Path(folder).glob("_C*.so"), *Path(folder).glob("_C*.pyd")):
            try:
                torch.ops.load_library(str(path))  # what torchvision does next; loading twice is harmless
                return True
            except OSError:
                pass
    return False


class _InsteadOfTorchaudio:
    """Last in the import path: an empty torchaudio, only where there is none, whose every function raises."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchaudio":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return types.ModuleType(spec.name, "Stands in for an absent torchaudio.")

    def exec_module(self, module):
        module.__path__ = []
        module.__getattr__ = _placeholder


def _placeholder(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args, **kwargs):
        raise RuntimeError(f"torchaudio is not installed, {name} cannot be used")

    return absent


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTorchvision())
sys.meta_path.append(_InsteadOfTorchaudio())
