"""Calibration tables on disk, in ComfyUI's folders."""

from pathlib import Path

import folder_paths

from ...reg_core.checks import shortened
from ...reg_core.files import FileError

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
    path = folder_paths.get_full_path(FOLDER, name) if isinstance(name, str) and "\0" not in name else None
    if path is None:
        raise FileNotFoundError(f"no calibration table {shortened(name)} in the folders {FOLDER}")
    return Path(path)


def new_calibration_file(prefix: str) -> Path:
    """A numbered path in the output folder that does not exist yet. Raises FileError for one elsewhere."""
    output = folder_paths.get_output_directory()
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
    except Exception as error:  # the host raises its base class
        said = getattr(error, "strerror", None) or "it leads out of the output folder"
        raise FileError(f"cannot save a table as {shortened(prefix)}: {said}") from None
    return Path(folder) / f"{name}_{counter:05}_.safetensors"
