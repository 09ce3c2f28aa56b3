"""docs/library.md and the schedule of docs/extending.md run, block after block, and say what is so."""

import argparse
import re
import sys
import types

import hosts
import pytest
import torch

from reg_core import Calibration, Settings, presets

PAGE = (hosts.ROOT / "docs" / "library.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def run(blocks, scope):
    for block in blocks:
        exec(block, scope)  # noqa: S102
    return scope


def test_everything_but_diffusers_runs(tmp_path, monkeypatch, capsys):
    """Oracle: the closed form 1 / (1 + sigma^2) of the page's Gaussian, which it says all forms and engines equal."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = [block for block in BLOCKS if "integrations.diffusers" not in block]
    assert len(blocks) == len(BLOCKS) - 1
    scope = run(blocks, {})
    x, cond, uncond = scope["noise"], scope["cond"], scope["uncond"]
    difference = cond(x, torch.full((4,), 2.0)) - uncond(x, torch.full((4,), 2.0))
    exact = cond(x, torch.full((4,), 2.0)) + 3.0 * difference / (1 + 2.0**2)
    assert len(scope["results"]) == 8
    for result in scope["results"].values():
        assert torch.allclose(result, exact, rtol=1e-3, atol=1e-3)
    assert torch.allclose(scope["product"], torch.full_like(x, 1 / (1 + 2.0**2)))
    assert all(torch.isfinite(scope[name]).all() for name in ("images", "denoised"))
    weights = {sigma: scope["as_in_edm2"].weight(sigma) for sigma in (80.0, 0.002)}
    assert weights == pytest.approx({80.0: 0.0, 0.002: 6.0}, abs=1e-6), "straight in sigma, from 0 to twice cfg 4's weight"
    printed = capsys.readouterr().out
    assert re.search(r"form row_sum, engine finite_difference \(J 1\), active in 35 of 35 model calls", printed)
    inside = sum(0.28 <= float(s) <= 2.9 for s in scope["sigmas"])
    evaluated = [row for row in scope["by_interval"].trace.last.rows if row.active]
    assert 0 < len(evaluated) <= 2 * inside < 35


def test_the_diffusers_block_runs(tmp_path):
    """With a tiny random Stable Diffusion, tokenizer and text encoder included."""
    diffusers = hosts.diffusers()
    from tiny_diffusers import text_to_image

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(text_to_image(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    scope = run([BLOCKS[0], *(block for block in BLOCKS if "integrations.diffusers" in block)], {"pipe": pipe})
    assert scope["latents"].shape == (1, 4, 4, 4) and len(scope["trace"].last.active) == 4
    assert {row.cfg for row in scope["trace"].last.rows} == {12.0}


@pytest.mark.parametrize("name", ["dit", "edm2", "text_to_image"])
def test_commands_of_the_page_are_accepted(name, monkeypatch):
    """Every option written on the page exists and makes a grid: the script's own parser reads each command."""
    if name != "edm2":
        hosts.diffusers()
    script, grid, seen = hosts.example(name), hosts.example("grid"), []
    text = "\n".join(re.findall(r"^```\n((?:python|torchrun) .*?)^```", PAGE, re.S | re.M)).replace("\\\n", " ")
    commands = [line.split(f"examples/{name}.py", 1)[1].split() for line in text.splitlines() if f"examples/{name}.py" in line]
    assert commands
    parse = argparse.ArgumentParser.parse_args

    def stop(self, argv):
        seen.append(parse(self, argv))
        raise StopIteration

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    for command in commands:
        with pytest.raises(StopIteration):
            script.main(command)
        made = grid.guides(seen[-1], lambda words, form: grid.schedule(words, {"text_to_image": "t2i"}.get(name, name)))
        forms = {guide.settings.form for _, guide in made}
        assert str(seen[-1].out) == command[command.index("--out") + 1] and forms == {"off", "row_sum", "schedule"}


def test_linear_of_dit_runs_as_the_page_says():
    """From 2a - b at t = 1000 to a at t = 0: oracle, their line t k + a with k = (b - a) / (0 - 1000)."""
    a, b = 2.0, 5.0
    schedule = presets.linear("dit", 1.0, b / a)
    for t in (0, 300, 999):
        theirs = t * (b - a) / (0 - 1000) + a
        levels = presets.Levels((), 1.0, lambda sigma, t=t: 1 - t / 999)
        assert schedule.cfg(1 + a, 0.5, levels) - 1 == pytest.approx(theirs)


def test_the_schedule_of_extending_runs():
    """Oracle: by hand. No guidance in the first 30 % of 18 levels (positions i / 17), weight 3 from there."""
    page = (hosts.ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class Late" in block)
    scope = run([block], {"__name__": "extending"})
    levels = scope["sigmas"].tolist()[:18]
    assert [scope["weight"](sigma) for sigma in levels] == [0.0] * 6 + [3.0] * 12


def test_the_table_of_extending_is_a_form(tmp_path, monkeypatch):
    """Oracle: the page's own formula at a level between those of the table."""
    page = (hosts.ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "half.safetensors" in block)
    monkeypatch.chdir(tmp_path)
    run([block], {"__name__": "extending"})
    settings = Settings(form="calibrated", calibration=Calibration.load("half.safetensors"))
    assert settings.free_factor(torch.tensor([1.3])).item() == pytest.approx((0.49 / (0.49 + 1.3**2)) ** 0.5, rel=0.01)


def test_the_form_of_extending_is_all_that_a_form_needs(monkeypatch):
    """The page's two pieces put into forms.py. Oracle: scalar's own factor, clamped here."""
    page = (hosts.ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    names, branch = (block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.S | re.M) if not kind)
    path = hosts.ROOT / "reg_core" / "forms.py"
    source = re.sub(r"^PRODUCT_FORMS = .*?\)", names.strip(), path.read_text(encoding="utf-8"), flags=re.M)
    source = source.replace('    elif form == "product":\n', branch + '    elif form == "product":\n')
    scope = {"__name__": "reg_core.extended", "__package__": "reg_core"}
    monkeypatch.setitem(sys.modules, "reg_core.extended", types.ModuleType("reg_core.extended"))
    exec(compile(source, "forms.py", "exec"), scope)  # noqa: S102
    v, product = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([[2.0, 2.0], [-1.0, 1.0]])
    assert "bounded" in scope["FORMS"]
    assert scope["rectify"]("bounded", v, product).factor.flatten().tolist() == [1.0, 0.0], "6 / 5 and -2 / 10"
    assert scope["rectify"]("bounded", v, v / 4).factor.flatten().tolist() == [0.25, 0.25]
