"""Writes the table of model families (families.py) into docs/use.md and the help of REG Guidance: `python -m tools.recipes`."""

from __future__ import annotations

import re
from pathlib import Path

from .families import FAMILIES, Family

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- recipes: python -m tools.recipes -->\n", "<!-- end -->"


def wide(families: tuple[Family, ...]) -> str:
    """The table of docs/use.md."""
    rows = [["model", "cfg", "form, gain", "steps", "sampler", "scheduler", "shift", "note"]]
    for f in families:
        shift = "" if f.shift is None else f"{f.shift:g}"
        rows.append([f.name, f"{f.cfg:g}", f"`{f.form}`, {f.gain:g}", f"{f.steps}", f.sampler, f.scheduler, shift, f.note])
    return table(rows)


def narrow(families: tuple[Family, ...], head=("model", "cfg", "form, gain")) -> str:
    """The table of the help, whose panel is some 250 px wide."""
    return table([head, *([f.name, f"{f.cfg:g}", f"`{f.form}`, {f.gain:g}"] for f in families)])


def table(rows: list[list[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


PAGES = {"docs/use.md": wide, "web/docs/REGGuidance.md": narrow}


def updated(page: str, text: str) -> str:
    """The page with `text` between its markers. Raises ValueError for a page without them, or with more than one pair."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.S)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"want one pair of markers {BEGIN.strip()} {END}, found {len(pattern.findall(page))}")
    return pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page)


def main() -> None:
    for name, render in PAGES.items():
        path = ROOT / name
        path.write_text(updated(path.read_text(encoding="utf-8"), render(FAMILIES)), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
