"""Files that are either whole or absent, and the error of one that is not what was wanted."""

import json
from contextlib import contextmanager
from pathlib import Path

from .checks import cut, shortened


class FileError(ValueError):
    """A file cannot be read, or holds something else than was wanted."""


@contextmanager
def whole_file(path: str | Path):
    """A path to write to. The file appears as `path` when the block ends well. Makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_place(path: str | Path) -> None:
    """Raises FileError unless a file can be written at `path`. Makes the folder."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.touch()
        partial.unlink()
    except (OSError, ValueError) as error:  # ValueError: a zero in the name
        raise FileError(f"cannot write to {shortened(str(path))}: {_said(error)}") from None


@contextmanager
def reading(path: str | Path, want: str, repeat: bool = True):
    """Whatever fails inside becomes a FileError of one line: the file, what was wanted, what was found.

    `repeat`: with the words of the error, where they give no advice that nobody should follow.
    """
    try:
        yield
    except FileError as error:
        if str(path) in str(error):
            raise
        raise FileError(f"{path}: {error}") from None
    except Exception as error:  # readers of formats raise nearly anything
        said = _said(error) if repeat or isinstance(error, OSError) else type(error).__name__
        raise FileError(f"{path}: want {want}, got an error: {said}") from None


def read_text(path: str | Path, want: str = "a text file in UTF-8") -> str:
    """Raises FileError."""
    with reading(path, want):
        return Path(path).read_text(encoding="utf-8-sig")


def read_json(path: str | Path, want: str = "JSON"):
    """What a JSON file holds. Raises FileError with the place of the fault."""
    text = read_text(path, f"{want} in UTF-8")
    with reading(path, want):
        return json.loads(text)


def _said(error: Exception) -> str:
    """The words of an error. Those of the system without the path, which may be long."""
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {cut(error)}"
