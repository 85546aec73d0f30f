"""Protects what a bag reads: words by script, ids that are the same everywhere, vocabularies learned and stored exactly."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

from sslt.data import cache
from sslt.data.base import Raw, Source
from sslt.data.prepare.bag_processor import BUCKETS, VOCABULARY, BagProcessor, subwords_of, words_of
from sslt.errors import UserError

TEXTS = ["The cat sat. The dog sat!", "the CAT ran", "", "zebra", "我住在北京 hotel，很好！", "很好很好"]


class Toy(Source):
    """A few texts of several scripts."""

    modality, name = "text", "toy"
    val_fraction = test_fraction = 0.0
    classes = ("no", "yes")  # type: ignore[assignment]

    def __init__(self, texts: list[str] = TEXTS):
        self.texts = texts

    def own_splits(self):
        return ("train",)

    def fingerprint(self):
        return cache.digest(self.texts)

    def read(self, split):
        return Raw(self.texts, self.as_answers(np.arange(len(self.texts)) % 2))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def fit(**changed) -> BagProcessor:
    return BagProcessor.fit(Toy(), **{"vocab_size": 100, "unknown": 7, "max_length": 50, **changed})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I don't LIKE it, 3.5 stars!", ["i", "don't", "like", "it", "3", "5", "stars", "!"]),
        ("no_way <br />", ["no", "way", "br"]),
        ("École ＡＢＣ ﬁn", ["école", "abc", "fin"]),
        ("我住iPhone酒店，好！", ["我", "住", "iphone", "酒", "店", "好", "!"]),
        ("ひらがなです 한국어", ["ひ", "ら", "が", "な", "で", "す", "한국어"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        (" \n…—", []),
    ],
)
def test_words_by_script(text, words):
    """Where words have spaces between them these are read, elsewhere characters, in one text as the script changes."""
    assert words_of(text) == words


def test_vocabulary_is_the_most_frequent_words():
    """By count, then alphabet; words that occur once are left out; documents are counted, not occurrences."""
    processor = fit()
    assert list(processor.documents) == ["the", "好", "很", "!", "cat", "sat"]
    assert processor.documents == {"the": 2, "好": 2, "很": 2, "!": 2, "cat": 2, "sat": 1} and processor.texts == len(TEXTS)
    assert list(fit(vocab_size=2).documents) == ["the", "好"]


def test_ids_are_places_or_hashes():
    """A known word has its place from 1, another one the CRC-32 of its letters; nothing is lost or cut when it is stored."""
    processor = fit()
    samples = processor.prepare(Toy(), "train")
    expected = []
    for text in TEXTS:
        row = []
        for word in words_of(text):
            known = list(processor.documents)
            row.append(1 + known.index(word) if word in known else 1 + len(known) + zlib.crc32(word.encode()) % 7)
        expected.append(row)
    batch = samples.batch(np.arange(len(TEXTS)))
    assert [row[row > 0].tolist() for row in batch["tokens"]] == expected
    assert batch["mask"].sum(1).tolist() == [len(row) for row in expected] and batch["label"].tolist() == [0, 1, 0, 1, 0, 1]
    assert processor.decode([*expected[3], 0, 3]) == "… _ 很"
    assert min(map(min, filter(None, expected))) > 0 and max(map(max, filter(None, expected))) < processor.vocab_size


def test_unknown_words_are_spelled():
    """Each time they stand there, known words never; a part of <word> of 3 and 4 letters is its CRC-32. Once that is asked for."""
    processor = fit()
    assert "subwords" not in processor.prepare(Toy(), "train").batch(np.array([0]))
    processor.spell()
    spelled = {word: zlib.crc32(word.encode()) % BUCKETS for word in ("<ra", "ran", "an>", "<ran", "ran>")}
    assert sorted(spelled.values()) == subwords_of("ran") and len(subwords_of("aaaaaa")) == 6  # <aa aaa aa> <aaa aaaa aaa>
    samples = processor.prepare(Toy(), "train")
    wanted = [[s for w in words_of(text) if w not in processor.documents for s in subwords_of(w)] for text in TEXTS]
    assert any(wanted) and not all(wanted)
    for found in (samples, processor.at_once(Toy())):
        assert [row[row >= 0].tolist() for row in found.batch(np.arange(len(TEXTS)))["subwords"]] == wanted
    assert [row[row >= 0].tolist() for row in samples.subset(np.array([5, 1])).batch(np.array([1, 0]))["subwords"]] == [
        wanted[1],
        wanted[5],
    ]


def test_ids_are_the_same_in_another_process(tmp_path):
    """Python's own hash differs from process to process; stored ids must not."""
    processor = fit()
    settings = processor.save(tmp_path)
    code = (
        "import sys, json; from pathlib import Path; from sslt.data.prepare.bag_processor import BagProcessor; "
        "p = BagProcessor.load(Path(sys.argv[1]), json.loads(sys.argv[2])); "
        "print(json.dumps([p.digest, list(p.encode(['zebra xylophone the 我'] ))]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), json.dumps(settings)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert json.loads(out.stdout) == [processor.digest, list(processor.encode(["zebra xylophone the 我"]))]


def test_rows_are_cut_and_uncut():
    """At most `max_length` words of a row are read, unless views ask for whole texts."""
    samples = fit(max_length=3).prepare(Toy(), "train")
    assert samples.batch(np.array([0]))["mask"].sum() == 3 and samples.lengths.max() == 3
    whole = samples.uncut()
    assert whole.batch(np.array([0]))["mask"].sum() == 7 and whole.fingerprint == samples.fingerprint
    assert samples.batch(np.array([0]))["mask"].sum() == 3
    with pytest.raises(UserError, match="pack=false"):
        samples.packed(3)


def test_rarity_is_inverse_document_frequency():
    """ln((1 + N) / (1 + n)) + 1; words outside the vocabulary count as seen in one text; padding weighs nothing."""
    found = fit().rarity()
    assert found[0] == 0 and len(found) == 1 + 6 + 7
    assert found[1] == pytest.approx(math.log(7 / 3) + 1) and found[6] == pytest.approx(math.log(7 / 2) + 1) == found[-1]


def test_saved_and_loaded(tmp_path):
    processor = fit()
    again = BagProcessor.load(tmp_path, processor.save(tmp_path))
    assert (again.documents, again.texts, again.unknown, again.max_length) == (processor.documents, 6, 7, 50)
    assert again.digest == processor.digest and (again.rarity() == processor.rarity()).all()


@pytest.mark.parametrize("content", ["[]", "{}", '{"texts": 1, "documents": {"a": "b"}}', '{"texts": 1, "documents": [1]}', "{"])
def test_damaged_vocabulary_is_one_line(content, tmp_path):
    (tmp_path / VOCABULARY).write_text(content)
    with pytest.raises(UserError, match="damaged"):
        BagProcessor.load(tmp_path, {"unknown": 7, "max_length": 50})


def test_what_cannot_be_learned_from(tmp_path):
    with pytest.raises(UserError, match="no word occurs twice"):
        BagProcessor.fit(Toy(["one", "", "two"]), vocab_size=10, unknown=1, max_length=5)
    with pytest.raises(UserError, match="is missing"):
        BagProcessor.load(tmp_path, {"unknown": 7, "max_length": 50})
    for bad in ({"vocab_size": 0}, {"unknown": 0}, {"max_length": 0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            fit(**bad)
