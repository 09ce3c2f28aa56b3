"""locales/: every node, input and output in English and three translations, up to date with English, and served by ComfyUI.

Oracles: the server's /object_info for what must be there; scripts and the numbers, options and node names of the English text
for what is in it.
"""

import copy
import re
from collections import Counter

import pytest

from reg_core.forms import FORMS
from tools import locales

from .server import PACK_FOLDER
from .setup_host import REPO

LANGUAGES = ["ja", "ko", "zh"]
SCRIPTS = {"zh": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "ko": "[\uac00-\ud7af]"}
ALIEN = {"zh": "[\u3040-\u30ff\uac00-\ud7af]", "ja": "[\uac00-\ud7af]", "ko": "[\u3040-\u30ff\u4e00-\u9fff]"}
NEWER = {"REGScheduleCurve.inputs.curve"}  # inputs of newer hosts; English names them anyway


@pytest.fixture(scope="module")
def tree():
    return locales.load("en")


@pytest.fixture(scope="module")
def wanted(tree):
    return locales.flat(tree)


@pytest.fixture(scope="module")
def page(server):
    """{node id: what the page gets of it}."""
    return {name: info for name, info in server.object_info().items() if info["python_module"] == f"custom_nodes.{PACK_FOLDER}"}


def pairs(wanted, language, fields=("display_name", "description", "name", "tooltip")):
    """[(path, English, translation)]; a missing one is an empty string."""
    texts = locales.flat(locales.load(language))
    return [(path, text, texts.get(path, "")) for path, text in wanted.items() if path.rsplit(".", 1)[1] in fields]


def bare(name):
    """A display name as tooltips mention it: without what is in brackets."""
    return re.split(r"\s*[(\uff08]", name)[0]


def unlike(english, page):
    """Where English and what the page gets of the nodes are not the same: paths of what only one has, or has otherwise."""
    found = sorted(english.keys() ^ page.keys())
    for node_id in sorted(english.keys() & page.keys()):
        words, info = english[node_id], page[node_id]
        given = {name: spec[1].get("tooltip") for section in ("required", "optional") for name, spec in info["input"].get(section, {}).items()}
        ours = {
            "display_name": words["display_name"], "description": words["description"],
            **{f"inputs.{name}": slot["tooltip"] for name, slot in words["inputs"].items()},
            **{f"outputs.{key}": (slot["name"], slot["tooltip"]) for key, slot in words["outputs"].items()},
        }  # fmt: skip
        theirs = {
            "display_name": info["display_name"], "description": info["description"],
            **{f"inputs.{name}": tooltip for name, tooltip in given.items()},
            **{f"outputs.{key}": slot for key, slot in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))},
        }  # fmt: skip
        for path in ours.keys() | theirs.keys():
            newer = path not in theirs and f"{node_id}.{path}" in NEWER
            if not newer and (ours.get(path) != theirs.get(path) or not ours[path]):
                found.append(f"{node_id}.{path}")
    return sorted(found)


def test_folders_are_the_languages():
    assert sorted(locales.LANGUAGES) == LANGUAGES
    files = sorted(str(path.relative_to(REPO / "locales")) for path in (REPO / "locales").rglob("*"))
    assert files == sorted(name for language in ["en", *LANGUAGES] for name in (language, f"{language}/nodeDefs.json"))


def test_the_page_gets_english_words_for_everything(tree, page):
    assert len(page) > 20 and unlike(tree, page) == []
    inputs = [(path, slot["name"]) for path, node in tree.items() for path, slot in node["inputs"].items()]
    assert all(name == path for path, name in inputs), "the names of inputs in English are those of prompts and workflow files"


