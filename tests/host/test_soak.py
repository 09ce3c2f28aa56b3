"""A short soak on the session's server, and whether it would tell. Oracle: pictures that are no prompt's, memory made by hand."""

import collections
import math

import pytest

from . import soak


@pytest.fixture(scope="module")
def pool(server):
    """({name: (kind, prompt)}, {name: its pictures alone}), one of each kind."""
    prompts = soak.pool_of(len(soak.KINDS))
    return prompts, {name: soak.alone(server, prompt) for name, (_, prompt) in prompts.items()}


def test_a_short_soak(server, pool):
    prompts, wanted = pool
    assert len(set(wanted.values())) == len(wanted)
    found = soak.soak(server, 40, prompts, wanted)
    assert not found.wrong
    assert set(found.kinds) == {*soak.KINDS, "bad", "cancel"} and found.kinds.total() == len(found.memory.seen) == 40
    assert min(found.memory.seen) > 100, "MiB, of a process that holds PyTorch"
    assert "| **wrong** | 0 |" in soak.page(found, found, 40)


def test_another_picture_is_told(server, pool):
    prompts, wanted = pool
    name = next(name for name, (kind, _) in prompts.items() if kind == "form")
    found = soak.soak(server, 2, {name: prompts[name]}, {name: "another"})
    assert found.wrong == [f"prompt {i} ({name}): another picture than alone" for i in (1, 2)]
    assert wanted[name] == soak.shown(server, prompts[name][1])


def test_bad_input_that_is_taken_is_told(server, pool, monkeypatch):
    prompts, wanted = pool
    monkeypatch.setattr(soak, "spoilt", lambda draw, prompt: prompt)
    found = soak.soak(server, 12, {name: prompts[name] for name in prompts if prompts[name][0] in ("form", "sweep")}, wanted)
    assert len(found.wrong) == found.kinds["bad"] > 0 and all("bad input was taken" in words for words in found.wrong)


@pytest.mark.parametrize("step,grows", [(0.0, 0.0), (0.1, 0.072)])
def test_growth_is_that_after_the_first_hundred(step, grows):
    memory = soak.Memory([100.0 + i for i in range(100)] + [1000.0 + step * i for i in range(900)])
    assert memory.growth() == pytest.approx(grows, abs=0.005) and math.isnan(soak.Memory([1.0] * 105).growth())


def test_every_kind_of_nonsense_has_a_place():
    """Oracle: the node inputs of the pool; an input renamed would be spoilt nowhere."""
    inputs = collections.Counter()
    for _, prompt in soak.pool_of(70).values():
        for node in prompt.values():
            if node["class_type"].startswith("REG"):
                inputs.update(node["inputs"].keys())
    assert not [name for name, _ in soak.NONSENSE if not inputs[name]]
