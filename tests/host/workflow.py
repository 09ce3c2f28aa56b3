"""Workflows without a browser: UI format (what is saved and shared) to API format (what the server runs), checkpoint
loaders replaced by tiny models, and a small in-process executor.

Pure Python apart from `execute`: no ComfyUI import, so it can be tested alone.
"""

import copy
import json
import zlib
from pathlib import Path

from .subgraph import ACTIVE, WorkflowError, flatten
from .subgraph import name_of as _name

CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "IMAGECOMPARE"}
COMMENTS = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4
DYNAMIC = "COMFY_DYNAMICCOMBO"  # a combo whose choice brings further widgets along

# loader -> {its output slot: slot of REGTestTinyCheckpoint}
LOADERS = {
    "CheckpointLoaderSimple": {0: 0, 1: 1, 2: 2},
    "CheckpointLoader": {0: 0, 1: 1, 2: 2},
    "ImageOnlyCheckpointLoader": {0: 0, 2: 2},
    "UNETLoader": {0: 0},
    "CLIPLoader": {0: 1},
    "DualCLIPLoader": {0: 1},
    "TripleCLIPLoader": {0: 1},
    "QuadrupleCLIPLoader": {0: 1},
    "VAELoader": {0: 2},
}


# --- UI format to API format ---------------------------------------------------------------------------------------


def object_info(mappings: dict) -> dict:
    """The `input` part of the server's /object_info, from NODE_CLASS_MAPPINGS."""
    return {name: {"input": node.INPUT_TYPES()} for name, node in mappings.items()}


def to_api(workflow: dict | str | Path, info: dict) -> dict:
    """A flat UI-format (0.4) workflow as an API prompt. `info`: /object_info, or object_info(NODE_CLASS_MAPPINGS)."""
    if not isinstance(workflow, dict):
        workflow = json.loads(Path(workflow).read_text(encoding="utf-8"))
    if "nodes" not in workflow:
        raise WorkflowError("not a UI-format workflow: it has no `nodes`")
    graph = _Graph(flatten(workflow))
    prompt = {}
    for node in graph.nodes.values():
        if node["type"] in COMMENTS | {"Reroute", "PrimitiveNode"} or node.get("mode", ACTIVE) in (MUTED, BYPASSED):
            continue
        if node["type"] not in info:
            raise WorkflowError(f"{_name(node)}: unknown node type; is its pack loaded?")
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": _inputs(graph, node, info[node["type"]]["input"]),
            "_meta": {"title": node.get("title") or node["type"]},
        }
    return prompt


class _Graph:
    def __init__(self, workflow):
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        # a link is [id, from node, from slot, to node, to slot, type]
        self.links = {link[0]: link for link in workflow["links"]}

    def source(self, link_id):
        """What feeds a link: ("link", node id, slot), ("value", constant), or None when it comes from nowhere."""
        link = self.links[link_id]
        node, slot, kind = self.nodes[link[1]], link[2], link[5]
        mode = node.get("mode", ACTIVE)
        if mode == MUTED:
            raise WorkflowError(f"{_name(node)} is muted, but its output is used")
        if node["type"] == "PrimitiveNode":
            return "value", node["widgets_values"][0]
        if node["type"] == "Reroute":
            return self._through(node["inputs"][0])
        if mode == BYPASSED:
            inputs = node.get("inputs", [])
            same = [i for i in (*inputs[slot : slot + 1], *inputs) if i["type"] == kind and i.get("link") is not None]
            if not same:
                raise WorkflowError(f"{_name(node)} is bypassed, but has no {kind} input to pass on")
            return self._through(same[0])
        return "link", str(node["id"]), slot

    def _through(self, slot):
        return None if slot.get("link") is None else self.source(slot["link"])


def _inputs(graph, node, spec) -> dict:
    inputs = _widget_values(node, spec)
    for slot in node.get("inputs") or []:
        if slot.get("link") is None:
            continue
        source = graph.source(slot["link"])
        if source is None:
            inputs.pop(slot["name"], None)
        else:
            inputs[slot["name"]] = list(source[1:]) if source[0] == "link" else source[1]
    missing = [name for name in spec.get("required", {}) if name not in inputs]
    if missing:
        raise WorkflowError(f"{_name(node)}: required input {', '.join(missing)} has neither link nor value")
    return inputs


