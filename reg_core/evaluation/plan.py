"""Which images to make: every point of a grid x every prompt x every seed.

Each has a key that no machine or order changes."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ..checks import cut, shortened
from ..files import FileError, read_json, read_text, reading

RESERVED = ("prompt", "seed")
NOISE_STRIDE = (
    1_000_000  # noise seed = seed * stride + prompt index: no two images of a point share their noise
)


class PlanError(FileError):
    """The grid, the prompts or the workflow do not say what to run; the message names the offending value."""


class Job(NamedTuple):
    """One image (or one batch of the workflow): the indices of its point and prompt, and its seed number."""

    point: int
    prompt: int
    seed: int

    @property
    def noise_seed(self) -> int:
        """The sampler's seed. It is the same at every point: points are compared on the same noise."""
        return self.seed * NOISE_STRIDE + self.prompt


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid: {axis: number or word} for people, {axis: value} for the workflow."""

    labels: dict
    values: dict

    @property
    def name(self) -> str:
        """A folder name on any system: `cfg=4,form=row_sum`."""
        text = ",".join(f"{axis}={_word(label)}" for axis, label in self.labels.items())
        name = re.sub(r"[^\w.,=+-]", "_", text)
        if name != text or len(name) > 120 or name[-1:] in "., ":  # shortened: keep it unambiguous
            name = f"{name[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return name


@dataclass(frozen=True)
class Plan:
    """points x prompts x seeds. `prompts`: [{"prompt": text, other inputs by name}]; `seeds`: from 0."""

    points: tuple[GridPoint, ...]
    prompts: tuple[dict, ...]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        if not (self.points and self.prompts and self.seeds):
            numbers = f"{len(self.points)}, {len(self.prompts)} and {len(self.seeds)}"
            raise PlanError(f"want at least one point, prompt and seed, got {numbers}")
        if len(self.prompts) > NOISE_STRIDE:
            raise PlanError(f"want at most {NOISE_STRIDE} prompts, got {len(self.prompts)}")
        bad = [s for s in self.seeds if isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < 10**12]
        folders = [p.name.lower() for p in self.points]  # some systems ignore case
        for what, items in (("seed", self.seeds), ("point", folders)):
            bad += sorted({f"{what} {i!r} twice" for i in items if items.count(i) > 1})
        if bad:
            rule = "seeds are different whole numbers from 0, and no two points are equal"
            raise PlanError(f"{rule}; got {cut(', '.join(map(str, bad)))}")

    def jobs(self) -> list[Job]:
        """Seed by seed, and all points of a prompt together: a run stopped early has whole comparisons."""
        order = itertools.product(self.seeds, range(len(self.prompts)), range(len(self.points)))
        return [Job(point, prompt, seed) for seed, prompt, point in order]

    def key(self, job: Job) -> str:
        """`<point>/<prompt>_<seed>`: where the image lies, whatever made it."""
        return f"{self.points[job.point].name}/{job.prompt:05d}_{job.seed:03d}"

    def values(self, job: Job) -> dict:
        """{input name: value} of one job."""
        return self.points[job.point].values | self.prompts[job.prompt] | {"seed": job.noise_seed}

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping) -> Plan:
        """What `to_json` gave. Raises PlanError for anything else."""
        try:
            found = tuple(GridPoint(dict(p["labels"]), dict(p["values"])) for p in data["points"])
            return cls(found, tuple(map(dict, data["prompts"])), tuple(data["seeds"]))
        except (LookupError, TypeError, ValueError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"want points, prompts and seeds, got {shortened(data)}") from None


def points(grid: Mapping, extra: Sequence[Mapping] = ()) -> tuple[GridPoint, ...]:
    """Every combination of the grid's axes, then the extra points.

    An axis is a list of numbers or words, or a table {label: value}. A value may be {"link": [node, output]}.
    An extra point is {axis: label}. For an axis that the grid does not have the label is the value.
    """
    for name, table, kind in ("grid", grid, Mapping), ("points", extra, list | tuple):
        if not isinstance(table, kind):
            want = "a table of axes" if kind is Mapping else "a list of tables"
            raise PlanError(f"{name} must be {want}, got {shortened(table)}")
    for axis, choices in grid.items():
        if axis in RESERVED:
            raise PlanError(f"grid: {shortened(axis)} is set for each image and cannot be an axis")
        if not isinstance(choices, list | Mapping) or not choices:
            want = "a list of values or a table of named values"
            raise PlanError(f"grid: {shortened(axis)} must be {want}, got {shortened(choices)}")
        for value in choices.values() if isinstance(choices, Mapping) else choices:
            _check(axis, value)
    combinations = itertools.product(*grid.values()) if grid else ()
    chosen = [dict(zip(grid, labels, strict=True)) for labels in combinations]
    for point in extra:
        if not isinstance(point, Mapping) or not point or set(point) & set(RESERVED):
            want = f"tables of axis and value, without {' or '.join(RESERVED)}"
            raise PlanError(f"points: want {want}, got {shortened(point)}")
        chosen.append(dict(point))
    return tuple(
        GridPoint(labels, {axis: _value(grid.get(axis), axis, label) for axis, label in labels.items()})
        for labels in chosen
    )


def read_prompts(path: Path) -> tuple[dict, ...]:
    """A prompt a line, without empty ones. A .jsonl has a table a line: "prompt" and other inputs by name."""
    text = read_text(path, "a prompt a line, in UTF-8")
    lines = [line.strip() for line in text.splitlines()]
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if path.suffix.lower() == ".jsonl":
            place, want = f"{path}, line {number}", 'a table with a text "prompt" and without "seed"'
            with reading(place, want):
                entry = json.loads(line)
            good = isinstance(entry, dict) and isinstance(entry.get("prompt"), str) and "seed" not in entry
            if not good:
                raise PlanError(f"{place}: want {want}, got {shortened(line)}")
            prompts.append(entry)
        else:
            prompts.append({"prompt": line})
    if not prompts:
        raise PlanError(f"{path} holds no prompt")
    return tuple(prompts)


def read_table(path: Path) -> dict:
    """A .json or .toml file as a table. Raises FileError with the place of the fault."""
    if path.suffix.lower() == ".toml":
        try:
            import tomllib
        except ImportError:  # Python 3.10
            raise PlanError(f"{path}: TOML needs Python 3.11, use JSON") from None
        text = read_text(path, "TOML in UTF-8")
        with reading(path, "TOML"):
            data = tomllib.loads(text)
    else:
        data = read_json(path)
    if not isinstance(data, dict):
        raise PlanError(f"{path}: want a table, got {type(data).__name__}")
    return data


def _value(choices, axis, label):
    if isinstance(choices, Mapping):
        if label not in choices:
            there = cut(", ".join(map(str, choices)))
            raise PlanError(f"points: {shortened(axis)} has no {shortened(label)}, only {there}")
        return choices[label]
    _check(axis, label)
    return label


def _check(axis, value):
    link = isinstance(value, Mapping) and set(value) == {"link"}
    if not link and not isinstance(value, str | int | float):  # bool is an int
        want = 'a number, a word or {"link": [node, output]}'
        raise PlanError(f"{shortened(axis)}: want {want}, got {shortened(value)}")


def _word(label) -> str:
    return f"{label:g}" if isinstance(label, float) else str(label)
