"""Sentences that users read are short, and use no words that the house has struck out. Oracle: a count."""

import importlib
import json
import re

import pytest
from shipped import ROOT

LONGEST = 25  # words a sentence
MEASURED = {"evidence-more.md"}  # lists of figures, no sentences
DOCS = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in MEASURED]
PAGES = [ROOT / "README.md", *DOCS, *sorted((ROOT / "web/docs").glob("*.md"))]
STRUCK = r"\b(as shipped|at hand|of its own|of their own|bears?|told|serves?)\b"


def sentences(text: str) -> list[str]:
    """Of Markdown: paragraphs, cells and list items end a sentence, as a full stop does; code and addresses do not count."""
    text = re.sub(r"(?s:```.*?```|<!--.*?-->)|(?<=\n\n)(?: {4}.*\n?)+", "\n\n", text)
    text = re.sub(r"(!?\[[^\]]*\])\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\n(?![ \t]*(?:\n|[-*+] |\d+[.)] |[|#>!]))", " ", text)  # a line that goes on in the next
    parts = re.split(r"\n|<br>|\|| · ", text)
    return [s.strip() for part in parts for s in re.split(r"(?<=[.!?])[\"*)]*\s+", part) if s.strip()]


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_sentences_of_pages_are_short(path):
    found = sentences(path.read_text(encoding="utf-8"))
    assert len(found) > 5
    assert not [(words(s), s) for s in found if words(s) > LONGEST]
    assert not [s for s in found if re.search(STRUCK, s)]


def test_sentences_of_tooltips_are_short():
    def texts(tree):
        for key, value in tree.items():
            yield from texts(value) if isinstance(value, dict) else [value] if key in ("tooltip", "description") else []

    found = [s for text in texts(json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))) for s in sentences(text)]
    assert len(found) > 150
    assert not [(words(s), s) for s in found if words(s) > LONGEST]
    assert not [s for s in found if re.search(STRUCK, s)]


def test_a_long_sentence_is_found():
    text = "Short. | " + " ".join(["word"] * 26) + ". | Short, too."
    assert [words(s) for s in sentences(text)] == [1, 26, 2]
    assert [words(s) for s in sentences("word\n" * 26 + "\n- Short.\n  Short,\n  too.\n\n    a = b\n\nAnd this.")] == [26, 1, 2, 2]
    assert max(map(words, sentences("First half of it here: " + "word " * 24))) > LONGEST


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "DEVELOPERS.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.stem)
def test_names_of_the_library_in_the_pages_exist(page):
    """Oracle: Python's own import."""
    for name in set(re.findall(r"\breg_core(?:\.\w+)+", page.read_text(encoding="utf-8"))):
        found = importlib.import_module("reg_core")
        for part in name.split(".")[1:]:
            found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")