@pytest.mark.parametrize("part, name", [("inputs", "memory"), ("outputs", "7")])
def test_english_left_over_and_missing_is_found(tree, page, part, name):
    more, less = copy.deepcopy(tree), copy.deepcopy(tree)
    more["REGSweep"][part][name] = {"name": name, "tooltip": "Gone."}
    assert unlike(more, page) == [f"REGSweep.{part}.{name}"]
    (first, *_) = less["REGSweep"][part]
    del less["REGSweep"][part][first]
    assert unlike(less, page) == [f"REGSweep.{part}.{first}"]
    assert unlike(tree | {"REGOld": tree["REGSweep"]}, page) == ["REGOld"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_is_translated_from_the_present_english(wanted, language):
    assert locales.trouble(language, wanted) == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_translation_is_in_its_language(wanted, language):
    wrong = {}
    for path, english, text in pairs(wanted, language):
        bad = english == text and text.lower() != "cfg" if path.endswith(".name") else not re.search(SCRIPTS[language], text)
        if bad or re.search(ALIEN[language], text):
            wrong[path] = text
    assert not wrong


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_english_phrase_is_left(wanted, language):
    """No four English words in a row, but for formulas and lists of options."""
    left = {}
    for path, english, text in pairs(wanted, language, ("description", "tooltip")):
        found = (phrases(english) & phrases(text)) - set().union(*map(phrases, CODE))
        if found:
            left[path] = sorted(found)
    assert not left


CODE = [", ".join(FORMS) + ". off", "all ten in turn"]


def phrases(text):
    words = re.findall(r"[^\W\d_]{2,}", text.lower())
    return {" ".join(words[i : i + 4]) for i in range(len(words) - 3)}


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_page_shows_it_as_written(wanted, language):
    """No character that vue-i18n reads as its own syntax, no surrounding blanks."""
    texts = locales.flat(locales.load(language))
    assert not {path: text for path, text in texts.items() if set(text) & set(locales.SYNTAX + "\n") or text != text.strip() or not text}


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_are_kept(wanted, language):
    def numbers(text):
        return Counter(re.findall(r"\d+(?:\.\d+)?", text))

    lost = {path: sorted(numbers(english) - numbers(text)) for path, english, text in pairs(wanted, language)}
    assert not {path: gone for path, gone in lost.items() if gone}
    spelt = {"ja": {"0", "1", "2", "3"}, "ko": {"0", "2"}}.get(language, set())  # "one" is 1 there
    more = {path: set(numbers(text) - numbers(english)) - spelt for path, english, text in pairs(wanted, language)}
    assert not {path: new for path, new in more.items() if new}


@pytest.mark.parametrize("language", LANGUAGES)
def test_options_and_names_are_kept(wanted, tree, pack, language):
    """Combo options are not translated, so tooltips name them as they are; nodes and inputs go by their translated names."""
    translated, lost = locales.load(language), []
    titles = {bare(node["display_name"]): bare(translated[key]["display_name"]) for key, node in tree.items()}
    combos = {
        f"{key}.inputs.{i.id}.tooltip": set(map(str, i.options)) for key, cls in pack.nodes.items() for i in cls.define_schema().inputs if hasattr(i, "options")
    }
    assert len(combos) > 10
    for path, english, text in pairs(wanted, language, ("description", "tooltip")):
        node = path.split(".")[0]
        for word in set(re.findall(r"\w*_\w+", english)):
            if word in tree[node]["inputs"]:
                word = translated[node]["inputs"][word]["name"]
            lost += [(path, word)] if word not in text else []
        lost += [(path, word) for word in re.findall(r"(?<!\w)'([\w ]+)'(?!\w)", english) if word not in text]
        for word in set(re.findall(r"\b(\w+)(?=:)", english)) & combos.get(path, set()):
            lost += [] if re.search(rf"(?<!\w){word}\s*[:\uff1a]", text) else [(path, f"{word}:")]
        lost += [(path, there) for title, there in titles.items() if re.search(rf"{re.escape(title)}(?!\w)", english) and there not in text]
    assert not lost


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_tell_apart(tree, language):
    """Inputs of a node, and the nodes, never share a translated name; all nodes still begin with REG."""
    texts = locales.load(language)
    titles = [node["display_name"] for node in texts.values()]
    assert len(set(titles)) == len(titles) and all(title.startswith("REG ") for title in titles)
    for key, node in texts.items():
        names = [slot["name"] for slot in node["inputs"].values()]
        assert len(set(names)) == len(names), (key, names)


def test_a_changed_tooltip_is_named(wanted):
    path = "REGGuidance.inputs.strength.tooltip"
    changed = wanted | {path: wanted[path] + " Really."}
    assert locales.trouble("zh", changed) == {path: "out of date"}
    fewer = {key: text for key, text in wanted.items() if key != path}
    assert locales.trouble("zh", fewer) == {path: "left over"}
    assert locales.trouble("zh", wanted | {"REGNew.description": "New."}) == {"REGNew.description": "missing"}


def test_accepting_a_translation(monkeypatch, tmp_path):
    """A text is put wherever English has it; what is unknown is refused; a later change of English shows."""
    monkeypatch.setattr(locales, "LOCALES", tmp_path / "locales")
    monkeypatch.setattr(locales, "NOTES", tmp_path / "notes.json")
    tree = {"A": {"display_name": "Alpha", "inputs": {"x": {"name": "x", "tooltip": "A value."}, "y": {"name": "y", "tooltip": "A value."}}}}
    with pytest.raises(ValueError, match="no English text reads 'A valu'"):
        locales.accept("ja", tree, {"A valu": "atai."})
    assert locales.accept("ja", tree, {"A value.": "atai."}) == ["A.inputs.x.tooltip", "A.inputs.y.tooltip"]
    locales.accept("ko", tree, {"Alpha": "alpa", "A value.": "gap.", "x": "eks", "y": "wai"})
    assert locales.load("ja") == {"A": {"inputs": {"x": {"tooltip": "atai."}, "y": {"tooltip": "atai."}}}}
    assert locales.trouble("ko", locales.flat(tree)) == {}
    assert locales.trouble("ja", locales.flat(tree)) == {"A.display_name": "missing", "A.inputs.x.name": "missing", "A.inputs.y.name": "missing"}
    tree["A"]["inputs"]["y"]["tooltip"] = "Another value."
    assert locales.trouble("ko", locales.flat(tree)) == {"A.inputs.y.tooltip": "out of date"}
    locales.accept("ko", tree, {"Another value.": "daleun gap."})
    assert locales.trouble("ko", locales.flat(tree)) == {}
    assert locales.trouble("ja", locales.flat(tree))["A.inputs.y.tooltip"] == "out of date"


def test_server_serves_all_languages(server):
    """As the page asks for them; the packs of a server are merged, and only this one has translations here."""
    served = server.get("/i18n")
    assert served.keys() == {"en", *LANGUAGES}
    for language, texts in served.items():
        assert texts == {"nodeDefs": locales.load(language)}, language
