"""Blocks of a network whose activations are dropped after the forward pass and computed again in the backward pass. Torch only.

Not torch.utils.checkpoint, for five reasons: networks that add in place to what they saved (Flux, HunyuanVideo, ControlNet)
need copies on both passes; a block must see transformer_options as they were at its call; attention, dear in time and
cheap in memory, is kept; weights are never dropped, so that recomputation ends at the last activation and not at the
last weight; and as many blocks as fit keep everything.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager

import torch
from torch.autograd.graph import saved_tensors_hooks

from .thaw import private_copy

IN_PLACE = "modified by an inplace operation"  # as PyTorch words it
BLOCK_KEEPS = 16.0  # times the size of its arguments: what a block is taken to keep, until one was seen
VERIFIED = 1e-2  # relative difference between a block's first and second pass; kernels may sum in another order


class Recompute:
    """One differentiated pass. Holds state of that pass only; `attention` stands in for the host's attention.

    `weights`: addresses of storages that are never dropped. `copies`: copy what may be written to in place.
    `block_budget`, `attention_budget`: bytes that whole blocks and attention may keep, the arguments of all blocks among them; `expected`: what those will
    be, if an earlier pass has told. `tick` is called once a block and may raise. `verify`: compare the second pass of every block with its first.
    Afterwards `block_bytes` and `attention_bytes` are what a pass without recomputation would have kept in blocks.
    """

    def __init__(self, attention, weights=frozenset(), copies=False, block_budget=0.0, attention_budget=0.0, expected=0.0, verify=False, tick=lambda: None):
        self._attention = attention
        self.weights, self.copies, self.verify, self.tick = weights, copies, verify, tick
        self.block_budget, self.attention_budget, self.expected = block_budget, attention_budget, expected
        self._blocks = self._calls = 0
        self.block_bytes = self.attention_bytes = self.kept_blocks = self.kept_attention = self.arguments = 0
        self.recomputed = 0
        self._keeps = 0.0  # the most that a block kept, in terms of its arguments
        self._segment = None  # the block that runs now
        self._shared = {}  # id of a tensor without gradient -> (it, its version, its copy): blocks share rotary tables
        self._checks = []

    @contextmanager
    def over(self, modules):
        """Within it calls of `modules` go through here; their forward is put back afterwards."""
        replaced, modules = [], tuple(modules)
        self._blocks = len(modules)
        try:
            for module in modules:
                replaced.append((module, vars(module).get("forward")))
                vars(module)["forward"] = self._guarded(module.forward)
            yield self
        finally:
            for module, before in reversed(replaced):
                if before is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = before
            self._shared.clear()

    def _guarded(self, forward):
        def call(*args, **kwargs):
            self.tick()
            wanted = self._segment is None and torch.is_grad_enabled() and any(t.requires_grad for t in _tensors([*args, *kwargs.values()]))
            if not wanted:
                return forward(*args, **kwargs)
            return _Segment(self, forward, args, kwargs).first(args, kwargs)

        return call

    def attention(self, func, q, k, v, *args, **kwargs):
        """Attention whose result is kept for the second pass, while the budget lasts."""
        segment = self._segment
        if segment is None:
            return self._attention(func, q, k, v, *args, **kwargs)
        return segment.attend(lambda: self._attention(func, q, k, v, *args, **kwargs))

    def mismatch(self) -> float:
        """Largest relative difference between first and second passes (one device synchronisation); 0 if none was compared."""
        if not self._checks:
            return 0.0
        first, second = (torch.stack(column) for column in zip(*self._checks, strict=True))
        return float(((first - second).abs() / first.abs().clamp_min(1e-12)).nan_to_num(0).max())

    def is_weight(self, tensor):
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return True  # quantised ones have no storage of their own
        return tensor.untyped_storage().data_ptr() in self.weights

    def kept(self, tensor):
        return _Kept(private_copy(tensor.detach()) if self.copies else tensor.detach())

    def all_arguments(self) -> float:
        """Bytes that the arguments of all blocks will take; without an earlier pass to tell, as if the ones to come were like those so far."""
        return max(self.arguments, self.expected or self.arguments * self._blocks / max(1, self._calls))

    def holds(self, size: int) -> bool:
        """Count a block with arguments of `size` bytes. Whether it may keep everything: as many do as surely fit."""
        self.arguments += size
        self._calls += 1
        return self.all_arguments() + self.kept_blocks + (self._keeps or BLOCK_KEEPS) * size <= self.block_budget

    def saw(self, size: int, kept: int) -> None:
        """A block with arguments of `size` bytes wanted to keep so many."""
        self._keeps = max(self._keeps, kept / max(1, size))

    def held(self, value):
        """An argument as it is now, for the second pass. With copies on it is safe from writes."""
        if isinstance(value, torch.Tensor):
            if not self.copies:
                return value
            if value.requires_grad:
                return value.clone()
            known = self._shared.get(id(value))
            if known is None or known[1] != value._version:
                known = self._shared[id(value)] = (value, value._version, value.clone())
            return known[2]
        if type(value) is dict:
            return value.copy()  # networks write the block's number into transformer_options as they go
        return type(value)(self.held(v) for v in value) if type(value) in (list, tuple) else value


class _Kept:
    """A tensor kept for backward, with the check autograd leaves out under hooks."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor):
        self.tensor, self.version = tensor, tensor._version

    def get(self):
        if self.tensor._version != self.version:
            raise RuntimeError(f"a tensor kept for the backward pass has been {IN_PLACE}")
        return self.tensor


