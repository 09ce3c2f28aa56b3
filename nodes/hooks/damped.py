"""A worse version of a model, for autoguidance: its blocks are damped, its weights are shared."""

import torch

from ..host.options import WrappersMP

KEY = "reg_damped"


def damped_model(model, damping: float):
    """A MODEL whose block layers put out bias + (1 - damping) (out - bias). It takes no memory.

    Layers outside of repeated blocks stay as they are. Raises ValueError for a model without such blocks.
    """
    network = model.model.diffusion_model
    if not _block_layers(network):
        raise ValueError(f"REGWeakModel: {type(network).__name__} has no repeated blocks of linear layers")
    patched, factor = model.clone(), 1 - damping
    patched.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)

    def damp(layer, inputs, out):
        bias = getattr(layer, "bias", None)
        if bias is None:
            return factor * out
        bias = bias.to(out)
        bias = bias.reshape(-1, *[1] * (out.ndim - 2)) if layer.weight.ndim > 2 else bias
        return bias + factor * (out - bias)

    def apply_model(executor, *args, **kwargs):
        layers = _block_layers(executor.class_obj.diffusion_model)
        handles = [layer.register_forward_hook(damp) for layer in layers]
        try:
            return executor(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    if damping > 0:
        patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    return patched


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
