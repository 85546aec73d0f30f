"""Protects what is read of histories: the last items and not the first, all of them as what was had, and a vocabulary in plain JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sslt.data.prepare.item_processor import FIRST, MASK, PAD, UNKNOWN, ItemProcessor
from sslt.data.sources.interactions import Interactions
from sslt.errors import UserError


@pytest.fixture
def source(here) -> Interactions:
    (here / "log.txt").write_text("a b c d e f g h\nb c d\nc z\nd\n")
    return Interactions("log.txt", "sequences", None, None, None, None, None, True, "fail")


def test_the_last_items_are_read_and_all_are_known(source):
    p = ItemProcessor.fit(source, 3)
    assert p.items == ["a", "b", "c", "d", "e", "f", "z"]  # g and h are of val and test
    samples = p.prepare(source, "test")
    assert samples.lengths.tolist() == [3, 2]
    batch = samples.batch(np.array([1, 0]))
    assert p.decode(batch["tokens"][1].tolist()) == "e f …" and p.decode(batch["tokens"][0].tolist()) == "b c _"
    assert batch["mask"].tolist() == [[True, True, False], [True, True, True]]
    assert p.decode(batch["history"][1].tolist()) == "a b c d e f …" and batch["history"][0].tolist()[2:] == [PAD] * 5
    assert batch["item"].tolist() == [p.ids(["d"])[0], UNKNOWN]  # h was never seen
    part = samples.subset(np.array([1]))
    assert part.batch(np.array([0]))["item"].tolist() == [p.ids(["d"])[0]] and part.lengths.tolist() == [2]


def test_a_row_without_a_history_is_one_unknown_item(source):
    """Of whom there is one item to learn from: it is the answer."""
    samples = ItemProcessor.fit(source, 4).prepare(source, "train")
    batch = samples.batch(np.array([3, 1]))
    assert batch["tokens"][:, 0].tolist() == [UNKNOWN, UNKNOWN] and batch["mask"].sum(1).tolist() == [1, 1]
    assert not batch["history"].any() and (batch["item"] >= FIRST).all()


def test_the_vocabulary_is_plain_json(source, tmp_path):
    p = ItemProcessor.fit(source, 3)
    p.save(tmp_path)
    assert json.loads((tmp_path / "items.json").read_text()) == {"items": p.items, "max_length": 3}
    again = ItemProcessor.load(tmp_path)
    assert again.digest == p.digest and again.max_length == 3 and again.vocab_size == FIRST + 7
    assert len({PAD, MASK, UNKNOWN}) == 3 == FIRST
    (tmp_path / "items.json").write_text('{"items": ["a", "a"], "max_length": 3}')
    with pytest.raises(UserError, match=r"items\.json is damaged"):
        ItemProcessor.load(tmp_path)
    with pytest.raises(UserError, match="no items saved there"):
        ItemProcessor.load(tmp_path / "nowhere")


def test_another_vocabulary_reads_the_same_histories(source, caplog):
    """Tokens are kept by vocabulary: what one does not know the other may. How much it does not know is said."""
    few = ItemProcessor(["b", "c"], 5)
    few.prepare(source, "train")
    assert "log, train: 3 of the 6 items in histories were never seen in training" in caplog.text
    assert few.decode(few.prepare(source, "test").batch(np.array([0]))["tokens"][0].tolist()) == "c … … … …"
    with pytest.raises(UserError, match="set pack=false"):
        few.prepare(source, "unlabeled").packed(4)
