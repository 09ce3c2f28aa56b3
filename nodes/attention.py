"""Attention that has a derivative in both modes, for passes that are differentiated. Torch only."""

import torch
import torch.nn.functional as F
from torch.autograd.forward_ad import make_dual, unpack_dual

# Attention scores held at a time, in elements: what a CPU's cache takes, what a GPU needs to be busy.
SCORES = {"cpu": 2**20}
SCORES_GPU = 2**25


def differentiable_attention(
    func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, scale=None, enable_gqa=False, **kwargs
):
    """What ComfyUI's `optimized_attention_override` calls in place of `func` (which may be a kernel without derivative).

    q, k, v: [B, N, heads * d], or [B, heads, N, d] with `skip_reshape`; returns [B, N, heads * d], or
    [B, heads, N, d] with `skip_output_reshape`. Which kernel serves is left to PyTorch and its context managers;
    dual numbers (forward mode), for which PyTorch has none of linear memory, take `dual_attention`.
    """
    if not skip_reshape:
        head_dim = q.shape[-1] // heads if q.ndim == 3 else q.shape[-1]
        # SD3 hands over some of the three with heads apart already: [B, N, heads, d]. HyperTile makes tiles of q alone, and
        # ComfyUI's attention reads k and v by q's batch.
        q, k, v = ((t if t.ndim == 4 else t.unflatten(-1, (-1, head_dim))) for t in (q, k, v))
        q, k, v = (t.reshape(q.shape[0], -1, *t.shape[2:]).transpose(1, 2) for t in (q, k, v))
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)] if mask.ndim < 3 else mask[:, None] if mask.ndim == 3 else mask
        mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
    if any(tangent is not None for _, tangent in map(_parts, (q, k, v, mask))):
        out = dual_attention(q, k, v, mask, scale)
    else:
        extra = {"enable_gqa": True} if enable_gqa else {}
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, **extra)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def dual_attention(q, k, v, mask=None, scale=None):
    """softmax(q k^T scale + mask) v of dual numbers, [B, heads, N, d], by blocks: memory does not grow as N^2.

    With P = softmax(S): dO = P dV + (P o dS) V - rowsum(P o dS) O. Fewer `heads` of k and v are repeated.
    """
    k, v = (t if t.shape[1] == q.shape[1] else t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    (q, dq), (k, dk), (v, dv) = _parts(q), _parts(k), _parts(v)
    mask, dmask = (None, None) if mask is None else (None if t is None else t.expand(*q.shape[:3], k.shape[2]) for t in _parts(mask))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    (b, h, n, _), m = q.shape, k.shape[2]
    scores = SCORES.get(q.device.type, SCORES_GPU)
    steps = max(1, scores // (h * n * m)), max(1, scores // (n * m)), max(1, scores // m)  # samples, heads, queries
    rows = []
    for i in range(0, b, steps[0]):
        columns = []
        for j in range(0, h, steps[1]):
            keys = (slice(i, i + steps[0]), slice(j, j + steps[1]))
            block = _Block(*(None if t is None else t[keys] for t in (k, dk, v, dv)))
            parts = []
            for start in range(0, n, steps[2]):
                at = (*keys, slice(start, start + steps[2]))
                parts.append(block.product(*(None if t is None else t[at] for t in (q, dq, mask, dmask)), scale))
            columns.append(_joined(parts, 2))
        rows.append(_joined(columns, 1))
    return make_dual(*_joined(rows, 0))


class _Block:
    """Keys and values of some heads, laid out so that each block of queries takes four matrix products."""

    def __init__(self, k, dk, v, dv):
        self.width, self.dv = v.shape[-1], dv is not None
        self.k = k.transpose(-1, -2)
        self.dk = None if dk is None else dk.transpose(-1, -2)
        self.both = None if dk is None else torch.cat([k, dk], -1).transpose(-1, -2)
        self.exact = v.dtype in (torch.float32, torch.float64)
        self.v = v if not self.exact else torch.cat([v, torch.ones_like(v[..., :1])], -1)  # a column that sums rows
        self.all = v if dv is None else torch.cat([v, dv], -1)

    def product(self, q, dq, mask, dmask, scale):
        """(O, dO) of a block of queries."""
        e, wide = self.width, torch.promote_types(q.dtype, torch.float32)
        q = q * scale
        scores = (q @ self.k).to(wide)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        p = torch.softmax(scores, -1)
        del scores
        out = p.to(q.dtype) @ self.all
        out, moved = out[..., :e], out[..., e:] if self.dv else 0
        if dq is None and self.dk is None and dmask is None:
            return out, moved
        ds = dmask
        if dq is not None or self.dk is not None:
            if dq is None:
                ds = q @ self.dk
            else:
                ds = dq * scale @ self.k if self.dk is None else torch.cat([dq * scale, q], -1) @ self.both
            ds = ds if dmask is None else ds + dmask
        ds = ds.to(wide) * p
        if self.exact:
            w = ds @ self.v
            return out, w[..., :e] - w[..., e:] * out + moved
        ds = ds - ds.sum(-1, keepdim=True) * p  # before rounding to half, not after
        return out, ds.to(q.dtype) @ self.v + moved


def _parts(t):
    return (t, None) if t is None else tuple(unpack_dual(t))


def _joined(pairs, dim):
    return pairs[0] if len(pairs) == 1 else tuple(torch.cat(column, dim) for column in zip(*pairs, strict=True))
