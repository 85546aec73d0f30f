"""The nearest-neighbour vote, against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch

from sslt.errors import UserError
from sslt.targets import knn


def _data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(60, 8, generator=g), torch.randint(4, (60,), generator=g), torch.randn(25, 8, generator=g)


def _by_loop(bank, labels, query, k, temperature):
    similar = [float(torch.cosine_similarity(query, b, dim=0)) for b in bank]
    votes = [0.0] * 4
    for i in sorted(range(len(bank)), key=lambda i: -similar[i])[:k]:
        votes[int(labels[i])] += math.exp(similar[i] / temperature)
    return [v / sum(votes) for v in votes]


@pytest.mark.parametrize("chunk", [knn.CHUNK_BYTES, 4 * 60 * 7])
def test_votes_against_a_loop(monkeypatch, chunk):
    """Weights, neighbours and normalisation, in one chunk and in several of unequal size."""
    monkeypatch.setattr(knn, "CHUNK_BYTES", chunk)
    bank, labels, queries = _data()
    scores = knn.knn_predict(bank, labels, queries, 4, k=7, temperature=0.1)
    expected = [_by_loop(bank, labels, q, 7, 0.1) for q in queries]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_k_is_clipped_and_small_temperatures_do_not_overflow():
    """A bank smaller than k, and exp(1 / T) beyond float32."""
    bank, labels, _ = _data()
    scores = knn.knn_predict(bank, labels, bank, 4, k=1000, temperature=1e-3)
    assert torch.isfinite(scores).all()
    assert scores.argmax(1).equal(labels)  # each is its own nearest neighbour


def test_accuracy():
    """The length of features does not matter, only their direction."""
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    queries = torch.tensor([[50.0, 1.0], [0.1, 0.2], [3.0, 1.0]])
    assert knn.knn_accuracy(bank, torch.tensor([0, 1]), queries, torch.tensor([0, 1, 1]), 2, k=1) == pytest.approx(2 / 3)


def test_bad_settings_are_explained():
    """An empty bank and k below 1."""
    bank, labels, queries = _data()
    with pytest.raises(UserError, match="empty"):
        knn.knn_predict(bank[:0], labels[:0], queries, 4)
    with pytest.raises(UserError, match="k=0"):
        knn.knn_predict(bank, labels, queries, 4, k=0)


def test_several_numbers_of_neighbours_are_each_of_them():
    g = torch.Generator().manual_seed(0)
    bank, queries, labels = torch.randn(30, 5, generator=g), torch.randn(12, 5, generator=g), torch.arange(30) % 4
    found = knn.knn_votes(bank, labels, queries, 4, (1, 20, 5, 100), temperature=0.2)
    for scores, k in zip(found, (1, 20, 5, 100), strict=True):
        torch.testing.assert_close(scores, knn.knn_predict(bank, labels, queries, 4, k, temperature=0.2))
    with pytest.raises(UserError, match="k=0"):
        knn.knn_votes(bank, labels, queries, 4, (5, 0))