class _Place:
    """Stands in a graph for a dropped tensor; dies with the node that wants it."""

    __slots__ = ("__weakref__", "check")

    def __init__(self, check):
        self.check = check


class _Enough(BaseException):
    """Ends a second pass at the last tensor that is wanted. No Exception: blocks that catch those must not."""


class _Segment:
    """One call of one block."""

    def __init__(self, owner, forward, args, kwargs):
        self.owner, self.forward = owner, forward
        self.args, self.kwargs = owner.held(args), {k: owner.held(v) for k, v in kwargs.items()}
        self.versions = [(t, t._version) for t in _tensors([*self.args, *self.kwargs.values()])]
        self.size, self.wanted = sum(_bytes(t) for t, _ in self.versions if t.requires_grad), 0
        self.whole = owner.holds(self.size)
        self.places, self.values = [], weakref.WeakKeyDictionary()
        self.stash = []  # of attention calls: (result, whether it has a gradient), or None where it is computed again
        self.replayed = None  # in the second pass: how many attention calls were met

    def first(self, args, kwargs):
        with self._running(), saved_tensors_hooks(self._pack, self._unpack):
            result = self.forward(*args, **kwargs)
        self.owner.saw(self.size, self.wanted)
        return result

    def _pack(self, tensor):
        owner = self.owner
        if owner.is_weight(tensor):
            return tensor
        size = _bytes(tensor)
        owner.block_bytes += size
        self.wanted += size
        if self.whole:
            owner.kept_blocks += size
            return owner.kept(tensor)
        place = _Place(_fingerprint(tensor) if owner.verify else None)
        self.places.append(weakref.ref(place))
        return place

    def _unpack(self, packed):
        if isinstance(packed, torch.Tensor):
            return packed
        if isinstance(packed, _Kept):
            return packed.get()
        if packed not in self.values:
            self._second()
        return self.values[packed].get()

    def _second(self):
        owner, count = self.owner, 0

        def collect(tensor):
            nonlocal count
            if owner.is_weight(tensor):
                return tensor
            place = self.places[count]() if count < len(self.places) else None
            count += 1
            if place is not None:
                if place.check is not None:
                    owner._checks.append((place.check, _fingerprint(tensor)))
                self.values[place] = owner.kept(tensor)
            if count >= len(self.places):
                raise _Enough
            return None

        owner.tick()
        owner.recomputed += 1
        if any(t._version != version for t, version in self.versions):
            raise RuntimeError(f"an argument of a block has been {IN_PLACE}")
        args, kwargs = self.args, self.kwargs
        if owner.copies:
            args, kwargs = _private(args), {k: _private(v) for k, v in kwargs.items()}
        self.replayed = 0
        try:
            with self._running(), torch.enable_grad(), saved_tensors_hooks(collect, lambda packed: packed):
                self.forward(*args, **kwargs)
        except _Enough:
            return
        finally:
            self.replayed = None
        raise RuntimeError(f"a block saved {len(self.places)} tensors in its first pass and {count} in its second")

    def attend(self, run):
        owner = self.owner
        if self.replayed is not None:
            self.replayed += 1
            entry = self.stash[self.replayed - 1] if self.replayed <= len(self.stash) else None
            if entry is None:
                return run()
            result, needs_grad = entry
            # Blocks may write to it, and PyTorch forbids that on a leaf.
            return result.get().requires_grad_().clone() if needs_grad else result.get().clone()
        if self.whole or owner.all_arguments() + owner.kept_attention >= owner.attention_budget:
            before = owner.block_bytes
            result = run()
            owner.attention_bytes += owner.block_bytes - before
            owner.block_bytes = before
            self.stash.append(None)
            return result

        def pack(tensor):
            if owner.is_weight(tensor):
                return tensor
            size = _bytes(tensor)
            self.wanted += size
            owner.attention_bytes += size
            owner.kept_attention += size
            return owner.kept(tensor)

        with saved_tensors_hooks(pack, lambda packed: packed if isinstance(packed, torch.Tensor) else packed.get()):
            result = run()
        self.stash.append((owner.kept(result), result.requires_grad))
        return result

    @contextmanager
    def _running(self):
        before, self.owner._segment = self.owner._segment, self
        try:
            yield
        finally:
            self.owner._segment = before


def _tensors(value):
    """Tensors among arguments. Dicts are options and stay closed."""
    if isinstance(value, torch.Tensor):
        yield value
    elif type(value) in (list, tuple):
        for inner in value:
            yield from _tensors(inner)


def _private(value):
    """A second pass may write into its arguments; those without gradient belong to other blocks as well."""
    if isinstance(value, torch.Tensor):
        return value if value.requires_grad else value.clone()
    return type(value)(_private(v) for v in value) if type(value) in (list, tuple) else value


def _bytes(tensor):
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())  # expanded tensors take less


def _fingerprint(tensor):
    return torch.linalg.vector_norm(tensor.detach(), 1, dtype=torch.float32) if tensor.is_floating_point() else None
