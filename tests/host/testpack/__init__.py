"""Test-only nodes: a checkpoint that needs no file. Loaded by the test server and the host tests, never shipped."""

import hashlib
import importlib
import json
import sys
import types
from pathlib import Path

from comfy_api.latest import ComfyExtension, io


def _tiny():
    """tests/host/tiny.py and its neighbours, wherever this folder is linked from."""
    name = "reg_test_host"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(Path(__file__).resolve().parents[1])]
        sys.modules[name] = package
    return importlib.import_module(f"{name}.tiny")


class HashCLIP:
    """What text encode nodes need of a CLIP: the same text gives the same embedding."""

    def __init__(self, arch):
        self.arch = arch

    def tokenize(self, text, **options):
        return {key: [[text]] for key in ("l", "g", "t5xxl")}

    def encode_from_tokens_scheduled(self, tokens, unprojected=False, add_dict=None, show_pbar=True):
        text = hashlib.sha256(json.dumps(tokens, sort_keys=True).encode()).hexdigest()
        ((context, entries),) = _tiny().conditioning(self.arch, text)
        return [[context, {"pooled_output": None} | entries | (add_dict or {})]]

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        ((context, entries),) = self.encode_from_tokens_scheduled(tokens)
        if return_dict:
            return {"cond": context} | entries
        return (context, entries["pooled_output"]) if return_pooled else context

    def clone(self, **options):
        return HashCLIP(self.arch)

    def clip_layer(self, index):
        """Layers are not modelled."""


class REGTestTinyCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="REGTestTinyCheckpoint",
            display_name="Tiny checkpoint (test)",
            category="REG/test",
            inputs=[
                io.Combo.Input("arch", options=list(_tiny().FAMILIES), default="sd15"),
                io.Int.Input("seed", default=0, min=0, max=2**63, optional=True),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, arch, seed=0) -> io.NodeOutput:
        tiny = _tiny()
        return io.NodeOutput(tiny.build(arch, seed=seed).patcher, HashCLIP(arch), tiny.build_vae(arch))


class REGTestFail(io.ComfyNode):
    """Fails when run: for tests of how failures are reported."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="REGTestFail", display_name="Fail (test)", category="REG/test", outputs=[io.Latent.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        raise ValueError("failed on purpose")


class TestExtension(ComfyExtension):
    __test__ = False  # not a pytest class

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [REGTestTinyCheckpoint, REGTestFail]


async def comfy_entrypoint() -> TestExtension:
    return TestExtension()
