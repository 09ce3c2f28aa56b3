"""The results in docs/evidence, as JSON: written short, read again, taken over instead of sampled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ...files import read_json, whole_file
from ...forms import PRODUCT_FORMS
from ..fronts import survey
from ..fronts.analysis import METRICS, shown
from ..fronts.bets import WORDS
from ..fronts.trials import Trial

NAMES = [field.name for field in fields(Trial)]
CURVE = "sigma, mean, 5 %, 95 %"
# Column of the file -> name in a result.
KEPT = {name: name for name in METRICS} | {"rows_an_image": "rows"}
FASHION_STD = 0.7  # of the pixels of the training pictures
STUDY = {
    "small": "fashion_weak",
    "large": "fashion_good",
    "early": "fashion_early",
    "auto": "fashion_auto",
}


def compact(rows: list[dict]) -> dict:
    """Rows of equal keys as columns and rows of short numbers."""
    names = list(rows[0]) if rows else []
    return {"columns": names, "rows": [[_short(row[name]) for name in names] for row in rows]}


def spread_out(packed: dict) -> list[dict]:
    """The inverse of `compact`, up to the digits it dropped."""
    return [dict(zip(packed["columns"], row, strict=True)) for row in packed["rows"]]


def _short(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def fronts_json(mode: survey.Trials, results: dict[Trial, dict]) -> dict:
    """Trials and scores; C(sigma) of the trials shown."""
    kept = {n: name for n, name in KEPT.items() if any(name in result for result in results.values())}
    rows = [
        [*astuple(trial), *(_short(result.get(name)) for name in kept.values())]
        for trial, result in results.items()
    ]
    curves = {" ".join(key): (t.weight, results[t]["correction"]) for key, t in shown(results).items()}
    return {
        "header": survey.header(mode),
        "columns": [*NAMES, *kept],
        "rows": rows,
        "correction": {name: {"w": weight, CURVE: curve} for name, (weight, curve) in curves.items()},
        "notes": sorted({note for result in results.values() for note in result["notes"]}),
    }


def results_of(data: dict) -> dict[Trial, dict]:
    """The results of `fronts_json`, up to the digits it dropped."""
    results = {}
    for row in spread_out(data):
        trial = Trial(**{name: row[name] for name in NAMES if name in row})
        result = {name: row[n] for n, name in KEPT.items() if row.get(n) is not None}
        results[trial] = result | {"notes": data.get("notes", [])}
        curve = data.get("correction", {}).get(f"{trial.setup} {trial.form}")
        if curve and trial == Trial(trial.setup, "constant", trial.form, curve["w"], 0):
            results[trial]["correction"] = curve[CURVE]
    return results


def study(rows: list[dict]) -> dict[Trial, dict]:
    """The Fashion-MNIST study's points as trials: exact products."""
    results = {}
    for row in rows:
        low, high = map(float, (row.get("interval") or "0,inf").split(","))
        if low:
            raise ValueError(f"want an interval that begins at 0, got {row['interval']!r}")
        spread = row.get("data_std") or FASHION_STD if row["form"] == "schedule" else FASHION_STD
        trial = Trial(
            STUDY[row["setup"]],
            "constant" if high == math.inf else f"below_{high:g}",
            row["form"],
            row["w"],
            row["seed"],
            engine="reverse" if row["form"] in PRODUCT_FORMS else "auto",
            data_std=0.0 if spread == FASHION_STD else spread,
        )
        results[trial] = {name: row[name] for name in METRICS if name in row} | {"notes": []}
    return results


@dataclass(frozen=True)
class Candidates:
    """Forms of ours that were tried and lost: results only, their code is gone.

    `forms`: {name: {"what": words, "extra rows a call": number}}. `mixtures`: rows as of study.errors."""

    forms: dict[str, dict]
    results: dict[Trial, dict]
    mixtures: list[dict]


