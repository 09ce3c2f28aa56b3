"""Blocks of a network whose activations are dropped after the forward pass and computed again.

torch.utils.checkpoint is not enough. Networks that add in place to what they saved (Flux, HunyuanVideo,
ControlNet) need copies in the second pass too. A block must see the options of its call as they were. And a
second pass that differs from the first (a patch that counts calls) must be noticed.
"""

import weakref
from contextlib import contextmanager

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map_only

from .draws import Draws
from .thaw import PLAIN, private_copy

IN_PLACE = "modified by an inplace operation"  # as PyTorch words it


class Recompute:
    """One differentiated pass.

    `weights`: addresses of storages that are never dropped. `copies`: copy what may be written to in place.
    `verify`: compare each block's second pass with its first. `tick` is called once a block and may raise.
    Afterwards `activations` are the bytes that a pass without recomputation would have kept in blocks.
    """

    def __init__(self, weights=frozenset(), copies=False, verify=False, tick=lambda: None):
        self.weights, self.copies, self.verify, self.tick = weights, copies, verify, tick
        self.activations = 0
        self.running = False  # inside of a block, or of its second pass
        self._clones = {}  # of arguments without gradient: (id, version) -> (it, its copy)
        self.compared = []  # fingerprints of tensors in first and second passes

    @contextmanager
    def over(self, modules):
        """Within it calls of `modules` go through here; their forward is put back afterwards."""
        replaced = []
        try:
            for module in modules:
                replaced.append((module, vars(module).get("forward")))
                vars(module)["forward"] = self._guarded(module.forward)
            yield self
        finally:
            for module, before in reversed(replaced):
                del vars(module)["forward"]
                if before is not None:
                    vars(module)["forward"] = before

    def _guarded(self, forward):
        def call(*args, **kwargs):
            self.tick()
            grad = any(getattr(leaf, "requires_grad", False) for leaf in tree_leaves((args, kwargs)))
            if self.running or not (grad and torch.is_grad_enabled()):
                return forward(*args, **kwargs)
            return _Block(self, forward, args, kwargs).first(args, kwargs)

        return call

    def mismatch(self) -> float:
        """Largest relative difference between first and second passes (one device synchronisation)."""
        first, second = (torch.stack(column) for column in zip(*self.compared, strict=True))
        return float(((first - second).abs() / first.abs().clamp_min(1e-12)).nan_to_num(0).max())

    def is_weight(self, tensor) -> bool:
        return type(tensor) not in PLAIN or tensor.untyped_storage().data_ptr() in self.weights

    def held(self, tensor):
        """An argument of a block as it is now, for the second pass. With copies on it is safe from writes."""
        if not self.copies or tensor.is_inference():  # nobody may write to those here
            return tensor
        if tensor.requires_grad:
            return tensor.clone()
        state = id(tensor), tensor._version
        if state not in self._clones:  # blocks share rotary tables
            self._clones[state] = tensor, tensor.clone()
        return self._clones[state][1]


class _Place:
    """Stands in a graph for a dropped tensor; dies with the node that wants it."""

    __slots__ = ("__weakref__", "fingerprint")

    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


class _Enough(BaseException):
    """Ends a second pass at the last tensor that is wanted. No Exception: blocks may catch those."""


class _Block:
    """One call of one block."""

    def __init__(self, owner, forward, args, kwargs):
        self.owner, self.forward = owner, forward
        # Dicts are copied: networks write the block's number into their options as they go.
        self.given = tree_map_only(torch.Tensor, owner.held, (args, kwargs))
        tensors = [leaf for leaf in tree_leaves(self.given) if isinstance(leaf, torch.Tensor)]
        self.draws = Draws(next(t.device for t in tensors if t.requires_grad))
        self.versions = [(t, t._version) for t in tensors if not t.is_inference()]
        self.places, self.found = [], weakref.WeakKeyDictionary()

    def first(self, args, kwargs):
        return self._run(args, kwargs, self._drop, self._bring_back)

    def _run(self, args, kwargs, pack, unpack):
        self.owner.running = True
        try:
            with torch.enable_grad(), saved_tensors_hooks(pack, unpack):
                return self.forward(*args, **kwargs)
        finally:
            self.owner.running = False

    def _drop(self, tensor):
        if self.owner.is_weight(tensor):
            return tensor
        self.owner.activations += _bytes(tensor)
        place = _Place(_fingerprint(tensor) if self.owner.verify else None)
        self.places.append(weakref.ref(place))
        return place

    def _bring_back(self, packed):
        if not isinstance(packed, _Place):
            return packed
        if packed not in self.found:
            self._second()
        tensor, version = self.found[packed]
        if tensor._version != version:  # autograd leaves this check out under hooks
            raise RuntimeError(f"a tensor kept for the backward pass has been {IN_PLACE}")
        return tensor

    def _second(self):
        owner, count = self.owner, 0

        def collect(tensor):
            nonlocal count
            if owner.is_weight(tensor):
                return tensor
            place = self.places[count]() if count < len(self.places) else None
            count += 1
            if place is not None:
                if place.fingerprint is not None:
                    owner.compared.append((place.fingerprint, _fingerprint(tensor)))
                tensor = private_copy(tensor.detach()) if owner.copies else tensor.detach()
                self.found[place] = tensor, tensor._version
            if count >= len(self.places):
                raise _Enough
            return None

        owner.tick()
        if any(t._version != version for t, version in self.versions):
            raise RuntimeError(f"an argument of a block has been {IN_PLACE}")
        args, kwargs = self.given
        if owner.copies:  # the second pass may write into arguments that other blocks share
            private = lambda t: t if t.requires_grad else t.clone()  # noqa: E731
            args, kwargs = tree_map_only(torch.Tensor, private, self.given)
        try:
            with self.draws.again():
                self._run(args, kwargs, collect, lambda packed: packed)
        except _Enough:
            return
        raise RuntimeError(f"a block saved {len(self.places)} tensors, and {count} in its second pass")


def _bytes(tensor):
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())  # expanded: less


def _fingerprint(tensor):
    if tensor.is_floating_point():
        wide = torch.promote_types(tensor.dtype, torch.float32)
        return torch.linalg.vector_norm(tensor.detach(), 1, dtype=wide)
    return None
