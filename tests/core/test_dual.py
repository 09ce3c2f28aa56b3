"""Rules for dual numbers. Oracle: PyTorch's own forward mode of the same written out."""

import pytest
import torch
import torch.nn.functional as F

from reg_core import dual, dual_attention, forward

# PyTorch 2.4 knows no such argument; ours asks for none.
GROUPED = {"enable_gqa": True} if "enable_gqa" in F.scaled_dot_product_attention.__doc__ else {}


@pytest.mark.parametrize("held", [4, 40, 400, 10**6])
@pytest.mark.parametrize(
    ("mask", "moving"), [(m, t) for m in (None, "bool", "float", "per head") for t in ("qkv", "q", "kv", "v")] + [("float", "mask"), ("per head", "mask")]
)
def test_attention_of_dual_numbers(monkeypatch, held, mask, moving):
    """Block by block over samples, heads and queries. Oracle: torch's jvp of attention written out; fewer heads of keys."""
    monkeypatch.setitem(dual_attention.SCORES, "cpu", held)
    g = torch.Generator().manual_seed(0)
    b, h, n, m, d = 2, 4, 5, 7, 3
    shapes = {"q": (b, h, n, d), "k": (b, h // 2, m, d), "v": (b, h // 2, m, d + 1)}
    primals = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}
    if mask is not None:
        primals["mask"] = torch.randn(b, h if mask == "per head" else 1, n, m, generator=g, dtype=torch.float64)
    fixed = {"mask": primals.pop("mask") > -1} if mask == "bool" else {}
    names = ["mask"] if moving == "mask" else list(moving)
    tangents = tuple(torch.randn(primals[name].shape, generator=g, dtype=torch.float64) for name in names)

    def call(attend, *values):
        return attend(**(primals | fixed | dict(zip(names, values, strict=True))))

    def plain(q, k, v, mask=None):
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) * 0.3
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return torch.softmax(scores, -1) @ v

    def ours(q, k, v, mask=None):
        with dual.DualLayers():
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3, **GROUPED)

    at = tuple(primals[name] for name in names)
    got, want = (torch.func.jvp(lambda *values: call(attend, *values), at, tangents) for attend in (ours, plain))  # noqa: B023
    assert torch.allclose(got[0], want[0], atol=1e-12) and torch.allclose(got[1], want[1], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("held", [300, 10**6])
@pytest.mark.parametrize(
    ("mask", "moving"),
    [*((None, t) for t in ("qkv", "q", "kv", "qv", "v")), ("bool", "qkv"), ("float", "q"), ("float", "qkvm"), ("float", "m"), ("float32", "qkv")],
)
def test_attention_of_dual_numbers_in_half_precision(monkeypatch, dtype, held, mask, moving):
    """All keys move together by much, which must cancel. Oracle: the same, in float64, of the rounded numbers."""
    monkeypatch.setitem(dual_attention.SCORES, "cpu", held)
    g = torch.Generator().manual_seed(0)
    shapes = {"q": (1, 2, 33, 8), "k": (1, 2, 29, 8), "v": (1, 2, 29, 5), "m": (1, 1, 33, 29)}

    def random(**common):
        return {name: (torch.randn(shape, generator=g) + common.get(name, 0)).to(dtype) for name, shape in shapes.items()}

    values, tangents = random(v=3), random(k=30)
    values["m"] = {None: None, "bool": values["m"] > -1, "float": values["m"], "float32": values["m"].float()}[mask]

    def product(wider):
        kept = {name: t if t is None or t.dtype == torch.bool else wider(t) for name, t in values.items()}
        return torch.func.jvp(
            lambda *moved: dual_attention.dual_attention(*(kept | dict(zip(moving, moved, strict=True))).values()),
            tuple(kept[name] for name in moving),
            tuple(wider(tangents[name]) for name in moving),
        )

    got, want = product(lambda t: t), product(torch.Tensor.double)
    for ours, exact in zip(got, want, strict=True):
        assert ours.dtype == dtype and (ours.double() - exact).norm() / exact.norm() < (3e-3 if dtype == torch.float16 else 2e-2)


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 3, 5, 4), (2, 2, 3, 5, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_any_rank_and_causal(shape, causal):
    g = torch.Generator().manual_seed(0)
    x, v = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(4, 4, generator=g, dtype=torch.float64)

    def attend(z, sigma=None):
        return F.scaled_dot_product_attention(z @ weight, z, z.flip(-1), is_causal=causal)

    def written_out(z):
        scores = (z @ weight) @ z.transpose(-1, -2) / 2
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
        return torch.softmax(scores, -1) @ z.flip(-1)

    ones = torch.ones(len(x), dtype=torch.float64)
    got, want = forward(attend, x, ones, ones, v), torch.func.jvp(written_out, (x,), (v,))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, want, strict=True))


def test_dropout_is_refused():
    x = torch.randn(1, 2, 3, 4)
    with dual.DualLayers(), pytest.raises(NotImplementedError, match="no dropout, got 0.1"):
        torch.func.jvp(lambda z: F.scaled_dot_product_attention(z, z, z, dropout_p=0.1), (x,), (x,))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("layer", "shape"), [(F.linear, (6, 4)), (F.conv1d, (6, 4, 3)), (F.conv2d, (6, 4, 3, 3)), (F.conv3d, (6, 4, 3, 3, 3))])
