"""Subgraphs of a UI-format workflow, replaced by what is in them. Pure Python."""

import copy

ACTIVE = 0  # a node's mode


class WorkflowError(ValueError):
    """The workflow cannot be converted or run as it is; the message names the node."""


def name_of(node) -> str:
    return f"node {node['id']} ({node['type']})"


def flatten(workflow: dict) -> dict:
    """Every subgraph node replaced by what is in it, with ids "outer:inner", as the page does when it queues.

    A widget of a subgraph node that has no link leaves the nodes inside their own values, which the page keeps the same.
    """
    definitions = {d["id"]: d for d in workflow.get("definitions", {}).get("subgraphs", [])}
    while any(node["type"] in definitions for node in workflow["nodes"]):
        node = next(node for node in workflow["nodes"] if node["type"] in definitions)
        workflow = _expand(workflow, node, definitions[node["type"]])
    return workflow


def _expand(workflow, outer, definition):
    if outer.get("mode", ACTIVE) != ACTIVE:
        raise WorkflowError(f"{name_of(outer)}: muted and bypassed subgraphs are not supported")
    nodes = copy.deepcopy(definition["nodes"])
    links = {link[0]: list(link) for link in workflow["links"]}
    fed = [slot.get("link") for slot in outer["inputs"]]
    sources = {}  # output slot of the subgraph -> (node id, slot) inside
    for node in nodes:
        node["id"] = f"{outer['id']}:{node['id']}"
    slots = {(node["id"], i): slot for node in nodes for i, slot in enumerate(node.get("inputs") or [])}
    for link in definition["links"]:
        start, end = f"{outer['id']}:{link['origin_id']}", f"{outer['id']}:{link['target_id']}"
        if link["target_id"] == definition["outputNode"]["id"]:
            sources[link["target_slot"]] = (start, link["origin_slot"])
            continue
        new = max(links, default=0) + 1
        slots[end, link["target_slot"]]["link"] = new
        if link["origin_id"] != definition["inputNode"]["id"]:
            links[new] = [new, start, link["origin_slot"], end, link["target_slot"], link["type"]]
        elif fed[link["origin_slot"]] is None:
            slots[end, link["target_slot"]]["link"] = None
        else:
            links[new] = [new, *links[fed[link["origin_slot"]]][1:3], end, link["target_slot"], link["type"]]
    kept = []
    for link in links.values():
        if link[1] == outer["id"]:
            link[1:3] = sources[link[2]]
        if link[3] != outer["id"]:
            kept.append(link)
    others = [node for node in workflow["nodes"] if node is not outer]
    return workflow | {"nodes": others + nodes, "links": kept}
