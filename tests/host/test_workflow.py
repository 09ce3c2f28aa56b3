"""UI-format workflows become API prompts as the page would make them."""

import pytest

from .workflow import WorkflowError, execute, object_info, shrink, substitute_checkpoint, to_api

INFO = {
    "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [["a.safetensors", "b.safetensors"]]}}},
    "CLIPTextEncode": {"input": {"required": {"text": ["STRING", {"multiline": True}], "clip": ["CLIP"]}}},
    "EmptyLatentImage": {"input": {"required": {name: ["INT", {"default": 512}] for name in ("width", "height", "batch_size")}}},
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "cfg": ["FLOAT", {"default": 8.0}],
                "sampler_name": [["euler", "heun"]],
                "scheduler": ["COMBO", {"options": ["normal", "karras"]}],
                "positive": ["CONDITIONING"],
                "negative": ["CONDITIONING"],
                "latent_image": ["LATENT"],
                "denoise": ["FLOAT", {"default": 1.0}],
            }
        }
    },
    "Patch": {"input": {"required": {"model": ["MODEL"], "strength": ["FLOAT", {"default": 1.0}]}}},
}


def node(id, type, values=(), inputs=(), mode=0):
    """inputs: (name, type, link) or (name, type, link, True) for a widget turned into an input."""
    slots = [{"name": n, "type": t, "link": link} | ({"widget": {"name": n}} if widget else {}) for n, t, link, *widget in inputs]
    return {"id": id, "type": type, "mode": mode, "inputs": slots, "widgets_values": list(values)}