def _widget_values(node, spec) -> dict:
    """Values by input name. The list has one value a widget, in the order of the node's inputs, also for widgets whose
    value comes from a link; seeds and uploads have one more, which only the page uses."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):  # some packs save them by name
        return {name: value for name, value in values.items() if name in widgets_of(spec)}
    values, found = list(values), {}
    waiting = list(widgets_of(spec).items())
    while waiting:
        name, (kind, options) = waiting.pop(0)
        if kind == "IMAGECOMPARE":
            found[name] = {"__value__": ["", ""]}  # no pictures yet; the page saves no value of it
            continue
        if not values:
            break  # saved before the input existed: its default is used
        found[name] = values.pop(0)
        waiting[:0] = children_of(name, kind, options, found[name]).items()
        if followed_by_control(name, options) and values and values[0] in CONTROL_VALUES:
            values.pop(0)
        if any(options.get(f"{what}_upload") for what in ("image", "video", "audio", "animated_image")) and values:
            values.pop(0)
    if values:
        raise WorkflowError(f"{_name(node)}: {len(values)} more widget values than widgets: {values}")
    defaults = {name: default_of(kind, options) for name, (kind, options) in widgets_of(spec, sections=("required",)).items() if name not in found}
    return found | {name: value for name, value in defaults.items() if value is not None}


def widgets_of(spec, sections=("required", "optional")) -> dict:
    """{input name: (type, options)} of the inputs which are widgets on the page."""
    widgets = {}
    for section in sections:
        for name, (kind, *rest) in (spec.get(section) or {}).items():
            options = rest[0] if rest and isinstance(rest[0], dict) else {}
            is_widget = isinstance(kind, (list, tuple)) or kind.split(",")[0] in WIDGET_TYPES or kind.startswith(DYNAMIC)
            if is_widget and not any(options.get(what) for what in ("forceInput", "rawLink", "hidden")):
                widgets[name] = (kind, options)
    return widgets


def children_of(name, kind, options, value) -> dict:
    """What widgets_of gives, for the widgets that a combo's choice brings along."""
    if not str(kind).startswith(DYNAMIC):
        return {}
    (chosen,) = (option for option in options["options"] if option["key"] == value)
    return {f"{name}.{child}": widget for child, widget in widgets_of(chosen["inputs"]).items()}


def expanded(spec) -> dict:
    """What widgets_of gives, with the children that a new node has."""
    found, waiting = {}, list(widgets_of(spec).items())
    while waiting:
        name, (kind, options) = waiting.pop(0)
        found[name] = kind, options
        waiting[:0] = children_of(name, kind, options, default_of(kind, options)).items()
    return found


def default_of(kind, options):
    """A widget's value on a new node."""
    choices = list(kind) if isinstance(kind, (list, tuple)) else list(options.get("options") or ())
    if str(kind).startswith(DYNAMIC):
        return choices[0]["key"]
    return options["default"] if "default" in options else (choices or [None])[0]


def followed_by_control(name, options) -> bool:
    """True where the page adds a widget of its own: what becomes of the value after a run."""
    return name in ("seed", "noise_seed") or bool(options.get("control_after_generate"))


# --- stand-ins for checkpoints -------------------------------------------------------------------------------------


def substitute_checkpoint(prompt: dict, arch: str) -> dict:
    """A copy of an API prompt with every model, text encoder and VAE loader replaced by a tiny model of `arch`.
    Model loaders of different files get different weights."""
    prompt = copy.deepcopy(prompt)
    slots = {}
    for key, node in prompt.items():
        if node["class_type"] in LOADERS:
            slots[key] = LOADERS[node["class_type"]]
            files = json.dumps(node["inputs"], sort_keys=True)
            node["class_type"] = "REGTestTinyCheckpoint"
            node["inputs"] = {"arch": arch, "seed": zlib.crc32(files.encode())}
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if _is_link(value) and value[0] in slots:
                node["inputs"][name] = [value[0], slots[value[0]][value[1]]]
    return prompt


def shrink(prompt: dict, size: int = 128, steps: int | None = None, length: int = 9) -> dict:
    """A copy with small empty latents (and few steps), so that it runs in seconds on a CPU."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        inputs = node["inputs"]
        if ("Latent" in node["class_type"] or "length" in inputs) and {"width", "height"} <= set(inputs):
            inputs.update({"width": size, "height": size} | ({"length": length} if "length" in inputs else {}))
        if steps and isinstance(inputs.get("steps"), int):
            for name in ("start_at_step", "end_at_step"):  # at the same share of them
                if 0 < inputs.get(name, 0) < inputs["steps"]:
                    inputs[name] = inputs[name] * steps // inputs["steps"]
            inputs["steps"] = steps
    return prompt


def _is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


# --- running a prompt in this process ------------------------------------------------------------------------------


def execute(prompt: dict, target: str, mappings: dict) -> tuple:
    """The outputs of node `target` of an API prompt, computed here: plain calls, no caching between calls, no list
    mapping, no hidden inputs. For comparing with what the server computes."""
    done = {}

    def outputs(key):
        if key not in done:
            node = prompt[key]
            cls = mappings[node["class_type"]]
            values = {n: outputs(v[0])[v[1]] if _is_link(v) else v for n, v in node["inputs"].items()}
            if hasattr(cls, "PREPARE_CLASS_CLONE"):  # V3
                result = cls.PREPARE_CLASS_CLONE(None).execute(**values)
                done[key] = tuple(getattr(result, "args", result))
            else:
                result = getattr(cls(), cls.FUNCTION)(**values)
                done[key] = tuple(result.get("result", ()) if isinstance(result, dict) else result)
        return done[key]

    return outputs(target)
