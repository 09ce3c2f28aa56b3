"""Derivative rules for dual numbers (forward mode) where PyTorch has none, or a wasteful one: attention, linear layers, norms."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.overrides import TorchFunctionMode

from .dual_attention import dual_attention

LINEAR_LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d)


class DualLayers(TorchFunctionMode):
    """While it is active, layers on dual numbers take the rules of this file."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and (rule := RULES.get(func)) is not None and type(args[0]) is torch.Tensor:
            x, dx = unpack_dual(args[0])
            if dx is not None and not any(_dual(t) for t in (*args[1:], *kwargs.values())):
                return rule(x, dx, *args[1:], **kwargs)
        elif func is F.scaled_dot_product_attention and any(_dual(t) for t in (*args, *kwargs.values())):
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def linear_layer(func, x, dx, weight, bias=None, *options, **named):
    """A layer that is linear in x, applied to the tangent as it is. PyTorch adds the product with a tangent of the
    weights, all zeros: a convolution of dual numbers would be three convolutions."""
    return make_dual(func(x, weight, bias, *options, **named), func(dx, weight, None, *options, **named))


def group_norm(x, dx, num_groups, weight=None, bias=None, eps=1e-5):
    """The Jacobian of a normalisation is symmetric but for the weights: PyTorch's backward kernel without weights is
    its forward product, in one pass where the rule made of single operations takes twenty."""
    x, dx = x.contiguous(), dx.contiguous()
    shape = (x.shape[0], x.shape[1], x[0, 0].numel(), num_groups)
    y, mean, rstd = torch.ops.aten.native_group_norm(x, weight, bias, *shape, eps)
    dy = torch.ops.aten.native_group_norm_backward(dx, x, mean, rstd, None, *shape, [True, False, False])[0]
    return make_dual(y, dy if weight is None else dy * weight.reshape(-1, *[1] * (x.ndim - 2)))


def layer_norm(x, dx, normalized_shape, weight=None, bias=None, eps=1e-5):
    """As group_norm."""
    x, dx = x.contiguous(), dx.contiguous()
    y, mean, rstd = torch.ops.aten.native_layer_norm(x, normalized_shape, weight, bias, eps)
    dy = torch.ops.aten.native_layer_norm_backward(dx, x, normalized_shape, mean, rstd, None, None, [True, False, False])[0]
    return make_dual(y, dy if weight is None else dy * weight)


def rms_norm(x, dx, normalized_shape, weight=None, eps=None):
    """dy = r (dx - n <n dx>) with n = r x. PyTorch's rule gives float32 for half precision on CUDA (seen in 2.11)."""
    dims = tuple(range(-len(normalized_shape), 0))
    wide, tangent = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, dx))
    r = (wide.square().mean(dims, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    n = wide * r
    dy = (tangent - n * (n * tangent).mean(dims, keepdim=True)) * r
    y = torch.rms_norm(x, normalized_shape, weight, eps)
    return make_dual(y, (dy if weight is None else dy * weight).to(y.dtype))


NORMS = {F.group_norm: group_norm, torch.group_norm: group_norm, F.layer_norm: layer_norm, torch.layer_norm: layer_norm}
if hasattr(torch, "rms_norm"):  # PyTorch 2.4
    NORMS |= {F.rms_norm: rms_norm, torch.rms_norm: rms_norm}
RULES = NORMS | {layer: partial(linear_layer, layer) for layer in LINEAR_LAYERS}  # called as rule(x, dx, *the others)


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if dropout_p:
        raise NotImplementedError(f"attention of dual numbers has no dropout, got {dropout_p}")
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    heads = query.shape[-3] if query.ndim > 2 else 1
    q, k, v = (t.reshape(-1, t.shape[-3] if t.ndim > 2 else 1, *t.shape[-2:]) for t in (query, key, value))
    if attn_mask is not None and attn_mask.ndim > 2:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2]).reshape(-1, heads, query.shape[-2], key.shape[-2])
    return dual_attention(q, k, v, attn_mask, scale).reshape(*query.shape[:-1], value.shape[-1])


def _dual(t):
    # What make_dual gives is a Tensor, no Parameter. Asking takes Python's time at every layer, and quantised tensors fail when asked.
    return type(t) is torch.Tensor and unpack_dual(t).tangent is not None
