"""Which points of the fronts are sampled, quick and full. The important ones first: a sweep that is stopped early is still a report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .bets import BETS
from .fronts import Point, Size, evaluate, weaker
from .models import WEIGHTS_DIR
from .sweep import Store, run

FORMS = ("off", "schedule", "calibrated", "row_sum", "scalar", "product")
EXACT = {"engine": "reverse"}  # every call, the exact product
# Ways to compute row_sum, under the names of the report; the library's own is finite differences in float32 at every call.
ENGINES: dict[str, dict] = {
    "finite difference, float32": {},
    "finite difference, bfloat16 network": {"dtype": "bfloat16"},
    "forward, J 1": {"engine": "forward"},
    "reverse, J^T 1 (the paper)": EXACT,
}
ECONOMY: dict[str, dict] = {
    "every call": {},
    "every 2nd call": {"refresh": 2},
    "every 4th call (default of the node)": {"refresh": 4},
    "automatic": {"refresh": 0},
    "every 4th call, skip below 0.03": {"refresh": 4, "skip_below": 0.03},
    "every 4th call, skip below 0.05": {"refresh": 4, "skip_below": 0.05},
    "every 4th call, skip below 0.1": {"refresh": 4, "skip_below": 0.1},
}


@dataclass(frozen=True)
class Grid:
    """Weights of plain guidance and of the rectified forms, which want about three times as much for the same strength."""

    plain: tuple[float, ...]
    rectified: tuple[float, ...]

    def of(self, form: str) -> tuple[float, ...]:
        return self.plain if form == "off" else self.rectified


@dataclass(frozen=True)
class Plan:
    """Sizes and grids of one mode; `images` by setup."""

    name: str
    steps: int
    seeds: int
    images: dict[str, int]
    constant: dict[str, Grid]  # of the plain schedule, by setup
    schedules: dict[str, tuple[str, ...]]  # further base schedules, by setup
    scheduled: Grid
    variants: tuple[float, ...]  # weights at which engines and economy are compared
    bets: dict[str, tuple[float, ...]]
    dear: tuple[str, ...] = ()  # setups of the good model, five times the cost: last
    few: tuple[str, ...] = ()  # setups with the first four forms only

    def size(self, setup: str, folder: str) -> Size:
        return Size(self.images[setup], self.steps, folder)

    def forms(self, setup: str) -> Sequence[str]:
        return FORMS[:4] if setup in self.few else FORMS

    def points(self) -> list[Point]:
        """Each once, seeds innermost."""
        return list(dict.fromkeys(self._points()))

    def _points(self) -> Iterator[Point]:
        for setup in self.images:
            yield from self._seeds(setup, "constant", "off", 0.0)
        cheap = [setup for setup in self.constant if setup not in self.dear]
        for setup in cheap:
            yield from self._front(setup, "constant", self.constant[setup])
        for variant in (*ECONOMY.values(), *ENGINES.values()):
            for weight in self.variants:
                yield from self._seeds("weak", "constant", "row_sum", weight, **variant)
        for setup, weights in self.bets.items():
            for name in BETS:
                for weight in weights:
                    yield from self._seeds(setup, "constant", f"bet:{name}", weight)
            for schedule in self.schedules.get(setup, ()):
                yield from self._front(setup, schedule, self.scheduled)
        for setup in self.dear:
            yield from self._front(setup, "constant", self.constant[setup])

    def _front(self, setup: str, schedule: str, grid: Grid) -> Iterator[Point]:
        for form in self.forms(setup):
            for weight in grid.of(form):
                yield from self._seeds(setup, schedule, form, weight)

    def _seeds(self, setup: str, schedule: str, form: str, weight: float, **variant) -> Iterator[Point]:
        for seed in range(self.seeds):
            yield Point(setup, schedule, form, weight, seed, **variant)


QUICK = Plan(
    "quick",
    steps=6,
    seeds=3,
    images={"weak": 60, "auto_weak": 60},
    constant={"weak": Grid((0.5, 1.5), (1.5, 4.5)), "auto_weak": Grid((0.75, 2.0), (2.0, 6.0))},
    schedules={"weak": ("linear", "cosine", "interval")},
    scheduled=Grid((0.75, 2.0), (1.5, 4.5)),
    variants=(1.5, 4.5),
    bets={"weak": (1.5, 4.5)},
)

FULL = Plan(
    "full",
    steps=12,
    seeds=3,
    images={"weak": 400, "auto_weak": 400, "auto": 300, "good": 300},
    constant={
        "weak": Grid((0.25, 0.5, 0.75, 1.0, 1.5, 2.5), (0.75, 1.5, 2.25, 3.0, 4.5, 7.5)),
        "auto_weak": Grid((0.25, 0.5, 0.75, 1.0, 1.5, 2.5), (0.75, 1.5, 2.5, 4.0, 7.0, 12.0)),
        "auto": Grid((0.15, 0.4, 1.0), (0.5, 1.5, 4.0)),
        "good": Grid((0.1, 0.3), (0.3, 1.0)),
    },
    schedules={"weak": ("linear", "cosine", "interval")},
    scheduled=Grid((0.2, 0.5, 1.0, 2.5), (0.6, 1.5, 3.0, 7.0)),
    variants=(1.5, 3.0),
    bets={"weak": (0.75, 1.5, 3.0, 4.5)},
    dear=("auto", "good"),
    few=("good",),
)


def header(plan: Plan) -> dict:
    """What every point of a file shares: sizes, and the weights it was sampled with."""
    weights = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in sorted(WEIGHTS_DIR.glob("*.safetensors"))}
    return {"plan": plan.name, "steps": plan.steps, "images": plan.images, "weights": weights}


def store(plan: Plan, folder: Path) -> Store:
    """The plan's file of results in `folder`; see sweep.Store."""
    return Store(folder / f"fronts_{plan.name}.jsonl", header(plan))


def run_plan(plan: Plan, folder: Path, processes: int = 1) -> dict[Point, dict]:
    """Samples what is missing in `folder` and returns {point: result} of the whole plan."""
    results = store(plan, folder)
    reference = str(weaker(folder / "weaker"))
    points = plan.points()
    found = run(results, [(p.key, (p, plan.size(p.setup, reference))) for p in points], evaluate, processes, f"fronts, {plan.name}")
    return {p: found[p.key] for p in points}


def finished(plan: Plan, folder: Path) -> dict[Point, dict]:
    """What `folder` holds of the plan already."""
    results = store(plan, folder).results
    return {p: results[p.key] for p in plan.points() if p.key in results}
