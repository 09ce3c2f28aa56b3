"""The files of this checkout, and those of them that the registry hands out. Also for the host tests."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked(*more) -> list:
    try:
        out = subprocess.run(["git", "ls-files", "-z", *more], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in out.split("\0") if name and (ROOT / name).is_file()]


def shipped() -> list:
    """What `comfy node pack` packs: tracked files less .comfyignore, whose rules are git's own."""
    ignored = set(tracked("--cached", "--ignored", "--exclude-from=.comfyignore"))
    return [name for name in tracked() if name not in ignored]
