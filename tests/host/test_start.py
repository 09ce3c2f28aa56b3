"""What the pack adds to ComfyUI's start, in a process of its own. Oracle: PyTorch's own count of operators, Python's own list of modules."""

import json
import os
import subprocess
import sys

from .setup_host import REPO

CODE = """
import json, sys, time
from tests.host import conftest  # makes this process a ComfyUI
import comfy.model_management, comfy_api.latest, nodes, torch
from types import SimpleNamespace
from torch.utils._python_dispatch import TorchDispatchMode


class Count(TorchDispatchMode):
    ran = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ran.append(str(func))
        return func(*args, **(kwargs or {}))


host = SimpleNamespace(nodes=nodes)
conftest.load_pack(host, conftest.HERE / "testpack")  # what the host's loader imports itself
before, begin = set(sys.modules), time.perf_counter()
with Count() as count:
    pack = conftest.load_pack(host, conftest.REPO)
seconds, new = time.perf_counter() - begin, sorted(set(sys.modules) - before)
ours = [name for name in new if name.startswith(pack.package)]
files = [getattr(sys.modules[name], "__file__", None) or "" for name in new]
print(json.dumps(dict(ran=count.ran, ours=ours, others=[n for n in new if n not in ours], nodes=len(pack.nodes), seconds=seconds)))
"""


def test_loading_the_pack_runs_nothing_and_imports_little():
    """No operator of PyTorch, no module of the lab, the integrations or the evaluation; of others only what is in Python or comes with ComfyUI."""
    out = subprocess.run([sys.executable, "-c", CODE], cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=True).stdout
    seen = json.loads(out.strip().splitlines()[-1])
    print(f"\n{len(seen['ours'])} modules of the pack, {len(seen['others'])} others, {seen['seconds']:.2f} s: {', '.join(seen['others'])}")
    assert seen["nodes"] > 20 and seen["ran"] == []
    assert len(seen["ours"]) <= 70 and not [name for name in seen["ours"] if any(part in name for part in (".lab", ".evaluation", ".integrations", ".train"))]
    assert len(seen["others"]) <= 10
