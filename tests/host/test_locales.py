"""locales/: every node, input and output in eight languages, up to date with the schemas, and served by ComfyUI.

Oracles: the nodes' schemas and the server's /object_info for what must be there; scripts, function words and the numbers,
options and node names of the English text for what is in it.
"""

import re
from collections import Counter

import pytest

from tools import locales

from .setup_host import REPO

LANGUAGES = ["de", "es", "fr", "ja", "ko", "ru", "zh"]
SCRIPTS = {"zh": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "ko": "[\uac00-\ud7af]", "ru": "[\u0400-\u04ff]"}
ALIEN = {"zh": "[\u3040-\u30ff\uac00-\ud7af\u0400-\u04ff]", "ja": "[\uac00-\ud7af\u0400-\u04ff]", "ko": "[\u3040-\u30ff\u4e00-\u9fff\u0400-\u04ff]"}
FUNCTION_WORDS = {
    "de": "der die das ein eine einen und oder mit wo wie was des dem den von zum vom im bei je bis nur für",
    "es": "el la los las un una del de que y o con por para donde dónde como cómo sin cada según al",
    "fr": "le la les un une des du de que et ou avec par pour où comme comment sans chaque selon au d l",
}
# Words that are the same in English. Everything else must differ from it.
SAME = {
    "de": set(),
    "fr": {"calibration", "image", "images", "sigmas", "table"},
    "es": {"sigmas"},
    "ja": set(), "ko": set(), "ru": set(), "zh": set(),
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(pack, host):
    return locales.english(pack.nodes, host.io)


@pytest.fixture(scope="module")
def wanted(tree):
    return locales.flat(tree)


def pairs(wanted, language, fields=("display_name", "description", "name", "tooltip")):
    """[(path, English, translation)]; a missing one is an empty string."""
    texts = locales.flat(locales.load(language))
    return [(path, text, texts.get(path, "")) for path, text in wanted.items() if path.rsplit(".", 1)[1] in fields]


def bare(name):
    """A display name as tooltips mention it: without what is in brackets."""
    return re.split(r"\s*[(\uff08]", name)[0]


def test_folders_are_the_languages():
    assert sorted(locales.LANGUAGES) == LANGUAGES
    files = sorted(str(path.relative_to(REPO / "locales")) for path in (REPO / "locales").rglob("*"))
    assert files == sorted(name for language in ["en", *LANGUAGES] for name in (language, f"{language}/nodeDefs.json"))


def test_english_is_as_the_schemas_say(wanted):
    have = locales.flat(locales.load("en"))
    different = sorted(path for path in have.keys() | wanted.keys() if have.get(path) != wanted.get(path))
    assert not different, "run tools/locales.py, then translate what it lists"


def test_english_covers_what_the_page_gets(server, pack):
    english = locales.load("en")
    assert english.keys() == pack.nodes.keys()
    for node_id, texts in english.items():
        info = server.object_info(node_id)
        ids = {key for kind in ("required", "optional") for key in info["input"].get(kind, ())}
        assert texts["inputs"].keys() - {"curve"} == ids - {"curve"}, node_id  # a socket of newer hosts
        assert list(texts["outputs"]) == [str(n) for n in range(len(info["output"]))], node_id
        assert (texts["display_name"], texts["description"]) == (info["display_name"], info["description"])
        assert [slot["name"] for slot in texts["outputs"].values()] == info["output_name"], node_id
        assert all(slot["tooltip"] for part in ("inputs", "outputs") for slot in texts[part].values()), node_id


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_is_translated_from_the_present_english(wanted, language):
    assert locales.trouble(language, wanted) == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_translation_is_in_its_language(wanted, language):
    wrong = {}
    for path, english, text in pairs(wanted, language):
        same = english == text and text not in SAME[language]
        if path.endswith(".name"):
            bad = same and text.lower() != "cfg"
        elif language in SCRIPTS:
            bad = same or not re.search(SCRIPTS[language], text)
        else:
            bad = same or (len(text) > 60 and not set(re.findall(r"[^\W\d_]+", text.lower())) & set(FUNCTION_WORDS[language].split()))
        if bad or re.search(ALIEN.get(language, "[\u0400-\u04ff\u3040-\u30ff\u4e00-\u9fff]") if language != "ru" else "[\u3040-\u9fff]", text):
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


CODE = ["(1 - cos(pi p^power)) / 2", "row_sum, scalar, product, schedule, calibrated, off. off"]


def phrases(text):
    words = re.findall(r"[^\W\d_]{2,}", text.lower())
    return {" ".join(words[i : i + 4]) for i in range(len(words) - 3)}


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_page_shows_it_as_written(wanted, language):
    """No character that vue-i18n reads as its own syntax, no surrounding blanks."""
    texts = locales.flat(locales.load(language))
    assert not {path: text for path, text in texts.items() if set(text) & set("@{}|%$\\\n") or text != text.strip() or not text}


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
    assert locales.trouble("fr", changed) == {path: "out of date"}
    fewer = {key: text for key, text in wanted.items() if key != path}
    assert locales.trouble("fr", fewer) == {path: "left over"}
    assert locales.trouble("fr", wanted | {"REGNew.description": "New."}) == {"REGNew.description": "missing"}


def test_accepting_a_translation(monkeypatch, tmp_path):
    """A text is put wherever English has it; what is unknown is refused; a later change of English shows."""
    monkeypatch.setattr(locales, "LOCALES", tmp_path / "locales")
    monkeypatch.setattr(locales, "NOTES", tmp_path / "notes.json")
    tree = {"A": {"display_name": "Alpha", "inputs": {"x": {"name": "x", "tooltip": "A value."}, "y": {"name": "y", "tooltip": "A value."}}}}
    with pytest.raises(ValueError, match="no English text reads 'A valu'"):
        locales.accept("fr", tree, {"A valu": "Une valeur."})
    assert locales.accept("fr", tree, {"A value.": "Une valeur."}) == ["A.inputs.x.tooltip", "A.inputs.y.tooltip"]
    locales.accept("de", tree, {"Alpha": "Alfa", "A value.": "Ein Wert.", "x": "ix", "y": "ypsilon"})
    assert locales.load("fr") == {"A": {"inputs": {"x": {"tooltip": "Une valeur."}, "y": {"tooltip": "Une valeur."}}}}
    assert locales.trouble("de", locales.flat(tree)) == {}
    assert locales.trouble("fr", locales.flat(tree)) == {"A.display_name": "missing", "A.inputs.x.name": "missing", "A.inputs.y.name": "missing"}
    tree["A"]["inputs"]["y"]["tooltip"] = "Another value."
    assert locales.trouble("de", locales.flat(tree)) == {"A.inputs.y.tooltip": "out of date"}
    locales.accept("de", tree, {"Another value.": "Ein anderer Wert."})
    assert locales.trouble("de", locales.flat(tree)) == {}
    assert locales.trouble("fr", locales.flat(tree))["A.inputs.y.tooltip"] == "out of date"


def test_server_serves_all_languages(server):
    """As the page asks for them; the packs of a server are merged, and only this one has translations here."""
    served = server.get("/i18n")
    assert served.keys() == {"en", *LANGUAGES}
    for language, texts in served.items():
        assert texts == {"nodeDefs": locales.load(language)}, language
