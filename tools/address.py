"""Moves the project to another repository and publisher: `python -m tools.address https://github.com/OWNER/NAME PUBLISHER`.

pyproject.toml holds the present ones. They are replaced there and in every other tracked text file that names them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
URL = r"https://github\.com/([\w-]+)/([\w.-]+)"


def present() -> tuple[str, str]:
    """(repository, publisher) of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(rf'Repository = "({URL})"', text)[1], re.search(r'PublisherId = "([\w-]+)"', text)[1]


def moved(text: str, old: tuple[str, str], new: tuple[str, str]) -> str:
    """A text with the repository's address, its owner's name in workflows, and the publisher replaced."""
    owners = [re.fullmatch(URL, address)[1] for address, _ in (old, new)]
    text = text.replace(old[0], new[0]).replace(f'PublisherId = "{old[1]}"', f'PublisherId = "{new[1]}"')
    return text.replace(f"repository_owner == '{owners[0]}'", f"repository_owner == '{owners[1]}'")


def files() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or not re.fullmatch(URL, arguments[0]) or not re.fullmatch(r"[\w-]+", arguments[1]):
        print(__doc__, file=sys.stderr)
        return 2
    old = present()
    for path in files():
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        if (new := moved(text, old, tuple(arguments))) != text:
            path.write_bytes(new.encode("utf-8"))
            print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
