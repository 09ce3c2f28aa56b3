"""Weights and conds made in inference mode, as tensors that autograd may save. Torch only."""

from contextlib import contextmanager

import torch

PLAIN = (torch.Tensor, torch.nn.Parameter)
PAGED = ("_v_weight", "_v_bias")  # where newer hosts keep what they have paged in
PADDING = 16  # elements that PyTorch may append to a row of a mask, and one more than it ever does


class Thaw:
    """Parameters and buffers as ordinary tensors without gradient, sharing memory, for the length of a `with` block.

    Loaders create weights in inference mode, and autograd refuses to save such tensors. An alias of the same storage
    is an ordinary tensor and costs nothing; but looking through a network for them takes a third of a small step, so they
    are made once, and again when a weight is another one or elsewhere. Where weights are paged, take a new one for every pass.
    """

    def __init__(self):
        self._roots = ()
        self._found = []  # (store, name, tensor, its address, alias or None)
        self.storages = frozenset()
        self._facts = {}

    @contextmanager
    def over(self, modules):
        """Within it the weights of `modules` are ordinary; enter outside of inference mode. Yields the addresses of their storages."""
        roots = tuple(modules)
        if not self._holds(roots):
            self._look(roots)
        swaps = [(store, name, tensor, alias) for store, name, tensor, _, alias in self._found if alias is not None]
        try:
            for store, name, _, alias in swaps:
                store[name] = alias
            yield self.storages
        finally:
            for store, name, tensor, _ in swaps:
                store[name] = tensor

    def fact(self, key, ask):
        """What `ask` says about the weights, asked again only when they have changed."""
        if key not in self._facts:
            self._facts[key] = ask()
        return self._facts[key]

    def _holds(self, roots) -> bool:
        """True while every weight is the one that was found, where it was found."""
        if len(roots) != len(self._roots) or any(a is not b for a, b in zip(roots, self._roots, strict=True)):
            return False
        return all(store.get(name) is tensor and tensor.data_ptr() == address for store, name, tensor, address, _ in self._found)

    def _look(self, roots):
        self._roots, self._found, self._facts, storages = roots, [], {}, set()
        for module in {id(m): m for root in roots for m in root.modules()}.values():
            paged = {name: vars(module)[name] for name in PAGED if vars(module).get(name) is not None}
            for store, held in ((module._parameters, module._parameters), (module._buffers, module._buffers), (vars(module), paged)):
                for name, tensor in held.items():
                    if type(tensor) not in PLAIN:
                        continue
                    if held is not paged:
                        storages.add(tensor.untyped_storage().data_ptr())
                    self._found.append((store, name, tensor, tensor.data_ptr(), _alias(tensor)))
        self.storages = frozenset(storages)


def thawed(modules):
    """`Thaw` for a single pass."""
    return Thaw().over(modules)


def _alias(tensor):
    # Subclasses (quantised weights) keep more than a storage: left alone, their layers have to cope.
    if type(tensor) not in PLAIN or not (tensor.is_inference() or tensor.requires_grad):
        return None
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return torch.nn.Parameter(alias, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else alias


def private_saved_tensors(storages):
    """Copies of what the graph saves: several networks (Flux, ControlNet) add in place to tensors saved before.

    Tensors in `storages`, the weights, are never written to and stay as they are; so do quantised ones, which have no storage.
    """

    def pack(tensor):
        return tensor if type(tensor) not in PLAIN or tensor.untyped_storage().data_ptr() in storages else private_copy(tensor)

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)


def private_copy(tensor):
    """A copy, laid out as the tensor is where rows are padded or elements repeated: on CUDA attention's backward pass counts
    on rows of a mask that start aligned, and a mask expanded over heads need not grow by it."""
    if tensor.ndim < 2 or tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.clone()
    span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    padded = tensor.stride(-1) == 1 and 0 < tensor.stride(-2) - tensor.shape[-1] < PADDING
    if span >= tensor.numel() and not padded:
        return tensor.clone()
    return tensor.as_strided((span,), (1,)).clone().as_strided(tensor.shape, tensor.stride())


def thawed_cond(cond):
    """A cond entry whose model inputs are ordinary tensors."""
    cond = cond.copy()
    if "model_conds" in cond:
        cond["model_conds"] = {k: _thawed_value(v) for k, v in cond["model_conds"].items()}
    return cond


def _thawed_value(value):
    inner = getattr(value, "cond", None)
    if isinstance(inner, torch.Tensor):
        return value._copy_with(inner.clone())
    if isinstance(inner, list) and all(isinstance(t, torch.Tensor) for t in inner):
        return value._copy_with([t.clone() for t in inner])
    return value


def control_modules(conds):
    """The networks behind the control nets, adapters and GLIGEN of a cond list."""
    found = []
    for cond in conds:
        if "gligen" in cond:
            found.append(cond["gligen"][1].model)
        control = cond.get("control")
        while control is not None:
            for value in vars(control).values():
                module = getattr(value, "model", value)  # a ModelPatcher holds its module as `model`
                if isinstance(module, torch.nn.Module):
                    found.append(module)
            control = getattr(control, "previous_controlnet", None)
    return found
