"""Language identification with the model that is part of the installation."""

from __future__ import annotations

import subprocess
import sys

import pytest

from data_prep.documents.language import identify

SENTENCES = {
    "en": "Two young, white males are outside near many bushes, and nobody knows why they are there.",
    "de": "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche, und niemand weiß, warum.",
    "fr": "Deux jeunes hommes blancs sont dehors près de buissons, et personne ne sait pourquoi ils y sont.",
    "cs": "Dva mladí muži bílé pleti jsou venku blízko mnoha keřů a nikdo neví, proč tam jsou.",
    "zh": "两个年轻的白人男子在室外，靠近许多灌木丛，没有人知道他们为什么在那里。",
    "ja": "二人の若い白人男性が、たくさんの茂みの近くの屋外にいますが、なぜなのかは誰も知りません。",
    "ru": "Двое молодых белых мужчин стоят на улице возле кустов, и никто не знает, почему они там.",
    "ar": "شابان أبيضان في الخارج بالقرب من العديد من الشجيرات ولا أحد يعرف لماذا",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences(language: str) -> None:
    found, confidence = identify(SENTENCES[language])
    assert found == language
    assert 0.65 <= confidence <= 1


def test_classical_chinese_and_code() -> None:
    assert identify("子曰：學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？")[0] == "zh"
    assert identify("def read(path):\n    # read the whole file\n    return open(path).read()\n" * 5)[1] < 0.65


def test_line_ends_are_spaces() -> None:
    assert identify(SENTENCES["de"].replace(" ", "\n")) == identify(SENTENCES["de"])
    assert identify("\n\n" + SENTENCES["de"] + "\r\n") == identify(SENTENCES["de"])


def test_long_text_is_judged_by_beginning_middle_and_end() -> None:
    header = "Produced by volunteers and distributed by a library. " * 20
    assert identify(header + (SENTENCES["fr"] + "\n") * 2_000)[0] == "fr"
    assert identify((SENTENCES["fr"] + "\n") * 2_000 + header)[0] == "fr"
    hidden = (SENTENCES["fr"] + "\n") * 1_000
    assert identify(hidden) == identify(hidden[:30_000] + "x" * 1_000 + hidden[31_000:])  # between the stretches


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_nothing_to_judge(text: str) -> None:
    assert identify(text) == ("und", 0.0)


@pytest.mark.parametrize("text", ["\ud800 lone", "a\0b", "1234 5678", "\U0001f600"])
def test_odd_texts_get_some_answer(text: str) -> None:
    language, confidence = identify(text)
    assert language
    assert 0 <= confidence <= 1


def test_same_answer_in_another_process() -> None:
    """And none of it depends on the hash seed, or opens a connection."""
    code = (
        "import socket, sys; socket.socket = None\n"
        "from data_prep.documents.language import identify\n"
        f"print(repr(identify({SENTENCES['cs']!r})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == repr(identify(SENTENCES["cs"]))
