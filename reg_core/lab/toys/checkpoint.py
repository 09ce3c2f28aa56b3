"""Reading (and writing) the layout of the REG authors' released 1-D toy. No pickle in it is ever executed.

Three files share a prefix:

- `PREFIX_cond.pth`, `PREFIX_uncond.pth`: state dicts as torch.save writes them, float tensors only.
- `PREFIX.pkl`: a pickled dict of plain values. hidden_size H, hidden_layers L, emb_size E (even), num_class
  K, num_timesteps T, beta_start, beta_end, beta_schedule ("linear", or "quadratic": linear in sqrt(beta)),
  time_emb and input_emb ("sinusoidal"), and the data: cond_mean, cond_std, uncond_mean, uncond_std, lists of
  equal weights. Other keys (num_sample) are ignored.

| tensor | shape | in `EpsNet` |
|---|---|---|
| class_emb.weight | [K, E] | label; cond adds row 0 to the time's sinusoids, uncond (label -1) none |
| joint_mlp.0.weight, .bias | [H, 2E], [H] | enter, on the sinusoids of 25 x, then those of t; GELU after it |
| joint_mlp.{2+i}.ff.weight, .bias | [H, H], [H] | blocks.i, h + GELU(ff(h)), i = 0 .. L-1 |
| joint_mlp.{2+L}.weight, .bias | [1, H], [1] | leave |"""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import torch
from torch import Tensor

from ...checks import cut, shortened
from ..mixtures.mixture import Mixture
from ..mixtures.zoo import Pair
from .networks import EpsDenoiser, EpsNet, NetShape, Toy, ddpm_sigmas

