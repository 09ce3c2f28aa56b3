"""`python -m reg_core.lab.toys`: a toy's table, and NAME.json and NAME.png in a folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ...files import whole_file
from .measure import WEIGHTS
from .picture import plot_toy
from .toy import TOYS, describe, evaluate_toy


def main(argv: list[str] | None = None) -> None:
    """Command line entry; writes NAME.json and NAME.png and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m reg_core.lab.toys", description=__doc__)
    add = parser.add_argument
    add("--toy", default="1d", help=f"{', '.join(TOYS)}, or a 1-D or 2-D pair (default: %(default)s)")
    released = "PREFIX_cond.pth, PREFIX_uncond.pth, PREFIX.pkl in the released layout"
    add("--checkpoint", metavar="PREFIX", help=f"evaluate {released} instead of training")
    add("--keep", metavar="PREFIX", help="save the trained 1-D networks in that layout")
    add("--weights", type=float, nargs="+", default=WEIGHTS, help="w = cfg - 1 (default: %(default)s)")
    add("--quick", action="store_true", help="seconds instead of minutes")
    add("--seed", type=int, default=0)
    add("--out", type=Path, required=True, help="output folder")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks this small gain nothing from more, and lose much on busy cores
    try:
        settings = (args.quick, args.seed, args.weights, args.checkpoint, args.keep)
        result = evaluate_toy(args.toy, *settings, progress=True)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    with whole_file(args.out / f"{result['toy']}.json") as partial:
        partial.write_text(json.dumps(result, allow_nan=False))
    plot_toy(result, args.out / f"{result['toy']}.png")
    print(describe(result))


if __name__ == "__main__":
    main()