def test_linear_layers_run_once_for_each_part(layer, shape, bias):
    """PyTorch's rule runs a convolution three times. Its result is the oracle, whichever of the three has a tangent."""
    g = torch.Generator().manual_seed(0)
    inputs = {"weight": torch.randn(shape, generator=g), "bias": torch.randn(6, generator=g) if bias else None}
    inputs["x"] = torch.randn(2, *([5] if layer is F.linear else [4, *[5] * (len(shape) - 2)]), generator=g) if layer is not F.linear else torch.randn(2, 3, 4)
    options = () if layer is F.linear else (2, 1)
    for moving in (("x",), ("weight",), ("x", "weight")):
        values = tuple(inputs[name] for name in moving)
        tangents = tuple(torch.randn(value.shape, generator=g) for value in values)

        def call(*moved, moving=moving):
            given = inputs | dict(zip(moving, moved, strict=True))
            return layer(given["x"], given["weight"], given["bias"], *options)

        want = torch.func.jvp(call, values, tangents)
        with dual.DualLayers():
            got = torch.func.jvp(call, values, tangents)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, want, strict=True))
    with torch.profiler.profile() as seen, dual.DualLayers():
        torch.func.jvp(lambda z: layer(z, inputs["weight"], inputs["bias"], *options), (inputs["x"],), (inputs["x"],))
    calls = {e.key: e.count for e in seen.key_averages()}
    assert layer is F.linear or calls["aten::convolution"] == 2, calls
    named = {"weight": inputs["weight"], "bias": inputs["bias"]} | dict(zip(("stride", "padding"), options, strict=False))
    with torch.profiler.profile() as seen, dual.DualLayers():
        got = torch.func.jvp(lambda z: layer(z, **named), (inputs["x"],), (inputs["x"],))
    want = torch.func.jvp(lambda z: layer(z, **named), (inputs["x"],), (inputs["x"],))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, want, strict=True))
    calls = {e.key: e.count for e in seen.key_averages()}
    assert layer is F.linear or calls["aten::convolution"] == 2, calls


class Quantised(torch.Tensor):
    """A weight that stands for another, as quantised ones do: operations are given the one it stands for."""

    @staticmethod
    def __new__(cls, stored):
        return torch.Tensor._make_wrapper_subclass(cls, stored.shape, dtype=stored.dtype)

    def __init__(self, stored):
        self.stored = stored

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(a.stored if isinstance(a, cls) else a for a in args), **(kwargs or {}))


@pytest.mark.parametrize("inference", [False, True])
def test_quantised_weights_have_no_tangent_and_are_not_asked(inference):
    """ComfyUI 0.33 has such weights. Oracle: J v of a linear layer is the layer of v."""
    with torch.inference_mode(inference):
        weight, x, v = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        one = torch.ones(4, dtype=torch.float64)
        quantised = Quantised(weight)
        denoised, product = forward(lambda z, s: F.linear(z, quantised, one), x, one, one, v)
    assert torch.allclose(denoised, x @ weight.T + 1) and torch.allclose(product, v @ weight.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer", "group of few", "rms"])
@pytest.mark.parametrize("moving", [("x",), ("x", "weight")])
def test_normalisation(norm, affine, dtype, moving):
    """Oracle: PyTorch's rule in float64 on the same numbers; x in a layout that is not contiguous, which that rule refuses."""
    if "weight" in moving and not affine:
        moving = ("x",)
    g = torch.Generator().manual_seed(0)
    shape = {"group": (2, 5, 4, 6), "layer": (2, 4, 5, 6), "group of few": (2, 6, 2), "rms": (2, 4, 5, 6)}[norm]
    x, dx = (2 + torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    x, dx = (t.movedim(-1, 1) if norm == "group" else t for t in (x, dx))
    if "weight" in moving:
        x, dx = x.contiguous(), dx.contiguous()
    parameters = {name: torch.randn(6, generator=g).to(dtype) if affine else None for name in ("weight", "bias")}
    tangents = {"x": dx, "weight": torch.randn(6, generator=g).to(dtype)}

    def call(*values, to=dtype):
        wide = {k: t if t is None or to == dtype else t.to(to).contiguous() for k, t in ({"x": x} | parameters).items()}
        given = wide | dict(zip(moving, values, strict=True))
        if norm == "layer":
            return F.layer_norm(given["x"], (6,), given["weight"], given["bias"], eps=1e-3)
        if norm == "rms":
            return F.rms_norm(given["x"], (6,), given["weight"], **({} if given["bias"] is None else {"eps": 1e-3}))
        return F.group_norm(given["x"], 3, given["weight"], given["bias"], 1e-3)

    at, along = (tuple(source[name] for name in moving) for source in ({"x": x} | parameters, tangents))
    with dual.DualLayers():
        got = torch.func.jvp(call, at, along)
    want = torch.func.jvp(lambda *v: call(*v, to=torch.float64), *(tuple(t.double().contiguous() for t in ts) for ts in (at, along)))
    bound = {torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype and (a.double() - b).norm() < bound * b.norm()
