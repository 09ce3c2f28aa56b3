"""Networks of the demo models: U-Net, EDM-preconditioned denoiser, and the classifiers that judge samples.

No in-place operations and no data-dependent branches: the networks work under reverse-mode autograd and
`torch.func.jvp`. Pictures are [B, C, H, W] with values in [-1, 1]; sigma is the noise standard deviation in
the same units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Conv2d, GroupNorm, Linear, functional


@dataclass(frozen=True)
class UNetConfig:
    """Size and layout of a `UNet`.

    - `shape`: channels, height and width of a picture. `classes`: how many labels there are.
    - `channels`: width of each level, multiples of 8. Every level below the first halves height and width.
    - `blocks`: residual blocks of a level, on each side of the U.
    - `embed_dim`: width of the noise and label embedding, even.
    - `dropout`: inside the residual blocks, in training mode only.
    - `dense`: True: every layer on the way down is joined to its mirror image on the way up, and a block
      stands on each side of the attention. False: one joint a level, at its end; none at the lowest.
    Raises ValueError with the offending value.
    """

    shape: tuple[int, int, int]
    classes: int
    channels: tuple[int, ...]
    blocks: int
    embed_dim: int
    dropout: float = 0.1
    dense: bool = False

    def __post_init__(self):
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be channels, height and width, got {self.shape}")
        if not self.channels or any(c < 8 or c % 8 for c in self.channels):
            raise ValueError(f"channels must be multiples of 8, got {self.channels}")
        halvings = 2 ** (len(self.channels) - 1)
        if any(side % halvings for side in self.shape[1:]):
            raise ValueError(f"height and width must be multiples of {halvings}, got {self.shape}")
        for name, low in (("classes", 1), ("blocks", 1), ("embed_dim", 4)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.embed_dim % 2:
            raise ValueError(f"embed_dim must be even, got {self.embed_dim}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    def joined(self, level: int, block: int) -> bool:
        """Whether a block on the way down is joined to its mirror image; both count from outside inwards."""
        return self.dense or (level + 1 < len(self.channels) and block + 1 == self.blocks)


class ResBlock(nn.Module):
    """GroupNorm-SiLU-conv twice; the embedding scales and shifts the second norm."""

    def __init__(self, in_ch: int, out_ch: int, embed_dim: int, dropout: float):
        super().__init__()
        self.norm1 = GroupNorm(8, in_ch)
        self.conv1 = Conv2d(in_ch, out_ch, 3, padding=1)
        self.affine = Linear(embed_dim, 2 * out_ch)
        self.norm2 = GroupNorm(8, out_ch)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(out_ch, out_ch, 3, padding=1)
        self.skip = Conv2d(in_ch, out_ch, 1) if in_ch != out_ch else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [B, in_ch, H, W], emb [B, embed_dim] -> [B, out_ch, H, W]."""
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(self.norm2(h) * (1 + scale) + shift)
        return (self.skip(x) + self.conv2(self.dropout(h))) * math.sqrt(0.5)


