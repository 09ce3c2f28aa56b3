"""Attention of dual numbers (forward mode), by blocks of its scores. Torch only.

With S = q k^T and P = softmax(S): O = P v and dO = P dv + (P o (dS - c)) v, c = rowsum(P o dS).
"""

from __future__ import annotations

import torch
from torch.autograd.forward_ad import make_dual, unpack_dual

# Scores held at a time, in elements: what a CPU's cache takes, what a GPU needs to be busy.
SCORES = {"cpu": 2**20}
SCORES_GPU = 2**26
ALIGNED = 8  # columns that matrix products in half precision come in on a GPU


def dual_attention(q, k, v, mask=None, scale=None):
    """softmax(q k^T scale + mask) v of dual numbers, [B, heads, N, d], by blocks: memory does not grow as N^2. Fewer heads of
    k and v are repeated."""
    k, v = (t if t.shape[1] == q.shape[1] else t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    (q, dq), (k, dk), (v, dv) = _parts(q), _parts(k), _parts(v)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)  # PyTorch takes float32 beside half precision
    mask, dmask = (None if t is None else t.expand(*q.shape[:3], k.shape[2]) for t in _parts(mask))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    (b, h, n, _), m = q.shape, k.shape[2]
    scores = SCORES.get(q.device.type, SCORES_GPU)
    steps = max(1, scores // (h * n * m)), max(1, scores // (n * m)), max(1, scores // m)  # samples, heads, queries
    rows = []
    for i in range(0, b, steps[0]):
        columns = []
        for j in range(0, h, steps[1]):
            keys = (slice(i, i + steps[0]), slice(j, j + steps[1]))
            block = _Block(*(None if t is None else t[keys] for t in (k, dk, v, dv)), scale)
            parts = []
            for start in range(0, n, steps[2]):
                at = (*keys, slice(start, start + steps[2]))
                parts.append(block.product(*(None if t is None else t[at] for t in (q, dq, mask, dmask))))
            columns.append(_joined(parts, 2))
        rows.append(_joined(columns, 1))
    return make_dual(*_joined(rows, 0))


class _Block:
    """Keys and values of some heads, laid out so that each block of queries takes four matrix products and three passes over scores.

    Where all keys move together nothing happens, and in half precision that part of dS would round away what does. So keys
    are taken from their mean, which softmax does not see; c is then of the size of dS, and subtracted after the product with v.
    """

    def __init__(self, k, dk, v, dv, scale):
        self.width, self.shift = v.shape[-1], 0 if dv is None else v.shape[-1]
        self.k, self.dk = (None if t is None else ((t - t.mean(-2, keepdim=True)) * scale).transpose(-1, -2) for t in (k, dk))
        self.both = None if dk is None else torch.cat([self.k, self.dk], -2)
        ones = torch.ones_like(v[..., :1]).expand(*v.shape[:-1], 1 if v.dtype in (torch.float32, torch.float64) else ALIGNED)
        self.all = torch.cat([v, ones] if dv is None else [dv, v, ones], -1)  # a column of ones sums rows: c

    def product(self, q, dq, mask, dmask):
        """(O, dO) of a block of queries."""
        e, shift = self.width, self.shift
        scores = q @ self.k
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        p = torch.softmax(scores, -1)
        del scores
        out = p @ self.all[..., : shift + e]
        out, moved = out[..., shift:], out[..., :shift] if shift else 0
        if dq is None and self.dk is None and dmask is None:
            return out, moved
        if dq is not None or self.dk is not None:
            if dq is None:
                ds = q @ self.dk
            else:
                ds = dq @ self.k if self.dk is None else torch.cat([dq, q], -1) @ self.both
            ds = ds if dmask is None else ds + dmask
        else:
            ds = dmask.clone()  # written to below
        w = ds.mul_(p) @ self.all[..., shift:]
        return out, w[..., :e] - w[..., e : e + 1] * out + moved


def _parts(t):
    return (t, None) if t is None else tuple(unpack_dual(t))


def _joined(pairs, dim):
    return pairs[0] if len(pairs) == 1 else tuple(torch.cat(column, dim) for column in zip(*pairs, strict=True))
