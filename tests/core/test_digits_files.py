"""The weight files of the digits models, whole and damaged, and the training that makes them."""

import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reg_core.demo_models import loading, train

FILES = ("digits", "digits_weak", "digits_classifier")


# --- errors -------------------------------------------------------------------------------


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'digit'.*digits, digits_weak"):
        loading.load_digits_model("digit")


def test_missing_file_is_named(tmp_path):
    for load, stem in (
        (loading.load_digits_model, "digits"),
        (loading.load_digits_classifier, "digits_classifier"),
    ):
        with pytest.raises(loading.WeightsError, match="reg_core.demo_models.train") as caught:
            load(weights_dir=tmp_path)
        assert str(tmp_path / f"{stem}.safetensors") in str(caught.value)
        assert "is missing" in str(caught.value)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _garbage(path):
    path.write_bytes(b"not a safetensors file")


def _wrong_kind(path):
    shutil.copy(loading.WEIGHTS_DIR / "digits_classifier.safetensors", path)


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
    loading.load_digits_model("digits_weak", weights_dir=tmp_path)
    damage(path)
    with pytest.raises(loading.WeightsError, match="reg_core.demo_models.train") as caught:
        loading.load_digits_model("digits_weak", weights_dir=tmp_path)
    assert str(path) in str(caught.value)


# --- training -----------------------------------------------------------------------------


def test_quick_training_runs_and_is_deterministic(tmp_path, capsys):
    def run(folder, which, seed, *extra):
        arguments = ["--quick", "--steps", "4", "--which", which, "--seed", str(seed)]
        train.main([*arguments, "--out", str(tmp_path / folder), *extra])

    run("a", "all", 0)
    printed = capsys.readouterr().out
    assert "digits_classifier: " in printed
    assert "w=2: accuracy" in printed
    run("b", "all", 0)
    run("c", "weak", 1, "--grid", str(tmp_path / "grid"))
    assert (tmp_path / "grid" / "digits_weak.png").stat().st_size > 0
    for name in FILES:
        first, second = (load_file(tmp_path / run_ / f"{name}.safetensors") for run_ in "ab")
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=1e-5, atol=1e-6)
    other = load_file(tmp_path / "c" / "digits_weak.safetensors")
    first = load_file(tmp_path / "a" / "digits_weak.safetensors")
    assert (other["conv_in.weight"] - first["conv_in.weight"]).abs().max() > 0.01
    trained = loading.load_digits_model("digits", weights_dir=tmp_path / "a")
    assert trained.net.conv_out.weight.any()
    loading.load_digits_classifier(weights_dir=tmp_path / "a")


def test_quick_refuses_to_replace_the_packaged_weights(capsys):
    with pytest.raises(SystemExit):
        train.main(["--quick"])
    assert "--out" in capsys.readouterr().err


def test_augmentation_shifts_by_at_most_one_pixel():
    image = torch.full((400, 1, 8, 8), -1.0)
    image[:, :, 3, 4] = 1.0
    out = train.augment(image, torch.Generator().manual_seed(0))
    places = {divmod(i, 8) for i in out.flatten(1).argmax(1).tolist()}
    assert places == {(r, c) for r in (2, 3, 4) for c in (3, 4, 5)}
