"""Keeps web/docs/<node>/<language>.md, the in-app help in other languages, at the English pages, web/docs/<node>.md.

python tools/help_languages.py             what is missing, out of date or left over
python tools/help_languages.py accept zh REGGrid ...   these Chinese pages are translations of the present English ones

The last line of a page says which English it was made from. `accept` writes it, and what the tables say of names, ranges
and defaults. The tool reads these from the English page, and the names on the page from locales/. The words for them
stand in help_words.json.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools import recipes
from tools.families import FAMILIES
from tools.locales import LANGUAGES, digest, load

FOLDER = Path(__file__).resolve().parents[1] / "web" / "docs"
MADE_FROM = re.compile(r"\n<!-- English: (\w+) -->\n$")
FACTS = re.compile(r"^\| (?:\S.*?\s)?`(\w+)` · (.*?)<br>", re.M)
WORDS = json.loads(Path(__file__).with_name("help_words.json").read_text(encoding="utf-8"))


def pages() -> dict[str, str]:
    """{node id: its English page}"""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}


def path_of(node_id: str, language: str) -> Path:
    return FOLDER / node_id / f"{language}.md"


def translated(facts: str, language: str) -> str:
    """ "0.05 to 100 · default 1 · advanced" in another language."""
    words, parts = WORDS[language], []
    for fact in facts.split(" · "):
        if found := re.fullmatch(r"(\S+) to (.+)", fact):
            fact = f"{found[1]} {words['to']} {found[2]}"
        elif found := re.fullmatch(r"default (.*)", fact):
            fact = f"{words['default']} {words.get(found[1], found[1])}"
        elif found := re.fullmatch(r"(\w+), (optional|a list)", fact):
            fact = f"{found[1]}, {words[found[2]]}"
        parts.append(words.get(fact, fact))
    return " · ".join(parts)


def rows(english: str, node_id: str, language: str) -> list[tuple[str, str, str]]:
    """(name, facts, what the page calls it or "") of every row in the tables of an English page."""
    node = load(language).get(node_id, {})
    split, found, outputs = english.find("## Outputs"), [], iter(node.get("outputs", {}).values())
    for row in FACTS.finditer(english):
        words = node.get("inputs", {}).get(row[1], {}) if row.start() < split else next(outputs, {})
        label = words.get("name", "")
        found.append((row[1], row[2], label if label != row[1] else ""))
    return found


def completed(page: str, english: str, node_id: str, language: str) -> str:
    """A translated page with the facts of the English tables, the recipes and the note of its English."""
    wanted = iter(rows(english, node_id, language))

    def row(found):
        name, facts, label = next(wanted, ("", "", ""))
        label = f"**{label}** " if label else ""
        return f"| {label}`{name}` · {translated(facts, language)}<br>" if name == found[1] else found[0]

    page = FACTS.sub(row, MADE_FROM.sub("", page))
    if recipes.BEGIN in page:
        page = recipes.updated(page, recipes.narrow(FAMILIES, WORDS[language]["recipes"]))
    return f"{page}\n<!-- English: {digest(english)} -->\n"


def trouble(language: str, english: dict[str, str]) -> dict[str, str]:
    """{node id: "missing", "out of date" or "left over"}"""
    found = {path.parent.name: "left over" for path in FOLDER.glob(f"*/{language}.md") if path.parent.name not in english}
    for node_id, page in english.items():
        path = path_of(node_id, language)
        if not path.is_file():
            found[node_id] = "missing"
        elif completed(path.read_text(encoding="utf-8"), page, node_id, language) != path.read_text(encoding="utf-8"):
            found[node_id] = "out of date"
    return found


def main(arguments: list[str]) -> int:
    english = pages()
    command, language, *names = [*arguments, "", ""][: max(2, len(arguments))]
    if arguments and not (command == "accept" and language in LANGUAGES and names and set(names) <= english.keys()):
        print(__doc__, f"\nLanguages: {' '.join(LANGUAGES)}. Pages: {' '.join(english)}", file=sys.stderr)
        return 2
    for name in names:
        path = path_of(name, language)
        path.write_text(completed(path.read_text(encoding="utf-8"), english[name], name, language), encoding="utf-8", newline="\n")
    found = {language: trouble(language, english) for language in LANGUAGES}
    for language, problems in found.items():
        for node_id, why in problems.items():
            print(f"{language} {node_id}: {why}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
