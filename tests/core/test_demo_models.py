"""The demo models: shipped weights, EDM preconditioning, labels, dtypes, trained behaviour."""

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from reg_core.demo_models import data, loading, networks, scores
from reg_core.evaluation.metrics import Statistics, frechet


@pytest.fixture(scope="module")
def good():
    return loading.load_model("digits")


@pytest.fixture(scope="module")
def weak():
    return loading.load_model("digits_weak")


@pytest.fixture(scope="module")
def fashion():
    return loading.load_model("fashion")


@pytest.fixture(scope="module")
def classifier():
    return loading.load_judge("digits")


LABEL = torch.arange(60) % 10
STEPS = 7


@pytest.fixture(scope="module")
def samples(good):
    return scores.sample(good, LABEL, len(LABEL), 0.0, STEPS, seed=1)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- data ---------------------------------------------------------------------------------


def test_split_is_stratified_disjoint_and_complete():
    digits = data.load_digits()
    labels = digits.labels.numpy()
    first, second = data.split_indices(labels)
    assert len(labels) == 1797 == len(set(first) | set(second))
    assert not set(first) & set(second)
    share = np.bincount(labels[second]) / np.bincount(labels)
    assert np.abs(share - data.TEST_FRACTION).max() < 0.004
    assert len(data.load_split("train").images) == 1438
    assert len(data.load_split("test").images) == 359
    with pytest.raises(ValueError, match="part must be one of train, test, got"):
        data.load_pictures(data.DIGITS, "valid")


def test_images_are_scaled_and_sigma_data_is_measured():
    split = data.load_split("train")
    assert split.images.shape[1:] == data.DIGITS.shape
    assert split.images.min() == -1
    assert split.images.max() == 1
    assert split.images.std().item() == pytest.approx(data.DIGITS.sigma_data, abs=0.005)


# --- shipped files ------------------------------------------------------------------------


def test_weights_are_small_and_described():
    names = [*loading.DENOISERS, *loading.JUDGES.values()]
    assert sorted(p.stem for p in loading.WEIGHTS_DIR.iterdir()) == sorted(names)
    total = 0
    for name in names:
        path = loading.WEIGHTS_DIR / f"{name}.safetensors"
        total += path.stat().st_size
        meta = safe_open(path, "pt").metadata()
        assert {"kind", "config", "seed", "steps"} <= set(meta)
        dtype = torch.float32 if name.startswith("digits") else torch.float16
        assert all(t.dtype == dtype for key, t in load_file(path).items() if not key.startswith("real_"))
    assert total < 15e6


def test_loaded_models_are_frozen_and_different(good, weak, fashion, classifier):
    small = loading.load_model("fashion_weak")
    for model in (good, weak, fashion, small, classifier, loading.load_judge("fashion")):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())

    def size(model):
        return sum(p.numel() for p in model.parameters())

    for large, little, about in ((good, weak, data.DIGITS), (fashion, small, data.FASHION)):
        assert size(little) < size(large) / 5
        for field in ("shape", "names", "sigma_data", "sigma_max", "sigma_min"):
            assert getattr(large, field) == getattr(little, field) == getattr(about, field)
        assert large.classes == 10


# --- networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", loading.DENOISERS)
def test_shapes(name):
    model = loading.load_model(name)
    x = noise(3, *model.shape)
    assert model(x, torch.tensor([0.1, 1.0, 9.0])).shape == x.shape
    assert model.net(x, torch.zeros(3), torch.zeros(3, 10)).shape == x.shape


@pytest.mark.parametrize(("name", "shape", "dim"), [("digits", (1, 8, 8), 64), ("fashion", (1, 28, 28), 128), ("fashion_other", (1, 28, 28), 128)])
def test_logits_are_the_head_of_the_features(name, shape, dim):
    judge, x = loading.load_judge(name), noise(3, *shape)
    assert judge.features(x).shape == (3, dim)
    assert torch.equal(judge(x), judge.head(judge.features(x))) and judge(x).shape == (3, 10)


