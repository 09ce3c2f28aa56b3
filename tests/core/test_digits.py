"""The digits models: shipped weights, EDM preconditioning, labels, dtypes, trained behaviour."""

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from reg_core.demo_models import data, loading, networks, scores

FILES = ("digits", "digits_weak", "digits_classifier")


@pytest.fixture(scope="module")
def good():
    return loading.load_digits_model("digits")


@pytest.fixture(scope="module")
def weak():
    return loading.load_digits_model("digits_weak")


@pytest.fixture(scope="module")
def classifier():
    return loading.load_digits_classifier()


LABEL = torch.arange(60) % 10
STEPS = 7


@pytest.fixture(scope="module")
def samples(good):
    return scores.sample_digits(good, LABEL, len(LABEL), 0.0, STEPS, seed=1)


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
    with pytest.raises(ValueError, match="'train' or 'test'"):
        data.load_split("valid")


def test_images_are_scaled_and_sigma_data_is_measured():
    split = data.load_split("train")
    assert split.images.shape[1:] == networks.IMAGE_SHAPE
    assert split.images.min() == -1
    assert split.images.max() == 1
    assert split.images.std().item() == pytest.approx(networks.SIGMA_DATA, abs=0.005)


# --- shipped files ------------------------------------------------------------------------


def test_weights_are_small_and_described():
    total = 0
    for name in FILES:
        path = loading.WEIGHTS_DIR / f"{name}.safetensors"
        total += path.stat().st_size
        meta = safe_open(path, "pt").metadata()
        assert {"kind", "config", "seed", "steps"} <= set(meta)
        assert all(t.dtype == torch.float32 for t in load_file(path).values())
    assert total < 4e6


def test_loaded_models_are_frozen_and_different(good, weak, classifier):
    for model in (good, weak, classifier):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())

    def size(model):
        return sum(p.numel() for p in model.parameters())

    assert size(weak) < size(good) / 5
    assert good.sigma_data == weak.sigma_data == networks.SIGMA_DATA


# --- networks -----------------------------------------------------------------------------


def test_shapes(good, weak, classifier):
    x = noise(3, 1, 8, 8)
    for model in (good, weak):
        assert model(x, torch.tensor([0.1, 1.0, 9.0])).shape == x.shape
        assert model.net(x, torch.zeros(3), torch.zeros(3, 10)).shape == x.shape
    assert classifier(x).shape == (3, 10)
    assert classifier.features(x).shape == (3, networks.FEATURE_DIM)


class Recorder(torch.nn.Module):
    """Stands for the raw network: keeps its inputs, returns a fixed image."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x_in, c_noise, label):
        self.seen = x_in, c_noise, label
        return self.output


@pytest.mark.parametrize("sigma_data", [0.5, 0.75])
def test_preconditioning_closed_forms(sigma_data):
    sigma = [0.002, 0.3, 0.75, 80.0]
    x, raw = noise(4, 1, 8, 8, dtype=torch.float64), noise(4, 1, 8, 8, seed=1, dtype=torch.float64)
    net = Recorder(raw)
    model = networks.EDMDenoiser(net, sigma_data)
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
    model = loading.load_digits_model("digits", dtype=torch.float64)
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
    clean = data.load_split("test").images[:3]
    x = clean + sigma.reshape(-1, 1, 1, 1) * noise(3, 1, 8, 8)
    label = torch.tensor([1, 2, 3])
    expect = loading.load_digits_model(name)(x, sigma, label)
    model = loading.load_digits_model(name, dtype=dtype)
    assert all(p.dtype == dtype for p in model.parameters())
    got = model(x.to(dtype), sigma, label)
    assert got.dtype == dtype
    assert (got.float() - expect).abs().max() < tolerance
    # x decides the output dtype, whatever the weights are.
    assert model(x, sigma, label).dtype == torch.float32


def test_forward_and_reverse_derivatives_agree_with_differences():
    model = loading.load_digits_model("digits", dtype=torch.float64)
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
        images = scores.sample_digits(model, LABEL, len(LABEL), w, STEPS, seed=1)
        return scores.accuracy(classifier, images, LABEL)

    plain = scores.accuracy(classifier, samples, LABEL)
    assert plain >= 0.9
    assert score(good, 1.0) >= max(plain, 0.97)
    assert 0.75 <= score(weak, 0.0) < score(weak, 2.0)


def test_unconditional_samples_cover_every_digit(good, classifier):
    images = scores.sample_digits(good, None, 200, 0.0, STEPS, seed=2)
    counts = classifier(images).argmax(1).bincount(minlength=10)
    assert counts.min() >= 5
    assert counts.max() <= 50


def test_samples_are_not_copies_of_the_training_images(samples):
    reference = data.load_split("train").images
    held_out = scores.nearest_distance(data.load_split("test").images, reference)
    assert 0.6 * held_out < scores.nearest_distance(samples, reference) < 1.5 * held_out
