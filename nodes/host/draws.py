"""Random numbers that are drawn inside a network (HyperTile's tiles, token merging)."""

from contextlib import contextmanager

import torch


class Draws:
    """The first pass draws as it would without us. Later ones repeat its draws and take nothing from the
    generators.

    Otherwise a finite difference would compare two networks, and our passes would change the sampler's noise.
    """

    def __init__(self):
        self._before = None  # of the first pass: states of the CPU's and the device's generator

    @contextmanager
    def repeated(self, device: torch.device):
        cuda = [device] if device.type == "cuda" else []
        if self._before is None:
            self._before = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in cuda]
            yield
            return
        with torch.random.fork_rng(devices=cuda):
            torch.set_rng_state(self._before[0])
            for d, state in zip(cuda, self._before[1], strict=True):
                torch.cuda.set_rng_state(state, d)
            yield
