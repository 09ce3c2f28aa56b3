"""The recipes of docs/use.md and of the help. Oracle: the table of families, read row by row from the pages."""

import re

import pytest
from shipped import ROOT

from tools import recipes
from tools.families import FAMILIES


def cells(name: str) -> list[list[str]]:
    """Rows of the table between the markers, with its head."""
    page = (ROOT / name).read_text(encoding="utf-8")
    (block,) = re.findall(re.escape(recipes.BEGIN) + "(.*?)" + re.escape(recipes.END), page, re.S)
    lines = [line for line in block.splitlines() if line.startswith("|")]
    assert set(lines[1]) <= set("| -")
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]


@pytest.mark.parametrize("name", recipes.PAGES)
def test_pages_hold_every_family(name):
    (head, *rows) = cells(name)
    assert [row[0] for row in rows] == [family.name for family in FAMILIES]
    for row, family in zip(rows, FAMILIES, strict=True):
        said = dict(zip(head, row, strict=True))
        form, gain = said["form, gain"].replace("`", "").split(", ")
        assert (float(said["cfg"]), form, float(gain)) == (family.cfg, family.form, family.gain), family.name
        if "steps" in said:
            assert (int(said["steps"]), said["sampler"], said["scheduler"]) == (family.steps, family.sampler, family.scheduler), family.name
            assert said["shift"] == ("" if family.shift is None else f"{family.shift:g}") and said["note"] == family.note


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="want one pair of markers .* found 0"):
        recipes.updated("# What to set\n", "")
