"""A call of a network of diffusers, to be made again for some of its rows or with another x."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor


class NetworkCall:
    """One network call's arguments by name.

    Raises ValueError for a network that is not called with one latent tensor and a timestep."""

    def __init__(self, module, args: tuple, kwargs: dict):
        self.module = module
        signature = inspect.signature(type(getattr(module, "_orig_mod", module)).forward)  # compiled or not
        bound = signature.bind(module, *args, **kwargs).arguments
        named = {name: value for name, value in bound.items() if name not in ("self", "kwargs")}
        self.args = named | bound.get("kwargs", {})
        self.input = next(iter(self.args))  # `sample` of a UNet, `hidden_states` of a transformer
        if not isinstance(self.x, Tensor) or not isinstance(self.args.get("timestep"), (Tensor, int, float)):
            raise ValueError(f"{type(module).__name__} is not called with one latent tensor and a timestep")

    @property
    def x(self) -> Tensor:
        return self.args[self.input]

    @property
    def timestep(self) -> Tensor:
        return torch.as_tensor(self.args["timestep"], device=self.x.device)

    def rows(self, part: slice) -> NetworkCall:
        """This call for a part of its batch: whatever has as many rows as x is cut alike."""
        call = object.__new__(NetworkCall)
        call.module, call.input = self.module, self.input
        call.args = {name: _cut(value, len(self.x), part) for name, value in self.args.items()}
        return call

    def run(self, x: Tensor) -> Tensor:
        """The network's output at another x."""
        # .forward: what offloading put in its place runs, the hook itself does not run again.
        return sample_of(self.module.forward(**(self.args | {self.input: x})))


def sample_of(output) -> Tensor:
    """The tensor in a network's output. Raises ValueError for anything else."""
    sample = output if isinstance(output, Tensor) else output[0]
    if not isinstance(sample, Tensor):
        raise ValueError(f"the network returned {type(sample).__name__}, not one tensor")
    return sample


def with_sample(output, sample: Tensor):
    """The output with another tensor in it."""
    if isinstance(output, Tensor):
        return sample
    return (sample, *output[1:]) if isinstance(output, tuple) else type(output)(sample=sample)


def _cut(value, rows: int, part: slice):
    if isinstance(value, Tensor):
        return value[part] if value.ndim and len(value) == rows else value
    if isinstance(value, (list, tuple)):
        return type(value)(_cut(item, rows, part) for item in value)
    if isinstance(value, dict):
        return {name: _cut(item, rows, part) for name, item in value.items()}
    return value