CONFIG_BYTES = 100_000  # the released one has 343
# Whole numbers, and the largest that is accepted.
WHOLE = {"hidden_size": 4096, "hidden_layers": 64, "emb_size": 4096, "num_class": 10_000}
WHOLE["num_timesteps"] = 10_000
NAMES = ("beta_schedule", "beta_start", "beta_end", "time_emb", "input_emb")
DATA = ("cond_mean", "cond_std", "uncond_mean", "uncond_std")


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings, lists and dicts. A pickle can run code only through a global; there are none here."""

    def find_class(self, module, name):
        rule = "a config holds plain values only"
        raise pickle.UnpicklingError(f"refused: the pickle wants {module}.{name}, and {rule}")


def read_config(path: str | Path) -> dict:
    """The checked config of a toy.

    Raises ValueError with the offending key and value, or for a pickle that is more than plain values."""
    path = Path(path)
    if (size := path.stat().st_size) > CONFIG_BYTES:
        raise ValueError(f"{path.name}: a config of {size} bytes; want at most {CONFIG_BYTES}")
    try:
        with path.open("rb") as file:
            config = _PlainUnpickler(file).load()
    except Exception as error:  # a broken pickle raises nearly anything
        said = cut(error) or type(error).__name__
        raise ValueError(f"{path.name}: no readable config: {said}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path.name}: want a dict, got {type(config).__name__}")
    if missing := [key for key in (*WHOLE, *NAMES, *DATA) if key not in config]:
        raise ValueError(f"{path.name}: missing {', '.join(missing)}")
    start, end = config["beta_start"], config["beta_end"]

    def check(key, good, want):
        if not good:
            raise ValueError(f"{path.name}: {key} must be {want}, got {shortened(config[key])}")

    for key, most in WHOLE.items():
        check(key, type(config[key]) is int and 1 <= config[key] <= most, f"a whole number 1 .. {most}")
    check("emb_size", config["emb_size"] % 2 == 0 and config["emb_size"] >= 4, "even and at least 4")
    check("num_timesteps", config["num_timesteps"] >= 2, "at least 2")
    for key in ("time_emb", "input_emb"):
        check(key, config[key] == "sinusoidal", "'sinusoidal'")
    check("beta_schedule", config["beta_schedule"] in ("linear", "quadratic"), "'linear' or 'quadratic'")
    check("beta_start", _number(start) and 0 < start < 1, "a number in (0, 1)")
    check("beta_end", _number(end) and start <= end < 1, "a number in [beta_start, 1)")
    for key in DATA:
        values = config[key]
        fits = isinstance(values, list) and 0 < len(values) <= 1000 and all(map(_number, values))
        check(key, fits, "a list of numbers")
    for kind in ("cond", "uncond"):
        means, stds = config[f"{kind}_mean"], config[f"{kind}_std"]
        check(f"{kind}_std", len(stds) == len(means), f"as long as {kind}_mean")
        check(f"{kind}_std", min(stds) > 0, "> 0")
    return config


def load_toy(prefix: str | Path) -> Toy:
    """The toy whose three files start with `prefix` (the path of one of them does too).

    Raises FileNotFoundError with the name of a file that is not there, and ValueError for a config or tensors
    that do not fit the layout."""
    parts = files(prefix)
    for path in parts.values():
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: a toy is PREFIX_cond.pth, PREFIX_uncond.pth and PREFIX.pkl")
    config = read_config(parts["config"])
    sigmas = chain_sigmas(config)
    denoisers, data = [], []
    for kind, label in (("cond", 0), ("uncond", None)):
        denoisers.append(EpsDenoiser(_load_net(parts[kind], config), sigmas, label))
        values = (config[f"{kind}_{what}"] for what in ("mean", "std"))
        means, stds = (torch.tensor(value, dtype=torch.float64) for value in values)
        data.append(Mixture.of(torch.ones(len(means)), means[:, None], stds**2))
    return Toy(Pair("toy", *data), sigmas, *denoisers, f"checkpoint {parts['config'].stem}")


def save_toy(toy: Toy, prefix: str | Path) -> None:
    """Write a trained 1-D toy in that layout. Raises ValueError for one that the layout cannot hold."""
    pair, nets = toy.pair, [getattr(d, "net", None) for d in (toy.cond, toy.uncond)]
    if pair.dim != 1 or not all(isinstance(n, EpsNet) for n in nets) or nets[0].shape != nets[1].shape:
        given = f"{pair.name} ({pair.dim}-D, {toy.origin})"
        raise ValueError(f"the layout holds two like networks in 1-D, got {given}")
    betas = chain_betas(toy.sigmas)
    start, end = float(betas[0]), float(betas[-1])
    if not torch.allclose(betas, torch.linspace(start, end, len(betas), dtype=betas.dtype), rtol=1e-6):
        raise ValueError(f"the layout holds linear betas, got {shortened(betas.tolist())}")
    shape = nets[0].shape
    config = {"hidden_size": shape.hidden, "hidden_layers": shape.layers, "emb_size": shape.emb}
    config |= {"num_class": shape.classes, "time_emb": "sinusoidal", "input_emb": "sinusoidal"}
    config |= {"num_timesteps": len(betas), "beta_schedule": "linear", "beta_start": start, "beta_end": end}
    for kind, mixture in (("cond", pair.cond), ("uncond", pair.uncond)):
        weights = mixture.weights
        if not torch.allclose(weights, weights.mean()):
            raise ValueError(
                f"the layout holds components of equal weight, {kind} has {shortened(weights.tolist())}"
            )
        config[f"{kind}_mean"] = mixture.means[:, 0].tolist()
        config[f"{kind}_std"] = mixture.variances[:, 0].sqrt().tolist()
    parts = files(prefix)
    parts["config"].parent.mkdir(parents=True, exist_ok=True)
    parts["config"].write_bytes(pickle.dumps(config, protocol=4))
    for kind, net in zip(("cond", "uncond"), nets, strict=True):
        state = net.state_dict()
        torch.save({theirs: state[ours] for theirs, ours in names(shape.layers).items()}, parts[kind])


def files(prefix: str | Path) -> dict[str, Path]:
    """{"cond", "uncond", "config"} -> path."""
    prefix = str(prefix)
    for end in ("_uncond.pth", "_cond.pth", ".pkl"):
        prefix = prefix.removesuffix(end)
    ends = {"cond": "_cond.pth", "uncond": "_uncond.pth", "config": ".pkl"}
    return {kind: Path(prefix + end) for kind, end in ends.items()}


def names(layers: int) -> dict[str, str]:
    """Tensor name in the files -> in EpsNet."""
    pairs = {"joint_mlp.0": "enter", f"joint_mlp.{2 + layers}": "leave"}
    pairs |= {f"joint_mlp.{2 + i}.ff": f"blocks.{i}" for i in range(layers)}
    parts = ("weight", "bias")
    named = {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in pairs.items() for part in parts}
    return {"class_emb.weight": "label"} | named


def chain_sigmas(config: dict) -> Tensor:
    """VE noise levels [T] of the config's betas."""
    steps, start, end = config["num_timesteps"], config["beta_start"], config["beta_end"]
    if config["beta_schedule"] == "linear":
        return ddpm_sigmas(steps, start, end)
    roots = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64)
    abar = torch.cumprod(1 - roots**2, 0)
    return ((1 - abar) / abar).sqrt()


def chain_betas(sigmas: Tensor) -> Tensor:
    """The betas [T] that make those noise levels: 1 - abar_t / abar_{t-1}."""
    abar = 1 / (1 + sigmas**2)
    return 1 - abar / torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]])


def _load_net(path: Path, config: dict) -> EpsNet:
    shape = NetShape(1, *(config[key] for key in ("hidden_size", "hidden_layers", "emb_size", "num_class")))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged one raises nearly anything, with advice that runs its code
        raise ValueError(f"{path.name}: no readable state dict: {type(error).__name__}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path.name}: want a dict of tensors, got {type(state).__name__}")
    with torch.device("meta"):
        net = EpsNet(shape)
    want = {theirs: net.state_dict()[ours].shape for theirs, ours in names(shape.layers).items()}
    if odd := sorted(want.keys() ^ state.keys()):
        raise ValueError(f"{path.name}: missing or unknown tensors: {', '.join(odd[:6])}")
    for name, size in want.items():
        if state[name].shape != size or not state[name].is_floating_point():
            given = f"{state[name].dtype} {list(state[name].shape)}"
            raise ValueError(f"{path.name}: {name} must be floats {list(size)}, got {given}")
        if not bool(state[name].isfinite().all()):
            raise ValueError(f"{path.name}: {name} holds numbers that are not finite")
    floats = {ours: state[theirs].float() for theirs, ours in names(shape.layers).items()}
    net.load_state_dict(floats, assign=True)
    return net.eval().requires_grad_(False)


def _number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
