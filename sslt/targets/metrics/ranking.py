"""Measures of where the true item stands among all: one relevant item a row."""

from __future__ import annotations

import numpy as np
from torch import Tensor

CUTS = (10, 5)


def ranks(scores: Tensor, truth: Tensor) -> Tensor:
    """At which place the true item stands, int64 [B], 1 the first: ties, and scores that are not numbers, count against it.

    scores float [B, C]; truth int64 [B]: its column, -1 where there is none, whose rank is 0.
    """
    of_truth = scores.gather(1, truth.clamp(min=0)[:, None])
    return (~(scores < of_truth)).sum(1).masked_fill(truth < 0, 0)


def ranking_metrics(rank: np.ndarray) -> dict[str, float]:
    """Means over rows of rank int64 [N] (0: a miss, however far one looks): `ndcg@k`, 1 / log2(rank + 1) up to rank k (Järvelin &
    Kekäläinen, 2002, with one relevant item); `hr@k`, whether the rank is at most k; `mrr`, 1 / rank over all ranks."""
    found = {f"{name}@{k}": float(np.mean(how(rank, k))) for k in CUTS for name, how in (("ndcg", ndcg), ("hr", hits))}
    return found | {"mrr": float(np.mean(np.where(rank > 0, 1 / np.maximum(rank, 1), 0.0)))}


def ndcg(rank: np.ndarray, k: int) -> np.ndarray:
    """Of each row, float64 [N]."""
    return np.where(hits(rank, k), gain(rank), 0.0)


def gain(rank: np.ndarray) -> np.ndarray:
    """1 / log2(rank + 1), 0 for a miss, float64 [N]."""
    return np.where(rank > 0, 1 / np.log2(np.maximum(rank, 1) + 1), 0.0)


def hits(rank: np.ndarray, k: int) -> np.ndarray:
    """Whether a row's item is among the first k, bool [N]."""
    return (rank > 0) & (rank <= k)
