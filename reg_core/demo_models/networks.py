"""Networks of the digits: raw U-Net, EDM-preconditioned denoiser, classifier.

No in-place operations and no data-dependent branches: the networks work under reverse-mode autograd and
`torch.func.jvp`. Images are [B, 1, 8, 8] with values in [-1, 1]; sigma is the noise standard deviation in the
same units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Conv2d, GroupNorm, Linear, functional

NUM_CLASSES = 10
IMAGE_SHAPE = (1, 8, 8)
# Pixel standard deviation of the training split (checked by the tests).
SIGMA_DATA = 0.75
# To sample with: 27 and 1/75 times SIGMA_DATA. The start is indistinguishable from pure noise, and the end is
# far below the 1/8 grey step of the data. EDM's 80..0.002 would spend 6 of 18 steps outside that range.
SIGMA_MAX, SIGMA_MIN = 20.0, 0.01
FEATURE_DIM = 64


@dataclass(frozen=True)
class DigitsNetConfig:
    """Size of a `DigitsNet`; the weak model is the same class with smaller numbers.

    channels: widths at the 8x8 and 4x4 levels (multiples of 8).
    blocks: residual blocks per level on each side of the U.
    embed_dim: width of the noise and label embedding (even).
    dropout: dropout inside the residual blocks, active in training mode only.
    """

    channels: tuple[int, int] = (32, 80)
    blocks: int = 2
    embed_dim: int = 96
    dropout: float = 0.1


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

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> same shape."""
        query, key, value = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weight = (query.transpose(1, 2) @ key / math.sqrt(x.shape[1])).softmax(dim=-1)
        out = (value @ weight.transpose(1, 2)).reshape(x.shape)
        return (x + self.proj(out)) * math.sqrt(0.5)


