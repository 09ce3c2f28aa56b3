"""The tables: every point, its difference to the baseline paired by seed, and each method at its best."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import shortened
from .plan import Plan, PlanError
from .store import write

if TYPE_CHECKING:
    from .score import Scores

METRICS = {"fid": "FID", "is": "IS", "clip": "CLIP score"}


def write_report(
    out: Path, scores: Scores, baseline: Sequence[str] | None = None, sweep: str | None = None
) -> dict:
    """report.json and report.md in `out`; returns what they hold."""
    report = compare(scores, baseline, sweep)
    write(Path(out) / "report.json", json.dumps(report, indent=1).encode())
    write(Path(out) / "report.md", (markdown(report) + "\n").encode())
    return report


def compare(scores: Scores, baseline: Sequence[str] | None = None, sweep: str | None = None) -> dict:
    """What the report says. `baseline`: ["axis=value", ...], the axes in which a point's baseline differs."""
    labels = [point.labels for point in scores.plan.points]
    base, sweep = _baseline(labels, baseline), _sweep(labels, sweep)
    rows = []
    for i, own in enumerate(labels):
        partner = _find(labels, own | base) if base else None
        row = {
            "point": scores.plan.points[i].name,
            "labels": own,
            "share": scores.share[i],
            "metrics": scores.values[i],
        }
        if partner is not None and partner != i:
            row["baseline"] = scores.plan.points[partner].name
            row["difference"] = paired(scores.values[i], scores.values[partner])
        rows.append(row)
    return {
        "images_per_point": scores.images,
        "prompt_seed_pairs": scores.pairs,
        "seeds": len(scores.values[0]["fid"]["seeds"]),
        "features": scores.features,
        "reference_images": scores.reference.count or None,
        "baseline": base,
        "sweep": sweep,
        "points": rows,
        "best": _best(rows, base, sweep) if sweep else [],
    }


def check_choices(plan: Plan, baseline: Sequence[str] | None, sweep: str | None) -> None:
    """Raises PlanError for a baseline or a sweep that the plan does not have."""
    labels = [point.labels for point in plan.points]
    _baseline(labels, baseline), _sweep(labels, sweep)


def paired(ours: Mapping, theirs: Mapping) -> dict:
    """{metric: mean over seeds of ours - theirs, its standard error (None for one seed)}."""
    result = {}
    for metric in ours:
        each = [a - b for a, b in zip(ours[metric]["seeds"], theirs[metric]["seeds"], strict=True)]
        mean, n = sum(each) / len(each), len(each)
        error = math.sqrt(sum((d - mean) ** 2 for d in each) / (n - 1) / n) if n > 1 else None
        result[metric] = {"mean": mean, "standard_error": error, "seeds": each}
    return result


def markdown(report: Mapping) -> str:
    """The report as Markdown."""
    metrics = [m for m in METRICS if m in report["points"][0]["metrics"]]
    names = [METRICS[m] for m in metrics]
    axes = list(dict.fromkeys(axis for row in report["points"] for axis in row["labels"]))
    differences = any("difference" in row for row in report["points"])
    head = [*axes, "share of plain guidance", *names, *(f"\u0394 {name}" for name in names if differences)]
    images = f"{report['images_per_point']} images per point ({report['seeds']} seeds)"
    lines = [f"{images}, same prompts and noise at every point.", ""]
    if base := report["baseline"]:
        what = f"difference to {_text(base)} at otherwise equal settings"
        lines += [f"\u0394: {what}; mean ± standard error over seeds, each seed paired.", ""]
    lines += _row(head), _row("---" for _ in head)
    for row in report["points"]:
        cells = [row["labels"].get(axis, "") for axis in axes] + [_number(row["share"])]
        cells += [_number(row["metrics"][m]["all"]) for m in metrics]
        lines.append(_row(cells + _changes(row.get("difference"), metrics, differences)))
    if sweep := report["sweep"] if report["best"] else None:
        bias = "chosen on the same images, so the best look slightly better than they are"
        lines += ["", f"Each method at its best {sweep}, by FID over all images ({bias}):", ""]
        head = ["method", sweep, "share of plain guidance", *names]
        head += [f"\u0394 {name}" for name in names if base]
        lines += _row(head), _row("---" for _ in head)
        for row in report["best"]:
            cells = [_text(row["method"]) or "all", row["labels"][sweep], _number(row["share"])]
            cells += [_number(row["metrics"][m]["all"]) for m in metrics]
            lines.append(_row(cells + _changes(row.get("difference"), metrics, bool(base))))
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(report))])


