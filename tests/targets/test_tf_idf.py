"""Protects TF-IDF as cheap methods have it: what scikit-learn makes of the same texts, each of which is read once."""

from __future__ import annotations

import numpy as np
import pytest

from sslt.targets.tf_idf import TfIdf

TEXTS = {
    "words": ["a good film", "a fine, good story", "a bad film", "bad, dull: bad", ""],
    "characters": ["很好的酒店", "服务很好很好", "很差的酒店", "服务很差", ""],
    "nothing": ["", "?", "!?", ""],
}
ASKED = {"words": ["good good story", "else"], "characters": ["房间很好", "好"], "nothing": ["?", "words"]}


@pytest.mark.parametrize("kind", TEXTS)
def test_rows_are_those_of_the_same_texts_asked_about(kind):
    vectors = TfIdf(TEXTS[kind])
    assert vectors.rows.shape[0] == len(TEXTS[kind]) and (vectors.rows != vectors.of(TEXTS[kind])).nnz == 0
    assert vectors.of(ASKED[kind]).shape == (2, vectors.rows.shape[1])


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_rows_and_presence_are_scikit_learns(kind):
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    own = {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"} if kind == "words" else {}
    own = own or {"analyzer": "char", "ngram_range": (1, 3)}
    vectors = TfIdf(TEXTS[kind])
    words = TfidfVectorizer(sublinear_tf=True, **own).fit(TEXTS[kind])
    width = len(words.vocabulary_)
    assert np.allclose(vectors.rows.toarray()[:, :width], words.transform(TEXTS[kind]).toarray(), atol=1e-6)
    assert (vectors.rows.shape[1] > width) == (kind == "words")  # characters, too, of so few
    counter = CountVectorizer(binary=True, **own).fit(TEXTS[kind])
    for found, texts in ((vectors.rows, TEXTS[kind]), (vectors.of(ASKED[kind]), ASKED[kind]), (vectors.of_words(ASKED[kind]), ASKED[kind])):
        before = found.copy()
        assert (vectors.present(found).toarray() == counter.transform(texts).toarray()).all()
        assert (found != before).nnz == 0


def test_a_term_of_one_text_in_thousands_is_none(monkeypatch):
    monkeypatch.setattr("sslt.targets.tf_idf.RARE", 4)
    assert set(TfIdf(["a b", "a c", "a b", "d"]).words.vocabulary_) == {"a", "b", "a b"}


def test_long_texts_are_read_by_words_alone(monkeypatch):
    monkeypatch.setattr("sslt.targets.tf_idf.MOST_CHARACTERS", 10)
    assert TfIdf(TEXTS["words"]).name == "TF-IDF of words"


def test_texts_are_read_once(monkeypatch):
    """Reading them is most of what a cheap method costs: those learned from once by words and once by characters, others likewise."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from sslt.targets import baselines

    read: list[str] = []
    analyzer = TfidfVectorizer.build_analyzer

    def counting(self):
        analyse = analyzer(self)
        return lambda text: read.append(text) or analyse(text)

    monkeypatch.setattr(TfidfVectorizer, "build_analyzer", counting)
    train, val = [f"good {i}" if i % 2 else f"bad {i}" for i in range(20)], ["good", "bad"]
    rows = [baselines.Rows(texts, np.array([int("good" in t) for t in texts])) for texts in (train, val)]
    assert baselines.strongest("text", *rows, ["so good"], 2).predicted.tolist() == [1]
    assert all(read.count(t) == 2 for t in (*train, *val)) and read.count("so good") in (1, 2)
