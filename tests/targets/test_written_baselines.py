"""Protects what writes without an encoder: sentences, copies, a dictionary, the nearest answer; none knows an answer of test."""

from __future__ import annotations

import numpy as np
import pytest

from sslt.data.answers import Texts
from sslt.targets import written_baselines as cheap
from sslt.targets.base import Rows

pytest.importorskip("rouge_score")

LEXICON = {"the": "der", "cat": "Katze", "dog": "Hund", "sees": "sieht", "hears": "hört", "a": "ein", "tree": "Baum", "house": "Haus"}


def pairs(n: int, seed: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    nouns, verbs = ["cat", "dog", "tree", "house"], ["sees", "hears"]
    texts = [f"the {rng.choice(nouns)} {rng.choice(verbs)} {rng.choice(['the', 'a'])} {rng.choice(nouns)}." for _ in range(n)]
    return texts, [" ".join(LEXICON.get(w, w) for w in t[:-1].split()) + "." for t in texts]


def test_first_sentences():
    assert cheap.lead(1)(["One. Two. Three.", "a\nb"]) == ["One.", "a"] and cheap.lead(2)(["One. Two. Three.", ""]) == ["One. Two.", ""]


def test_a_dictionary_learns_the_words():
    """Of pairs whose words translate one to one it finds each; unknown words stay; signs stand at their words."""
    write = cheap.dictionary(*pairs(200, 0))
    assert write(["the cat hears a house.", "the zebra sees a (tree)."]) == ["der Katze hört ein Haus.", "der zebra sieht ein (Baum)."]


def test_one_round_of_the_dictionary_by_hand():
    """IBM model 1: the likelihood of the training pairs never falls; on two pairs the shared word is told apart from the others."""
    write = cheap.dictionary(["das haus", "das buch"] * 3, ["the house", "the book"] * 3)
    assert write(["das buch haus"]) == ["the book house"]
    assert cheap.dictionary([""], ["x"])(["as it is"]) == ["as it is"]  # nothing to learn from


def test_the_nearest_training_text():
    write = cheap.nearest(["a red cat sleeps", "two dogs run fast", "the sun is hot"], ["A", "B", "C"])
    assert write(["dogs run", "hot sun", "a cat"]) == ["B", "C", "A"] and cheap.nearest(["!"], ["x"])(["y"]) == ["x"]
    last = cheap.nearest_last(["a cat\nyes please", "two dogs\nno thanks"], ["A", "B"])
    assert last(["a cat\nno thanks"]) == ["B"]


def test_the_best_sentence():
    """Of each text the one that is nearest to a reference."""
    found = cheap.oracle(["One cat. Two dogs run. Three.", "Only this", ""], [["two dogs", "none"], ["other"], ["x"]], "en")
    assert found == ["Two dogs run.", "Only this", ""]


def test_validation_chooses(monkeypatch):
    """The one with the highest score on it; the first one without."""
    rows = lambda n: Rows([f"text {i}. more {i}." for i in range(n)], Texts([[f"text {i}. more {i}."] for i in range(n)], {}))  # noqa: E731
    score = lambda p, a: float(np.mean([x == y for x, y in zip(p.values, a.values, strict=True)]))  # noqa: E731
    methods = {"one": cheap.lead(1), "two": cheap.lead(2)}
    best = cheap.strongest(methods, score, rows(5), rows(4))
    assert best.method == "two" and best.val_score == 1 and best.predictions.values[3] == ["text 3. more 3."]
    without = cheap.strongest(methods, score, None, rows(4))
    assert without.method == "one" and np.isnan(without.val_score)
