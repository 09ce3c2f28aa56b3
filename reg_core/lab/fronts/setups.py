"""What is guided by what: the models of a trial, its labels and its noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...demo_models.loading import load_model, save_weights
from . import cuda_noise


@dataclass(frozen=True)
class Setup:
    """A model and its reference, each a name of DENOISERS.

    A name with a folder, such as "early/fashion", is trained here and does not ship. `reference` None: the
    same model without a label, which is classifier-free guidance; else autoguidance."""

    data: str
    main: str
    reference: str | None
    words: str


SETUPS = {
    "weak": Setup("digits", "digits_weak", None, "classifier-free guidance of the weak model"),
    "good": Setup("digits", "digits", None, "classifier-free guidance of the good model"),
    "auto": Setup("digits", "digits", "digits_weak", "autoguidance: the good model by the weak one"),
    "auto_weak": Setup(
        "digits",
        "digits_weak",
        "weaker/digits_weak",
        "autoguidance: the weak model by one trained for a fifth of its steps",
    ),
    "fashion_weak": Setup(
        "fashion", "fashion_weak", None, "classifier-free guidance of the small model (0.33 M parameters)"
    ),
    "fashion_good": Setup(
        "fashion", "fashion", None, "classifier-free guidance of the large model (4.1 M parameters)"
    ),
    "fashion_early": Setup(
        "fashion",
        "early/fashion",
        None,
        "classifier-free guidance of the large model after a twelfth of its training",
    ),
    "fashion_auto": Setup(
        "fashion", "fashion", "fashion_weak", "autoguidance: the large model by the small one"
    ),
}
WEAKER_STEPS = 100
CHUNK = 2500  # pictures of fashion that share a seed


@lru_cache(maxsize=8)
def model(place: str, folder: str, dtype: str = "float32", device: str = "cpu"):
    """The denoiser at `place` (see Setup); those that do not ship lie under `folder`."""
    *own, name = place.split("/")
    where = Path(folder, *own) if own else None
    if where and not (where / f"{name}.safetensors").is_file():
        if place != "weaker/digits_weak":
            way_out = "train fashion_early (python -m reg_core.demo_models.train) and put it there"
            raise FileNotFoundError(f"no model at {where / name}.safetensors: {way_out}")
        _train_weaker(where / f"{name}.safetensors")
    loaded = load_model(name, getattr(torch, dtype), device, where)
    # A fifth faster with more than 8 x 8 pixels.
    return loaded if loaded.shape[-1] == 8 else loaded.to(memory_format=torch.channels_last)


def _train_weaker(path: Path) -> None:
    """The weaker reference of `auto_weak` (seconds)."""
    from ...demo_models.data import load_split
    from ...demo_models.train import RECIPES, replace, train_denoiser

    recipe, parts = replace(RECIPES["digits_weak"], steps=WEAKER_STEPS), map(load_split, ("train", "test"))
    trained, _ = train_denoiser(recipe, *parts, 1, "weaker reference", 1)
    save_weights(path, trained, seed=1, steps=WEAKER_STEPS)


def denoisers(setup: str, label: Tensor, folder: str, dtype: str = "float32"):
    """(D_c, D_ref) of a setup as callables (x, sigma) -> D for these labels [B], on their device."""
    chosen, device = SETUPS[setup], str(label.device)
    main = model(chosen.main, folder, dtype, device)
    if chosen.reference is None:
        return lambda x, sigma: main(x, sigma, label), lambda x, sigma: main(x, sigma)
    reference = model(chosen.reference, folder, dtype, device)
    return lambda x, sigma: main(x, sigma, label), lambda x, sigma: reference(x, sigma, label)


def labels(count: int, classes: int = 10) -> Tensor:
    """0, 1, .. in turn [count]."""
    return torch.arange(count) % classes


def noise(setup: str, count: int, seed: int, folder: str, device: str = "cpu") -> Tensor:
    """Starts at the highest noise level [count, C, H, W].

    Fashion takes them 2500 at a time as an H200 draws them, which the study was sampled on."""
    main = model(SETUPS[setup].main, folder, device=device)
    shape, scale = main.shape, main.sigma_max
    if SETUPS[setup].data == "digits":
        drawn = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
        return scale * drawn.to(device)
    parts = [
        cuda_noise.randn((min(CHUNK, count - begin), *shape), 1000 * seed + begin)
        for begin in range(0, count, CHUNK)
    ]
    return scale * torch.cat(parts).to(device)