def candidates(folder: Path) -> Candidates | None:
    """Those of candidates.json in a published folder, if it is there."""
    path = folder / "candidates.json"
    if not path.is_file():
        return None
    data = _read(path)
    return Candidates(data["forms"], results_of(data), spread_out(data["mixtures"]))


def fashion_results(folder: Path, more: dict[Trial, dict] | None = None) -> dict[Trial, dict]:
    """Those of a published folder on Fashion-MNIST: the study's, then others. {} without a study.

    Of `more`, trials that are not published are added to fashion_points.json."""
    if not (folder / "fashion.json").is_file():
        return {}
    known = study(spread_out(_read(folder / "fashion.json")))
    new = {t: r for t, r in (more or {}).items() if t not in known}
    return _extended(folder / "fashion_points.json", survey.FASHION, new) | known


def bets(folder: Path, more: dict[Trial, dict] | None = None) -> tuple[dict[Trial, dict], dict[str, str]]:
    """Results of bets in a published folder, and what each form is; `more` is added to them."""
    path = folder / "bets.json"
    results = _extended(path, survey.BETS_SURVEY, more or {}, forms=WORDS)
    return results, _read(path)["forms"] if path.is_file() else {}


def checks(folder: Path, more: dict[Trial, dict] | None = None) -> dict[Trial, tuple[dict, dict]]:
    """{trial: (the study's result, that of this code from the same noise)}; `more` is added to the latter."""
    ours = _extended(folder / "check.json", survey.CHECK, more or {})
    known = study(spread_out(_read(folder / "fashion.json"))) if ours else {}
    return {t: (known[t], result) for t, result in ours.items()}


def _extended(path: Path, mode: survey.Trials, more: dict[Trial, dict], **about) -> dict[Trial, dict]:
    """Results in a file, after those of `more` that it lacks were added."""
    known = results_of(_read(path)) if path.is_file() else {}
    new = {t: r for t, r in more.items() if t not in known}
    if not new:
        return known
    write_json(path, fronts_json(mode, known | new) | about)
    return results_of(_read(path))


def source(folder: Path) -> str:
    """Where the points on Fashion-MNIST come from."""
    later, path = "", folder / "fashion_points.json"
    if path.is_file():
        later = f" It sampled {len(results_of(_read(path)))} more, which are paired with the study's."
    return _read(folder / "fashion.json")["source"] + later


def write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def restore(mode: survey.Survey, published: Path, work: Path, again: list[str]) -> None:
    """Fill `work` with what a published folder holds, to four digits.

    Trials whose key contains a text of `again` are left to be sampled. Raises ValueError where the published
    ones were sampled with other settings or weights."""
    data = _read(published / "fronts.json")
    if data["header"] != survey.header(mode):
        settings = f"{data['header']}, now {survey.header(mode)}"
        raise ValueError(f"{published} was made with other settings: {settings}")
    journal = survey.journal(mode, work)
    for trial, result in results_of(data).items():
        if trial.key not in journal.results and not any(text in trial.key for text in again):
            journal.add(trial.key, result)
    mixtures = _read(published / "mixtures.json")
    mixtures = {name: rows if name == "controls" else spread_out(rows) for name, rows in mixtures.items()}
    cached(work / f"mixtures_{mode.name}.json", lambda: mixtures)
    if (published / "corrections.json").is_file():
        curves = _read(published / "corrections.json")
        cached(work / f"corrections_{mode.name}.json", lambda: curves)
    for toy in _read(published / "toys.json"):
        cached(work / f"toy_{toy['toy']}_{mode.name}.json", lambda toy=toy: toy)


def cached(path: Path, make: Callable[[], dict | list]) -> dict | list:
    """make(), or what it gave the last time."""
    if not path.is_file():
        with whole_file(path) as partial:
            partial.write_text(json.dumps(make()))
    return _read(path)


def _read(path: Path) -> dict | list:
    return read_json(path, "results as the laboratory writes them")
