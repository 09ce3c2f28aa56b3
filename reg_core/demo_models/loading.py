"""Load the trained networks of `weights/`, or write new ones.

Each safetensors file carries string metadata: "kind" ("denoiser" or "judge"), "config" (JSON of the network's
arguments), "seed", "steps" and the measured results. A denoiser's file also says "names" (JSON),
"sigma_data", "sigma_max" and "sigma_min"."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..checks import cut, one_of, shortened
from ..files import whole_file
from .networks import Denoiser, DigitsJudge, FashionJudge, Judge, UNet, UNetConfig

WEIGHTS_DIR = Path(__file__).resolve().parent / "weights"
DENOISERS = ("digits", "digits_weak", "fashion", "fashion_weak")
JUDGES = {"digits": "digits_judge", "fashion": "fashion_judge", "fashion_other": "fashion_judge_other"}
LEVELS = ("sigma_data", "sigma_max", "sigma_min")


class WeightsError(RuntimeError):
    """A weights file is missing, unreadable or does not fit the network."""


def load_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    weights_dir: str | Path | None = None,
) -> Denoiser:
    """The trained denoiser, in eval mode and with frozen parameters.

    `name`: "digits", "fashion", or "digits_weak", "fashion_weak": smaller and trained less, the bad partners
    for autoguidance. `weights_dir`: another folder of weights, whose files may have any name.
    Raises ValueError for another name, WeightsError for a missing or bad file.
    """
    if weights_dir is None:
        one_of("demo model", name, DENOISERS)
    return _load(name, "denoiser", _denoiser, weights_dir).to(device=device, dtype=dtype)


def load_judge(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    weights_dir: str | Path | None = None,
) -> Judge:
    """The trained classifier, in eval mode and with frozen parameters.

    `name`: "digits", "fashion" or "fashion_other", which is smaller and has another seed.
    Raises ValueError for another name, WeightsError for a missing or bad file.
    """
    one_of("judge", name, JUDGES)
    kind = DigitsJudge if name == "digits" else FashionJudge
    judge = _load(JUDGES[name], "judge", lambda meta: kind(**json.loads(meta["config"])), weights_dir)
    return judge.to(device=device, dtype=dtype)


def save_weights(
    path: str | Path, model: Denoiser | Judge, dtype: torch.dtype = torch.float32, **notes: object
) -> None:
    """Write a network and its metadata, creating the folder.

    `dtype`: of the parameters on disk. `notes`: further metadata, stored as strings.
    """
    net = model
    if isinstance(model, Denoiser):
        net, config = model.net, asdict(model.net.config)
        levels = {level: getattr(model, level) for level in LEVELS}
        notes = {"kind": "denoiser", "names": json.dumps(model.names), **levels, **notes}
    else:
        config = {"width": model.width} if isinstance(model, FashionJudge) else {}
        notes = {"kind": "judge", **notes}
    state = net.state_dict() | {key: value.detach().to(dtype) for key, value in net.named_parameters()}
    meta = {key: str(value) for key, value in {"config": json.dumps(config), **notes}.items()}
    with whole_file(path) as partial:
        save_file({key: value.cpu().contiguous() for key, value in state.items()}, partial, meta)


def _denoiser(meta: dict[str, str]) -> Denoiser:
    config = json.loads(meta["config"])
    config |= {key: tuple(config[key]) for key in ("shape", "channels")}
    levels = {level: float(meta[level]) for level in LEVELS}
    return Denoiser(UNet(UNetConfig(**config)), tuple(json.loads(meta["names"])), **levels)


def _load(stem: str, kind: str, build: Callable[[dict[str, str]], nn.Module], folder: str | Path | None):
    path = Path(folder or WEIGHTS_DIR) / f"{stem}.safetensors"
    state, meta = _read(path, kind)
    try:
        model = build(meta)
        getattr(model, "net", model).load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(_message(path, f"does not fit the network: {cut(error)}")) from error
    return model.train(False).requires_grad_(False)


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
    data_set = path.stem.split("_")[0]
    retrain = f"train it again with `python -m reg_core.demo_models.train {data_set} --out {path.parent}`"
    return f"demo weights file {path} {problem}. Reinstall the pack, or {retrain}."
