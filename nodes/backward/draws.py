"""Random numbers that a network draws as it runs (HyperTile, token merging), drawn again."""

from contextlib import contextmanager

import torch


class Draws:
    """The generators of the CPU and of `device` as they stand now."""

    def __init__(self, device: torch.device):
        self._cuda = [device] if device.type == "cuda" else []
        self._states = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in self._cuda]

    @contextmanager
    def again(self):
        """Within it the same numbers are drawn as from then on, and nothing is taken from the generators."""
        with torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self._states[0])
            for d, state in zip(self._cuda, self._states[1], strict=True):
                torch.cuda.set_rng_state(state, d)
            yield
