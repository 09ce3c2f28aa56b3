"""The laboratory in one command: `python -m reg_core.lab.evidence`, or `nox -s lab`.

It samples the digits, computes mixtures and toys, and writes docs/evidence.md and evidence-more.md. Points of
Fashion-MNIST are sampled by `python -m reg_core.lab.fronts`; this command adds those that are in --work.
Quick mode is a smoke test of minutes. Sampled trials are kept in --work, and a killed run goes on from there;
delete that folder to start from scratch."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import torch

from ..fronts import survey
from ..fronts.analysis import fronts, shown
from ..fronts.strength import corrections
from ..fronts.trials import Size, Trial
from ..mixtures import study
from ..toys.picture import plot_toy
from ..toys.toy import evaluate_toy
from . import figures, page
from .published import (
    bets,
    cached,
    candidates,
    checks,
    compact,
    fashion_results,
    fronts_json,
    restore,
    results_of,
    source,
    spread_out,
    write_json,
)

TOYS = ("1d", "2d")
IMAGES = 100  # that a correction is averaged over


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


def measured(mode: survey.Survey, work: Path) -> dict:
    """The corrections of the setups, see strength.corrections; without models that nobody trained here."""
    surveys = (mode,) if mode.name == "quick" else (mode, survey.FASHION)
    found = {}
    for setup, images in ((s, min(n, IMAGES)) for each in surveys for s, n in each.images.items()):
        with contextlib.suppress(FileNotFoundError):
            found[setup] = corrections(setup, Size(images, mode.steps, str(work)), images)
    return found


def write(
    mode: survey.Survey,
    results: dict,
    mixtures: dict,
    trained: list[dict],
    curves: dict,
    out: Path,
    work: Path,
) -> list[Path]:
    """evidence.md and evidence-more.md with their pictures and JSON under `out`; returns the pages.

    evidence.md is of Fashion-MNIST: it is written where `out` has the study's points."""
    folder = out / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {path.name for path in folder.glob("*.png")}
    for old in pictures - {f"toy_{toy['toy']}.png" for toy in trained if "curves" not in toy}:
        (folder / old).unlink()
    lean = [{k: v for k, v in toy.items() if k not in ("curves", "grid")} for toy in trained]
    small = {k: compact(v) if k != "controls" else v for k, v in mixtures.items()}
    trials = fronts_json(mode, results)
    made = {"fronts": trials, "mixtures": small, "toys": lean, "corrections": curves}
    for name, content in made.items():
        write_json(folder / f"{name}.json", content)
    # The pages say what the files say, to their digits.
    results = results_of(trials)
    mixtures = {k: spread_out(v) if k != "controls" else v for k, v in small.items()}
    clothes, pages = fashion_results(folder, survey.finished(survey.FASHION, work)), []
    again = checks(folder, survey.finished(survey.CHECK, work))
    tried = bets(folder, survey.finished(survey.BETS_SURVEY, work))
    if clothes:
        figures.fashion_panels(fronts(clothes), folder / "fashion.png")
        text = page.main_page(
            survey.FASHION, clothes, results, mixtures, curves, source(folder), again, tried[0]
        )
        pages.append(out / "evidence.md")
        pages[0].write_text(text, encoding="utf-8")
    drawn = draw(results, mixtures, trained, folder, mode.name == "quick")
    text = page.document(mode, results, mixtures, trained, drawn, candidates(folder), clothes, tried, again)
    pages.append(out / "evidence-more.md")
    pages[-1].write_text(text, encoding="utf-8")
    return pages


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
    add("--as-is", action="store_true", help="sample nothing: the pages of what is published and in --work")
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


def main(argv=None) -> list[Path]:
    """Command line entry; returns the pages written."""
    args = parse(argv)
    torch.set_num_threads(1)
    out, work, mode = args.out or Path("docs"), args.work, survey.QUICK if args.quick else survey.FULL
    if args.again is not None or (args.as_is and (out / "evidence" / "fronts.json").is_file()):
        restore(mode, out / "evidence", work, args.again or [])
    results = survey.finished(mode, work) if args.as_is else survey.make(mode, work, args.processes)
    amount = study.QUICK if args.quick else study.FULL
    mixtures = cached(work / f"mixtures_{mode.name}.json", lambda: study.study(amount))
    trained = []
    for name in TOYS[:1] if args.quick else TOYS:
        path = work / f"toy_{name}_{mode.name}.json"
        trained.append(cached(path, lambda name=name: evaluate_toy(name, args.quick, progress=True)))
    curves = cached(work / f"corrections_{mode.name}.json", lambda: measured(mode, work))
    pages = write(mode, results, mixtures, trained, curves, out, work)
    print(*pages, sep="\n")
    return pages


if __name__ == "__main__":
    main()
