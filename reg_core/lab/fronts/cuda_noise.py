"""The normal numbers that `torch.randn` draws on a CUDA card, on any machine.

So a point of a GPU is sampled again from its own noise where there is no GPU. Source: Philox 4x32-10 (Salmon
et al. 2011) and Box-Muller, dealt to threads as torch's kernel does."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
THREADS_A_BLOCK = 256
H200_BLOCKS = 132 * 8  # multiprocessors, each with room for 8 blocks
LOW = np.uint64(0xFFFFFFFF)


def philox(counter: tuple[np.ndarray, ...], seed: int) -> tuple[np.ndarray, ...]:
    """Four uniform 32-bit words [N] of four counter words [N], each held in uint64."""
    a, b, c, d = counter
    key = [seed & int(LOW), seed >> 32]
    for _ in range(ROUNDS):
        first, second = a * np.uint64(MULTIPLIERS[0]), c * np.uint64(MULTIPLIERS[1])
        a, b = (second >> np.uint64(32)) ^ b ^ np.uint64(key[0]), second & LOW
        c, d = (first >> np.uint64(32)) ^ d ^ np.uint64(key[1]), first & LOW
        key = [(k + step) & int(LOW) for k, step in zip(key, KEY_STEPS, strict=True)]
    return a, b, c, d


def box_muller(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two normal numbers [N], float32, of two uniform words [N]."""
    u, v = ((word.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32) for word in (x, y))
    radius, angle = np.sqrt(-2 * np.log(u)), np.float32(2 * math.pi) * v
    return radius * np.sin(angle), radius * np.cos(angle)


def randn(shape: tuple[int, ...], seed: int, blocks: int = H200_BLOCKS) -> Tensor:
    """What `torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed))` gives [*shape].

    Equal up to float32's rounding. `blocks`: the most that the card runs at once, 8 a multiprocessor."""
    count = math.prod(shape)
    threads = THREADS_A_BLOCK * min(blocks, math.ceil(count / THREADS_A_BLOCK))
    thread, zero = np.arange(threads, dtype=np.uint64), np.zeros(threads, dtype=np.uint64)
    drawn: list[np.ndarray] = []
    for turn in range(math.ceil(count / (4 * threads))):
        words = philox((zero + np.uint64(turn), zero, thread, zero), seed)
        drawn += [*box_muller(*words[:2]), *box_muller(*words[2:])]
    return torch.from_numpy(np.concatenate(drawn)[:count]).reshape(shape)
