"""Protects item-kNN: its scores by hand, what validation chooses, what it adds to an encoder, and that a saved head has it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import sparse
from test_next_item import encoder, target

from sslt.data.sources.aisles import Aisles
from sslt.evaluation.features import predicted
from sslt.runs import Run
from sslt.targets import neighbours
from sslt.targets.neighbours import Neighbours

ITEMS = 7
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def taken() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, ITEMS, rng.integers(1, 9)) for _ in range(12)]


def by_hand(taken, history: list[int], shrink: float, fade: float) -> np.ndarray:
    """Σ over the history, one item at a time, from sets of users."""
    users = [{u for u, row in enumerate(taken) if i in row} for i in range(ITEMS)]
    popular = np.array([sum((row == i).sum() for row in taken) for i in range(ITEMS)])
    scores = 1e-6 * popular / popular.max()
    for after, i in enumerate(reversed([i for i in history if i >= 0])):
        for j in range(ITEMS):
            if i != j and users[i] & users[j]:
                scores[j] += fade**after * len(users[i] & users[j]) / (math.sqrt(len(users[i]) * len(users[j])) + shrink)
    return scores


@pytest.mark.parametrize(("shrink", "fade"), [(0, 1.0), (5, 0.6)])
def test_scores_are_those_by_hand(taken, shrink, fade):
    """An item taken twice, one that is not known within a history, padding behind it, and no history at all."""
    histories = [[0, 3, 3, 1], [5, -1, 2, -1], [-1, -1, -1, -1], [4, -1, -1, -1]]
    found = Neighbours.solve(taken, ITEMS, shrink, fade)(torch.tensor(histories))
    for row, history in zip(found.numpy(), histories, strict=True):
        np.testing.assert_allclose(row, by_hand(taken, history, shrink, fade), rtol=1e-5)


def test_only_the_last_items_of_a_history_count(taken, monkeypatch):
    monkeypatch.setattr(neighbours, "LONGEST", 2)
    found = Neighbours.solve(taken, ITEMS, 0, 1.0)
    assert torch.equal(found(torch.tensor([[6, 6, 0, 1]])), found(torch.tensor([[0, 1, -1, -1]])))


def test_of_very_many_pairs_each_item_keeps_its_nearest(taken, monkeypatch):
    full = Neighbours.solve(taken, ITEMS, 0, 1.0)
    monkeypatch.setattr(neighbours, "MOST_PAIRS", 3)
    monkeypatch.setattr(neighbours, "NEAREST", 2)
    few = Neighbours.solve(taken, ITEMS, 0, 1.0)
    wide, narrow = (sparse.csr_array((n.cosines.numpy(), n.columns.numpy(), n.ends.numpy())).toarray() for n in (full, few))
    for a, b in zip(wide, narrow, strict=True):
        assert (b > 0).sum() == min(2, (a > 0).sum()) and np.allclose(np.sort(b)[-2:], np.sort(a)[-2:])


def test_validation_chooses_and_the_cache_gives_the_same():
    """The best of all settings, measured again one by one; and beside an encoder no worse there than either alone."""
    source = Aisles(80, 3, 5, 0)
    e = encoder("causal", source.log.items)
    t = target(e, source.space)
    train, val = (e.processor.prepare(source, split) for split in ("train", "val"))
    first, again = neighbours.choose(t, train, val), neighbours.choose(t, train, val)
    assert first.score == again.score and all(
        torch.equal(a, b) for a, b in zip(first.neighbours.buffers(), again.neighbours.buffers(), strict=True)
    )
    rows = neighbours.taken(t, train)
    each = [neighbours.score(t, val, Neighbours.solve(rows, len(t.ids), s, f)) for s in neighbours.SHRINKS for f in neighbours.FADES]
    assert first.score == max(each)
    alone = t.score(predicted(e, t, val, CPU, 16), val.answers)
    told = t.fuse(e, None, train, val, CPU)
    assert told == {"val/encoder_ndcg@10": pytest.approx(alone), "val/item_knn_ndcg@10": pytest.approx(first.score)}
    assert t.score(predicted(e, t, val, CPU, 16), val.answers) >= max(alone, first.score)


def test_an_encoder_that_adds_nothing_is_told(caplog, monkeypatch):
    """Where what is best on validation has no part of it, and only there."""
    source = Aisles(80, 3, 5, 0)
    e = encoder("causal", source.log.items)
    t = target(e, source.space)
    train, val = (e.processor.prepare(source, split) for split in ("train", "val"))
    whole, chosen = t.score, neighbours.choose(t, train, val)
    for encoder_counts in (True, False):  # of mixes the first is the encoder alone, the last the neighbours alone
        scores = iter([1.0, *[0.5] * len(neighbours.SHARES), 0.5] if encoder_counts else [0.1, *[0.5] * len(neighbours.SHARES), 1.0])
        with monkeypatch.context() as patch:
            patch.setattr(neighbours, "choose", lambda *args, **more: chosen)
            patch.setattr(t, "score", lambda *args, scores=scores: next(scores))
            t.fuse(e, None, train, val, CPU)
        assert ("the encoder adds nothing to item-kNN" in caplog.text) == (not encoder_counts)
    assert t.score == whole


def test_a_saved_head_has_them(sslt, here):
    """Fine-tuned, measured again from its folder, and without them."""
    own = ["+target=next_item", "data.count=80", "trainer.accelerator=cpu", "trainer.max_steps=2", "from=scratch"]
    sslt("finetune", *own, "hydra.run.dir=both")
    sslt("evaluate", "from=both", "trainer.accelerator=cpu", "hydra.run.dir=again")
    key = "test/ndcg@10"
    assert Run(here / "again").metrics[key] == Run(here / "both").metrics[key]
    assert {"val/encoder_ndcg@10", "val/item_knn_ndcg@10"} <= Run(here / "both").metrics.keys()
    sslt("finetune", *own, "late_fusion=false", "hydra.run.dir=alone")
    assert Run(here / "alone").metrics[key] != Run(here / "both").metrics[key]
