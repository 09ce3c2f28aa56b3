"""The files of this checkout, and those of them that the registry hands out. Also for the host tests."""

import fnmatch
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked() -> list:
    try:
        out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in out.split("\0") if name and (ROOT / name).is_file()]


def shipped() -> list:
    """What `comfy node publish` packs: tracked files less .comfyignore."""
    rules = [line.strip() for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines() if line.strip()]

    def ignored(name):
        return any(name.startswith(rule) if rule.endswith("/") else fnmatch.fnmatch(name, rule) for rule in rules)

    return [name for name in tracked() if not ignored(name)]
