"""Closed forms and small networks that tests compare with; nothing here uses the code under test."""

import torch

SPACES = {"ve": (lambda s: 1.0, lambda s: s), "flow": (lambda s: 1 - s, lambda s: s), "vp": (lambda s: (1 + s * s) ** -0.5, lambda s: s * (1 + s * s) ** -0.5)}


def column(values, x):
    return values.reshape(-1, *[1] * (x.ndim - 1))


def gaussian_denoiser(mean, variance, space):
    """E[x0 | x] for x0 ~ N(mean, variance I), x = alpha x0 + s noise: linear regression, written out."""
    alpha_of, s_of = SPACES[space]

    def denoise(x, sigma):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        a, s = (column(torch.stack([torch.as_tensor(f(float(v)), dtype=wide.dtype) for v in sigma]), x) for f in (alpha_of, s_of))
        return (mean + variance * a / (a * a * variance + s * s) * (wide - a * mean)).to(x.dtype)

    return denoise


def shrinkage(variance, sigma, space):
    """c = V / (V + (s / alpha)^2), the Jacobian of that denoiser in variance exploding coordinates."""
    alpha_of, s_of = SPACES[space]
    return torch.tensor([variance * alpha_of(v) ** 2 / (variance * alpha_of(v) ** 2 + s_of(v) ** 2) for v in sigma.tolist()], dtype=torch.float64)


class SmallNet(torch.nn.Module):
    """A nonlinear network of any latent shape [B, ...], a label [B] and a noise level [B]; no symmetry of any kind."""

    def __init__(self, n, dtype=torch.float64, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)

        def weight(*shape):
            return torch.nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) * shape[-1] ** -0.5)

        self.a, self.b, self.c, self.label, self.time = weight(32, n), weight(32, 32), weight(n, 32), weight(2, 32), weight(1, 32)

    def forward(self, x, sigma, y):
        h = torch.tanh(x.flatten(1) @ self.a.T + self.label[y] + sigma.to(x.dtype)[:, None].log() * self.time)
        h = torch.nn.functional.silu(h @ self.b.T) + h
        return (h @ self.c.T).reshape(x.shape)


class Counted:
    """A denoiser that counts how often it is asked."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return self.f(x, sigma)


def counted_pair():
    """(cond, reference) of a SmallNet in float32, for latents of 48 elements and at most two samples."""
    net = SmallNet(48, torch.float32)
    label = torch.ones(2, dtype=torch.long)
    return Counted(lambda x, s: net(x, s, label[: len(x)])), Counted(lambda x, s: net(x, s, 0 * label[: len(x)]))


class Gaussian:
    """The exact denoiser of N(mean, diag variance) in variance exploding coordinates, counting its rows."""

    def __init__(self, mean, variance):
        self.mean, self.variance, self.rows = mean, variance, 0

    def __call__(self, x, sigma):
        self.rows += x.shape[0]
        return self.mean + (x - self.mean) * self.variance / (self.variance + column(sigma, x) ** 2)
