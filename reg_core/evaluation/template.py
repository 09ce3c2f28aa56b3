"""A ComfyUI workflow in API format in which a plan sets inputs.

They are addressed as `Title.input`, `id.input` or `ClassName.input`."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checks import cut, shortened
from .plan import Plan, PlanError, points, read_table

EXPORT = (
    'in ComfyUI, open it and choose "Export (API)" in the Workflow menu '
    '(with the old menu: enable dev mode options, then "Save (API Format)")'
)
KEEPERS = ("SaveImage", "PreviewImage")
SECTIONS = ("inputs", "output", "grid", "points")


@dataclass(frozen=True)
class Template:
    """`workflow`: {id: {class_type, inputs}}; `inputs`: {name: [(id, input), ...]}.

    `output`: id of the node whose images are kept."""

    workflow: dict
    inputs: dict
    output: str

    def fill(self, values: Mapping) -> dict:
        """The workflow with every named input set; a value {"link": [node, output]} connects."""
        workflow = copy.deepcopy(self.workflow)
        for name, value in values.items():
            for node, key in self.inputs[name]:
                linked = isinstance(value, Mapping)
                workflow[node]["inputs"][key] = self._link(value["link"]) if linked else value
        return workflow

    def _link(self, link) -> list:
        if not isinstance(link, list) or len(link) != 2 or not isinstance(link[1], int):
            raise PlanError(f"a link is [node, number of the output], got {shortened(link)}")
        return [find(self.workflow, str(link[0])), link[1]]


def load(workflow: Path, grid: Path) -> tuple[Template, tuple]:
    """The template and the points of a grid file. Raises PlanError for whatever does not fit."""
    nodes, table = check_api(read_table(workflow), workflow), read_table(grid)
    if unknown := sorted(set(table) - set(SECTIONS)):
        found = cut(", ".join(unknown))
        raise PlanError(f"{grid}: unknown sections {found}; there are {', '.join(SECTIONS)}")
    named = table.get("inputs", {})
    if not isinstance(named, dict):
        raise PlanError(f"{grid}: inputs must be a table of name and address, got {shortened(named)}")
    if missing := [name for name in ("prompt", "seed") if name not in named]:
        example = f'{{"{missing[0]}": "Title.input"}}'
        raise PlanError(f"{grid}: inputs must say where {' and '.join(missing)} go, as {example}")
    inputs = {}
    for name, addresses in named.items():
        addresses = addresses if isinstance(addresses, list) else [addresses]
        inputs[name] = [resolve(nodes, address) for address in addresses]
    template = Template(nodes, inputs, _output(nodes, table.get("output")))
    return template, points(table.get("grid", {}), table.get("points", []))


def check(template: Template, plan: Plan) -> None:
    """Raises PlanError unless every value of the plan has an input of its kind, and every input a value."""
    given = {"seed"}.union(*(p.values for p in plan.points), *plan.prompts)
    if unknown := sorted(given - set(template.inputs)):
        named = cut(", ".join(template.inputs))
        raise PlanError(f"no input is named {cut(', '.join(unknown))}; inputs names {named}")
    if unused := sorted(set(template.inputs) - given):
        nobody = "neither the grid nor the prompts give a value"
        raise PlanError(f"inputs names {cut(', '.join(unused))}, but {nobody}")
    for what, tables in ("point", [p.values for p in plan.points]), ("prompt", plan.prompts):
        if ragged := [t for t in tables if set(t) != set(tables[0])]:
            ours, other = (shortened(sorted(table)) for table in (tables[0], ragged[0]))
            raise PlanError(f"every {what} must set the same inputs: {ours}, but one sets {other}")
    for values in [*(p.values for p in plan.points), *plan.prompts]:
        for name, value in values.items():
            for node, key in template.inputs[name]:
                linked, link = is_link(template.workflow[node]["inputs"][key]), isinstance(value, Mapping)
                if linked != link:
                    what = f"{label(template.workflow, node)}: input {shortened(key)} is"
                    have, want = ("a plain value", "no link")
                    if linked:
                        have, want = ("connected to another node", 'only {"link": [node, output]}')
                    raise PlanError(f"{what} {have} and can take {want}, got {shortened(value)} for {name}")
                if link:
                    template._link(value["link"])


def digest(workflow: Mapping) -> str:
    """What makes an image another image: sha256 of the filled workflow."""
    return hashlib.sha256(json.dumps(workflow, sort_keys=True).encode()).hexdigest()


def check_api(data: dict, where="workflow") -> dict:
    """`data` itself if it is in API format, else PlanError that says how to get it."""
    if "nodes" in data and "links" in data:
        raise PlanError(f"{where} is in the UI format, which servers do not run; {EXPORT}")
    bad = [key for key, node in data.items() if not _is_node(node)]
    if bad or not data:
        place = ", ".join(map(shortened, bad[:3])) or "its start: it is empty"
        raise PlanError(f"{where} is not a workflow in API format (at {place}); {EXPORT}")
    return data


def resolve(workflow: Mapping, address: str) -> tuple[str, str]:
    """(node id, input) of `node.input`; node is an id, a title or a class that occurs once."""
    if not isinstance(address, str) or "." not in address:
        raise PlanError(f"an input is addressed as Title.input or id.input, got {shortened(address)}")
    parts, problem = address.split("."), None
    for end in range(len(parts) - 1, 0, -1):  # titles and inputs may hold dots: the first cut that fits
        try:
            node = find(workflow, ".".join(parts[:end]))
        except PlanError as error:
            problem = problem or error
            continue
        key = ".".join(parts[end:])
        if key in workflow[node]["inputs"]:
            return node, key
        there = ", ".join(workflow[node]["inputs"]) or "none"
        found = f"{label(workflow, node)} has no input {shortened(key)}, only {cut(there)}"
        problem = PlanError(f"{shortened(address)}: {found}")
    raise problem


def find(workflow: Mapping, name: str) -> str:
    """The id of a node by id, title or class."""
    if name in workflow:
        return name
    for by in (_title, lambda n: n["class_type"]):
        hits = [key for key, node in workflow.items() if by(node) == name]
        if len(hits) == 1:
            return hits[0]
        if hits:
            way_out = "use the id, or give them different titles"
            raise PlanError(f"{shortened(name)} is the name of nodes {cut(', '.join(hits))}: {way_out}")
    there = cut("; ".join(label(workflow, key) for key in workflow))
    raise PlanError(f"no node {shortened(name)}; there are {there}")


def label(workflow: Mapping, key: str) -> str:
    node = workflow[key]
    return cut(f"node {key} ({_title(node) or node['class_type']})")


def _title(node) -> str | None:
    meta = node.get("_meta")
    return meta.get("title") if isinstance(meta, Mapping) else None


def is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _is_node(node) -> bool:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return isinstance(inputs, dict) and isinstance(node.get("class_type"), str)


def _output(workflow, name) -> str:
    if name is not None:
        return find(workflow, str(name))
    keepers = [key for key, node in workflow.items() if node["class_type"] in KEEPERS]
    if len(keepers) != 1:
        way_out = 'say whose images to keep with "output": "Title"'
        raise PlanError(f"want one {' or '.join(KEEPERS)} node, got {len(keepers)}: {way_out}")
    return keepers[0]
