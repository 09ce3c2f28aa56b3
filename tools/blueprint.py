"""The subgraph blueprint of subgraphs/: CFG beside REG, with the trace, as one node."""

from __future__ import annotations

import uuid

if __package__:
    from .graph import Graph
else:
    from graph import Graph

NAME = "CFG beside REG"
SOCKETS = [("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT")]
WIDGETS = {  # of the node, each feeding both samplers or REG
    "form": ("COMBO", "row_sum"), "gain": ("FLOAT", 1.5), "seed": ("INT", 42), "steps": ("INT", 30), "cfg": ("FLOAT", 8.0), "sampler_name": ("COMBO", "euler"),
    "scheduler": ("COMBO", "normal"),
}  # fmt: skip
OUTPUTS = {"REG": "LATENT", "CFG": "LATENT", "plot": "IMAGE", "heat_map": "IMAGE"}
INPUT_NODE, OUTPUT_NODE = -10, -20  # the page's own ids
LOW = 660  # px: below both samplers
DESCRIPTION = (
    "The same noise sampled with REG and with plain CFG at the same cfg. A gain makes up for what REG takes away. The plot shows what REG did. "
    "Decode both latents to compare them. It takes twice the time of one picture."
)


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"reg-guidance/{name}"))


def json(info: dict) -> dict:
    """The blueprint, from a server's object_info."""
    g = Graph(info)
    names = [*SOCKETS, *((name, type_) for name, (type_, _) in WIDGETS.items())]
    border = {"id": INPUT_NODE, "outputs": [{"name": name, "type": type_, "links": []} for name, type_ in names]}
    at = {name: (border, slot) for slot, (name, _) in enumerate(names)}
    fed = {name: (*at[name], value) for name, (_, value) in WIDGETS.items()}
    g.reach(LOW, 0, 2)  # the border's wires run above
    reg = g.add("REGGuidance", 0, form=fed.pop("form"), gain=fed.pop("gain"), model=at["model"])
    shared = fed | {name: at[name] for name in ("positive", "negative", "latent_image")}
    samplers = {name: g.add("KSampler", 1, f"Sample with {name}", model=source, **shared) for name, source in (("plain CFG", at["model"]), ("REG", (reg, 0)))}
    plot = g.add("REGTracePlot", 2, trace=(reg, 1), latent=(samplers["REG"], 0))
    outputs = [(samplers["REG"], 0), (samplers["plain CFG"], 0), (plot, 0), (plot, 1)]
    left = []
    for slot, ((name, kind), (node, out)) in enumerate(zip(OUTPUTS.items(), outputs, strict=True)):
        link = len(g.links) + 1
        g.links.append([link, node["id"], out, OUTPUT_NODE, slot, kind])
        node["outputs"][out]["links"].append(link)
        left.append({"id": _id(f"output/{name}"), "name": name, "type": kind, "linkIds": [link], "localized_name": name})
    inside = g.json()
    width = max(n["pos"][0] + n["size"][0] for n in g.nodes)
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    definition = {
        "id": _id(NAME), "version": 1, "revision": 0, "name": NAME, "category": "REG", "description": DESCRIPTION, "config": {},
        "state": {"lastGroupId": 0, "lastNodeId": inside["last_node_id"], "lastLinkId": len(g.links), "lastRerouteId": 0},
        "inputNode": {"id": INPUT_NODE, "bounding": [-220, 0, 130, 20 * len(names) + 40]},
        "outputNode": {"id": OUTPUT_NODE, "bounding": [width + 90, 0, 130, 20 * len(OUTPUTS) + 40]},
        "inputs": [
            {"id": _id(f"input/{name}"), "name": name, "type": type_, "linkIds": border["outputs"][slot]["links"], "localized_name": name}
            for slot, (name, type_) in enumerate(names)
        ],
        "outputs": left, "widgets": [], "nodes": inside["nodes"], "groups": [],
        "links": [dict(zip(keys, link, strict=True)) for link in g.links], "extra": {},
    }  # fmt: skip
    node = {
        "id": len(g.nodes) + 1, "type": definition["id"], "pos": [0, 0], "size": [300, 20 * len(SOCKETS) + 24 * len(WIDGETS) + 40],
        "flags": {}, "order": 0, "mode": 0,
        "inputs": [{"name": name, "type": type_, "link": None} | ({"widget": {"name": name}} if name in WIDGETS else {}) for name, type_ in names],
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in OUTPUTS.items()],
        "title": NAME, "properties": {"proxyWidgets": []}, "widgets_values": [],
    }  # fmt: skip
    return {
        "revision": 0, "last_node_id": node["id"], "last_link_id": 0, "nodes": [node], "links": [], "groups": [], "version": 0.4,
        "definitions": {"subgraphs": [definition]}, "config": {}, "extra": {},
    }  # fmt: skip
