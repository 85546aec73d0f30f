"""Protects answers in texts: what is kept of them, and what a batch sees."""

from __future__ import annotations

import numpy as np

from sslt.data.answers import Answers
from sslt.data.ragged import Ragged
from sslt.data.spans import Spans

SPACE = {"scorer": "squad", "words": [""]}


def some() -> Spans:
    contexts = ["été 😀 a", "été 😀 a", "b"]
    return Spans(Ragged.of([[(0, 3), (4, 5)], [], [(0, 1)]], np.int64, 2), SPACE, kinds=np.array([0, 1, -1]),
                 texts=[["été", "\ud83d"], [], ["b"]], contexts=contexts, turns=np.array([[0, 1], [0, 2], [1, 1]]))  # fmt: skip


def test_a_folder_gives_back_what_was_saved(tmp_path):
    """Contexts that several questions share are written once; characters of any plane, and halves of them, stay what they are."""
    about = some().save(tmp_path)
    kept = {p.stem: np.load(p, allow_pickle=False) for p in tmp_path.glob("*.npy")}
    assert len(kept["answer_contexts_sizes"]) == 2
    again = Answers.load(kept, about)
    assert list(again.texts) == list(some().texts) and list(again.contexts) == list(some().contexts) and again.domains is None
    assert [v.tolist() for v in again.values] == [v.tolist() for v in some().values] and again.turns.tolist() == some().turns.tolist()


def test_rows_are_taken_and_joined():
    both = Spans.join([some().take(np.array([2])), some().take(np.array([0]))])
    assert both.kinds.tolist() == [-1, 0] and list(both.contexts) == ["b", "été 😀 a"] and both.first == ["b", "été"]
    assert both.known.tolist() == [False, True] and some().first[1] == ""


def test_a_batch_has_the_characters_that_places_count():
    found = some().batch(np.array([0, 2]))
    assert found["spans"].tolist() == [[[0, 3], [4, 5]], [[0, 1], [-1, -1]]] and found["answer_kind"].tolist() == [0, -1]
    assert [chr(c) for c in found["characters"][0, 4:5].tolist()] == ["😀"] and found["characters"][1].tolist() == [98, 0, 0, 0, 0, 0, 0]
    assert found["turn"].tolist() == [[0, 1], [1, 1]]


def test_a_head_may_be_measured_on_questions_that_all_have_an_answer():
    assert Spans.fits(SPACE, {"scorer": "squad", "words": []}) and not Spans.fits(SPACE, {"scorer": "coqa", "words": ["yes"]})
