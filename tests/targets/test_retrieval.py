"""Protects retrieval: ranks, ties and copies against independent references, and what is written of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score
from torchmetrics.functional.retrieval import retrieval_hit_rate

from sslt.data.answers import Answers, Class
from sslt.data.copies import contents_of_inputs
from sslt.data.prepare.bag_processor import BagProcessor
from sslt.encoders.bag import BagEncoder
from sslt.errors import UserError
from sslt.targets.base import Rows
from sslt.targets.metrics.retrieval import _of_query, retrieval_metrics
from sslt.targets.retrieval import Retrieval

SPACE = {"classes": ["x", "y", "z"]}


def target() -> Retrieval:
    return Retrieval(None, SPACE)


def said(features, groups=None) -> Class:
    x = np.asarray(features, np.float32)
    return Class(np.zeros(len(x), np.int64), SPACE, scores=x, groups=None if groups is None else np.asarray(groups))


def answers(labels) -> Class:
    return Class(np.asarray(labels, np.int64), SPACE)


def reference(x: np.ndarray, labels: np.ndarray, contents: np.ndarray) -> dict[str, float]:
    """Query by query, with scikit-learn's and torchmetrics' measures of one ranking."""
    found = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if contents[j] != contents[i]]
        relevant = np.array([labels[j] == labels[i] for j in others])
        if not relevant.any():
            continue
        near = np.round([x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j]) or 1) for j in others], 10)
        hits = [retrieval_hit_rate(torch.tensor(near), torch.tensor(relevant), top_k=k).item() for k in (1, 5, 10)]
        found.append([average_precision_score(relevant, near), ndcg_score([relevant], [near], k=10), *hits])
    return dict(zip(["map", "ndcg@10", "recall@1", "recall@5", "recall@10"], np.mean(found, 0), strict=True))


@pytest.mark.parametrize(("n", "dim"), [(12, 3), (40, 5), (300, 4)])
def test_measures_equal_scikit_learn_and_torchmetrics(n, dim):
    """More rows than are looked at at a time; a query is never found by itself, nor by its copies."""
    rng = np.random.default_rng(n)
    labels = rng.integers(0, 3, n)
    x = rng.normal(size=(n, dim)) + 0.7 * np.eye(3, dim)[labels]
    copies = np.arange(n)
    copies[1], copies[5], x[5] = copies[0], copies[0], x[0] + 1e-6
    found = retrieval_metrics(x, copies, labels)
    assert found == pytest.approx(reference(x, labels, copies), abs=1e-9)
    alone = retrieval_metrics(x, np.arange(n), labels)
    assert alone != found and (labels[0] != labels[5] or alone["recall@1"] >= found["recall@1"])


@pytest.mark.parametrize("seed", range(5))
def test_equally_near_rows_are_in_every_order_at_once(seed):
    """Gain and recall are the mean over all orders of ties; precision is scikit-learn's."""
    rng = np.random.default_rng(seed)
    similar = -np.sort(-rng.integers(0, 3, 6).astype(float))
    relevant = rng.random(6) < 0.4
    relevant[rng.integers(6)] = True
    orders = [o for o in itertools.permutations(range(6)) if (similar[list(o)] == similar).all()]
    discount = 1 / np.log2(np.arange(2, 8))
    gains = [(relevant[list(o)] * discount).sum() / discount[: relevant.sum()].sum() for o in orders]
    hits = [[relevant[list(o)][:k].any() for k in (1, 5, 10)] for o in orders]
    precision, ndcg, *recalls = _of_query(similar, relevant)
    assert precision == pytest.approx(average_precision_score(relevant, similar))
    assert ndcg == pytest.approx(np.mean(gains)) == pytest.approx(ndcg_score([relevant], [similar], k=10))
    assert recalls == pytest.approx(np.mean(hits, 0).tolist())


def test_the_truth_is_best_and_constant_features_are_chance():
    """Classes that are told find everything; shuffled ones, and features that are all alike, find what chance does."""
    rng = np.random.default_rng(0)
    truth = answers(np.repeat([0, 1, 2], 20))
    best = target().measure(truth, truth)
    assert list(best.values()) == pytest.approx([1] * 5) and next(iter(best)) == target().primary == "map"
    assert target().measure(answers(rng.permutation(truth.values)), truth)["map"] < 0.5
    constant = target().measure(said(np.ones((60, 4))), truth)  # though rows of one class stand together
    assert [constant[k] for k in ("map", "recall@1", "ndcg@10")] == pytest.approx([19 / 59] * 3)
    assert target().measure(said(np.zeros((60, 4))), truth)["map"] == pytest.approx(19 / 59)


