"""Protects what a linear tagger reads: words of any script, texts that do not see each other, entries that leave a text's own tags out."""

from __future__ import annotations

import numpy as np
import pytest

from sslt.data.ragged import Ragged
from sslt.targets.tag_features import CONTEXT, Entries, context, words_of

LETTERS = list("abc王 ")


def spans(*rows) -> Ragged:
    return Ragged.of(rows, np.int64, 3)


@pytest.mark.parametrize(
    "text, characters, expected",
    [
        ("New York, 3km", False, ["New", "York", ",", "3km"]),
        ("王芳在iPhone店", False, ["王", "芳", "在", "iPhone", "店"]),
        ("@a_b  서울에서", False, ["@", "a", "_", "b", "서울에서"]),
        ("서울에 가", True, ["서", "울", "에", "가"]),
        ("\ud83d \U0001f600é", False, ["\ud83d", "\U0001f600", "é"]),
        ("", False, []),
    ],
)
def test_words(text, characters, expected):
    """Runs of letters and digits, single letters of scripts without spaces, and whatever else is no space."""
    assert [text[a:b] for a, b in words_of([text], characters).places.tolist()] == expected


def test_texts_do_not_see_each_other():
    """What a word has depends on its own text alone, empty ones and ends of texts included."""
    texts = ["", "anna met bob", "bob", "", "in new york", "york"]
    made = words_of(texts, False)
    entries = Entries.learn(made, spans([], [(0, 4, 0), (9, 12, 0)], [(0, 3, 0)], [], [(3, 11, 1)], [(0, 4, 1)]), 2)
    together, marks = context(made), entries.marks(made, None)
    assert together.shape[1] == len(CONTEXT) and marks[:, 0].any() and not marks[:, 0].all()
    ends = np.cumsum(made.sizes)
    for text, size, end in zip(texts, made.sizes, ends, strict=True):
        alone = words_of([text], False)
        np.testing.assert_array_equal(context(alone), together[end - size : end])
        np.testing.assert_array_equal(entries.marks(alone, None), marks[end - size : end])


def test_a_word_in_another_context():
    """Equal words with equal neighbours have all in common; another neighbour changes what is read together with it, and no more."""
    a, b, c = (
        context(words_of([text], False))[2] for text in ("we saw Anna today there", "we saw Anna today there", "we saw Anna here there")
    )
    assert (a == b).all()
    changed = {CONTEXT[i][1] for i in np.flatnonzero(a != c)}
    assert changed and all(1 in places for places in changed)
    kept = [i for i, (_, places) in enumerate(CONTEXT) if 1 not in places]
    assert (a[kept] == c[kept]).all()


def test_own_tags_are_left_out():
    """A training text is read as if its tags and words had not been counted: as by entries that were learned from all the others."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        texts = ["".join(rng.choice(LETTERS, rng.integers(0, 12))) for _ in range(6)]
        tags = []
        for text in texts:
            places = words_of([text], False).places
            first = np.sort(rng.choice(len(places), min(len(places), 2), replace=False)) if len(places) else []
            tags.append([(places[i, 0], places[min(i + rng.integers(0, 2), len(places) - 1), 1], rng.integers(2)) for i in first])
        made, all_of = words_of(texts, False), spans(*tags)
        marks, end = Entries.learn(made, all_of, 2).marks(made, all_of), 0
        for i, size in enumerate(made.sizes):
            others = [j for j in range(6) if j != i]
            learned = Entries.learn(words_of([texts[j] for j in others], False), spans(*(tags[j] for j in others)), 2)
            np.testing.assert_array_equal(learned.marks(words_of([texts[i]], False), None), marks[end : end + size])
            end += size


def test_the_longest_entry_counts():
    """Of entries over a word the longest is read, with its most frequent type; words of none have nothing."""
    texts = ["new york", "new york", "york", "so york"]
    made = words_of(texts, False)
    entries = Entries.learn(made, spans([(0, 8, 1)], [(0, 8, 0)], [(0, 4, 0)], []), 2)
    marks = entries.marks(words_of(["in new york", "york"], False), None)
    assert not marks[0, :4].any() and marks[1:, :4].all()
    assert marks[2, 0] != marks[3, 0]  # the end of one of two words, one of one word
    assert entries.found.tolist() == [2, 4] or entries.found.tolist() == [4, 2]
