"""A real ComfyUI server starts with the pack, says nothing is broken, and computes what this process computes."""

import io

import numpy
import pytest
from PIL import Image

from .server import PromptError
from .workflow import execute

TROUBLE = ("IMPORT FAILED", "Error while calling comfy_entrypoint", "Traceback (most recent call last)", "Cannot import")


def prompt(arch="sd15", **sampler):
    values = dict(
        model=["1", 0], seed=5, steps=2, cfg=4.0, sampler_name="euler", scheduler="normal", positive=["2", 0],
        negative=["3", 0], latent_image=["4", 0], denoise=1.0,
    )  # fmt: skip
    return {
        "1": {"class_type": "REGTestTinyCheckpoint", "inputs": {"arch": arch}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a cat"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": values | sampler},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }


def pixels(data: bytes) -> numpy.ndarray:
    return numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_starts_clean(server):
    start = server.log.split("got prompt")[0]  # other tests of this session provoke errors later on
    assert "To see the GUI go to" in start
    found = [line for line in start.splitlines() if any(word in line for word in TROUBLE)]
    assert not found, server.tail(200)


def test_pack_is_registered(server, pack):
    assert pack.nodes, "the pack registers no node"
    missing = [name for name in pack.nodes if not server.object_info(name)]
    assert not missing
    for name in pack.nodes:
        assert server.object_info(name)["python_module"] == "custom_nodes.ComfyUI-REG"
    assert server.object_info("REGTestTinyCheckpoint")
    assert server.object_info("NoSuchNode") == {}


@pytest.mark.parametrize("arch", ["sd15", "sd3"])
def test_same_pixels_as_in_process(server, host, testpack, arch):
    result = server.run(prompt(arch), timeout=120)
    (image,) = result.images("7")
    ours, theirs = execute(prompt(arch), "6", host.nodes.NODE_CLASS_MAPPINGS)[0], pixels(server.view(image))
    ours = (255 * ours[0].numpy()).clip(0, 255).astype(int)
    assert theirs.shape == (128, 128, 3)
    assert theirs.std() > 5
    assert abs(ours - theirs).max() <= 1
    assert [value for node, value, _ in result.progress if node == "5"][-1] == 2
    assert result.executed[-1] == "7"


def test_second_run_is_cached(server):
    server.run(prompt(seed=6))
    result = server.run(prompt(seed=6, cfg=5.0))
    assert {"1", "2"} <= set(result.cached)
    assert "5" in result.executed


def test_refused_prompt_says_why(server):
    broken = prompt()
    broken["5"]["inputs"]["sampler_name"] = "no such sampler"
    with pytest.raises(PromptError, match=r"node 5 \(KSampler\)"):
        server.run(broken)


def test_failing_node_says_why(server):
    broken = prompt()
    broken["4"] = {"class_type": "REGTestFail", "inputs": {}}
    with pytest.raises(PromptError, match="on purpose"):
        server.run(broken)


def test_interrupt(server):
    def stop(value, maximum):
        server.interrupt()

    with pytest.raises(InterruptedError):
        server.run(prompt(seed=7, steps=10_000), timeout=60, on_progress=stop)
    assert server.run(prompt(seed=8)).images(), "the server must go on after an interrupt"