def layers(net, x, emb, dense):
    """The way through a two- or three-level U, written out: all that is joined to what."""
    pool, enlarge = torch.nn.AvgPool2d(2), torch.nn.Upsample(scale_factor=2)
    h = net.conv_in(x)
    if not dense:  # one joint, at the end of the first level
        for block in net.down[0]:
            h = block(h, emb)
        joint, h = h, pool(h)
        for block in [*net.down[1], net.middle[0], *net.up[0]]:
            h = block(h, emb)
        h = torch.cat([enlarge(h), joint], 1)
        for block in net.up[1]:
            h = block(h, emb)
        return h
    seen = [h]
    for i, level in enumerate(net.down):
        h = pool(h) if i else h
        for block in level:
            h = block(h, emb)
            seen.append(h)
    for block in net.middle:
        h = block(h, emb)
    for i, level in enumerate(net.up):
        h = enlarge(h) if i else h
        for block in level:
            h = block(torch.cat([h, seen.pop()], 1), emb)
    return torch.cat([h, *seen], 1)


@pytest.mark.parametrize("name", loading.DENOISERS)
def test_the_network_joins_what_the_weights_were_trained_with(name):
    net = loading.load_model(name).net
    x, c_noise, rows = noise(2, *net.config.shape), torch.tensor([-0.4, 0.3]), torch.eye(10)[[3, 7]]
    silu = torch.nn.functional.silu
    h = layers(net, x, silu(net.embed_noise(c_noise) + rows @ net.label_weight), name.startswith("fashion"))
    assert torch.allclose(net(x, c_noise, rows), net.conv_out(silu(net.norm_out(h))), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (16, 20)}, "multiples of 8"),
        ({"channels": (8, 8, 8, 8)}, "multiples of 8, got .1, 28, 28"),
        ({"shape": (28, 28)}, "channels, height and width"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"embed_dim": 5}, "even, got 5"),
        ({"dropout": 1.0}, "below 1, got 1.0"),
    ],
)
def test_impossible_networks_are_named(change, message):
    fits = {"shape": (1, 28, 28), "classes": 10, "channels": (8, 16, 24), "blocks": 1, "embed_dim": 8}
    networks.UNetConfig(**fits)
    with pytest.raises(ValueError, match=message):
        networks.UNetConfig(**fits | change)


def test_impossible_levels_and_names_are_named(weak):
    with pytest.raises(ValueError, match="sigma_max 0.1"):
        networks.Denoiser(weak.net, weak.names, 0.75, 0.1, 1.0)
    with pytest.raises(ValueError, match="10 names, got 9"):
        networks.Denoiser(weak.net, weak.names[1:], 0.75, 20.0, 0.01)


class Recorder(torch.nn.Module):
    """Stands for the raw network: keeps its inputs, returns a fixed image."""

    def __init__(self, output):
        super().__init__()
        self.output, self.config = output, networks.UNetConfig((1, 8, 8), 10, (8,), 1, 8)

    def forward(self, x_in, c_noise, label):
        self.seen = x_in, c_noise, label
        return self.output


