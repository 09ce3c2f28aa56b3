"""Which trials are made, quick and full. The important ones come first: a run may be stopped early."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...demo_models.loading import WEIGHTS_DIR
from .bets import BETS, PROJECTED
from .journal import Journal, run
from .setups import SETUPS
from .trials import Size, Trial, evaluate

SAMPLED_FORMS = ("off", "schedule", "calibrated", "row_sum", "scalar", "product")
EXACT = {"engine": "reverse"}  # every call, the exact product
NODE = {"refresh": 8}  # the node's default
NODE_SKIPPING = NODE | {"skip_below": 0.05}
# Ways to compute row_sum, the exact one first. Without a name for the engine: finite differences.
ROW_SUM_WAYS: dict[str, dict] = {
    "exact (reverse), every call": EXACT,
    "every call": {},
    "every call, network in bfloat16": {"dtype": "bfloat16"},
    "every 4th call": {"refresh": 4},
    "every 8th call, the node's default": NODE,
    "every 8th call, skip below 0.03": NODE | {"skip_below": 0.03},
    "every 8th call, skip below 0.05": NODE_SKIPPING,
    "every 8th call, skip below 0.1": NODE | {"skip_below": 0.1},
}


@dataclass(frozen=True)
class Weights:
    """Of plain guidance, and of the rectified forms, which want about three times as much to be as strong."""

    plain: tuple[float, ...]
    rectified: tuple[float, ...]

    def of(self, form: str) -> tuple[float, ...]:
        return self.plain if form == "off" else self.rectified


@dataclass(frozen=True)
class Where:
    """On what trials run: `device`, `batch` images at a time (0: all), `pictures`: see Size.

    `shard` (i, n): every n-th trial from the i-th, counted from 1, in a file of its own."""

    device: str = "cpu"
    batch: int = 0
    pictures: str | None = None
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self):
        i, n = self.shard
        if not 1 <= i <= n:
            raise ValueError(f"shard must be i/n with 1 <= i <= n, got {i}/{n}")
        if self.batch < 0:
            raise ValueError(f"batch must be at least 0, got {self.batch}")


class Trials:
    """What surveys share: `name`, `images` by setup, `steps`, `seeds` and, by `_trials`, which are made."""

    def size(self, setup: str, folder: str, where: Where) -> Size:
        return Size(self.images[setup], self.steps, folder, where.batch, where.device, where.pictures)

    def trials(self) -> list[Trial]:
        """Each once, seeds innermost."""
        return list(dict.fromkeys(self._trials()))

    def _seeds(self, setup: str, schedule: str, form: str, weight: float, **way) -> Iterator[Trial]:
        for seed in range(self.seeds):
            yield Trial(setup, schedule, form, weight, seed, **way)


@dataclass(frozen=True)
class Survey(Trials):
    """Sizes and weights of one mode of the digits.

    - `images`: by setup. `constant`: weights under the plain schedule, by setup.
    - `schedules`: further base schedules by setup; `scheduled`: their weights.
    - `dear`: setups of the good model, five times the cost: last. `few`: setups with four forms only.
    """

    name: str
    steps: int
    seeds: int
    images: dict[str, int]
    constant: dict[str, Weights]
    schedules: dict[str, tuple[str, ...]]
    scheduled: Weights
    dear: tuple[str, ...] = ()
    few: tuple[str, ...] = ()

    def forms(self, setup: str) -> Sequence[str]:
        return SAMPLED_FORMS[:4] if setup in self.few else SAMPLED_FORMS

    def _trials(self) -> Iterator[Trial]:
        for setup in self.images:
            yield from self._seeds(setup, "constant", "off", 0.0)
        cheap = [setup for setup in self.constant if setup not in self.dear]
        for setup in cheap:
            yield from self._front(setup, "constant", self.constant[setup])
        for way in ROW_SUM_WAYS.values():
            for weight in self.constant["weak"].rectified:
                yield from self._seeds("weak", "constant", "row_sum", weight, **way)
        for setup, schedules in self.schedules.items():
            for schedule in schedules:
                yield from self._front(setup, schedule, self.scheduled)
        for setup in self.dear:
            yield from self._front(setup, "constant", self.constant[setup])

    def _front(self, setup: str, schedule: str, weights: Weights) -> Iterator[Trial]:
        for form in self.forms(setup):
            for weight in weights.of(form):
                yield from self._seeds(setup, schedule, form, weight)


QUICK = Survey(
    "quick",
    steps=6,
    seeds=3,
    images={"weak": 60, "auto_weak": 60},
    constant={"weak": Weights((0.5, 1.5), (1.5, 4.5)), "auto_weak": Weights((0.75, 2.0), (2.0, 6.0))},
    schedules={"weak": ("linear", "cosine", "interval")},
    scheduled=Weights((0.75, 2.0), (1.5, 4.5)),
)

FULL = Survey(
    "full",
    steps=12,
    seeds=3,
    images={"weak": 400, "auto_weak": 400, "auto": 300, "good": 300},
    constant={
        "weak": Weights((0.25, 0.5, 0.75, 1.0, 1.5, 2.5), (0.75, 1.5, 2.25, 3.0, 4.5, 7.5)),
        "auto_weak": Weights((0.25, 0.5, 0.75, 1.0, 1.5, 2.5), (0.75, 1.5, 2.5, 4.0, 7.0, 12.0)),
        "auto": Weights((0.15, 0.4, 1.0), (0.5, 1.5, 4.0)),
        "good": Weights((0.1, 0.3), (0.3, 1.0)),
    },
    schedules={"weak": ("linear", "cosine", "interval")},
    scheduled=Weights((0.2, 0.5, 1.0, 2.5), (0.6, 1.5, 3.0, 7.0)),
    dear=("auto", "good"),
    few=("good",),
)


PRODUCTS = ("row_sum", "scalar", "product")
# Ways to guide on Fashion-MNIST, the one that is shown first. Of products that is the exact one.
FASHION_WAYS: dict[str, tuple[dict, ...]] = {
    "off": ({},),
    "schedule": ({}, {"data_std": 0.35}, {"data_std": 1.4}, {"skip_below": 0.05}),
    "calibrated": ({}, {"skip_below": 0.05}),
    **dict.fromkeys(PRODUCTS, (EXACT, {}, NODE, NODE_SKIPPING)),
}
INTERVALS = ("below_1", "below_2", "below_4", "interval")


@dataclass(frozen=True)
class Fashion(Trials):
    """Fronts on Fashion-MNIST: every form under the plain schedule, and CFG in intervals.

    - `constant`: weights under the plain schedule, by setup; `scheduled`: under all others.
    - `whole`: setups with every form under every schedule, and every way of FASHION_WAYS."""

    name: str
    steps: int
    seeds: int
    images: dict[str, int]
    constant: dict[str, Weights]
    scheduled: Weights
    whole: tuple[str, ...]

    def _trials(self) -> Iterator[Trial]:
        for setup in self.images:
            if SETUPS[setup].reference is None:  # without guidance autoguidance is its main model
                yield from self._seeds(setup, "constant", "off", 0.0)
        for setup, weights in self.constant.items():
            for form, ways in FASHION_WAYS.items():
                yield from self._front(setup, "constant", form, weights, ways[0])
            for schedule in INTERVALS:
                yield from self._front(setup, schedule, "off", self.scheduled, {})
        for setup in self.whole:
            for schedule in (*INTERVALS, "linear", "cosine"):
                for form, ways in FASHION_WAYS.items():
                    yield from self._front(setup, schedule, form, self.scheduled, ways[0])
            for form, ways in FASHION_WAYS.items():
                for way in ways[1:]:
                    yield from self._front(setup, "constant", form, self.constant[setup], way)

    def _front(self, setup: str, schedule: str, form: str, weights: Weights, way: dict) -> Iterator[Trial]:
        for weight in weights.of(form):
            yield from self._seeds(setup, schedule, form, weight, **way)


FASHION = Fashion(
    "fashion",
    steps=12,
    seeds=3,
    images=dict.fromkeys(("fashion_weak", "fashion_good", "fashion_early", "fashion_auto"), 5000),
    constant={
        "fashion_weak": Weights((0.15, 0.3, 0.5, 0.75, 1.0, 1.5), (0.3, 0.6, 1.0, 1.5, 2.5, 4.0)),
        "fashion_good": Weights((0.05, 0.1, 0.2, 0.4), (0.1, 0.3, 0.6, 1.2)),
        "fashion_early": Weights((0.25, 0.5, 1.0, 1.5), (0.6, 1.5, 2.5, 4.0)),
        "fashion_auto": Weights((0.1, 0.2, 0.4, 0.8, 1.5), (0.2, 0.5, 1.0, 2.0, 4.0)),
    },
    scheduled=Weights((0.5, 1.0, 2.0, 4.0), (1.0, 2.0, 4.0, 8.0)),
    whole=("fashion_weak",),
)


@dataclass(frozen=True)
class Chosen(Trials):
    """Fronts of (schedule, form, weights, way) on the small model of Fashion-MNIST.

    Each starts with the weight that is likely best, so that a run which ends early has that of all."""

    name: str
    steps: int
    seeds: int
    images: dict[str, int]
    tried: tuple[tuple[str, str, tuple[float, ...], dict], ...]

    def _trials(self) -> Iterator[Trial]:
        for rank in range(max(len(weights) for _, _, weights, _ in self.tried)):
            for schedule, form, weights, way in self.tried:
                for weight in weights[rank : rank + 1]:
                    yield from self._seeds("fashion_weak", schedule, form, weight, **way)
        yield from self._seeds("fashion_weak", "constant", "off", 0.0)


USUAL, STEEP = (2.5, 1.5, 4.0), (4.0, 2.5, 6.5)
BETS_SURVEY = Chosen(
    "bets",
    steps=12,
    seeds=3,
    images={"fashion_weak": 1000},
    tried=(
        ("constant", "schedule", USUAL, {}),
        *(("constant", "schedule", USUAL, {"skip_below": share}) for share in (0.05, 0.1, 0.02)),
        ("below_2", "off", (2.0, 1.0, 3.0), {}),
        ("constant", "off", (0.5, 0.3, 0.75), {}),
        *(("constant", "row_sum", (1.0,), NODE | {"skip_below": share}) for share in (0.0, 0.02, 0.05)),
        *(
            ("constant", form, STEEP if form.startswith("power") else USUAL, {})
            for form in (*BETS, PROJECTED)
        ),
        ("below_4", "schedule", USUAL, {}),
        ("below_2", "schedule", USUAL, {}),
        ("constant", "schedule", STEEP, {"data_std": 0.5}),
        ("constant", "schedule", (1.5, 1.0, 2.5), {"data_std": 1.0}),
        ("below_1", "row_sum", (2.0, 1.5, 3.0), NODE),
        *(("below_2", "row_sum", (1.5, 1.0, 2.5), NODE | {"skip_below": share}) for share in (0.0, 0.1)),
        ("below_2", "row_sum", (1.5, 1.0, 2.5), {}),
        ("below_4", "row_sum", (1.0, 0.6, 1.5), {}),
    ),
)
# Points of the study that are sampled again by this code, from the same noise.
CHECK = Chosen(
    "check",
    steps=12,
    seeds=1,
    images={"fashion_weak": 5000},
    tried=(
        ("constant", "off", (0.5,), {}),
        ("below_2", "off", (2.0,), {}),
        ("constant", "schedule", (2.5,), {}),
        ("constant", "row_sum", (1.0,), EXACT),
    ),
)
SURVEYS = {survey.name: survey for survey in (QUICK, FULL, FASHION, BETS_SURVEY, CHECK)}


def header(survey: Trials) -> dict:
    """What every trial of a file shares: sizes, and the weights of the networks it was sampled with."""
    data = {SETUPS[setup].data for setup in survey.images}
    files = sorted(path for name in data for path in WEIGHTS_DIR.glob(f"{name}*.safetensors"))
    weights = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files}
    return {"mode": survey.name, "steps": survey.steps, "images": survey.images, "weights": weights}


def journal(survey: Trials, folder: Path, shard: tuple[int, int] = (1, 1)) -> Journal:
    """The file of results of a survey, or of its shard, in `folder`."""
    part = "" if shard == (1, 1) else "_{}of{}".format(*shard)
    return Journal(folder / f"fronts_{survey.name}{part}.jsonl", header(survey))


def make(survey: Trials, folder: Path, processes: int = 1, where: Where | None = None) -> dict[Trial, dict]:
    """Samples what is missing in `folder`; returns {trial: result} of the survey, or of the shard."""
    where = where or Where()
    i, n = where.shard
    results, trials = journal(survey, folder, where.shard), survey.trials()[i - 1 :: n]
    jobs = [(t.key, (t, survey.size(t.setup, str(folder), where))) for t in trials]
    found = run(results, jobs, evaluate, processes, f"fronts, {survey.name}")
    return {t: found[t.key] for t in trials}


def finished(survey: Trials, folder: Path) -> dict[Trial, dict]:
    """What `folder` holds of the survey already, in files of all shards."""
    results: dict[str, dict] = {}
    for path in sorted(folder.glob(f"fronts_{survey.name}*.jsonl")):
        results |= Journal(path, header(survey)).results
    return {t: results[t.key] for t in survey.trials() if t.key in results}
