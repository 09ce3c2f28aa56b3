"""The results beside docs/evidence.md, as JSON: written short, read again, taken over instead of sampled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ...files import read_json, whole_file
from ..fronts import survey
from ..fronts.analysis import METRICS, shown
from ..fronts.trials import Trial

NAMES = [field.name for field in fields(Trial)]
CURVE = "sigma, mean, 5 %, 95 %"


def compact(rows: list[dict]) -> dict:
    """Rows of equal keys as columns and rows of short numbers."""
    names = list(rows[0]) if rows else []
    return {"columns": names, "rows": [[_short(row[name]) for name in names] for row in rows]}


def spread_out(packed: dict) -> list[dict]:
    """The inverse of `compact`, up to the digits it dropped."""
    return [dict(zip(packed["columns"], row, strict=True)) for row in packed["rows"]]


def _short(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def fronts_json(mode: survey.Survey, results: dict[Trial, dict]) -> dict:
    """Trials and scores; C(sigma) of the trials shown."""
    rows = []
    for trial, result in results.items():
        scores = (_short(result[metric]) for metric in METRICS)
        rows.append([*astuple(trial), *scores, result["effective_cfg"], result["rows"]])
    curves = {" ".join(key): (t.weight, results[t]["correction"]) for key, t in shown(results).items()}
    return {
        "header": survey.header(mode),
        "columns": [*NAMES, *METRICS, "effective_cfg", "rows_an_image"],
        "rows": rows,
        "correction": {name: {"w": weight, CURVE: curve} for name, (weight, curve) in curves.items()},
        "notes": sorted({note for result in results.values() for note in result["notes"]}),
    }


def results_of(data: dict) -> dict[Trial, dict]:
    """The results of `fronts_json`, up to the digits it dropped."""
    results = {}
    for row in spread_out(data):
        trial = Trial(**{name: row[name] for name in NAMES})
        scores = {metric: row[metric] for metric in METRICS}
        kept = {"effective_cfg": row["effective_cfg"], "rows": row["rows_an_image"]}
        results[trial] = scores | kept | {"notes": data.get("notes", [])}
        curve = data.get("correction", {}).get(f"{trial.setup} {trial.form}")
        if curve and trial == Trial(trial.setup, "constant", trial.form, curve["w"], 0):
            results[trial]["correction"] = curve[CURVE]
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