@pytest.mark.parametrize("sigma_data", [0.5, 0.75])
def test_preconditioning_closed_forms(sigma_data):
    sigma = [0.002, 0.3, 0.75, 80.0]
    x, raw = noise(4, 1, 8, 8, dtype=torch.float64), noise(4, 1, 8, 8, seed=1, dtype=torch.float64)
    net = Recorder(raw)
    model = networks.Denoiser(net, tuple("0123456789"), sigma_data, 20.0, 0.01)
    got = model(x, torch.tensor(sigma, dtype=torch.float64))
    for i, s in enumerate(sigma):
        r = math.hypot(s, sigma_data)
        expect = (sigma_data / r) ** 2 * x[i] + s * sigma_data / r * raw[i]
        torch.testing.assert_close(got[i], expect, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(net.seen[0][i], x[i] / r, rtol=1e-12, atol=1e-12)
        assert net.seen[1][i].item() == pytest.approx(math.log(s) / 4, abs=1e-12)
    assert not net.seen[2].any()


def test_sigma_zero_returns_the_input(good):
    x = data.load_split("test").images[:2]
    torch.testing.assert_close(good(x, 0.0), x, rtol=0, atol=0)


def test_label_embedding_is_linear(good):
    net = good.net
    a, b = noise(4, 10, seed=2), noise(4, 10, seed=3)
    mixed = net.embed_label(0.3 * a - 1.7 * b)
    expect = 0.3 * net.embed_label(a) - 1.7 * net.embed_label(b)
    torch.testing.assert_close(mixed, expect, rtol=1e-4, atol=1e-4)
    assert not net.embed_label(torch.zeros(1, 10)).any()
    assert net.embed_label(torch.eye(10)).std() > 0.1


def test_label_forms_agree(good):
    x, sigma = noise(4, 1, 8, 8), torch.full((4,), 0.8)
    label = torch.tensor([0, 3, 3, 9])
    by_class = good(x, sigma, label)
    rows = torch.eye(10)[label]
    assert torch.equal(by_class, good(x, sigma, rows))
    assert torch.equal(by_class, good(x, sigma, label.to(torch.uint8)))
    uncond = good(x, sigma)
    assert torch.equal(uncond, good(x, sigma, torch.zeros(4, 10)))
    assert (uncond - by_class).abs().max() > 0.05


def test_unequal_sigma_rows_equal_single_calls(good):
    sigma = torch.tensor([0.02, 0.5, 3.0, 18.0], dtype=torch.float64)
    x = noise(4, 1, 8, 8, dtype=torch.float64) * sigma.reshape(-1, 1, 1, 1)
    label = torch.tensor([1, 4, 7, 0])
    model = loading.load_model("digits", dtype=torch.float64)
    together = model(x, sigma, label)
    for i in range(4):
        alone = model(x[i : i + 1], sigma[i], label[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-10)
    swapped = model(x, sigma.flip(0), label)
    assert (together - swapped).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("name", loading.DENOISERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_dtypes(name, dtype, tolerance):
    sigma = torch.tensor([0.05, 0.5, 5.0])
    shape = loading.load_model(name).shape
    clean = noise(3, *shape, seed=9).clamp(-1, 1)
    x = clean + sigma.reshape(-1, 1, 1, 1) * noise(3, *shape)
    label = torch.tensor([1, 2, 3])
    expect = loading.load_model(name)(x, sigma, label)
    model = loading.load_model(name, dtype=dtype)
    assert all(p.dtype == dtype for p in model.parameters())
    got = model(x.to(dtype), sigma, label)
    assert got.dtype == dtype
    assert (got.float() - expect).abs().max() < tolerance
    # x decides the output dtype, whatever the weights are.
    assert model(x, sigma, label).dtype == torch.float32


def test_forward_and_reverse_derivatives_agree_with_differences():
    model = loading.load_model("digits", dtype=torch.float64)
    x, u, v = (noise(2, 1, 8, 8, seed=s, dtype=torch.float64) for s in (4, 5, 6))
    sigma = torch.tensor([0.4, 2.0], dtype=torch.float64)
    rows = torch.eye(10, dtype=torch.float64)[[2, 8]]
    drows = noise(2, 10, seed=7, dtype=torch.float64)

    _, tangent = torch.func.jvp(lambda a, b: model(a, sigma, b), (x, rows), (u, drows))
    h = 1e-5
    above = model(x + h * u, sigma, rows + h * drows)
    below = model(x - h * u, sigma, rows - h * drows)
    torch.testing.assert_close(tangent, (above - below) / (2 * h), rtol=1e-6, atol=1e-7)

    leaves = x.clone().requires_grad_(), rows.clone().requires_grad_()
    grads = torch.autograd.grad((model(leaves[0], sigma, leaves[1]) * v).sum(), leaves)
    reverse = (grads[0] * u).sum() + (grads[1] * drows).sum()
    torch.testing.assert_close((v * tangent).sum(), reverse, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("x_shape", "sigma", "label", "message"),
    [
        ((2, 8, 8), torch.ones(2), None, "x must have shape"),
        ((2, 3, 8, 8), torch.ones(2), None, "x must have shape"),
        ((2, 1, 8, 8), torch.ones(3), None, "sigma must be"),
        ((2, 1, 8, 8), torch.ones(2, 1), None, "sigma must be"),
        ((2, 1, 8, 8), torch.ones(2), torch.tensor([1]), "label must be"),
        ((2, 1, 8, 8), torch.ones(2), torch.ones(2), "label must be"),
        ((2, 1, 8, 8), torch.ones(2), torch.ones(2, 9), "label must be"),
    ],
)
def test_wrong_shapes_are_named(weak, x_shape, sigma, label, message):
    with pytest.raises(ValueError, match=message):
        weak(torch.zeros(x_shape), sigma, label)


@pytest.mark.parametrize("digit", [-1, 10])
def test_class_out_of_range_is_an_error(weak, digit):
    with pytest.raises(RuntimeError):
        weak(torch.zeros(1, 1, 8, 8), 1.0, torch.tensor([digit]))


# --- trained behaviour --------------------------------------------------------------------


def test_classifier_accuracy(classifier):
    split = data.load_split("test")
    assert scores.accuracy(classifier, split.images, split.labels) >= 0.97
    noisy = split.images + 0.3 * noise(*split.images.shape)
    assert scores.accuracy(classifier, noisy, split.labels) >= 0.9


def test_denoising_error_ranks_good_weak_and_labels(good, weak):
    split = data.load_split("test")
    sigma = torch.full((len(split.labels),), 1.0)
    x = split.images + noise(*split.images.shape)

    def error(model, label):
        return (model(x, sigma, label) - split.images).square().mean().item()

    assert error(good, split.labels) < 0.95 * error(weak, split.labels)
    assert error(good, split.labels) < 0.95 * error(good, None)
    assert error(good, split.labels) < 0.95 * error(good, (split.labels + 1) % 10)


def test_guidance_helps_the_samples_follow_the_label(good, weak, classifier, samples):
    def score(model, w):
        images = scores.sample(model, LABEL, len(LABEL), w, STEPS, seed=1)
        return scores.accuracy(classifier, images, LABEL)

    plain = scores.accuracy(classifier, samples, LABEL)
    assert plain >= 0.9
    assert score(good, 1.0) >= max(plain, 0.97)
    assert 0.75 <= score(weak, 0.0) < score(weak, 2.0)


def test_unconditional_samples_cover_every_digit(good, classifier):
    images = scores.sample(good, None, 200, 0.0, STEPS, seed=2)
    counts = classifier(images).argmax(1).bincount(minlength=10)
    assert counts.min() >= 5
    assert counts.max() <= 50


def test_samples_are_not_copies_of_the_training_images(samples):
    reference = data.load_split("train").images
    held_out = scores.nearest_distance(data.load_split("test").images, reference)
    assert 0.6 * held_out < scores.nearest_distance(samples, reference) < 1.5 * held_out


# --- fashion: its pictures are not here, its judges and their moments are --------------------------


def fitted(judge, images):
    with torch.no_grad():
        return Statistics.of(judge.features(images))


@pytest.fixture(scope="module")
def clothes():
    return scores.sample(loading.load_model("fashion_weak"), LABEL, len(LABEL), 0.5, 8, seed=3).clamp(-1, 1)


@pytest.mark.parametrize("name", ["fashion", "fashion_other"])
def test_samples_look_like_clothes_to_both_judges(name, clothes):
    judge = loading.load_judge(name)
    real = Statistics.real(judge)
    assert scores.accuracy(judge, clothes, LABEL) >= 0.85
    assert real.count == 60000
    # 60 pictures cannot fill 128 dimensions: far from 0, but much nearer than what are no clothes
    ours, upside_down = (frechet(fitted(judge, x), real) for x in (clothes, clothes.flip(2)))
    assert ours < 0.4 * upside_down, (ours, upside_down)


def test_the_large_fashion_model_draws_what_is_asked_for(fashion):
    label = torch.arange(10)
    images = scores.sample(fashion, label, 10, 1.0, 9, seed=3).clamp(-1, 1)
    assert scores.accuracy(loading.load_judge("fashion"), images, label) >= 0.8


def test_moments_of_the_digits_are_those_of_the_digits(classifier):
    want, got = fitted(classifier, data.load_digits().images), Statistics.real(loading.load_judge("digits"))
    assert got.count == 1797
    torch.testing.assert_close(got.mean, want.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.cov, want.cov, rtol=1e-4, atol=1e-5)


def test_names_of_fashion_are_in_the_order_of_its_labels():
    assert data.CLOTHES == ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
