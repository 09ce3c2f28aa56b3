"""The weight files of the demo models, whole and damaged, and the training that makes them."""

import dataclasses
import gzip
import shutil
import struct
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reg_core.demo_models import data, loading, networks, train

FILES = ("digits", "digits_weak", "digits_judge")


# --- errors -------------------------------------------------------------------------------


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="digits, digits_weak.*'digit'"):
        loading.load_model("digit")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="digits, fashion, fashion_other.*'digit'"):
        loading.load_judge("digit")
    for load, name, stem in (
        (loading.load_model, "fashion", "fashion"),
        (loading.load_judge, "digits", "digits_judge"),
    ):
        with pytest.raises(loading.WeightsError, match="reg_core.demo_models.train") as caught:
            load(name, weights_dir=tmp_path)
        assert str(tmp_path / f"{stem}.safetensors") in str(caught.value)
        assert "is missing" in str(caught.value)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _garbage(path):
    path.write_bytes(b"not a safetensors file")


def _wrong_kind(path):
    shutil.copy(loading.WEIGHTS_DIR / "digits_judge.safetensors", path)


def _drop_tensor(path):
    meta, state = safe_open(path, "pt").metadata(), load_file(path)
    del state["conv_out.weight"]
    save_file(state, path, meta)


def _bad_config(path):
    meta, state = safe_open(path, "pt").metadata(), load_file(path)
    save_file(state, path, {**meta, "config": "{"})


@pytest.mark.parametrize("damage", [_truncate, _garbage, _wrong_kind, _drop_tensor, _bad_config])
def test_corrupt_file_is_named(tmp_path, damage):
    path = tmp_path / "digits_weak.safetensors"
    shutil.copy(loading.WEIGHTS_DIR / path.name, path)
    loading.load_model("digits_weak", weights_dir=tmp_path)
    damage(path)
    with pytest.raises(loading.WeightsError, match="reg_core.demo_models.train") as caught:
        loading.load_model("digits_weak", weights_dir=tmp_path)
    assert str(path) in str(caught.value)


# --- training -----------------------------------------------------------------------------


def test_quick_training_runs_and_is_deterministic(tmp_path, capsys):
    def run(folder, seed, *extra):
        arguments = ["digits", "--quick", "--steps", "4", "--seed", str(seed)]
        train.main([*arguments, "--out", str(tmp_path / folder), *extra])

    run("a", 0)
    printed = capsys.readouterr().out
    assert "digits_judge: " in printed
    assert "w=2: accuracy" in printed
    run("b", 0)
    run("c", 1, "--only", "digits_weak", "--grid", str(tmp_path / "grid"))
    assert (tmp_path / "grid" / "digits_weak.png").stat().st_size > 0
    for name in FILES:
        first, second = (load_file(tmp_path / run_ / f"{name}.safetensors") for run_ in "ab")
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=1e-5, atol=1e-6)
    assert [path.stem for path in (tmp_path / "c").iterdir()] == ["digits_weak"]
    other = load_file(tmp_path / "c" / "digits_weak.safetensors")
    first = load_file(tmp_path / "a" / "digits_weak.safetensors")
    assert (other["conv_in.weight"] - first["conv_in.weight"]).abs().max() > 0.01
    trained = loading.load_model("digits", weights_dir=tmp_path / "a")
    assert trained.net.conv_out.weight.any()
    judge = loading.load_judge("digits", weights_dir=tmp_path / "a")
    with torch.no_grad():
        features = judge.features(data.load_digits().images)
    torch.testing.assert_close(judge.real_mean, features.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(judge.real_cov, features.T.cov(), rtol=1e-3, atol=1e-6)


def test_a_file_again_is_the_same_file(tmp_path):
    """Saving loses nothing, and what was float16 on disk is float16 again."""
    for name, model, dtype in (
        ("digits_weak", loading.load_model("digits_weak"), torch.float32),
        ("fashion_weak", loading.load_model("fashion_weak"), torch.float16),
        ("fashion_judge_other", loading.load_judge("fashion_other"), torch.float16),
    ):
        before = loading.WEIGHTS_DIR / f"{name}.safetensors"
        notes = safe_open(before, "pt").metadata()
        loading.save_weights(tmp_path / before.name, model, dtype, **{k: notes[k] for k in ("seed", "steps")})
        after = load_file(tmp_path / before.name)
        assert after.keys() == load_file(before).keys()
        for key, value in load_file(before).items():
            assert after[key].dtype == value.dtype and torch.equal(after[key], value), key
        again = safe_open(tmp_path / before.name, "pt").metadata()
        assert all(notes[key] == again[key] for key in again)


def write_idx(path, values, packed):
    """The format as its author describes it: two zero bytes, 8 for bytes, dimensions, big-endian sizes, values."""
    raw = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(raw) if packed else raw)


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """(folder, images, labels) of made-up pictures, each part in another way of packing."""
    folder, made = tmp_path_factory.mktemp("idx"), np.random.default_rng(0)
    images = made.integers(0, 256, (40, 28, 28)).astype(np.uint8)
    labels = np.arange(40).astype(np.uint8) % 10
    for part, end, packed in (("train", ".gz", True), ("t10k", "", False)):
        write_idx(folder / f"{part}-images-idx3-ubyte{end}", images, packed)
        write_idx(folder / f"{part}-labels-idx1-ubyte{end}", labels, packed)
    return folder, images, labels


