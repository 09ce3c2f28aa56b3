"""A worse version of a model, for autoguidance: its blocks damped for the time of a pass, its weights shared."""

from __future__ import annotations

import torch

from .host import WrappersMP

KEY = "reg_damped"


def damped_model(model, damping: float):
    """A MODEL that shares the weights and runs with every block's layers damped: out -> bias + (1 - damping) (out - bias).

    Costs no memory: forward hooks for the time of the pass, on the layers of repeated blocks; the layers that read
    and write latents stay as they are. Raises ValueError for a model without such layers.
    """
    layers = [m for m in _block_layers(model.model.diffusion_model)]
    if not layers:
        raise ValueError(f"REGWeakModel: {type(model.model.diffusion_model).__name__} has no repeated blocks of linear or convolution layers")
    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    if damping == 0:
        return patched
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _Damped(1 - damping))
    return patched


class _Damped:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, executor, *args, **kwargs):
        handles = [layer.register_forward_hook(self._damp) for layer in _block_layers(executor.class_obj.diffusion_model)]
        try:
            return executor(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _damp(self, layer, inputs, out):
        bias = getattr(layer, "bias", None)
        if bias is None:
            return self.factor * out
        bias = bias.to(out).reshape(-1, *[1] * (out.ndim - 2)) if layer.weight.ndim > 2 else bias.to(out)
        return bias + self.factor * (out - bias)


def _block_layers(network):
    """Linear and convolution layers inside ModuleLists, without those as narrow as latents."""
    for parent in network.modules():
        if isinstance(parent, torch.nn.ModuleList):
            for layer in parent.modules():
                weight = getattr(layer, "weight", None)
                if isinstance(weight, torch.Tensor) and weight.ndim >= 2 and min(weight.shape[:2]) >= 12 and not isinstance(layer, torch.nn.Embedding):
                    yield layer