def notes(report: Mapping) -> list[str]:
    """What a reader must know about these very numbers."""
    found = []
    if report["images_per_point"] < 10 * report["features"]:
        numbers = f"{report['images_per_point']} images for {report['features']} features"
        found.append(f"FID is biased upwards: {numbers}. Compare rows of this table only.")
    if report["seeds"] < 3:
        found.append(f"{report['seeds']} seed(s): too few for an error bar. Use three or more.")
    forms = {row["labels"].get("form") for row in report["points"]}
    if forms & {"row_sum", "scalar", "product"} and "schedule" not in forms:
        free = "it makes no extra evaluation, and much of what REG gains may come from it"
        found.append(f"No `schedule` row: {free}. Add it to the grid before you conclude.")
    if len({row["labels"].get("cfg") for row in report["points"]}) < 2:
        weaker = "REG guides less at equal cfg"
        found.append(f"One cfg only: {weaker}. Sweep cfg or gain, and compare the best of each.")
    return found


def _best(rows, base, sweep) -> list[dict]:
    """The best row of each method (all axes but the sweep), with its difference to the baseline's best."""
    methods: dict = {}
    for row in rows:
        if sweep in row["labels"]:
            method = {axis: label for axis, label in row["labels"].items() if axis != sweep}
            methods.setdefault(json.dumps(method), []).append(row | {"method": method})
    best = [min(group, key=lambda row: row["metrics"]["fid"]["all"]) for group in methods.values()]
    result = []
    for row in best:
        row = {name: row[name] for name in ("method", "labels", "share", "metrics")}
        partner = None
        if base and set(base) <= set(row["method"]):
            partner = _find([other["method"] for other in best], row["method"] | base)
        if partner is not None and best[partner]["method"] != row["method"]:
            row["difference"] = paired(row["metrics"], best[partner]["metrics"])
        result.append(row)
    return result


def _baseline(labels, given) -> dict:
    if not given:
        return {"form": "off"} if any(label.get("form") == "off" for label in labels) else {}
    base = {}
    for text in given:
        axis, equals, value = text.partition("=")
        hits = [label[axis] for label in labels if axis in label and str(label[axis]) == value]
        if not equals or not hits:
            raise PlanError(f"baseline: want axis=value of a point of the grid, got {shortened(text)}")
        base[axis] = hits[0]
    return base


def _sweep(labels, given) -> str | None:
    values = {label.get(given or "cfg") for label in labels} - {None}
    if given and not values:
        raise PlanError(f"sweep: no point has the axis {shortened(given)}")
    return (given or "cfg") if len(values) > 1 else None


def _find(labels, wanted) -> int | None:
    return next((i for i, label in enumerate(labels) if label == wanted), None)


def _changes(difference, metrics, wanted) -> list[str]:
    if not wanted:
        return []
    return [_change(difference[m]) if difference else "" for m in metrics]


def _change(change) -> str:
    error = change["standard_error"]
    return f"{change['mean']:+.3g}" + (f" ± {error:.2g}" if error is not None else "")


def _number(value) -> str:
    return "" if value is None else f"{value:.4g}"


def _text(labels) -> str:
    return ", ".join(f"{axis} = {label}" for axis, label in labels.items())


def _row(cells) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"
