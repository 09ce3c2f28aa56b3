"""Attention that has a derivative, with the signature of ComfyUI's `optimized_attention_override`."""

import torch
import torch.nn.functional as F


def differentiable_attention(
    func,
    q,
    k,
    v,
    heads,
    mask=None,
    attn_precision=None,
    skip_reshape=False,
    skip_output_reshape=False,
    scale=None,
    enable_gqa=False,
    **kwargs,
):
    """PyTorch's attention in place of `func`, which may be a kernel without derivative.

    q, k, v: [B, N, heads * d], or [B, heads, N, d] with `skip_reshape`. Returns [B, N, heads * d], or [B,
    heads, N, d] with `skip_output_reshape`."""
    if not skip_reshape:
        head_dim = q.shape[-1] // heads if q.ndim == 3 else q.shape[-1]
        # SD3 hands over some of the three with heads apart already: [B, N, heads, d]. HyperTile makes tiles
        # of q alone, and ComfyUI's attention reads k and v by q's batch.
        q, k, v = ((t if t.ndim == 4 else t.unflatten(-1, (-1, head_dim))) for t in (q, k, v))
        q, k, v = (t.reshape(q.shape[0], -1, *t.shape[2:]).transpose(1, 2) for t in (q, k, v))
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)] if mask.ndim < 3 else mask[:, None] if mask.ndim == 3 else mask
        mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
    extra = {"enable_gqa": True} if enable_gqa else {}
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, **extra)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)
