"""Weights made ordinary for the length of a pass: found once a run, and again when they are others. Oracle: the tensors themselves."""

import gc
import weakref
from unittest import mock

import pytest
import torch
from torch.nn import BatchNorm1d, Linear, Sequential

from . import reg, tiny


@pytest.fixture
def network():
    with torch.inference_mode():
        return Sequential(Linear(3, 3), BatchNorm1d(3)).eval().requires_grad_(False)


def product(thaw, network):
    """J^T 1 at ones, through autograd, which refuses inference tensors."""
    with torch.inference_mode(False), thaw.over([network]), torch.enable_grad():
        x = torch.ones(2, 3, requires_grad=True)
        return torch.autograd.grad(network(x).sum(), x)[0].clone()


def closed_form(network):
    norm = network[1]
    return (norm.weight / (norm.running_var + norm.eps).sqrt() @ network[0].weight).expand(2, 3).clone()


def test_a_second_pass_does_not_look_through_the_network_again(pack, network):
    thaw = pack.import_("nodes.backward.thaw").Thaw()
    before = [*network.named_parameters(), *network.named_buffers()]
    with mock.patch.object(torch.nn.Module, "modules", autospec=True, side_effect=torch.nn.Module.modules) as looked:
        for _ in range(3):
            torch.testing.assert_close(product(thaw, network), closed_form(network))
    assert looked.call_count == 1
    after = [*network.named_parameters(), *network.named_buffers()]
    assert all(a is b for (_, a), (_, b) in zip(before, after, strict=True)) and all(t.is_inference() for _, t in after)


def moved(network):
    with torch.inference_mode():
        network[0].weight.data = 2 * network[0].weight  # what Module.to() does: the same Parameter, elsewhere


def replaced(network):
    with torch.inference_mode():
        network[0].weight = torch.nn.Parameter(3 * network[0].weight, requires_grad=False)


def buffered(network):
    with torch.inference_mode():
        network[1].running_var = network[1].running_var + 1


@pytest.mark.parametrize("change", [moved, replaced, buffered])
def test_a_weight_that_has_changed_is_found_again(pack, network, change):
    thaw = pack.import_("nodes.backward.thaw").Thaw()
    first = product(thaw, network)
    change(network)
    second = product(thaw, network)
    torch.testing.assert_close(second, closed_form(network))
    assert not torch.allclose(second, first)
    assert network[0].weight.untyped_storage().data_ptr() in thaw.storages


def test_weights_are_put_back_after_an_error(pack, network):
    thaw, weight = pack.import_("nodes.backward.thaw").Thaw(), network[0].weight
    with pytest.raises(ZeroDivisionError), torch.inference_mode(False), thaw.over([network]):
        assert network[0].weight is not weight and not network[0].weight.is_inference()
        _ = 1 / 0
    assert network[0].weight is weight


@pytest.mark.parametrize("memory", ["resident", "checkpoint"])
def test_a_finished_run_holds_no_weights(host, pack, monkeypatch, memory):
    """What was found dies with the run, not at the next collection of garbage: a model unloaded then gives its memory back."""
    module, born = pack.import_("nodes.backward.reverse"), []

    class Watched(module.Thaw):
        def __init__(self, *args):
            super().__init__(*args)
            born.append(weakref.ref(self))

    monkeypatch.setattr(module, "Thaw", Watched)
    t = tiny.build("sd15")
    model, trace = reg.apply(pack, t.patcher, engine="reverse", memory=memory)
    gc.disable()
    try:
        tiny.sample(t, model)
    finally:
        gc.enable()
    assert {row.engine for row in trace.last.rows} == {"reverse"}
    assert born and all(ref() is None for ref in born)
