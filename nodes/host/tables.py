"""Calibration tables on disk, in ComfyUI's folders."""

from pathlib import Path

import folder_paths

FOLDER = "reg_calibration"


def _register() -> None:
    """models/reg_calibration, and where REG Calibrate saves; extra_model_paths.yaml may add to them."""
    for base in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(FOLDER, str(Path(base) / FOLDER))


def calibration_files() -> list[str]:
    """Names of the tables found, for a widget."""
    _register()
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(".safetensors")]


def calibration_file(name: str) -> Path:
    """Path of a table by name. Raises FileNotFoundError."""
    _register()
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        folders = ", ".join(folder_paths.get_folder_paths(FOLDER))
        raise FileNotFoundError(f"no calibration table {name!r} in {folders}")
    return Path(path)


def new_calibration_file(prefix: str) -> Path:
    """A numbered path in the output folder that does not exist yet."""
    output = folder_paths.get_output_directory()
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
    return Path(folder) / f"{name}_{counter:05}_.safetensors"
