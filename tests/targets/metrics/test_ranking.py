"""Protects ranks among all items: those of RecBole's evaluator where no two scores are equal, and against the truth where some are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from sslt.targets.metrics.ranking import CUTS, hits, ndcg, ranking_metrics, ranks


def recbole(scores: np.ndarray, truth: np.ndarray, k: int) -> dict[str, float]:
    """RecBole's rule (`evaluator/collector.py` and `metrics.py`): of the k highest scores by falling score, which is the true item."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = top == truth[:, None]
    discount = 1 / np.log2(np.arange(2, k + 2))
    return {f"hr@{k}": float(found.any(1).mean()), f"ndcg@{k}": float((found * discount).sum(1).mean())}


@pytest.mark.parametrize("k", CUTS)
def test_ranks_are_recbole_s_on_the_same_scores(k):
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(200, 40)), rng.integers(0, 40, 200)
    found = ranking_metrics(ranks(torch.from_numpy(scores), torch.from_numpy(truth)).numpy())
    theirs = recbole(scores, truth, k)
    assert {name: found[name] for name in theirs} == pytest.approx(theirs)
    relevant = np.arange(40) == truth[:, None]
    assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevant, scores, k=k))
    places = (scores > scores[np.arange(200), truth][:, None]).sum(1) + 1
    assert found["mrr"] == pytest.approx(np.mean(1 / places))


def test_ties_count_against_the_truth():
    """Wherever the true item stands in the row: who scores all alike finds nothing."""
    for column in range(12):
        assert ranks(torch.zeros(1, 12), torch.tensor([column])).tolist() == [12]
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [3.0, 3.0, 3.0, 4.0]])
    assert ranks(scores, torch.tensor([1, 0])).tolist() == [2, 4] and ranks(scores, torch.tensor([2, 3])).tolist() == [2, 1]


def test_scores_that_are_no_numbers_gain_nothing():
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[nan, 1.0, 0.0], [1.0, nan, 0.0], [-inf, -inf, -inf], [inf, 0.0, inf]])
    assert ranks(scores, torch.tensor([0, 0, 1, 0])).tolist() == [3, 2, 3, 2]


def test_what_is_no_candidate_is_a_miss():
    assert ranks(torch.ones(2, 3), torch.tensor([-1, 0])).tolist() == [0, 3]
    rank = np.array([0, 1, 10, 11])
    assert hits(rank, 10).tolist() == [False, True, True, False]
    assert ndcg(rank, 10).tolist() == pytest.approx([0, 1, 1 / np.log2(11), 0])
    assert ranking_metrics(rank)["mrr"] == pytest.approx((1 + 1 / 10 + 1 / 11) / 4) and ranking_metrics(np.zeros(3, int))["mrr"] == 0
