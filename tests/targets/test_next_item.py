"""Protects the ranking of all items: scores by hand, what was had left out but never the truth, misses, drawn items, the cheap methods."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sslt.data.answers import Item
from sslt.data.prepare.item_processor import FIRST, MASK, ItemProcessor
from sslt.data.sources.aisles import Aisles
from sslt.data.sources.interactions import Interactions, Video
from sslt.data.views.base import Plain
from sslt.encoders.bag import BagEncoder, BagProcessor
from sslt.encoders.base import evaluating
from sslt.encoders.histories import CausalHistories, MaskedHistories
from sslt.errors import UserError
from sslt.evaluation.features import predicted
from sslt.targets.base import Rows
from sslt.targets.metrics.ranking import ranking_metrics, ranks
from sslt.targets.next_item import NextItem

KINDS = ("causal", "masked")


@pytest.fixture(scope="module")
def source() -> Aisles:
    return Aisles(60, 3, 5, 0)


def encoder(kind: str, items: list[str], longest: int = 8):
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 30, "initializer_range": 0.5}
    processor = ItemProcessor(items, longest)
    if kind == "causal":
        return CausalHistories(processor, "gpt2", small, "last")
    return MaskedHistories(processor, "bert", {**small, "intermediate_size": 16}, "mean")


def target(on, space, seen: str = "exclude", top: int = 5, sampled: int = 0) -> NextItem:
    return NextItem(on, space, "full", 8, 0.75, seen, top, sampled)


def by_hand(e, history: tuple[str, ...], names: list[str]) -> np.ndarray:
    """Scores of `names` after a history: one row alone, by the library's whole model."""
    ids = e.processor.ids(history)[-e.processor.max_length + (e.writes == "masked") :].tolist()
    with evaluating(e):
        if e.writes == "causal":
            logits = e.model(torch.tensor([ids])).logits[0, -1]
        else:
            with e.words.whole(e.model) as model:
                logits = model(torch.tensor([[*ids, MASK]])).logits[0, -1]
    return logits.numpy()[e.processor.ids(names)]


