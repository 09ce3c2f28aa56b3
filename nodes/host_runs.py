"""Touches of ComfyUI's internals (the room of host.py goes on here): whole sampling runs, kinds of models, table files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import comfy.model_sampling
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths

PREDICT_NOISE = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
TABLES = "reg_calibration"  # folder of calibration tables


def model_kind(model):
    """(prediction, latent, channels, name) of a MODEL: what a calibration table belongs to."""
    sampling, latent = model.get_model_object("model_sampling"), model.model.latent_format
    return prediction_type(sampling), type(latent).__name__, latent.latent_channels, type(model.model).__name__


def prediction_type(sampling) -> str:
    """eps, v, edm, x0 or flow: which quantity the network predicts."""
    kinds = {"flow": "CONST", "x0": "X0", "edm": "EDM", "v": "V_PREDICTION", "eps": "EPS"}  # children before parents
    return next((name for name, kind in kinds.items() if isinstance(sampling, getattr(comfy.model_sampling, kind, ()))), type(sampling).__name__)


def sample_once(model, positive, negative, latent, steps, cfg, sampler_name, scheduler, seed, callback):
    """One KSampler run; `latent` as a LATENT holds it, `callback` (step, denoised, x, total). The samples."""
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    mask = latent.get("noise_mask")
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler_name, scheduler, positive, negative, samples, noise_mask=mask, callback=callback, disable_pbar=True, seed=seed
    )


def step_counter(total: int):
    """A callback for `sample_once` that moves the running node's progress bar over `total` steps."""
    bar = comfy.utils.ProgressBar(total)
    return lambda step, denoised, x, steps: bar.update(1)


def sampler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SCHEDULERS)


# What will happen in a run


def hooks_of(model, key: str) -> list:
    """The objects whose methods wrap PREDICT_NOISE of a MODEL under `key`, outermost first."""
    return [wrapper.__self__ for wrapper in model.get_wrappers(PREDICT_NOISE, key)]


def cfg_in_force(model, key: str, cfg: float, sigma, sigmas) -> float:
    """The guider's cfg at one noise level after the PREDICT_NOISE wrappers of `key`, found by calling them around no model."""
    guider = SimpleNamespace(model_patcher=model, cfg=cfg)
    wrappers = model.get_wrappers(PREDICT_NOISE, key)
    executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(lambda *_: guider.cfg, guider, wrappers)
    in_force = executor.execute(None, sigma.reshape(1), {"transformer_options": {"sample_sigmas": sigmas}}, None)
    return round(float(in_force), 9)


# Calibration tables on disk


def _register_tables() -> None:
    """models/reg_calibration, and where REG Calibrate saves; extra_model_paths.yaml may add to them."""
    for base in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(TABLES, str(Path(base) / TABLES))


def calibration_files() -> list[str]:
    """Names of the tables found, for a widget."""
    _register_tables()
    return [name for name in folder_paths.get_filename_list(TABLES) if name.endswith(".safetensors")]


def calibration_file(name: str) -> Path:
    """Path of a table by name. Raises FileNotFoundError."""
    _register_tables()
    path = folder_paths.get_full_path(TABLES, name)
    if path is None:
        raise FileNotFoundError(f"no calibration table {name!r} in {', '.join(folder_paths.get_folder_paths(TABLES))}")
    return Path(path)


def new_calibration_file(prefix: str) -> Path:
    """A numbered path in the output folder that does not exist yet."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return Path(folder) / f"{name}_{counter:05}_.safetensors"
