"""How much of a reverse pass stays in memory: decided from what is free, learned in the course of one run. Torch only."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from ..reg_core import jacobian
from .checkpoint import IN_PLACE, VERIFIED
from .thaw import Thaw

log = logging.getLogger("ComfyUI-REG")

FREE_SHARE = 0.7  # of the free memory that activations may take; the rest is for fragments and for what we cannot see
PASS_NEEDS = 3.0  # a backward pass through one block, in terms of what the host says a forward pass needs
CHECKPOINT_SHARE = 0.2  # of the weights' size that may be kept where checkpointing was asked for: half a GB for SD 1.5, a whole one for SDXL


@dataclass(frozen=True)
class Plan:
    """What one pass may keep, in bytes. `recompute` False: everything, without looking."""

    recompute: bool
    blocks: float = 0.0
    attention: float = 0.0
    arguments: float = 0.0  # of all blocks, as an earlier pass has told


class Recomputed(jacobian.JacobianError):
    """A block gave something else in its second pass."""


class ReverseMemory:
    """State of one sampling run. `mode`: Settings.memory. `copies`: True where the network is known to add in place.

    Errors that more memory, or another way, would cure are met by a smaller plan, noted once in `notes`; what is left is raised.
    """

    def __init__(self, mode: str = "auto", copies: bool = False):
        self.mode = mode
        self.copies = copies
        self.notes = []
        self.thaw = Thaw()
        self.rows = None  # samples in one backward pass; None: all
        self.last = None  # Plan of the last pass
        self._tight = False  # ran out of memory: keep nothing
        self._repeatable = True
        self._verified = False
        self._per_row = None  # (bytes of blocks, of attention) that one sample keeps
        self._arguments = 0.0  # of one sample, bytes

    def plan(self, free: float, required: float, weights: float, cast: bool, rows: int) -> Plan:
        """`free`: bytes; `required`: the host's estimate of a forward pass of `rows` samples; `weights`: bytes of the
        model; `cast`: weights are converted at use, and a graph would keep every converted one."""
        self.last = replace(self._plan(free, required, weights, cast, rows), arguments=rows * self._arguments)
        return self.last

    def _plan(self, free, required, weights, cast, rows):
        if not self._repeatable or (self.mode == "resident" and not self._tight):
            return Plan(False)
        if self._tight:
            return Plan(True)
        budget = max(0.0, FREE_SHARE * free - PASS_NEEDS * required)
        if self.mode == "checkpoint":
            budget = min(budget, CHECKPOINT_SHARE * weights)
        if cast:
            return Plan(True, 0.0, budget)
        if self._per_row is None:
            return Plan(True, budget / 2, budget)  # the first pass counts
        blocks, attention = (rows * size for size in self._per_row)
        if blocks + attention <= budget:
            return Plan(False)
        return Plan(True, max(0.0, budget - attention), budget)

    def verify(self) -> bool:
        """True while no second pass has been compared with its first."""
        return not self._verified

    def learn(self, recompute, rows: int) -> None:
        """From a finished pass (checkpoint.Recompute). Raises Recomputed where a block was not repeatable."""
        self._per_row = recompute.block_bytes / rows, recompute.attention_bytes / rows
        self._arguments = recompute.arguments / rows
        if recompute.verify and recompute.recomputed:
            if not (error := recompute.mismatch()) <= VERIFIED:
                raise Recomputed(f"a block's second pass differs by {error:.2g} from its first")
            self._verified = True

    def product(self, branches, x, sigma, alpha, cotangent):
        """(denoised, J^T u) as jacobian.reverse, by as many samples at a time as memory allows.

        `cotangent` as there; a function must treat samples one by one.
        """
        batch, parts, start = len(x), [], 0
        self._start_with_rows(branches, x)
        while start < batch:
            rows = slice(start, min(batch, start + (self.rows or batch)))
            try:
                parts.append(self._part(branches, x, sigma, alpha, cotangent, rows))
                start = rows.stop
                continue
            except RuntimeError as error:
                if not self._yield(error, branches, x, rows.stop - rows.start):
                    raise
            branches.free_cache()  # out of the handler, whose traceback holds the failed pass
        return tuple(parts[0] if len(parts) == 1 else (torch.cat(column) for column in zip(*parts, strict=True)))

    def _start_with_rows(self, branches, x):
        """Fewer samples from the start where even a checkpointed pass over all of them would not fit."""
        if self.rows is not None or len(x) == 1 or self.mode == "resident":
            return
        free, one = branches.free_memory(x), branches.memory_required(x[:1])
        fit = max(1, int(FREE_SHARE * free / max(1.0, PASS_NEEDS * one)))
        if fit < len(x) and branches.divisible():
            self.rows = fit
            self._note(f"reverse mode takes {fit} of {len(x)} samples at a time: {free / 2**20:.0f} MB are free")

    def _part(self, branches, x, sigma, alpha, cotangent, rows):
        everything = rows == slice(0, len(x))

        def own(denoised):
            if not callable(cotangent):
                return cotangent[rows]
            if everything:
                return cotangent(denoised)
            whole = torch.zeros_like(x, dtype=denoised.dtype)
            whole[rows] = denoised
            return cotangent(whole)[rows]

        with branches.differentiable("reverse", x, None if everything else rows):
            return jacobian.reverse(branches.cond, x[rows], sigma[rows], alpha[rows], own)

    def _yield(self, error, branches, x, rows) -> bool:
        """Change something so that the pass may work; False when there is nothing left to change."""
        if IN_PLACE in str(error) and not self.copies:
            self.copies = True  # costs a little memory and no accuracy: nothing to tell
            return True
        if isinstance(error, Recomputed) and self._repeatable:
            self._repeatable = False
            self._note(f"reverse mode keeps all activations: {error}")
            return True
        if not branches.out_of_memory(error):
            return False
        if self._repeatable and not self._tight:
            self._tight = True
            self._note("reverse mode ran out of memory: it keeps nothing between blocks from here on")
            return True
        if rows > 1 and branches.divisible():
            self.rows = rows // 2
            self._note(f"reverse mode ran out of memory: {self.rows} of {len(x)} samples at a time from here on")
            return True
        return False

    def _note(self, text):
        if text not in self.notes:
            self.notes.append(text)
            log.warning("REG: %s", text)


def rows_of(cond: dict, rows: slice) -> dict:
    """A cond entry for some rows of the batch, as ComfyUI would have repeated it for all of them."""
    cond = cond.copy()
    if "mask" in cond:
        cond["mask"] = _rows(cond["mask"], rows)
    cond["model_conds"] = {k: _value_rows(v, rows) for k, v in cond.get("model_conds", {}).items()}
    return cond


DIVISIBLE = ("CONDRegular", "CONDNoiseShape", "CONDCrossAttn", "CONDList", "CONDConstant")


def divisible(cond: dict) -> bool:
    """True when `rows_of` is known to be right: nothing computed for the whole batch, and no model that mixes samples."""
    if any(cond.get(key) is not None for key in ("control", "hooks", "gligen")):
        return False
    values = cond.get("model_conds", {})
    # A video model whose frames are the batch says how many there are.
    return "num_video_frames" not in values and all(type(v).__name__ in DIVISIBLE for v in values.values())


def _value_rows(value, rows):
    inner = getattr(value, "cond", None)
    if isinstance(inner, torch.Tensor) and type(value).__name__ != "CONDConstant":
        return value._copy_with(_rows(inner, rows))
    if isinstance(inner, list) and all(isinstance(t, torch.Tensor) for t in inner):
        return value._copy_with([_rows(t, rows) for t in inner])
    return value


def _rows(tensor, rows):
    if tensor.ndim == 0 or tensor.shape[0] == 1:
        return tensor
    return tensor[[i % tensor.shape[0] for i in range(rows.start, rows.stop)]]
