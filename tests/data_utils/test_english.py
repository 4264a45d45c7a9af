"""English is told from other languages, in real sentences and in the corpora of a run."""

import sys
from pathlib import Path

import pytest

from config.errors import ConfigError
from data_utils.corpora import find_corpus
from data_utils.english import is_english
from data_utils.token_cache import load_documents
from tests.tasks.common import bert

ENGLISH = [
    "No one who had ever seen Catherine Morland in her infancy would have supposed her born to be "
    "an heroine.",
    "The committee will meet on Thursday to discuss next year's budget.",
    "Water boils at 100 degrees Celsius at sea level, and lower in the mountains.",
]
OTHERS = {
    "de": "Als Gregor Samsa eines Morgens aus unruhigen Tr\u00e4umen erwachte, fand er sich in "
    "seinem Bett zu einem ungeheueren Ungeziefer verwandelt.",
    "fr": "Longtemps, je me suis couch\u00e9 de bonne heure, et mes yeux se fermaient si vite que "
    "je n'avais pas le temps de me dire: je m'endors.",
    "es": "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que "
    "viv\u00eda un hidalgo.",
    "nl": "De commissie komt donderdag bijeen om de begroting van volgend jaar te bespreken.",
    "zh": "\u59d4\u5458\u4f1a\u5c06\u5728\u661f\u671f\u56db\u5f00\u4f1a\u8ba8\u8bba"
    "\u660e\u5e74\u7684\u9884\u7b97\u3002",
    "ru": "\u041a\u043e\u043c\u0438\u0442\u0435\u0442 \u0441\u043e\u0431\u0435\u0440"
    "\u0451\u0442\u0441\u044f \u0432 \u0447\u0435\u0442\u0432\u0435\u0440\u0433.",
}


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_english(text: str):
    assert is_english(text)


@pytest.mark.parametrize("language", OTHERS)
def test_other_languages_are_not(language: str):
    assert not is_english(OTHERS[language])


def test_a_corpus_keeps_its_english_lines(tmp_path: Path):
    mixed = [ENGLISH[0], OTHERS["de"], ENGLISH[1], OTHERS["zh"], OTHERS["nl"], ENGLISH[2]]
    (tmp_path / "mixed.txt").write_text("\n".join(mixed), encoding="utf-8")
    corpus = find_corpus(str(tmp_path / "mixed.txt"), english=True)
    documents = load_documents([corpus], bert(), str(tmp_path / "cache"))
    actual = [documents[i].tolist() for i in range(len(documents))]
    assert actual == [bert().encode(text) for text in ENGLISH]
    everything = find_corpus(str(tmp_path / "mixed.txt"))
    assert len(load_documents([everything], bert(), str(tmp_path / "cache"))) == len(mixed)


def test_a_missing_detector_is_told_before_anything_is_read(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    (tmp_path / "a.txt").write_text("a text", encoding="utf-8")
    assert find_corpus(str(tmp_path / "a.txt")).english is False
    with pytest.raises(ConfigError, match=r"--filter-english: .*pip install py3langid"):
        find_corpus(str(tmp_path / "a.txt"), english=True)
    with pytest.raises(ConfigError, match=r"--train-data=openwebtext: .*pip install py3langid"):
        find_corpus("openwebtext")
