"""A worse version of a model, for autoguidance: its blocks are damped, its weights are shared."""

import torch

from ..host.options import WrappersMP

KEY = "reg_damped"


def damped_model(model, damping: float):
    """A MODEL whose block layers put out bias + (1 - damping) (out - bias). It takes no memory.

    Layers outside of repeated blocks, which read and write latents, stay as they are. Raises ValueError for a
    model without such blocks.
    """
    network = model.model.diffusion_model
    if not _block_layers(network):
        raise ValueError(f"REGWeakModel: {type(network).__name__} has no repeated blocks of linear layers")
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
        layers = _block_layers(executor.class_obj.diffusion_model)
        handles = [layer.register_forward_hook(self._damp) for layer in layers]
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
    lists = (parent for parent in network.modules() if isinstance(parent, torch.nn.ModuleList))
    layers = {id(layer): layer for parent in lists for layer in parent.modules()}  # lists are nested
    return [layer for layer in layers.values() if _is_wide(layer)]


def _is_wide(layer):
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or isinstance(layer, torch.nn.Embedding):
        return False
    return weight.ndim >= 2 and min(weight.shape[:2]) >= 12
