"""Weights that were made in inference mode as tensors that autograd may save, and copies of what it saves."""

from contextlib import contextmanager

import torch

PLAIN = (torch.Tensor, torch.nn.Parameter)  # other classes (quantised weights) keep more than a storage
PADDING = 16  # elements that PyTorch may append to a row of a mask, and one more than it ever does


class Thaw:
    """Parameters and buffers as ordinary tensors without gradient, for the length of a `with` block.

    Loaders create weights in inference mode, and autograd refuses to save such tensors. An alias of the same
    storage is an ordinary tensor and costs nothing. The search for weights takes time: it is done once, and
    again when a weight is another one or elsewhere. `further`: names of more weights in layers.
    """

    def __init__(self, further: tuple[str, ...] = ()):
        self.further = further
        self.storages: frozenset[int] = frozenset()
        self._modules: tuple = ()
        self._found = []  # (dict that holds it, name, tensor, its address, alias or None)

    @contextmanager
    def over(self, modules):
        """Enter outside of inference mode. Yields the addresses of the weights' storages."""
        modules = tuple(modules)
        if not self._holds(modules):
            self._look(modules)
        swaps = [found for found in self._found if found[-1] is not None]
        try:
            for owner, name, _, _, alias in swaps:
                owner[name] = alias
            yield self.storages
        finally:
            for owner, name, tensor, _, _ in swaps:
                owner[name] = tensor

    def _holds(self, modules) -> bool:
        """True while every weight is the one that was found, where it was found."""
        same = [id(module) for module in modules] == [id(module) for module in self._modules]
        return same and all(d.get(name) is t and t.data_ptr() == at for d, name, t, at, _ in self._found)

    def _look(self, modules):
        self._modules, self._found, storages = modules, [], set()
        for module in {id(m): m for root in modules for m in root.modules()}.values():
            held = [(module._parameters, name) for name in module._parameters]
            held += [(module._buffers, name) for name in module._buffers]
            held += [(vars(module), name) for name in self.further if name in vars(module)]
            for owner, name in held:
                if type(tensor := owner[name]) in PLAIN:
                    self._found.append((owner, name, tensor, tensor.data_ptr(), _alias(tensor)))
                    if owner is not vars(module):  # those may be taken back: never counted on
                        storages.add(tensor.untyped_storage().data_ptr())
        self.storages = frozenset(storages)


def _alias(tensor):
    if not (tensor.is_inference() or tensor.requires_grad):
        return None
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return torch.nn.Parameter(alias, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else alias


def private_saved_tensors(storages):
    """Autograd saves copies: several networks (Flux, ControlNet) add in place to tensors saved before.

    Weights, whose `storages` are given, are never written to and stay as they are; so do quantised ones.
    """

    def pack(tensor):
        weight = type(tensor) not in PLAIN or tensor.untyped_storage().data_ptr() in storages
        return tensor if weight else private_copy(tensor)

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)


def private_copy(tensor):
    """A copy with the tensor's layout where rows are padded or elements repeated.

    On CUDA attention's backward pass counts on aligned rows of a mask. An expanded mask need not grow.
    """
    if tensor.ndim < 2 or tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.clone()
    span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    padded = tensor.stride(-1) == 1 and 0 < tensor.stride(-2) - tensor.shape[-1] < PADDING
    if span >= tensor.numel() and not padded:
        return tensor.clone()
    return tensor.as_strided((span,), (1,)).clone().as_strided(tensor.shape, tensor.stride())
