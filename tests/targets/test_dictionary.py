"""Protects the dictionary beside a tagger: longest entries, whole words, majority types, entries chosen on validation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sslt.data.answers import Tags
from sslt.data.ragged import Ragged
from sslt.targets.base import Rows
from sslt.targets.dictionary import Dictionary, strongest
from sslt.targets.metrics.tags import tag_metrics

SPACE = {"types": ["per", "loc"]}


def rows(*texts_and_spans) -> Rows:
    texts = [t for t, _ in texts_and_spans]
    values = [[(t.index(s), t.index(s) + len(s), k) for s, k in found] for t, found in texts_and_spans]
    return Rows(texts, Tags(Ragged.of(values, np.int64, 3), SPACE))


def found(made: Dictionary, text: str, least: float = 0.0):
    return [(text[a:b], k) for a, b, k in made.tag([text], least)[0].tolist()]


TRAIN = rows(
    ("New York is far", [("New York", 1)]),
    ("New came", [("New", 0)]),
    ("York is near", [("York", 1)]),
    ("York was a duke", [("York", 0)]),
    ("so is York", [("York", 1)]),
    ("May came in May", [("May", 0)]),
    ("in May or in May", []),
    ("X came", [("X", 0)]),
    ("王芳来了", [("王芳", 0)]),
    ("nobody came", []),
)


def test_longest_whole_words_and_majority():
    """Of entries at a place the longest; none inside a word, but anywhere in scripts without spaces; the most frequent type."""
    made = Dictionary(*TRAIN)
    assert found(made, "New York, York and Yorkshire, New") == [("New York", 1), ("York", 1), ("New", 0)]
    assert found(made, "Xavier X") == [("X", 0)]
    assert found(made, "我和王芳来了") == [("王芳", 0)]
    assert found(made, "") == [] and found(made, "N") == []


def test_precision():
    """How often what is found in training is tagged so there; entries below are passed over for shorter ones."""
    made = Dictionary(*TRAIN)
    assert made.precision == pytest.approx({"New York": 1, "New": 1, "York": 2 / 3, "May": 1 / 4, "X": 1, "王芳": 1})
    assert found(made, "May met York", 0.25) == [("May", 0), ("York", 1)]
    assert found(made, "May met York", 0.5) == [("York", 1)]
    assert found(made, "May met York", 0.9) == []


def test_chosen_on_validation():
    """The share of right entries that is best there; without validation the middle one; test answers are not looked at."""
    val = rows(("in May", []), ("May I", []), ("in York", [("York", 1)]))
    test = rows(("York in May", []))
    best = strongest(TRAIN, val, test)
    assert best.val_score == 1.0 and best.predictions.values[0].tolist() == [[0, 4, 1]]
    alone = strongest(TRAIN, None, test)
    assert math.isnan(alone.val_score) and alone.predictions.values[0].tolist() == [[0, 4, 1]]
    assert alone.predictions.space == SPACE


def test_no_tags_at_all():
    """An empty dictionary tags nothing."""
    best = strongest(rows(("nobody", [])), rows(("York", [("York", 1)])), rows(("York", [("York", 1)])))
    assert best.val_score == 0.0 and len(best.predictions.values[0]) == 0


def test_its_own_training_texts():
    """On what it was made of it is nearly right, which says that places are those of the answers."""
    made = Dictionary(*TRAIN)
    assert tag_metrics(made.tag(TRAIN.items, 0.5), TRAIN.answers.values, SPACE["types"])["f1"] > 0.75
