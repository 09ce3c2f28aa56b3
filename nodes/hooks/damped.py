"""A worse version of a model, for autoguidance: its blocks damped for the time of a pass, its weights
shared."""

import torch

from ..host.options import WrappersMP

KEY = "reg_damped"


def damped_model(model, damping: float):
    """A MODEL that shares the weights and runs with every block's layers damped: out -> bias + (1 - damping)
    (out - bias).

    Costs no memory: forward hooks for the time of the pass, on the layers of repeated blocks; the layers that
    read and write latents stay as they are. Raises ValueError for a model without such layers."""
    if not any(True for _ in _block_layers(model.model.diffusion_model)):
        raise ValueError(
            f"REGWeakModel: {type(model.model.diffusion_model).__name__} has no repeated blocks of linear or convolution layers"
        )
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
        handles = [
            layer.register_forward_hook(self._damp)
            for layer in _block_layers(executor.class_obj.diffusion_model)
        ]
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
    """Linear and convolution layers inside ModuleLists, each once, without those as narrow as latents."""
    seen = set()  # lists are nested: a UNet's transformer blocks are in two
    for parent in network.modules():
        if isinstance(parent, torch.nn.ModuleList):
            for layer in parent.modules():
                weight = getattr(layer, "weight", None)
                if (
                    id(layer) in seen
                    or not isinstance(weight, torch.Tensor)
                    or isinstance(layer, torch.nn.Embedding)
                ):
                    continue
                if weight.ndim >= 2 and min(weight.shape[:2]) >= 12:
                    seen.add(id(layer))
                    yield layer
