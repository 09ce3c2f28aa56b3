"""Samples fronts: `python -m reg_core.lab.fronts fashion --device cuda --batch 2500`.

Each point is kept in --work when it is there, and a killed run goes on where it stopped. `nox -s lab` makes
the pages of the results."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from . import survey


def shard(text: str) -> tuple[int, int]:
    """ "1/4" -> (1, 4)."""
    i, n = map(int, text.split("/"))
    return i, n


def parse(argv=None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m reg_core.lab.fronts", description=__doc__, formatter_class=raw
    )
    add = parser.add_argument
    add("survey", choices=survey.SURVEYS)
    add("--work", type=Path, default=Path("out/lab"), help="where results are kept (default %(default)s)")
    add("--processes", type=int, default=1, help="of one thread each (default %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    add("--batch", type=int, default=0, help="images at a time (default: all of a point)")
    add("--shard", type=shard, default=(1, 1), metavar="I/N", help="every N-th point from the I-th")
    add(
        "--data",
        help="folder of the real pictures of Fashion-MNIST: adds precision, recall, density, coverage",
    )
    args = parser.parse_args(argv)
    if args.data and not Path(args.data).is_dir():
        parser.error(f"--data must be a folder, got {args.data}")
    try:
        args.where = survey.Where(args.device, args.batch, args.data, args.shard)
    except ValueError as error:
        parser.error(str(error))
    return args


def main(argv=None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    survey.make(survey.SURVEYS[args.survey], args.work, args.processes, args.where)


if __name__ == "__main__":
    main()
