"""A backward pass that fits into memory: all activations are kept, or blocks are computed twice."""

import logging
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from ...reg_core import jacobian
from ...reg_core.checks import one_of
from ...reg_core.point import Point
from .blocks import blocks
from .recompute import IN_PLACE, Recompute
from .thaw import Thaw, private_saved_tensors

log = logging.getLogger("ComfyUI-REG")

FREE_SHARE = 0.5  # of the free memory that activations may take; the rest is for the pass itself
VERIFIED = 1e-2  # relative difference of a block's second pass: kernels may sum in another order
MODES = ("auto", "resident", "checkpoint")
MEMORY_WORDS = "out of memory|can't allocate memory"


@dataclass(frozen=True, eq=False)
class Network:
    """What a backward pass needs to know of the host's network.

    `denoise`: (x, sigma) -> D_c, of operators with a derivative. `modules`: whose weights it reads. `paged`:
    names of further weights, where those are taken back once a layer has run. `free()`: bytes of memory.
    `tick()` is called once a block and may raise.
    """

    denoise: jacobian.Denoiser
    modules: tuple
    paged: tuple
    free: Callable[[], float]
    tick: Callable[[], None]


class NotRepeatable(jacobian.JacobianError):
    """A block gave something else in its second pass."""


class BackwardPass:
    """What one sampling run has learned about its backward passes.

    `mode`: keep all activations ("resident"), those between blocks ("checkpoint"), or what fits ("auto").
    Where another way helps against an error it is taken; `notes` say so. Every other error is raised, and
    of ways that were tried in vain nothing is said.
    """

    def __init__(self, mode: str = "auto"):
        one_of("memory", mode, MODES)
        self.mode = mode
        self.notes: list[str] = []
        self._copies = False  # the network adds in place to what autograd has saved
        self._verified, self._repeatable = False, True  # second passes gave the same: seen, not refuted
        self._per_sample = None  # bytes of activations
        self._thaw = None
        self._blocks = None  # (modules, their repeated blocks)

    def product(self, network: Network, point: Point, cotangent) -> tuple[torch.Tensor, torch.Tensor]:
        """(D_c, J^T u) as jacobian.reverse."""
        changes = []
        while True:
            try:
                result = self._pass(network, point, cotangent)
                break
            except RuntimeError as error:
                if not self._has_another_way(error, changes):
                    raise
        for note in changes:
            log.warning("REG: %s", note)
        self.notes += changes
        return result

    def _pass(self, network, point, cotangent):
        if self._thaw is None or network.paged:
            self._thaw = Thaw(network.paged)
        copies, recompute = self._copies or bool(network.paged), None
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            weights = stack.enter_context(self._thaw.over(network.modules))
            if not self._fits(network, len(point.x)):
                recompute = Recompute(weights, copies, not self._verified, network.tick)
                stack.enter_context(recompute.over(self._blocks_of(network.modules)))
            if copies:
                stack.enter_context(private_saved_tensors(weights))
            result = jacobian.reverse(network.denoise, point, cotangent)
        if recompute is not None:
            self._learn(recompute, len(point.x))
        return result

    def _fits(self, network, samples) -> bool:
        """True where all activations are kept."""
        if self.mode != "auto" or self._per_sample is None:
            return self.mode == "resident"
        return samples * self._per_sample <= FREE_SHARE * network.free()

    def _blocks_of(self, modules):
        if self._blocks is None or self._blocks[0] != modules:
            self._blocks = modules, [block for module in modules for block in blocks(module)]
        return self._blocks[1]

    def _learn(self, recompute, samples) -> None:
        self._per_sample = recompute.activations / samples
        if recompute.compared:
            if not (difference := recompute.mismatch()) <= VERIFIED:
                raise NotRepeatable(f"a block's second pass differs by {difference:.2g} from its first")
            self._verified = True

    def _has_another_way(self, error, changes: list) -> bool:
        """Change something so that the pass may work, and note it; False when nothing is left to change."""
        said = re.search(MEMORY_WORDS, str(error).lower())
        out_of_memory = said or isinstance(error, torch.cuda.OutOfMemoryError)
        if IN_PLACE in str(error) and not self._copies:
            self._copies = True  # costs a little memory and no accuracy: nothing to tell
            return True
        if isinstance(error, NotRepeatable):
            self.mode, self._repeatable = "resident", False
            changes.append(f"reverse mode keeps all activations: {error}")
        elif out_of_memory and self._repeatable and self.mode != "checkpoint":
            self.mode = "checkpoint"
            changes.append("reverse mode ran out of memory: blocks are computed twice from here on")
        else:
            return False
        return True
