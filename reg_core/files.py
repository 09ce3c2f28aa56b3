"""Files that are either whole or absent."""

from contextlib import contextmanager
from pathlib import Path


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
