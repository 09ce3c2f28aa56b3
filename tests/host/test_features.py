"""Guiders against what they promise (feature_guiders.py), and docs/compatibility.md against the cases that make it."""

import logging
import re

import pytest
import torch

from . import features, matrix, reg, tiny

GUIDERS = [name for _, name in features.names("guider")]


@pytest.mark.parametrize("name", GUIDERS)
@pytest.mark.parametrize("engine", features.ENGINES)
def test_guiders_are_rectified_or_told_why_not(host, pack, all_nodes, name, engine, caplog):
    """Where REG cannot act the latents are bit-identical, and the log and the trace say so, with the guider's name."""
    try:
        setup = features.build("guider", name, features.world(host, pack, all_nodes))
        plain = setup.sample()
    except features.Missing:
        pytest.skip(f"ComfyUI {host.version} has no {name}")
    model, trace = reg.apply(pack, setup.model, "row_sum", engine)
    with caplog.at_level(logging.WARNING):
        latent = setup.sample(model)
    warned = [m for m in caplog.messages if "REG did nothing" in m]
    if setup.active:
        assert not torch.equal(latent, plain) and not warned
        assert [r.engine for r in trace.last.active] == [engine] * 3, trace
    else:
        assert torch.equal(latent, plain)
        assert len(warned) == 1 and setup.why in warned[0] and setup.why in str(trace)


def test_cfg_guider_draws_what_ksampler_draws(host, pack, all_nodes):
    setup = features.build("guider", "CFGGuider", features.world(host, pack, all_nodes))
    model = reg.apply(pack, setup.model)[0]
    assert torch.allclose(setup.sample(model), tiny.sample(setup.t, model), atol=1e-5)


# The page


@pytest.fixture(scope="module")
def page():
    return matrix.PAGE.read_text(encoding="utf-8")


def rows(page, title):
    text = re.search(rf"(?ms)^## {re.escape(title)}\n.*?(?=^## |\Z)", page)
    assert text, f"{title} is not in the page"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text[0].splitlines() if line.startswith("|")]


@pytest.mark.parametrize("version", ["0.3.64", "0.3.75", "0.33.0"])
def test_the_page_has_every_case_and_family_and_no_failure(host, page, version):
    """Its rows and columns are the generator's: a case added or renamed asks for a new run."""
    table = rows(page, f"ComfyUI {version}: features")
    assert [tuple(row[:2]) for row in table[2:]] == features.names()
    assert table[0][2:] == [*(e.replace("finite_difference", "differences") for e in features.ENGINES), "transparent"]
    assert [row[0] for row in rows(page, f"ComfyUI {version}")[2:]] == list(tiny.FAMILIES)
    families = rows(page, f"ComfyUI {version}")
    cells = [cell for row in table[2:] for cell in row[2:4]] + [cell for row in families[2:] for cell in row[4:10]]
    assert not [cell for cell in cells if not re.match(r"(ok|falls back|no effect|not in this ComfyUI|sub_quad: (ok|falls back))", cell)]


def test_the_page_is_what_the_generator_would_write(page):
    assert matrix.page(matrix.sections_of(page)) == page


def test_the_page_begins_with_what_ran_and_what_does_not():
    """Oracle: by hand, of three small tables."""
    families = "## ComfyUI {}\n\n| family | a | b |\n| --- | --- | --- |\n| x | ok | ok |\n| y | {} | {} |\n| z | ok | sub_quad: ok, pytorch: fails (1) |\n"
    new, old = families.format("0.9.0", "ok", "falls back (2)"), families.format("0.3.0", *["not in this ComfyUI"] * 2)
    features = "## ComfyUI 0.9.0: features\n\n| kind | feature | a |\n| --- | --- | --- |\n| guider | Basic | no effect (1) |\n"
    text = matrix.page(matrix.sections_of("\n".join([old, features, new])))
    assert "REG ran with 3 families of models, on ComfyUI 0.9.0, 0.3.0." in text
    assert re.findall(r"^## (.*)", text, re.M) == ["What a cell means", "How it was run", "ComfyUI 0.9.0", "ComfyUI 0.3.0", "ComfyUI 0.9.0: features"]
    (begin, *_) = text.split("\n## ")
    assert dict(re.findall(r"^\| (.*?) \| (.*) \|$", begin, re.M)[2:]) == {
        "families that ran on 0.9.0, 0.3.0": "`x` · `z`",
        "families that ran on 0.9.0 only": "`y`",
        "fails": "`z`",
        "engine `reverse` does not work, finite differences do": "`y`",
        "REG has nothing to do": "Basic",
    }