class SelfAttention(nn.Module):
    """Single-head self-attention over all positions, with a residual connection.

    Plain softmax instead of the fused kernel, which has no forward-mode derivative.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = GroupNorm(8, channels)
        self.qkv = Conv2d(channels, 3 * channels, 1)
        self.proj = Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """x [B, C, H, W] -> same shape; the embedding is not used."""
        query, key, value = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weight = (query.transpose(1, 2) @ key / math.sqrt(x.shape[1])).softmax(dim=-1)
        out = (value @ weight.transpose(1, 2)).reshape(x.shape)
        return (x + self.proj(out)) * math.sqrt(0.5)


class UNet(nn.Module):
    """Raw network F of EDM: a residual U-Net with noise and label embedding."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        dim, drop = config.embed_dim, config.dropout
        self.noise1, self.noise2 = Linear(dim, dim), Linear(dim, dim)
        self.label_weight = nn.Parameter(torch.randn(config.classes, dim) * 0.5)

        width = config.channels[0]
        self.conv_in = Conv2d(config.shape[0], width, 3, padding=1)
        kept = [width] if config.dense else []
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(config.channels):
            self.down.append(nn.ModuleList())
            for block in range(config.blocks):
                self.down[level].append(ResBlock(width, channels, dim, drop))
                width = channels
                if config.joined(level, block):
                    kept.append(width)
        sides = [ResBlock(width, width, dim, drop) for _ in range(2 if config.dense else 0)]
        self.middle = nn.ModuleList([*sides[:1], SelfAttention(width), *sides[1:]])
        for level, channels in reversed(list(enumerate(config.channels))):
            self.up.append(nn.ModuleList())
            for block in reversed(range(config.blocks)):
                joint = kept.pop() if config.joined(level, block) else 0
                self.up[-1].append(ResBlock(width + joint, channels, dim, drop))
                width = channels
        width += sum(kept)  # conv_in, where dense
        self.norm_out = GroupNorm(8, width)
        self.conv_out = Conv2d(width, config.shape[0], 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def embed_noise(self, c_noise: Tensor) -> Tensor:
        """c_noise [B] -> [B, embed_dim], Fourier features then a two-layer MLP."""
        half = self.config.embed_dim // 2
        # At least float32: sin and cos of a rounded bfloat16 phase are noise.
        phase = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))
        octave = torch.linspace(-2.0, 2.0, half, dtype=phase.dtype, device=phase.device)
        phase = phase[:, None] * (2 * math.pi * torch.exp2(octave))
        fourier = torch.cat([phase.cos(), phase.sin()], dim=1).to(self.label_weight.dtype)
        return self.noise2(functional.silu(self.noise1(fourier)))

    def embed_label(self, label: Tensor) -> Tensor:
        """label [B, classes] -> [B, embed_dim], linear in the row; the zero row is unconditional."""
        return label.to(self.label_weight.dtype) @ self.label_weight

    def forward(self, x_in: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        """x_in [B, C, H, W], c_noise [B], label [B, classes] -> x_in's shape in the weights' dtype."""
        joined = self.config.joined
        emb = functional.silu(self.embed_noise(c_noise) + self.embed_label(label))
        h = self.conv_in(x_in.to(self.label_weight.dtype))
        kept = [h] if self.config.dense else []
        for level, blocks in enumerate(self.down):
            h = functional.avg_pool2d(h, 2) if level else h
            for i, block in enumerate(blocks):
                h = block(h, emb)
                if joined(level, i):
                    kept.append(h)
        for block in self.middle:
            h = block(h, emb)
        for level, blocks in zip(reversed(range(len(self.down))), self.up, strict=True):
            for i, block in zip(reversed(range(len(blocks))), blocks, strict=True):
                h = block(torch.cat([h, kept.pop()], dim=1) if joined(level, i) else h, emb)
            h = functional.interpolate(h, scale_factor=2, mode="nearest") if level else h
        return self.conv_out(functional.silu(self.norm_out(torch.cat([h, *kept], dim=1))))


class Denoiser(nn.Module):
    """EDM preconditioning around a raw network.

    D(x; sigma) = c_skip x + c_out F(c_in x, c_noise), Karras et al. 2022
    (arXiv:2206.00364), eq. 7, with the coefficients of table 1, column "EDM".

    - `sigma_data`: standard deviation of the pictures' values.
    - `sigma_max`, `sigma_min`: the noise levels to sample between.
    - `names`: one for each class.
    Raises ValueError for levels or names that do not fit.
    """

    def __init__(
        self, net: UNet, names: tuple[str, ...], sigma_data: float, sigma_max: float, sigma_min: float
    ):
        super().__init__()
        if not sigma_max > sigma_min > 0 or not sigma_data > 0:
            levels = f"sigma_data {sigma_data}, sigma_max {sigma_max}, sigma_min {sigma_min}"
            raise ValueError(f"want sigma_data > 0 and sigma_max > sigma_min > 0, got {levels}")
        if len(names) != net.config.classes:
            raise ValueError(f"want {net.config.classes} names, got {len(names)}: {', '.join(names)}")
        self.net, self.names = net, tuple(names)
        self.sigma_data = float(sigma_data)
        self.sigma_max, self.sigma_min = float(sigma_max), float(sigma_min)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        return self.net.config.shape

    @property
    def classes(self) -> int:
        return self.net.config.classes

    def forward(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """Denoise x and return the estimate D in x's shape and dtype.

        x: [B, C, H, W], clean picture plus sigma times unit Gaussian noise.
        sigma: [B] (rows may differ), or a scalar for all rows; sigma >= 0.
        label: None (unconditional), integer class [B], or float rows [B, classes]
            (one-hot, soft mixtures, or zero for unconditional).
        Raises ValueError on wrong shapes.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must have shape [B, {', '.join(map(str, self.shape))}], got {list(x.shape)}")
        # Coefficients span many decades: keep them, and the sum, in at least float32.
        dtype = torch.promote_types(x.dtype, torch.float32)
        sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device)
        if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape[0] not in (1, x.shape[0])):
            raise ValueError(f"sigma must be a scalar or have shape [{x.shape[0]}], got {list(sigma.shape)}")
        sigma = sigma.expand(x.shape[0])
        rows = label_rows(label, x.shape[0], self.classes, dtype, x.device)

        total = sigma.square() + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / total.sqrt()
        c_in = total.rsqrt()
        # The floor keeps sigma = 0 finite; there c_out = 0 and D = x exactly.
        c_noise = sigma.clamp(min=1e-8).log() / 4

        wide = x.to(dtype)
        raw = self.net(_column(c_in) * wide, c_noise, rows).to(dtype)
        return (_column(c_skip) * wide + _column(c_out) * raw).to(x.dtype)


def label_rows(
    label: Tensor | None, batch: int, classes: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Turn None, integer classes [B] or float rows [B, classes] into float rows [B, classes].

    Raises ValueError on wrong shapes or a one-dimensional float label; torch
    raises RuntimeError for a class out of range.
    """
    if label is None:
        return torch.zeros(batch, classes, dtype=dtype, device=device)
    if label.ndim == 1 and label.shape[0] == batch and not label.is_floating_point():
        return functional.one_hot(label.long(), classes).to(device=device, dtype=dtype)
    if tuple(label.shape) == (batch, classes):
        return label.to(device=device, dtype=dtype)
    want = f"None, integers [{batch}] or rows [{batch}, {classes}]"
    raise ValueError(f"label must be {want}, got {label.dtype} {list(label.shape)}")


def _column(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1)


class Judge(nn.Module):
    """A classifier of pictures in [-1, 1]; Frechet distances are taken between its `features`.

    A subclass gives `features` (x [B, C, H, W] -> [B, F]), `dropout` and `head` ([B, F] -> logits).
    `real_mean` [F] and `real_cov` [F, F] are those of the features of `real_count` real pictures.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("real_mean", torch.zeros(dim))
        self.register_buffer("real_cov", torch.zeros(dim, dim))
        self.register_buffer("real_count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> logits [B, classes]."""
        return self.head(self.dropout(self.features(x)))


class DigitsJudge(Judge):
    """Three convolutions on 8x8 pictures."""

    def __init__(self):
        super().__init__(64)
        self.conv1 = Conv2d(1, 32, 3, padding=1)
        self.norm1 = GroupNorm(8, 32)
        self.conv2 = Conv2d(32, 32, 3, padding=1)
        self.norm2 = GroupNorm(8, 32)
        self.conv3 = Conv2d(32, 64, 3, padding=1)
        self.norm3 = GroupNorm(8, 64)
        self.dropout = nn.Dropout(0.2)
        self.fc = Linear(64 * 2 * 2, 64)
        self.head = Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        """x [B, 1, 8, 8] -> [B, 64]."""
        h = functional.silu(self.norm1(self.conv1(x)))
        h = functional.silu(self.norm2(self.conv2(h)))
        h = functional.silu(self.norm3(self.conv3(functional.avg_pool2d(h, 2))))
        h = functional.avg_pool2d(h, 2).flatten(1)
        return functional.silu(self.fc(self.dropout(h)))


class FashionJudge(Judge):
    """Three levels of residual convolutions on 28x28 pictures. `width`: channels of the first level."""

    def __init__(self, width: int = 48):
        super().__init__(128)
        self.width = width
        widths = (width, 2 * width, 3 * width)
        self.enter = nn.ModuleList(_conv(a, b) for a, b in zip((1, *widths), widths, strict=False))
        self.inner = nn.ModuleList(nn.Sequential(_conv(c, c), _conv(c, c)) for c in widths)
        self.dropout = nn.Dropout(0.3)
        self.fc = Linear(3 * width * 3 * 3, 128)
        self.head = Linear(128, 10)

    def features(self, x: Tensor) -> Tensor:
        """x [B, 1, 28, 28] -> [B, 128]."""
        for enter, inner in zip(self.enter, self.inner, strict=True):
            h = enter(x)
            x = functional.avg_pool2d(h + inner(h), 2)
        return functional.silu(self.fc(self.dropout(x.flatten(1))))


def _conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(Conv2d(before, after, 3, padding=1), GroupNorm(8, after), nn.SiLU())