def test_queries_with_nothing_to_find():
    """A class of one row, or of copies of one, is no query but is searched; without any query there is an error in words."""
    x = np.random.default_rng(0).normal(size=(6, 3))
    with_single = retrieval_metrics(x, np.array([0, 1, 2, 3, 4, 4]), np.array([0, 0, 0, 1, 2, 2]))
    assert with_single == pytest.approx(reference(x, np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 2, 3, 4, 4])))
    with pytest.raises(UserError, match="no two different samples of this split share a class"):
        retrieval_metrics(x, np.array([0, 0, 1, 2, 3, 3]), np.array([0, 0, 1, 2, 3, 3]))
    with pytest.raises(UserError, match="nothing to find"):
        retrieval_metrics(np.empty((0, 3)), np.empty(0), np.empty(0))
    x[2, 1] = np.nan
    with pytest.raises(UserError, match="features of 1 of 6 samples are not numbers"):
        retrieval_metrics(x, np.arange(6), np.zeros(6))


def encoder() -> BagEncoder:
    torch.manual_seed(0)
    return BagEncoder(BagProcessor({f"w{i}": 1 for i in range(20)}, 30, 8, 100), 8, 0, 1.0, 0.0).eval()


def test_predictions_know_copies_whatever_batch_they_are_in():
    """Features, and one number for samples that are read alike: padding, and the batch they were in, do not matter."""
    rows = torch.tensor([[3, 4, 0, 0], [3, 4, 5, 0], [4, 3, 0, 0], [3, 4, 0, 0]])
    e, t = encoder(), target()
    with torch.inference_mode():
        whole = t.predict(e, {"tokens": rows})
        parts = [t.predict(e, {"tokens": rows[:2, :3]}), t.predict(e, {"tokens": rows[2:]})]
        joined = Answers.join(parts)
    assert np.array_equal(joined.groups, whole.groups) and np.allclose(joined.scores, whole.scores, atol=1e-6)
    assert whole.groups[0] == whole.groups[3] and len(set(whole.groups)) == 3
    masked = contents_of_inputs({"tokens": rows + 1, "mask": rows > 0})
    assert masked[0] == masked[3] and len(set(masked)) == 3
    images = contents_of_inputs({"image": torch.tensor([1.0, 2.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)})
    assert images[0] == images[2] != images[1]


def test_what_is_written_of_a_query():
    """The rows found first, the nearest first and no copy among them; an error is their share of another class."""
    x = [[1, 0], [0.9, 0.1], [0, 1], [1, 0]]
    predictions = said(x, [0, 1, 2, 0])
    rows = target().rows(predictions)
    assert [sorted(row["prediction"]) for row in rows] == [[1, 2], [0, 2, 3], [0, 1, 3], [1, 2]]
    assert rows[0]["prediction"] == [1, 2] and rows[1]["prediction"][2] == 2 and rows[2]["prediction"][0] == 1
    assert target().rows(answers([0, 2])) == [{"prediction": "x"}, {"prediction": "z"}]
    assert target().errors(predictions, answers([0, 0, 1, 1])).tolist() == pytest.approx([0.5, 2 / 3, 2 / 3, 0.5])


def test_the_cheap_method_finds_words():
    """LSA of texts, of pairs too; what shares words with a query is near."""
    texts = [f"the {a} {a}s and {b}" for a in ("cat", "dog", "sun") for b in ("one", "two", "three", "four")]
    rows = Rows(texts, answers(np.repeat([0, 1, 2], 4)))
    best = target().cheapest("text", rows, None, rows)
    assert target().measure(best.predictions, rows.answers)["map"] > 0.8 and best.predictions.scores.dtype == np.float32
    pairs = Rows([(t, "and") for t in texts], rows.answers)
    assert target().measure(target().cheapest("text", pairs, None, pairs).predictions, rows.answers)["map"] > 0.8


def test_the_cheap_method_finds_no_copies():
    """As the encoder does not: rows that are there twice answer nothing of themselves."""
    texts = [f"the {a} {a}s and {b}" for a in ("cat", "dog", "sun") for b in ("one", "two", "three", "four")]
    labels = np.repeat([0, 1, 2], 4)
    once, twice = Rows(texts, answers(labels)), Rows(texts * 2, answers([*labels, *labels]))
    found = {n: target().cheapest("text", once, None, rows).predictions for n, rows in ((1, once), (2, twice))}
    assert target().measure(found[2], twice.answers)["recall@1"] == target().measure(found[1], once.answers)["recall@1"]
    assert found[2].groups.tolist() == [*found[1].groups, *found[1].groups]


def test_a_difference_is_of_the_same_queries():
    """The mean difference of average precisions, with an interval that holds it; of the same predictions it is nothing."""
    rng = np.random.default_rng(0)
    truth = answers(rng.integers(0, 3, 60))
    good, bad = (said(rng.normal(size=(60, 3)) + k * np.eye(3)[truth.values]) for k in (2, 0))
    mean, low, high = target().difference(good, bad, truth)
    assert mean == pytest.approx(target().measure(good, truth)["map"] - target().measure(bad, truth)["map"])
    assert 0 < low < mean < high and target().difference(good, good, truth) == (0, 0, 0)


def test_it_cannot_be_trained():
    with pytest.raises(UserError, match="has nothing to train: measure an encoder by it"):
        target().prepare(encoder(), None, 8)