def test_idx_files_are_read(clothes):
    folder, images, labels = clothes
    for part in ("train", "test"):
        read = data.load_pictures(data.FASHION, part, folder)
        assert read.images.shape == (40, 1, 28, 28) and read.labels.tolist() == labels.tolist()
        assert np.allclose(read.images[:, 0].numpy(), images / 127.5 - 1, atol=1e-6)


def test_training_on_fashion_writes_judge_and_models(clothes, tmp_path, capsys):
    names = ["fashion_judge_other", "fashion_weak"]
    arguments = ["fashion", "--quick", "--steps", "4", "--data", str(clothes[0]), "--out", str(tmp_path)]
    train.main([*arguments, "--only", *names])
    assert "w=2: accuracy" in capsys.readouterr().out
    model = loading.load_model("fashion_weak", weights_dir=tmp_path)
    assert (model.shape, model.sigma_max) == ((1, 28, 28), 80.0) and model.net.conv_out.weight.any()
    judge, images = loading.load_judge("fashion_other", weights_dir=tmp_path), data.load_fashion("train", clothes[0]).images
    with torch.no_grad():
        assert torch.allclose(judge.real_mean, judge.features(images).mean(0), atol=2e-3)  # float16 weights
    assert int(judge.real_count) == 40


def test_the_early_model_is_the_large_one_stopped(monkeypatch):
    """Same seed and same rates: after a twelfth of the steps the two runs are the same."""
    large, early = train.RECIPES["fashion"], train.RECIPES["fashion_early"]
    assert dataclasses.replace(early, part=1.0) == large and early.part == 1 / 12
    tiny = networks.UNetConfig((1, 8, 8), 10, (8, 8), 1, 8)
    pictures = [data.load_split(part) for part in ("train", "test")]
    part = [data.Pictures(p.images[:16], p.labels[:16]) for p in pictures]
    rates = []
    monkeypatch.setattr(train, "_update", lambda optimizer, model, loss, rate: rates.append(rate))
    for recipe in (large, early):
        made_small = dataclasses.replace(recipe, data=data.DIGITS, config=tiny, steps=24, batch=4)
        train.train_denoiser(made_small, *part, 0, "test", 1)
    assert len(rates) == 24 + 2 and rates[24:] == rates[:2]


def test_missing_pictures_name_both_ways(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # as if it were not installed
    for where in (["--data", str(tmp_path)], []):
        with pytest.raises(SystemExit, match="torchvision.*--data.*dataset-fashion-mnist"):
            train.main(["fashion", "--out", str(tmp_path), *where])


def test_damaged_pictures_are_named(tmp_path, clothes):
    for part in clothes[0].iterdir():
        shutil.copy(part, tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte says \[40\], but holds 37"):
        data.load_fashion("test", tmp_path)
    labels.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte is not an idx file"):
        data.load_fashion("test", tmp_path)
    write_idx(labels, clothes[2][:5], packed=False)
    with pytest.raises(ValueError, match=r"want pictures of 28x28 with a label each"):
        data.load_fashion("test", tmp_path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["digits", "--quick"], "--out"),
        (["digits", "--out", "x", "--steps", "0"], "got 0"),
        (["digits", "--only", "fashion"], "fashion is not trained on digits"),
        (["digits", "--data", "x"], "scikit-learn"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(bad, message, capsys):
    with pytest.raises(SystemExit):
        train.main(bad)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("name", "moves"), [("digits_judge", 1), ("fashion_judge", 2)])
def test_augmentation_shifts_by_a_few_pixels(name, moves):
    recipe = train.JUDGE_RECIPES[name]
    side = recipe.data.shape[1]
    image = torch.full((800, 1, side, side), -1.0)
    image[:, :, 3, 4] = 2.5  # above the noise
    out = train.augment(image, recipe, torch.Generator().manual_seed(0))
    assert out.shape == image.shape
    places = {divmod(i, side) for i in out.flatten(1).argmax(1).tolist()}
    near = range(-moves, moves + 1)
    assert places == {(3 + i, 4 + j) for i in near for j in near}
    noisy = (out == -1).flatten(1).float().mean(1) < 0.9
    assert 0.4 < noisy.float().mean() < 0.6
