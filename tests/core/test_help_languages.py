"""The in-app help in other languages. Oracle: the English page, line by line, and each language's own letters."""

import re
from collections import Counter

import pytest

from tools.help_languages import FACTS, FOLDER, LANGUAGES, MADE_FROM, completed, main, pages, path_of, rows, translated, trouble
from tools.locales import load

ENGLISH = pages()
LETTERS = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7a3]"}
EACH = [(node_id, language) for language in LANGUAGES for node_id in ENGLISH]


def page_of(node_id, language):
    return MADE_FROM.sub("", path_of(node_id, language).read_text(encoding="utf-8"))


def prose(page):
    """Without what a tool writes: facts of the tables, comments and recipes."""
    page = re.sub(r"<!-- recipes.*?<!-- end -->", "", page, flags=re.S)
    return FACTS.sub("| ", page)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_is_translated_from_the_present_english(language):
    assert trouble(language, ENGLISH) == {}


@pytest.mark.parametrize(("node_id", "language"), EACH)
def test_the_page_has_the_lines_of_the_english_one(node_id, language):
    def kinds(page):
        return [re.match(r"#+ |\| *-|\||- |!\[|<!--|$|", line)[0].strip() + "/" + str(line.count(" | ")) for line in page.splitlines()]

    assert kinds(page_of(node_id, language)) == kinds(ENGLISH[node_id])


@pytest.mark.parametrize(("node_id", "language"), EACH)
def test_names_numbers_links_and_pictures_are_kept(node_id, language):
    ours, english = prose(page_of(node_id, language)), prose(ENGLISH[node_id])
    for pattern in (r"`[^`\n]+`", r"\]\(([^)]+)\)"):
        assert Counter(re.findall(pattern, ours)) == Counter(re.findall(pattern, english)), pattern
    number = r"(?<![A-Za-z\d.])\d+(?:\.\d+)?"
    assert Counter(re.findall(number, ours)) == Counter(re.findall(number, english))
    ours, english = ([name for name, _ in FACTS.findall(page)] for page in (page_of(node_id, language), ENGLISH[node_id]))
    assert ours == english


@pytest.mark.parametrize(("node_id", "language"), EACH)
def test_the_page_is_in_its_language_and_names_nodes_as_the_page_does(node_id, language):
    words = re.sub(r"`[^`]+`|\([^)]*\)|\"[^\"]*\"", "", prose(page_of(node_id, language)))
    for line in words.splitlines():
        if len(re.findall(r"[A-Za-z]{2,}", line)) > 6:
            assert re.search(LETTERS[language], line), line
    names = {node["display_name"]: load(language)[name]["display_name"] for name, node in load("en").items()}
    for english, ours in names.items():
        if english != ours and f"**{english}**" in ENGLISH[node_id]:
            assert f"**{ours}**" in words, ours


def test_facts_and_names_of_widgets():
    """Oracle: written out by hand, and the words of locales/."""
    assert translated("0.05 to 100 · default 1 · advanced", "zh") == "0.05 \u5230 100 · \u9ed8\u8ba4 1 · \u9ad8\u7ea7"
    assert translated("REG_CALIBRATION, optional", "zh") == "REG_CALIBRATION, \u53ef\u9009" and translated("default off", "zh") == "\u9ed8\u8ba4 \u5173"
    english = "## Inputs\n\n| `gain` · 0.05 to 100 · default 1<br>y |\n\n## Outputs\n\n| `model` · MODEL<br>z |\n"
    label, output = (load("zh")["REGGuidance"][part][key]["name"] for part, key in (("inputs", "gain"), ("outputs", "0")))
    assert rows(english, "REGGuidance", "zh") == [("gain", "0.05 to 100 · default 1", label), ("model", "MODEL", output)]
    page = completed(english.replace("y", "\u7532").replace("100", "7"), english, "REGGuidance", "zh")
    assert f"| **{label}** `gain` · 0.05 \u5230 100 · \u9ed8\u8ba4 1<br>\u7532 |\n" in page
    assert f"| **{output}** `model` · MODEL<br>z |\n\n<!-- English: " in page
    assert completed(page, english, "REGGuidance", "zh") == page, "once more changes nothing"


def test_a_changed_page_is_named(tmp_path):
    node_id = "REGGuidance"
    assert trouble("zh", ENGLISH | {node_id: ENGLISH[node_id] + "\nMore.\n"}) == {node_id: "out of date"}
    assert trouble("zh", ENGLISH | {"REGOther": "text"}) == {"REGOther": "missing"}


def test_only_pages_that_are_named_are_accepted(capsys):
    """Nobody has read the others. Oracle: the files' bytes."""
    before = {path: path.read_bytes() for path in FOLDER.glob("*/*.md")}
    for arguments in (["accept", "zh"], ["accept", "xx", "REGGrid"], ["accept", "zh", "REGNothing"], ["accept"]):
        assert main(arguments) == 2 and "Pages: REGAutoguidance" in capsys.readouterr().err
    assert main(["accept", "zh", "REGGrid"]) == 0
    assert before == {path: path.read_bytes() for path in FOLDER.glob("*/*.md")}
