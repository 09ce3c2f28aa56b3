"""Keeps the languages of locales/ up with English, which is written by hand: the nodes' schemas read it.

python tools/locales.py                     what is missing, out of date or left over in each language
python tools/locales.py todo zh > new.json  English texts that Chinese lacks, or has from an older English, as {English: ""}
python tools/locales.py accept zh new.json  takes {English: Chinese} in and notes which English it was made from

tools/locales.json holds that note: {path: {hash of the English: languages}}. The page compiles some of these texts as vue-i18n
messages and shows others as they are, differently in each version. So none may hold a character of that syntax.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCALES = ROOT / "locales"
NOTES = ROOT / "tools" / "locales.json"
LANGUAGES = ("ja", "ko", "zh")
SYNTAX = "@{}|%$\\"  # vue-i18n's: `a | b` shows as `a`, `@x` is an error


def flat(tree: dict, prefix: str = "") -> dict:
    """{"REGGuidance.inputs.form.tooltip": text}"""
    texts = {}
    for key, value in tree.items():
        texts |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return texts


def load(language: str) -> dict:
    """A language's file, {} if there is none yet."""
    path = LOCALES / language / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(language: str, tree: dict) -> None:
    (LOCALES / language).mkdir(parents=True, exist_ok=True)
    text = json.dumps(tree, ensure_ascii=False, indent=2) + "\n"
    (LOCALES / language / "nodeDefs.json").write_text(text, encoding="utf-8", newline="\n")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def notes() -> dict:
    return json.loads(NOTES.read_text(encoding="utf-8")) if NOTES.exists() else {}


def save_notes(seen: dict) -> None:
    rows = [f"{json.dumps(path)}: {json.dumps(seen[path], sort_keys=True)}" for path in sorted(seen)]
    NOTES.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8", newline="\n")


def trouble(language: str, wanted: dict) -> dict:
    """{path: "missing" | "out of date" | "left over"} of a language against the flat English."""
    have, seen = flat(load(language)), notes()
    found = dict.fromkeys(have.keys() - wanted.keys(), "left over")
    for path, text in wanted.items():
        if not have.get(path):
            found[path] = "missing"
        elif language not in seen.get(path, {}).get(digest(text), "").split():
            found[path] = "out of date"
    return dict(sorted(found.items()))


def accept(language: str, tree: dict, texts: dict) -> list:
    """Put {English: translation} wherever `tree` (English) has these texts; drop what English no longer has. Paths written."""
    wanted, old, seen, written = flat(tree), flat(load(language)), notes(), []
    unknown = sorted(texts.keys() - set(wanted.values()))
    if unknown:
        raise ValueError(f"{language}: no English text reads {unknown[0]!r}" + (f", nor {len(unknown) - 1} more" if unknown[1:] else ""))
    for path, text in wanted.items():
        if texts.get(text):
            old[path] = texts[text]
            written.append(path)
    for path in list(seen):
        if path not in wanted:
            del seen[path]
    for path in written:
        by_hash = {key: set(languages.split()) - {language} for key, languages in seen.get(path, {}).items()}
        by_hash.setdefault(digest(wanted[path]), set()).add(language)
        seen[path] = {key: " ".join(sorted(languages)) for key, languages in by_hash.items() if languages}
    save(language, _fill(tree, old))
    save_notes(seen)
    return written


def _fill(tree: dict, texts: dict, prefix: str = "") -> dict:
    """`tree` with the texts of another language, in its order, without those that are missing."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out[key] = _fill(value, texts, f"{prefix}{key}.")
        elif texts.get(prefix + key):
            out[key] = texts[prefix + key]
    return out


def main(arguments) -> int:
    command, language, file = (*arguments, None, None, None)[:3]
    if command not in (None, "todo", "accept") or (command and language not in LANGUAGES) or (command == "accept") != bool(file):
        print(__doc__, f"\nLanguages: {' '.join(LANGUAGES)}", file=sys.stderr)
        return 2
    tree = load("en")
    wanted = flat(tree)
    if command == "todo":
        texts = {wanted[path]: "" for path, why in trouble(language, wanted).items() if why != "left over"}
        print(json.dumps(texts, ensure_ascii=False, indent=1))
        return 0
    if command == "accept":
        texts = json.loads(Path(file).read_text(encoding="utf-8"))
        print(f"{language}: {len(accept(language, tree, texts))} texts taken in")
    found = {name: trouble(name, wanted) for name in LANGUAGES}
    for name, problems in found.items():
        for path, why in problems.items():
            print(f"{name} {path}: {why}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
