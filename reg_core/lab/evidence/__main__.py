"""The whole laboratory in one command: `python -m reg_core.lab.evidence`, or `nox -s lab`.

Quick mode is a smoke test of minutes; full mode is what docs/evidence.md is made of. Sampled points are kept in --work and a killed run goes on
from there; delete that folder to start from scratch.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import astuple, fields
from pathlib import Path

import torch

from . import plan, plots, report, study, toys
from .analysis import METRICS, fronts, shown
from .fronts import Point

TOYS = ("1d", "2d")


def compact(rows: list[dict]) -> dict:
    """Rows of equal keys as columns and rows of short numbers."""
    names = list(rows[0]) if rows else []
    return {"columns": names, "rows": [[_short(row[name]) for name in names] for row in rows]}


def _short(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def spread_out(packed: dict) -> list[dict]:
    """The inverse of `compact`, up to the digits it dropped."""
    return [dict(zip(packed["columns"], row, strict=True)) for row in packed["rows"]]


def restore(mode: plan.Plan, published: Path, work: Path, again: list[str]) -> None:
    """Fill `work` with what a published folder holds, to four digits; points whose key contains a text of `again` are left to be sampled.

    Raises ValueError where the published points were sampled with other settings or weights.
    """
    data = json.loads((published / "fronts.json").read_text(encoding="utf-8"))
    if data["header"] != plan.header(mode):
        raise ValueError(f"{published} was made with other settings: {data['header']}, now {plan.header(mode)}")
    store = plan.store(mode, work)
    names = [f.name for f in fields(Point)]
    for row in (dict(zip(data["columns"], values, strict=True)) for values in data["rows"]):
        p = Point(**{name: row[name] for name in names})
        if p.key in store.results or any(text in p.key for text in again):
            continue
        result = {m: row[m] for m in METRICS} | {"effective_cfg": row["effective_cfg"], "rows": row["rows_an_image"], "notes": data["notes"]}
        curve = data["correction"].get(f"{p.setup} {p.form}")
        if curve and p == Point(p.setup, "constant", p.form, curve["w"], 0):
            result["correction"] = curve["sigma, mean, 5 %, 95 %"]
        store.add(p.key, result)
    mixtures = json.loads((published / "mixtures.json").read_text(encoding="utf-8"))
    cached(work / f"mixtures_{mode.name}.json", lambda: {k: v if k == "controls" else spread_out(v) for k, v in mixtures.items()})
    for toy in json.loads((published / "toys.json").read_text(encoding="utf-8")):
        cached(work / f"toy_{toy['toy']}_{mode.name}.json", lambda toy=toy: toy)


def fronts_json(mode: plan.Plan, results: dict[Point, dict]) -> dict:
    """Points and scores; C(sigma) of the points shown."""
    rows = [[*astuple(p), *(_short(r[m]) for m in METRICS), r["effective_cfg"], r["rows"]] for p, r in results.items()]
    names = [f.name for f in fields(Point)]
    return {
        "header": plan.header(mode),
        "columns": [*names, *METRICS, "effective_cfg", "rows_an_image"],
        "rows": rows,
        "correction": {" ".join(key): {"w": p.weight, "sigma, mean, 5 %, 95 %": results[p]["correction"]} for key, p in shown(results).items()},
        "notes": sorted({note for r in results.values() for note in r["notes"]}),
    }


def cached(path: Path, make) -> dict | list:
    """make(), or what it gave the last time; a half-written file never appears under the name."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(make()))
        partial.replace(path)
    return json.loads(path.read_text())