def workflow(patch_mode=0, sampler_values=(7, "randomize", 4, 3.5, "heun", "karras", 0.9), steps_link=None):
    sampler_inputs = [
        ("model", "MODEL", 3), ("positive", "CONDITIONING", 4), ("negative", "CONDITIONING", 4),
        ("latent_image", "LATENT", 5), ("steps", "INT", steps_link, True),
    ]  # fmt: skip
    return {
        "version": 0.4,
        "nodes": [
            node(1, "CheckpointLoaderSimple", ["b.safetensors"]),
            node(2, "Patch", [0.5], [("model", "MODEL", 1)], mode=patch_mode),
            node(3, "Reroute", (), [("", "*", 2)]),
            node(4, "CLIPTextEncode", ["a cat"], [("clip", "CLIP", 6), ("text", "STRING", None, True)]),
            node(5, "EmptyLatentImage", [512, 768, 2]),
            node(6, "KSampler", sampler_values, sampler_inputs),
            node(7, "MarkdownNote", ["hello"]),
            node(8, "PrimitiveNode", [11, "fixed"]),
        ],
        "links": [
            [1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"], [3, 3, 0, 6, 0, "MODEL"],
            [4, 4, 0, 6, 1, "CONDITIONING"], [5, 5, 0, 6, 3, "LATENT"], [6, 1, 1, 4, 0, "CLIP"], [7, 8, 0, 6, 4, "INT"],
        ],
    }  # fmt: skip


def test_widgets_links_and_page_only_nodes():
    prompt = to_api(workflow(), INFO)
    assert set(prompt) == {"1", "2", "4", "5", "6"}
    assert prompt["1"]["inputs"] == {"ckpt_name": "b.safetensors"}
    assert prompt["2"]["inputs"] == {"model": ["1", 0], "strength": 0.5}
    assert prompt["4"]["inputs"] == {"text": "a cat", "clip": ["1", 1]}
    assert prompt["6"]["inputs"] == dict(
        model=["2", 0], seed=7, steps=4, cfg=3.5, sampler_name="heun", scheduler="karras", positive=["4", 0],
        negative=["4", 0], latent_image=["5", 0], denoise=0.9,
    )  # fmt: skip


def test_seed_without_control_value():
    assert to_api(workflow(sampler_values=(7, 4, 3.5, "heun", "karras", 0.9)), INFO)["6"]["inputs"]["cfg"] == 3.5


def test_widget_turned_into_input_takes_the_primitive():
    assert to_api(workflow(steps_link=7), INFO)["6"]["inputs"]["steps"] == 11


def test_missing_trailing_values_are_defaults():
    inputs = to_api(workflow(sampler_values=(7, "fixed", 4, 3.5)), INFO)["6"]["inputs"]
    assert (inputs["sampler_name"], inputs["scheduler"], inputs["denoise"]) == ("euler", "normal", 1.0)


def test_bypassed_node_passes_its_input_on():
    prompt = to_api(workflow(patch_mode=4), INFO)
    assert "2" not in prompt
    assert prompt["6"]["inputs"]["model"] == ["1", 0]


def subgraphed(mode=0):
    """The workflow with its patch and reroute inside a subgraph, and strength as a widget of the subgraph's node."""
    whole = workflow()
    patch = node(5, "Patch", [0.5], [("model", "MODEL", 1), ("strength", "FLOAT", 2, True)])
    inside = {
        "id": "inner", "inputNode": {"id": -10}, "outputNode": {"id": -20}, "nodes": [patch],
        "links": [
            {"id": link, "origin_id": a, "origin_slot": b, "target_id": c, "target_slot": d, "type": t}
            for link, a, b, c, d, t in [(1, -10, 0, 5, 0, "MODEL"), (2, -10, 1, 5, 1, "FLOAT"), (3, 5, 0, -20, 0, "MODEL")]
        ],
    }  # fmt: skip
    outer = node(2, "inner", (), [("model", "MODEL", 1), ("strength", "FLOAT", None, True)], mode=mode)
    nodes = [outer if n["id"] == 2 else n for n in whole["nodes"]]
    return whole | {"nodes": nodes, "definitions": {"subgraphs": [inside]}}


def test_subgraphs_are_opened():
    flat, nested = to_api(workflow(), INFO), to_api(subgraphed(), INFO)
    assert nested["2:5"]["inputs"] == flat.pop("2")["inputs"] == {"model": ["1", 0], "strength": 0.5}
    del nested["2:5"]
    assert nested.pop("6")["inputs"] == flat.pop("6")["inputs"] | {"model": ["2:5", 0]}
    assert nested == flat


def test_a_value_that_reaches_a_subgraph_by_a_link():
    fed = subgraphed()
    fed["links"].append([20, 8, 0, 2, 1, "FLOAT"])
    fed["nodes"][1]["inputs"][1]["link"] = 20
    assert to_api(fed, INFO)["2:5"]["inputs"]["strength"] == 11


@pytest.mark.parametrize(
    "broken, message",
    [
        (workflow(patch_mode=2), r"node 2 \(Patch\) is muted"),
        (workflow(sampler_values=(7, "fixed", 4, 3.5, "heun", "karras", 0.9, 1, 2)), r"node 6 .* more widget values"),
        (subgraphed(mode=4), r"node 2 \(inner\): muted and bypassed subgraphs"),
        ({"1": {"class_type": "KSampler", "inputs": {}}}, "no `nodes`"),
        ({"nodes": [node(1, "Nope")], "links": []}, r"node 1 \(Nope\): unknown"),
        ({"nodes": [node(1, "Patch", [1.0])], "links": []}, "required input model"),
    ],
)
def test_clear_errors(broken, message):
    with pytest.raises(WorkflowError, match=message):
        to_api(broken, INFO)


def test_substitute_checkpoint():
    prompt = to_api(workflow(), INFO)
    prompt["9"] = {"class_type": "DualCLIPLoader", "inputs": {"clip_name1": "a", "clip_name2": "b"}}
    prompt["10"] = {"class_type": "VAELoader", "inputs": {"vae_name": "c"}}
    prompt["11"] = {"class_type": "VAEDecode", "inputs": {"vae": ["10", 0], "samples": ["6", 0]}}
    prompt["4"]["inputs"]["clip"] = ["9", 0]
    changed = substitute_checkpoint(prompt, "sdxl")
    assert changed["1"]["class_type"] == changed["10"]["class_type"] == "REGTestTinyCheckpoint"
    assert changed["1"]["inputs"]["arch"] == "sdxl"
    assert changed["1"]["inputs"]["seed"] != changed["10"]["inputs"]["seed"]
    assert changed["2"]["inputs"]["model"] == ["1", 0]
    assert changed["4"]["inputs"]["clip"] == ["9", 1]
    assert changed["11"]["inputs"] == {"vae": ["10", 2], "samples": ["6", 0]}
    assert prompt["1"]["class_type"] == "CheckpointLoaderSimple", "the original must stay"


def test_shrink():
    small = shrink(to_api(workflow(), INFO), size=64, steps=2)
    assert (small["5"]["inputs"]["width"], small["5"]["inputs"]["batch_size"]) == (64, 2)
    assert small["6"]["inputs"]["steps"] == 2


def test_against_the_hosts_own_nodes(host, testpack):
    """The same workflow with ComfyUI's real input declarations, executed."""
    info = object_info(host.nodes.NODE_CLASS_MAPPINGS) | {"Patch": INFO["Patch"]}
    info["CheckpointLoaderSimple"] = INFO["CheckpointLoaderSimple"]  # no checkpoint on disk
    prompt = shrink(substitute_checkpoint(to_api(workflow(patch_mode=4), info), "sd15"), size=64, steps=2)
    (latent,) = execute(prompt, "6", host.nodes.NODE_CLASS_MAPPINGS)
    assert latent["samples"].shape == (2, 4, 8, 8)
    assert latent["samples"].isfinite().all()