@pytest.mark.parametrize("seen", ["exclude", "keep"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_ranked_as_it_is_by_hand(kind, seen, source):
    """Histories shorter and longer than the encoder reads, in batches; one item is unknown to it."""
    names = source.log.items
    e = encoder(kind, names[1:])
    t, samples, raw = target(e, source.space, seen), e.processor.prepare(source, "test"), source.get("test")
    assert max(map(len, raw.items)) > e.processor.max_length
    found = predicted(e, t, samples, torch.device("cpu"), 16)
    for i, history in enumerate(raw.items):
        scores, true = by_hand(e, history, names[1:]), names[raw.answers.values[i]]
        candidates = {n: s for n, s in zip(names[1:], scores, strict=True) if seen == "keep" or n not in history or n == true}
        own = candidates.get(true)
        rank = 0 if own is None else 1 + sum(s >= own for n, s in candidates.items() if n != true)
        assert found.rank[i] == rank
        order = sorted((n for n in candidates if seen == "keep" or n not in history), key=lambda n: -candidates[n])[:5]
        assert t.rows(found.take(np.array([i])))[0]["items"] == order and names[found.values[i]] == order[0]
    assert any(true == names[0] for true in (names[v] for v in raw.answers.values)) or (found.rank > 0).all()


def test_the_whole_history_was_had_not_only_what_is_read():
    """An item before the last ones that the encoder reads is left out as well; one that comes again can be found."""
    names = [f"i{n}" for n in range(6)]
    e = encoder("causal", names, 2)
    t = target(e, {"items": names}, top=6)
    history = torch.tensor(e.processor.ids(["i0", "i1", "i2"]))[None]
    batch = {"history": history, "item": torch.tensor(e.processor.ids(["i0"]))}
    scores = torch.tensor([[9.0, 8.0, 7.0, 1.0, 2.0, 3.0]])
    found = t.ranked(scores, batch)
    assert found.top.tolist() == [[5, 4, 3, -1, -1, -1]] and found.rank.tolist() == [1]
    assert t.rows(found)[0]["items"] == ["i5", "i4", "i3"]
    assert t.columns(found)["items"][0] == "i5; i4; i3"  # names of items may have spaces in them
    kept = target(e, {"items": names}, "keep", top=2).ranked(scores, batch)
    assert kept.top.tolist() == [[0, 1]] and kept.rank.tolist() == [1]


def test_a_constant_scorer_finds_nothing():
    names = [f"i{n}" for n in range(30)]
    t = target(encoder("causal", names), {"items": names})
    batch = {"history": torch.full((30, 1), FIRST), "item": torch.arange(30) + FIRST}
    found = t.ranked(torch.zeros(30, 30), batch)
    answers = Item(np.arange(30), {"items": names})
    assert set(t.measure(found, answers).values()) != {1.0} and t.measure(found, answers)["hr@10"] == 0
    assert t.measure(found, answers)["mrr"] == pytest.approx((1 / 30 + 29 / 29) / 30, abs=1e-2)


def test_without_an_answer_there_is_no_rank(source, here):
    """New histories: items and scores alone."""
    e = encoder("causal", source.log.items)
    samples = e.processor.prepare(source, "unlabeled")
    found = predicted(e, target(e, source.space), samples, torch.device("cpu"), 16)
    assert found.rank is None and found.top.shape == (60, 5)


def test_drawn_items_are_uniform_and_never_had(here):
    """1 + 10 of 200: the share of misses that a random scorer has, from draws that hang on the row alone; labelled as such."""
    names = [f"i{n}" for n in range(200)]
    e = encoder("causal", names)
    t = target(e, {"items": names}, sampled=10)
    n = 1500
    torch.manual_seed(0)
    batch = {"history": torch.full((n, 1), FIRST), "item": torch.randint(1, 200, (n,)) + FIRST, "index": torch.arange(n)}
    scores = torch.rand(n, 200)
    scores[:, 0] = 2.0  # was had: it never stands before the truth
    found = t.ranked(scores, batch)
    assert np.bincount(found.sampled, minlength=12)[1:] == pytest.approx(n / 11, rel=0.3) and found.sampled.min() == 1
    half = t.ranked(scores[::2], {k: x[::2] for k, x in batch.items()})
    assert (half.sampled == found.sampled[::2]).all()
    measured = t.measure(found, Item(np.asarray(batch["item"]) - FIRST, {"items": names}))
    assert measured["sampled/hr@10"] == pytest.approx(10 / 11, abs=0.02) and measured["hr@10"] < 0.1
    few = target(encoder("causal", names[:8]), {"items": names[:8]}, sampled=10)
    alone = few.ranked(torch.zeros(1, 8), {"history": batch["history"][:1], "item": torch.tensor([FIRST + 3]), "index": torch.tensor([0])})
    assert alone.sampled.tolist() == [7]  # all that there are


class Kept:
    """Samples of a source by a processor, as rows of a cheap method."""

    def __init__(self, processor, source, split):
        self.samples = processor.prepare(source, split)

    @property
    def rows(self) -> Rows:
        return Rows(self.samples, self.samples.answers)


def test_cheap_methods_count_training_alone(here):
    """Popularity and cosines by hand, on validation rows chosen between; items of test and val change nothing."""
    rng = np.random.default_rng(0)
    lines = [" ".join(map(str, rng.permutation(12)[: rng.integers(3, 9)])) for _ in range(40)]
    (here / "log.txt").write_text("\n".join(lines) + "\n")
    source = Interactions("log.txt", "sequences", None, None, None, None, None, True, "fail")
    p = ItemProcessor.fit(source, 10)
    t = target(CausalHistories(p, "gpt2", {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}, "last"), source.space)
    splits = {s: Kept(p, source, s).rows for s in ("train", "val", "test")}
    best = t.cheapest("items", splits["train"], splits["val"], splits["test"])
    took = np.zeros((40, 12))
    for row, line in zip(took, lines, strict=True):
        row[[int(i) for i in line.split()[:-2]]] = 1
    popular = took.sum(0)

    def ndcg(score_of) -> float:
        gains = []
        for line in lines:
            items = [int(i) for i in line.split()]
            score = np.where(popular > 0, score_of(items[:-1]), -np.inf)
            score[items[:-1]] = -np.inf
            rank = (score >= score[items[-1]]).sum() if np.isfinite(score[items[-1]]) else np.inf
            gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0)
        return float(np.mean(gains))

    assert best.more["popularity/ndcg@10"] == pytest.approx(ndcg(lambda h: popular.copy()))
    both = took.T @ took
    shrink, fade = (float(x) for x in best.method.removeprefix("item-kNN (shrinkage ").removesuffix(")").split(", fading by "))
    alike = both / (np.sqrt(np.outer(popular, popular)) + shrink).clip(1e-9) * (1 - np.eye(12))
    weigh = lambda h: (fade ** np.arange(len(h))[::-1]) @ alike[h] + popular / (1e6 * popular.max())  # noqa: E731
    assert best.more["item-knn/ndcg@10"] == pytest.approx(ndcg(weigh)) == t.score(best.predictions, splits["test"].answers)
    without = t.cheapest("items", splits["train"], None, splits["test"])
    assert without.method.startswith("item-kNN") and np.isnan(without.val_score)


def test_popularity_on_the_published_file(here):
    """Video at full rank: HR@10 .019, NDCG@10 .0097, nothing left out."""
    if not (root := os.environ.get("SSLT_DATA")) or not (Path(root) / "recsys-sasrec-video").is_dir():
        pytest.skip("needs the data")
    source = Video(root, None, None)
    counts = np.bincount(source.get("unlabeled").items.rows.flat(), minlength=len(source.log.items))
    scores, truth = torch.from_numpy(counts.astype(np.float32)), source.get("test").answers.values
    _, some, equal = np.unique(counts[truth], return_index=True, return_inverse=True)  # equally popular items have one rank
    of_some = [ranks(scores.expand(len(t), -1), t) for t in torch.from_numpy(truth[some]).split(64)]
    found = ranking_metrics(torch.cat(of_some).numpy()[equal])
    assert round(found["hr@10"], 3) == 0.019 and round(found["ndcg@10"], 4) == 0.0097


def test_mistakes_are_named(source):
    e = encoder("causal", source.log.items)
    with pytest.raises(UserError, match=r"objective\.seen=drop: give exclude or keep"):
        target(e, source.space, "drop")
    with pytest.raises(UserError, match=r"the encoder knows 0 of the 2 items to rank"):
        target(e, {"items": ["x", "y"]})
    with pytest.raises(UserError, match="leave views=histories"):
        target(e, source.space).check_views(Plain(1))
    with pytest.raises(UserError, match=r"reads histories of items, and the encoder texts: choose encoder=sasrec"):
        target(BagEncoder(BagProcessor({"a": 1}, 1, 1, 5), 4, 0, 1.0, 0.0), source.space)