class DigitsNet(nn.Module):
    """Raw network F of EDM: two-level residual U-Net with noise and label embedding."""

    def __init__(self, config: DigitsNetConfig | None = None):
        super().__init__()
        self.config = config = config or DigitsNetConfig()
        ch0, ch1 = config.channels
        dim, drop = config.embed_dim, config.dropout

        self.noise_linear1 = Linear(dim, dim)
        self.noise_linear2 = Linear(dim, dim)
        self.label_weight = nn.Parameter(torch.randn(NUM_CLASSES, dim) * 0.5)

        self.conv_in = Conv2d(IMAGE_SHAPE[0], ch0, 3, padding=1)
        self.enc0 = nn.ModuleList(ResBlock(ch0, ch0, dim, drop) for _ in range(config.blocks))
        self.enc1 = nn.ModuleList(
            ResBlock(ch0 if i == 0 else ch1, ch1, dim, drop) for i in range(config.blocks)
        )
        self.attention = SelfAttention(ch1)
        self.dec1 = nn.ModuleList(ResBlock(ch1, ch1, dim, drop) for _ in range(config.blocks))
        self.dec0 = nn.ModuleList(
            ResBlock(ch1 + ch0 if i == 0 else ch0, ch0, dim, drop) for i in range(config.blocks)
        )
        self.norm_out = GroupNorm(8, ch0)
        self.conv_out = Conv2d(ch0, IMAGE_SHAPE[0], 3, padding=1)
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
        return self.noise_linear2(functional.silu(self.noise_linear1(fourier)))

    def embed_label(self, label: Tensor) -> Tensor:
        """label [B, 10] -> [B, embed_dim], linear in the row; the zero row is unconditional."""
        return label.to(self.label_weight.dtype) @ self.label_weight

    def forward(self, x_in: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        """x_in [B, 1, 8, 8], c_noise [B], label [B, 10] -> [B, 1, 8, 8] in the weights' dtype."""
        emb = functional.silu(self.embed_noise(c_noise) + self.embed_label(label))
        h = self.conv_in(x_in.to(self.label_weight.dtype))
        for block in self.enc0:
            h = block(h, emb)
        skip = h
        h = functional.avg_pool2d(h, 2)
        for block in self.enc1:
            h = block(h, emb)
        h = self.attention(h)
        for block in self.dec1:
            h = block(h, emb)
        h = torch.cat([functional.interpolate(h, scale_factor=2, mode="nearest"), skip], dim=1)
        for block in self.dec0:
            h = block(h, emb)
        return self.conv_out(functional.silu(self.norm_out(h)))


class EDMDenoiser(nn.Module):
    """EDM preconditioning around a raw network.

    D(x; sigma) = c_skip x + c_out F(c_in x, c_noise), Karras et al. 2022
    (arXiv:2206.00364), eq. 7, with the coefficients of table 1, column "EDM".
    """

    def __init__(self, net: DigitsNet, sigma_data: float = SIGMA_DATA):
        super().__init__()
        self.net = net
        self.sigma_data = float(sigma_data)

    def forward(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """Denoise x and return the estimate D in x's shape and dtype.

        x: [B, 1, 8, 8], clean image plus sigma times unit Gaussian noise.
        sigma: [B] (rows may differ), or a scalar for all rows; sigma >= 0.
        label: None (unconditional), integer class [B], or float rows [B, 10]
            (one-hot, soft mixtures, or zero for unconditional).
        Raises ValueError on wrong shapes.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != IMAGE_SHAPE:
            raise ValueError(f"x must have shape [B, 1, 8, 8], got {list(x.shape)}")
        # Coefficients span many decades: keep them, and the sum, in at least float32.
        dtype = torch.promote_types(x.dtype, torch.float32)
        sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device)
        if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape[0] not in (1, x.shape[0])):
            raise ValueError(f"sigma must be a scalar or have shape [{x.shape[0]}], got {list(sigma.shape)}")
        sigma = sigma.expand(x.shape[0])
        rows = label_rows(label, x.shape[0], dtype, x.device)

        total = sigma.square() + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / total.sqrt()
        c_in = total.rsqrt()
        # The floor keeps sigma = 0 finite; there c_out = 0 and D = x exactly.
        c_noise = sigma.clamp(min=1e-8).log() / 4

        wide = x.to(dtype)
        raw = self.net(_column(c_in) * wide, c_noise, rows).to(dtype)
        return (_column(c_skip) * wide + _column(c_out) * raw).to(x.dtype)


def label_rows(label: Tensor | None, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Turn None, integer classes [B] or float rows [B, 10] into float rows [B, 10].

    Raises ValueError on wrong shapes or a one-dimensional float label; torch
    raises RuntimeError for a class outside 0..9.
    """
    if label is None:
        return torch.zeros(batch, NUM_CLASSES, dtype=dtype, device=device)
    if label.ndim == 1 and label.shape[0] == batch and not label.is_floating_point():
        return functional.one_hot(label.long(), NUM_CLASSES).to(device=device, dtype=dtype)
    if tuple(label.shape) == (batch, NUM_CLASSES):
        return label.to(device=device, dtype=dtype)
    want = f"None, integers [{batch}] or rows [{batch}, {NUM_CLASSES}]"
    raise ValueError(f"label must be {want}, got {label.dtype} {list(label.shape)}")


def _column(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1)


class DigitsClassifier(nn.Module):
    """Small conv net; `features` is the representation used for Frechet distances."""

    def __init__(self):
        super().__init__()
        self.conv1 = Conv2d(1, 32, 3, padding=1)
        self.norm1 = GroupNorm(8, 32)
        self.conv2 = Conv2d(32, 32, 3, padding=1)
        self.norm2 = GroupNorm(8, 32)
        self.conv3 = Conv2d(32, 64, 3, padding=1)
        self.norm3 = GroupNorm(8, 64)
        self.dropout = nn.Dropout(0.2)
        self.fc = Linear(64 * 2 * 2, FEATURE_DIM)
        self.head = Linear(FEATURE_DIM, NUM_CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """x [B, 1, 8, 8] in [-1, 1] -> [B, 64]."""
        h = functional.silu(self.norm1(self.conv1(x)))
        h = functional.silu(self.norm2(self.conv2(h)))
        h = functional.silu(self.norm3(self.conv3(functional.avg_pool2d(h, 2))))
        h = functional.avg_pool2d(h, 2).flatten(1)
        return functional.silu(self.fc(self.dropout(h)))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1, 8, 8] in [-1, 1] -> logits [B, 10]."""
        return self.head(self.dropout(self.features(x)))
