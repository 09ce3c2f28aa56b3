"""`python -m reg_core.evaluation run|score`: see docs/evaluate.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..files import FileError, check_place
from .plan import Plan, read_prompts
from .template import check, load


def run(args) -> int:
    """Make the images; 0 when all are there, 130 when cancelled."""
    from tqdm import tqdm

    from .drive import Failed, Limits, drive

    template, points = load(args.workflow, args.grid)
    plan = Plan(points, read_prompts(args.prompts), tuple(args.seeds))
    check(template, plan)
    count, total = 0, len(plan.jobs())
    with tqdm(total=total, unit="image", disable=args.quiet) as bar:

        def on_done(done, _, key):
            nonlocal count
            bar.update(done - count)
            bar.set_postfix_str(key)
            count = done

        try:
            limits = Limits(args.tries, args.limit, args.patience)
            manifest = drive(plan, template, args.out, args.server, on_done, bar.write, limits)
        except Failed as error:
            bar.close()
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            bar.close()
            print(f"stopped at {count} of {total}; the same command continues", file=sys.stderr)
            return 130
    print(f"{total} images: {manifest}")
    return 0


def score(args) -> int:
    """Score the images and write report.md and report.json."""
    from .features import load_extractor
    from .report import check_choices, markdown, write_report
    from .score import score_folder
    from .store import Store

    for path in filter(None, (args.save_stats, args.out / "report.md")):
        check_place(path)
    check_choices(Store(args.out).plan(), args.baseline, args.sweep)
    extractor = load_extractor(args.features, args.inception_weights, args.device)
    settings = (args.clip, args.partial, args.batch, args.device)
    scores = score_folder(args.out, args.reference, extractor, *settings)
    if args.save_stats:
        scores.reference.save(args.save_stats)
    report = write_report(args.out, scores, args.baseline, args.sweep)
    print(markdown(report))
    return 0


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m reg_core.evaluation", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="run | score")

    again = "the same command continues a stopped run"
    one = commands.add_parser("run", help=f"make the images on running ComfyUI servers; {again}")
    one.set_defaults(command=run)
    add = one.add_argument
    url = {"action": "append", "required": True, "metavar": "URL"}
    add("--server", **url, help="a running ComfyUI; repeat for several")
    add("--workflow", type=Path, required=True, help="API format (.json)")
    add("--prompts", type=Path, required=True, help="a prompt a line, or .jsonl")
    add("--grid", type=Path, required=True, help="inputs and grid, .json or .toml (docs/evaluate.md)")
    seeds = {"type": int, "nargs": "+", "default": [0]}
    add("--seeds", **seeds, help="images per prompt and point, by seed number (default 0)")
    add("--out", type=Path, required=True)
    add("--tries", type=int, default=3, help="for an image whose workflow fails (default %(default)s)")
    add("--limit", type=float, default=3600, help="seconds for one image (default %(default)g)")
    add("--patience", type=float, default=60, help="seconds without any server (default %(default)g)")
    add("--quiet", action="store_true", help="no progress bar")

    two = commands.add_parser("score", help="FID, IS and CLIP score of a finished run")
    two.set_defaults(command=score)
    add = two.add_argument
    add("--out", type=Path, required=True, help="the folder of `run`")
    real = "a folder of real images, or statistics (.npz with mu and sigma)"
    add("--reference", type=Path, required=True, help=real)
    add("--save-stats", type=Path, metavar="NPZ", help="keep the reference's statistics for the next time")
    add("--features", default="inception", help="inception, digits or module:function (default %(default)s)")
    local = "local weights of torch-fidelity's Inception (default: it downloads them)"
    add("--inception-weights", type=Path, help=local)
    add("--clip", help="CLIP score by this model: a name, or a local folder (default: none)")
    base = "what to subtract at each point (default form=off if there is one)"
    add("--baseline", nargs="+", metavar="AXIS=VALUE", help=base)
    add("--sweep", help="the axis over which each method is judged at its best (default cfg)")
    add("--partial", action="store_true", help="score the prompts and seeds that every point has")
    add("--batch", type=int, default=32)
    add("--device", default="cpu")
    args = parser.parse_args(argv)
    for name in ("tries", "limit", "patience", "batch"):
        if getattr(args, name, 1) <= 0:
            parser.error(f"want --{name} > 0, got {getattr(args, name)}")
    return args


def main(argv=None) -> int:
    args = parse(argv)
    try:
        return args.command(args)
    except FileError as error:
        print(error, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"{error}: pip install 'reg-guidance[eval]'", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
