"""Which trials are made, quick and full. The important ones come first: a run may be stopped early."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...demo_models.loading import WEIGHTS_DIR
from .journal import Journal, run
from .trials import Size, Trial, evaluate, weaker

SAMPLED_FORMS = ("off", "schedule", "calibrated", "row_sum", "scalar", "product")
EXACT = {"engine": "reverse"}  # every call, the exact product
# Ways to compute row_sum. The library's default is finite differences in float32 at every call.
ENGINE_WAYS: dict[str, dict] = {
    "finite difference, float32": {},
    "finite difference, bfloat16 network": {"dtype": "bfloat16"},
    "reverse, J^T 1 (the paper)": EXACT,
}
CHEAPER_WAYS: dict[str, dict] = {
    "every call": {},
    "every 2nd call": {"refresh": 2},
    "every 4th call": {"refresh": 4},
    "every 4th call, skip below 0.03": {"refresh": 4, "skip_below": 0.03},
    "every 4th call, skip below 0.05": {"refresh": 4, "skip_below": 0.05},
    "every 4th call, skip below 0.1": {"refresh": 4, "skip_below": 0.1},
}


@dataclass(frozen=True)
class Weights:
    """Of plain guidance, and of the rectified forms, which want about three times as much to be as strong."""

    plain: tuple[float, ...]
    rectified: tuple[float, ...]

    def of(self, form: str) -> tuple[float, ...]:
        return self.plain if form == "off" else self.rectified


@dataclass(frozen=True)
class Survey:
    """Sizes and weights of one mode.

    - `images`: by setup. `constant`: weights under the plain schedule, by setup.
    - `schedules`: further base schedules by setup; `scheduled`: their weights.
    - `variants`: weights at which ways to compute row_sum are compared.
    - `dear`: setups of the good model, five times the cost: last. `few`: setups with four forms only.
    """

    name: str
    steps: int
    seeds: int
    images: dict[str, int]
    constant: dict[str, Weights]
    schedules: dict[str, tuple[str, ...]]
    scheduled: Weights
    variants: tuple[float, ...]
    dear: tuple[str, ...] = ()
    few: tuple[str, ...] = ()

    def size(self, setup: str, folder: str) -> Size:
        return Size(self.images[setup], self.steps, folder)

    def forms(self, setup: str) -> Sequence[str]:
        return SAMPLED_FORMS[:4] if setup in self.few else SAMPLED_FORMS

    def trials(self) -> list[Trial]:
        """Each once, seeds innermost."""
        return list(dict.fromkeys(self._trials()))

    def _trials(self) -> Iterator[Trial]:
        for setup in self.images:
            yield from self._seeds(setup, "constant", "off", 0.0)
        cheap = [setup for setup in self.constant if setup not in self.dear]
        for setup in cheap:
            yield from self._front(setup, "constant", self.constant[setup])
        for way in (*CHEAPER_WAYS.values(), *ENGINE_WAYS.values()):
            for weight in self.variants:
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

    def _seeds(self, setup: str, schedule: str, form: str, weight: float, **way) -> Iterator[Trial]:
        for seed in range(self.seeds):
            yield Trial(setup, schedule, form, weight, seed, **way)


QUICK = Survey(
    "quick",
    steps=6,
    seeds=3,
    images={"weak": 60, "auto_weak": 60},
    constant={"weak": Weights((0.5, 1.5), (1.5, 4.5)), "auto_weak": Weights((0.75, 2.0), (2.0, 6.0))},
    schedules={"weak": ("linear", "cosine", "interval")},
    scheduled=Weights((0.75, 2.0), (1.5, 4.5)),
    variants=(1.5, 4.5),
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
    variants=(1.5, 3.0),
    dear=("auto", "good"),
    few=("good",),
)


def header(survey: Survey) -> dict:
    """What every trial of a file shares: sizes, and the weights of the networks it was sampled with."""
    files = sorted(WEIGHTS_DIR.glob("digits*.safetensors"))
    weights = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files}
    return {"mode": survey.name, "steps": survey.steps, "images": survey.images, "weights": weights}


def journal(survey: Survey, folder: Path) -> Journal:
    """The survey's file of results in `folder`."""
    return Journal(folder / f"fronts_{survey.name}.jsonl", header(survey))


def make(survey: Survey, folder: Path, processes: int = 1) -> dict[Trial, dict]:
    """Samples what is missing in `folder` and returns {trial: result} of the whole survey."""
    results, reference = journal(survey, folder), str(weaker(folder / "weaker"))
    trials = survey.trials()
    jobs = [(t.key, (t, survey.size(t.setup, reference))) for t in trials]
    found = run(results, jobs, evaluate, processes, f"fronts, {survey.name}")
    return {t: found[t.key] for t in trials}


def finished(survey: Survey, folder: Path) -> dict[Trial, dict]:
    """What `folder` holds of the survey already."""
    results = journal(survey, folder).results
    return {t: results[t.key] for t in survey.trials() if t.key in results}
