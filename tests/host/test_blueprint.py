"""The subgraph blueprint: listed where the host lists blueprints, and what is in it runs. Oracle: the same graph written flat, node by node."""

import json
import urllib.error

import pytest

from . import workflow
from .test_workflows import FOLDER, hidden, pixels

(FILE,) = (FOLDER.parent / "subgraphs").glob("*.json")


def test_the_route_lists_it(server, host):
    try:
        listed = server.get("/global_subgraphs")
    except urllib.error.HTTPError as error:
        assert error.code == 404 and tuple(map(int, host.version.split(".")[:3])) < (0, 3, 66)
        pytest.skip(f"ComfyUI {host.version} has no blueprints")
    ((key, entry),) = ((k, v) for k, v in listed.items() if v["name"] == FILE.stem)
    assert entry["source"] == "custom_node" and entry["info"]["node_pack"].endswith("ComfyUI-REG")
    assert json.loads(server.get(f"/global_subgraphs/{key}")["data"]) == json.loads(FILE.read_text(encoding="utf-8"))


def test_no_wire_runs_behind_a_node():
    (definition,) = json.loads(FILE.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    borders = [
        {"id": border["id"], "type": "border", "pos": border["bounding"][:2], "size": border["bounding"][2:]}
        for border in (definition["inputNode"], definition["outputNode"])
    ]
    links = [[link[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")] for link in definition["links"]]
    assert not hidden({"nodes": [*definition["nodes"], *borders], "links": links})


def test_it_draws_what_the_flat_graph_draws(server, testpack):
    """With a tiny checkpoint, its widgets fed by links."""
    blueprint = json.loads(FILE.read_text(encoding="utf-8"))
    (outer,), (definition,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    values = {"form": "schedule", "gain": 2.0, "seed": 5, "steps": 3, "cfg": 6.0, "sampler_name": "euler", "scheduler": "karras"}
    sources = {
        "model": ["tiny", 0], "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["empty", 0],
    }  # fmt: skip
    world = {
        "tiny": {"class_type": "REGTestTinyCheckpoint", "inputs": {"arch": "sd15", "seed": 0}},
        "yes": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["tiny", 1], "text": "a cat"}},
        "no": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["tiny", 1], "text": "a dog"}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    }
    # what a user makes of it: links to its sockets, primitives to its widgets
    nodes, links = [outer | {"id": 50}], []
    for i, slot in enumerate(nodes[0]["inputs"]):
        links.append([i + 1, 100 + i, 0, 50, i, slot["type"]])
        nodes.append({"id": 100 + i, "type": "PrimitiveNode", "widgets_values": [sources.get(slot["name"], values.get(slot["name"]))], "inputs": []})
        nodes[0]["inputs"][i] = slot | {"link": i + 1}
    built = workflow.to_api(blueprint | {"nodes": nodes, "links": links}, server.get("/object_info"))
    assert len(built) == len(definition["nodes"]) and all(key.startswith("50:") for key in built)

    def saved(prompt, **ends):
        prompt = world | prompt
        for name, end in ends.items():
            if name in ("REG", "CFG"):
                prompt[f"decode {name}"] = {"class_type": "VAEDecode", "inputs": {"samples": end, "vae": ["tiny", 2]}}
                end = [f"decode {name}", 0]
            prompt[name] = {"class_type": "SaveImage", "inputs": {"images": end, "filename_prefix": name}}
        result = server.run(prompt)
        return {name: [pixels(server.view(image)) for image in result.images(name)] for name in ends}

    nested = {"REG": 0, "CFG": 1, "plot": 2, "heat_map": 3}
    ends = {name: next([f"50:{x['origin_id']}", x["origin_slot"]] for x in definition["links"] if x["target_id"] == -20 and x["target_slot"] == slot)
            for name, slot in nested.items()}  # fmt: skip
    assert [out["name"] for out in outer["outputs"]] == list(nested)
    pictures = saved(built, **ends)

    common = {"seed": 5, "steps": 3, "cfg": 6.0, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0, "positive": ["yes", 0],
              "negative": ["no", 0], "latent_image": ["empty", 0]}  # fmt: skip
    guidance = {"form": "schedule", "gain": 2.0, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "skip_below": 0.0, "data_std": 1.0,
                "engine": "auto", "refresh": 8}  # fmt: skip
    flat = {
        "r": {"class_type": "REGGuidance", "inputs": guidance | {"model": ["tiny", 0]}},
        "a": {"class_type": "KSampler", "inputs": common | {"model": ["r", 0]}},
        "b": {"class_type": "KSampler", "inputs": common | {"model": ["tiny", 0]}},
    }
    want = saved(flat, REG=["a", 0], CFG=["b", 0])
    for name in want:
        assert (pictures[name][0] == want[name][0]).all(), name
    assert abs(pictures["REG"][0] - pictures["CFG"][0]).mean() > 0.5
    assert pictures["plot"][0].shape[1] == 1024 and len(pictures["heat_map"]) == 1
