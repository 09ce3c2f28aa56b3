"""Load the trained networks of `weights/`, or write new ones.

Each safetensors file carries string metadata: "kind" ("denoiser" or "classifier"), "config" (JSON of
`DigitsNetConfig`, or {}), "sigma_data", "seed", "steps" and the measured results."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..checks import cut, shortened
from ..files import whole_file
from .networks import DigitsClassifier, DigitsNet, DigitsNetConfig, EDMDenoiser

WEIGHTS_DIR = Path(__file__).resolve().parent / "weights"
DENOISERS = ("digits", "digits_weak")
CLASSIFIER = "digits_classifier"


class WeightsError(RuntimeError):
    """A weights file is missing, unreadable or does not fit the network."""


def load_digits_model(
    name: str = "digits",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    weights_dir: str | Path | None = None,
) -> EDMDenoiser:
    """The trained denoiser, in eval mode and with frozen parameters.

    name: "digits" (the good model) or "digits_weak" (smaller and trained for
    fewer steps, the bad partner for autoguidance).
    Raises ValueError for another name, WeightsError for a missing or bad file.
    """
    if name not in DENOISERS:
        raise ValueError(f"unknown digits model {shortened(name)}; valid names: {', '.join(DENOISERS)}")
    path = Path(weights_dir or WEIGHTS_DIR) / f"{name}.safetensors"
    state, meta = _read(path, "denoiser")
    try:
        config = json.loads(meta["config"])
        config["channels"] = tuple(config["channels"])
        model = EDMDenoiser(DigitsNet(DigitsNetConfig(**config)), float(meta["sigma_data"]))
        model.net.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(_message(path, f"does not fit the network: {cut(error)}")) from error
    return _freeze(model, dtype, device)


def load_digits_classifier(
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    weights_dir: str | Path | None = None,
) -> DigitsClassifier:
    """The trained classifier, in eval mode and with frozen parameters.

    Raises WeightsError for a missing or bad file.
    """
    path = Path(weights_dir or WEIGHTS_DIR) / f"{CLASSIFIER}.safetensors"
    state, _ = _read(path, "classifier")
    model = DigitsClassifier()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(_message(path, f"does not fit the network: {cut(error)}")) from error
    return _freeze(model, dtype, device)


def save_weights(path: str | Path, model: EDMDenoiser | DigitsClassifier, **notes: object) -> None:
    """Write float32 weights and metadata, creating the folder; notes are stored as strings."""
    denoiser = isinstance(model, EDMDenoiser)
    meta: dict[str, object] = {
        "kind": "denoiser" if denoiser else "classifier",
        "config": json.dumps(asdict(model.net.config) if denoiser else {}),
    }
    if denoiser:
        meta["sigma_data"] = model.sigma_data
    net = model.net if denoiser else model
    state = {key: value.detach().float().contiguous() for key, value in net.state_dict().items()}
    with whole_file(path) as partial:
        save_file(state, partial, {key: str(value) for key, value in {**meta, **notes}.items()})


def _read(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise WeightsError(_message(path, "is missing"))
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own type, OSError or ValueError
        raise WeightsError(_message(path, f"cannot be read: {cut(error)}")) from error
    if meta.get("kind") != kind:
        raise WeightsError(_message(path, f"holds kind {shortened(meta.get('kind'))}, expected {kind!r}"))
    return state, meta


def _message(path: Path, problem: str) -> str:
    retrain = f"retrain with `python -m reg_core.demo_models.train --out {path.parent}`"
    return f"digits weights file {path} {problem}. Reinstall the pack, or {retrain}."


def _freeze(model: nn.Module, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    return model.to(device=device, dtype=dtype).train(False).requires_grad_(False)
