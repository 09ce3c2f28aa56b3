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

RESERVED = ("prompt", "seed")
NOISE_STRIDE = (
    1_000_000  # noise seed = seed * stride + prompt index: no two images of a point share their noise
)


class PlanError(ValueError):
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
            raise PlanError(f"{rule}; got {', '.join(map(str, bad))}")

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
        found = tuple(GridPoint(**p) for p in data["points"])
        return cls(found, tuple(data["prompts"]), tuple(data["seeds"]))


def points(grid: Mapping, extra: Sequence[Mapping] = ()) -> tuple[GridPoint, ...]:
    """Every combination of the grid's axes, then the extra points.

    An axis is a list of numbers or words, or a table {label: value}. A value may be {"link": [node, output]}.
    An extra point is {axis: label}. For an axis that the grid does not have the label is the value.
    """
    for axis, choices in grid.items():
        if axis in RESERVED:
            raise PlanError(f"grid: {axis!r} is set for each image and cannot be an axis")
        if not isinstance(choices, list | Mapping) or not choices:
            want = "a list of values or a table of named values"
            raise PlanError(f"grid: {axis!r} must be {want}, got {choices!r}")
        for value in choices.values() if isinstance(choices, Mapping) else choices:
            _check(axis, value)
    combinations = itertools.product(*grid.values()) if grid else ()
    chosen = [dict(zip(grid, labels, strict=True)) for labels in combinations]
    for point in extra:
        if not isinstance(point, Mapping) or not point or set(point) & set(RESERVED):
            want = f"tables of axis and value, without {' or '.join(RESERVED)}"
            raise PlanError(f"points: want {want}, got {point!r}")
        chosen.append(dict(point))
    return tuple(
        GridPoint(labels, {axis: _value(grid.get(axis), axis, label) for axis, label in labels.items()})
        for labels in chosen
    )


def read_prompts(path: Path) -> tuple[dict, ...]:
    """A prompt a line, without empty ones. A .jsonl has a table a line: "prompt" and other inputs by name."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if path.suffix.lower() == ".jsonl":
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise PlanError(f"{path}, line {number}: {error}") from None
            if not isinstance(entry, dict) or "prompt" not in entry or "seed" in entry:
                raise PlanError(
                    f'{path}, line {number}: want a table with "prompt" and without "seed", got {line}'
                )
            prompts.append(entry)
        else:
            prompts.append({"prompt": line})
    if not prompts:
        raise PlanError(f"{path} holds no prompt")
    return tuple(prompts)


def read_table(path: Path) -> dict:
    """A .json or .toml file as a table. Raises PlanError with the place of the fault."""
    try:
        if path.suffix.lower() == ".toml":
            try:
                import tomllib
            except ImportError:  # Python 3.10
                raise PlanError(f"{path}: TOML needs Python 3.11, use JSON") from None
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        else:
            data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # of either format
        raise error if isinstance(error, PlanError) else PlanError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise PlanError(f"{path}: want a table, got {type(data).__name__}")
    return data


def _value(choices, axis, label):
    if isinstance(choices, Mapping):
        if label not in choices:
            raise PlanError(f"points: {axis!r} has no {label!r}, only {', '.join(map(str, choices))}")
        return choices[label]
    _check(axis, label)
    return label


def _check(axis, value):
    link = isinstance(value, Mapping) and set(value) == {"link"}
    if not link and not isinstance(value, str | int | float):  # bool is an int
        raise PlanError(f'{axis!r}: want a number, a word or {{"link": [node, output]}}, got {value!r}')


def _word(label) -> str:
    return f"{label:g}" if isinstance(label, float) else str(label)
