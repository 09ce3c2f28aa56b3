"""The whole laboratory in one command: `python -m reg_core.lab.evidence`, or `nox -s lab`.

Quick mode is a smoke test of minutes. Full mode makes docs/evidence.md. Sampled trials are kept in --work,
and a killed run goes on from there; delete that folder to start from scratch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ..fronts import survey
from ..fronts.analysis import fronts, shown
from ..fronts.trials import Trial
from ..mixtures import study
from ..toys.picture import plot_toy
from ..toys.toy import evaluate_toy
from . import figures, page
from .published import cached, candidates, compact, fronts_json, restore, results_of, spread_out

TOYS = ("1d", "2d")


def draw(
    results: dict[Trial, dict], mixtures: dict, trained: list[dict], folder: Path, quick: bool
) -> dict[str, str]:
    """All pictures into `folder`; {name: path from the page beside it}."""
    found = fronts(results)
    nodes = (61, 11) if quick else (161, 33)
    made = {
        "toy": figures.toy(folder / "toy.png", nodes=nodes[0]),
        "maps": figures.maps(folder / "maps.png", nodes=nodes[1], cases=figures.MAPS[: 2 if quick else None]),
        "by_sigma": figures.by_sigma(mixtures["errors"], folder / "by_sigma.png", page.weight_of(mixtures)),
        "ends": figures.ends(mixtures["ends"], folder / "ends.png"),
    }
    if found:
        made["fronts"] = figures.front_panels(found, folder / "fronts.png")
    if shown(results):
        made["corrections"] = figures.corrections(results, folder / "corrections.png")
    for result in trained:
        path = folder / f"toy_{result['toy']}.png"
        if "curves" in result:  # published ones have none, and their picture is there
            plot_toy(result, path)
            figures.shrink(path)
        made[f"toy_{result['toy']}"] = path
    return {name: f"{folder.name}/{path.name}" for name, path in made.items()}


def write(mode: survey.Survey, results: dict, mixtures: dict, trained: list[dict], out: Path) -> Path:
    """evidence.md, evidence/*.png and evidence/*.json under `out`; returns the page."""
    folder = out / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    kept = {"candidates.json", *(f"toy_{toy['toy']}.png" for toy in trained if "curves" not in toy)}
    for old in (*folder.glob("*.png"), *folder.glob("*.json")):
        if old.name not in kept:
            old.unlink()
    lean = [{k: v for k, v in toy.items() if k not in ("curves", "grid")} for toy in trained]
    small = {k: compact(v) if k != "controls" else v for k, v in mixtures.items()}
    trials = fronts_json(mode, results)
    for name, content in (("fronts", trials), ("mixtures", small), ("toys", lean)):
        text = json.dumps(content, separators=(",", ":")) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    # The page says what the files say, to their digits.
    results = results_of(trials)
    mixtures = {k: spread_out(v) if k != "controls" else v for k, v in small.items()}
    pictures = draw(results, mixtures, trained, folder, mode.name == "quick")
    path = out / "evidence.md"
    text = page.document(mode, results, mixtures, trained, pictures, candidates(folder))
    path.write_text(text, encoding="utf-8")
    return path


def parse(argv=None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    prog = "python -m reg_core.lab.evidence"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--quick", action="store_true", help="a smoke test of minutes; wants --out")
    add("--out", type=Path, help="folder for evidence.md and evidence/ (default: docs)")
    work = "where sampled trials are kept (default %(default)s)"
    add("--work", type=Path, default=Path("out/lab"), help=work)
    add("--processes", type=int, default=1, help="of one thread each (default %(default)s)")
    add("--as-is", action="store_true", help="sample nothing more, report on what there is")
    again = (
        "begin with what docs/evidence holds; sample only what is missing there, or whose key contains a text"
    )
    add("--again", nargs="*", metavar="TEXT", help=f"{again}, such as skip_below=")
    args = parser.parse_args(argv)
    if args.quick and args.out is None:
        parser.error("--quick wants --out, so that it cannot replace the full page")
    if args.processes < 1:
        parser.error(f"--processes must be at least 1, got {args.processes}")
    return args


def main(argv=None) -> Path:
    """Command line entry; returns the page written."""
    args = parse(argv)
    torch.set_num_threads(1)
    out, work, mode = args.out or Path("docs"), args.work, survey.QUICK if args.quick else survey.FULL
    if args.again is not None:
        restore(mode, out / "evidence", work, args.again)
    results = survey.finished(mode, work) if args.as_is else survey.make(mode, work, args.processes)
    amount = study.QUICK if args.quick else study.FULL
    mixtures = cached(work / f"mixtures_{mode.name}.json", lambda: study.study(amount))
    trained = []
    for name in TOYS[:1] if args.quick else TOYS:
        path = work / f"toy_{name}_{mode.name}.json"
        trained.append(cached(path, lambda name=name: evaluate_toy(name, args.quick, progress=True)))
    path = write(mode, results, mixtures, trained, out)
    print(path)
    return path


if __name__ == "__main__":
    main()