def draw(results: dict[Point, dict], mixtures: dict, trained: list[dict], folder: Path, quick: bool) -> dict[str, str]:
    """All pictures into `folder`; {name: path from the page beside it}."""
    found = fronts(results)
    nodes = (61, 11) if quick else (161, 33)
    weight = 1.0 if any(r["weight"] == 1.0 for r in mixtures["errors"]) else mixtures["errors"][0]["weight"]
    made = {
        "toy": plots.toy(folder / "toy.png", nodes=nodes[0]),
        "maps": plots.maps(folder / "maps.png", nodes=nodes[1], cases=plots.MAPS[: 2 if quick else None]),
        "by_sigma": plots.by_sigma(mixtures["errors"], folder / "by_sigma.png", weight),
        "ends": plots.ends(mixtures["ends"], folder / "ends.png"),
    }
    if found:
        made["fronts"] = plots.front_panels(found, folder / "fronts.png")
        if any(key[2].startswith("bet:") for key in found):
            made["bets"] = plots.bets(found, folder / "bets.png")
    if shown(results):
        made["corrections"] = plots.corrections(results, folder / "corrections.png")
    for result in trained:
        path = folder / f"toy_{result['toy']}.png"
        if "curves" in result:  # restored ones have none, and their picture is there
            toys.plot_toy(result, path)
            plots.shrink(path)
        made[f"toy_{result['toy']}"] = path
    return {name: f"{folder.name}/{path.name}" for name, path in made.items()}


def write(mode: plan.Plan, results: dict[Point, dict], mixtures: dict, trained: list[dict], out: Path) -> Path:
    """evidence.md, evidence/*.png and evidence/*.json under `out`; returns the page."""
    folder = out / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    kept = {f"toy_{toy['toy']}.png" for toy in trained if "curves" not in toy}
    for old in (*folder.glob("*.png"), *folder.glob("*.json")):
        if old.name not in kept:
            old.unlink()
    pictures = draw(results, mixtures, trained, folder, mode.name == "quick")
    lean = [{k: v for k, v in toy.items() if k not in ("curves", "grid")} for toy in trained]
    small = {k: compact(v) if k != "controls" else v for k, v in mixtures.items()}
    for name, content in (("fronts", fronts_json(mode, results)), ("mixtures", small), ("toys", lean)):
        (folder / f"{name}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    page = out / "evidence.md"
    page.write_text(report.document(mode, results, mixtures, trained, pictures), encoding="utf-8")
    return page


def main(argv=None) -> Path:
    """Command line entry; returns the page written."""
    parser = argparse.ArgumentParser(prog="python -m reg_core.lab.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test of minutes; wants --out, so that it cannot replace the full page")
    parser.add_argument("--out", type=Path, help="folder for evidence.md and evidence/ (default: docs)")
    parser.add_argument("--work", type=Path, default=Path("out/lab"), help="where sampled points are kept (default %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of one thread each (default %(default)s)")
    parser.add_argument("--as-is", action="store_true", help="sample nothing more, report on the points there are")
    parser.add_argument("--again", nargs="*", metavar="TEXT", help="begin with what docs/evidence holds, and sample only points that are missing there "
                        "or whose key contains one of the texts, such as skip_below=")  # fmt: skip
    args = parser.parse_args(argv)
    if args.quick and args.out is None:
        parser.error("--quick wants --out")
    if args.processes < 1:
        parser.error(f"--processes must be at least 1, got {args.processes}")
    torch.set_num_threads(1)
    mode = plan.QUICK if args.quick else plan.FULL
    if args.again is not None:
        restore(mode, (args.out or Path("docs")) / "evidence", args.work, args.again)
    results = plan.finished(mode, args.work) if args.as_is else plan.run_plan(mode, args.work, args.processes)
    mixtures = cached(args.work / f"mixtures_{mode.name}.json", lambda: study.study(study.QUICK if args.quick else study.FULL))
    names = TOYS[:1] if args.quick else TOYS
    trained = [cached(args.work / f"toy_{name}_{mode.name}.json", lambda name=name: toys.evaluate_toy(name, args.quick, progress=True)) for name in names]
    page = write(mode, results, mixtures, trained, args.out or Path("docs"))
    print(page)
    return page


if __name__ == "__main__":
    main()
