"""Measures of a search for rows of one's own class, over a whole split."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import gammaln

from sslt.errors import UserError

CUTS = (1, 5, 10)  # of recall
DISCOUNTED = 10  # ranks that NDCG looks at
NEAREST = 10  # rows that are written for a query
NAMES = ("map", f"ndcg@{DISCOUNTED}", *(f"recall@{k}" for k in CUTS))
CHUNK = 256  # queries at a time


def retrieval_metrics(features: np.ndarray, contents: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every row is a query in all others, ordered by the cosine of `features` [N, D]; relevant are those of its label.

    A row of the query's own `contents` [N] (the query itself, and copies of it) is not searched. `map`: mean average precision;
    `ndcg@10`: of relevance 0 or 1 (Järvelin & Kekäläinen, 2002); `recall@k`: the share of queries that find a relevant row among the
    first k (Jégou et al., 2011). Equally near rows: precision is that at the end of them, as scikit-learn has it; the others are what
    a random order of them gives on average. Queries to which nothing is relevant are left out.

    Raises `UserError` where no query is left, or features are not finite.
    """
    found = per_query(features, contents, labels)
    if np.isnan(found).all():
        raise UserError("there is nothing to find: no two different samples of this split share a class")
    return dict(zip(NAMES, np.nanmean(found, 0).tolist(), strict=True))


def per_query(features: np.ndarray, contents: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What `retrieval_metrics` means over, float64 [N, 5]; NaN for queries to which nothing is relevant."""
    if bad := int((~np.isfinite(features)).any(1).sum()):
        raise UserError(f"the features of {bad} of {len(features)} samples are not numbers: the training of the encoder has diverged")
    x = features.astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
    found = np.full((len(x), len(NAMES)), np.nan)
    for start in range(0, len(x), CHUNK):
        similar = np.round(x[start : start + CHUNK] @ x.T, 10)  # what differs by rounding alone is equal
        for i, row in enumerate(similar, start):
            others = np.flatnonzero(contents != contents[i])
            relevant = labels[others] == labels[i]
            if relevant.any():
                order = np.argsort(-row[others])
                found[i] = _of_query(row[others][order], relevant[order])
    return found


def nearest_rows(features: np.ndarray, contents: np.ndarray) -> list[np.ndarray]:
    """The numbers of the nearest rows of each that are no copies of it, the nearest first."""
    x = torch.nn.functional.normalize(torch.from_numpy(np.asarray(features)).float(), dim=1)
    found = []
    for start in range(0, len(x), CHUNK):
        same = torch.from_numpy(contents[start : start + CHUNK, None] == contents)
        near, rows = (x[start : start + CHUNK] @ x.T).masked_fill(same, -2.0).topk(min(NEAREST, len(x)), dim=1)
        found += [row[sure].numpy() for row, sure in zip(rows, near > -1.5, strict=True)]
    return found


def _of_query(similar: np.ndarray, relevant: np.ndarray) -> list[float]:
    """Average precision, NDCG and recalls of a row of falling similarities [M] and which of them are relevant, bool [M]."""
    edges = np.flatnonzero(np.diff(similar, append=-np.inf)) + 1  # ends of runs of equally near ones
    hits = np.cumsum(relevant)[edges - 1]
    sizes, new = np.diff(edges, prepend=0), np.diff(hits, prepend=0)
    precision = float((new * hits / edges).sum() / hits[-1])
    discount = 1 / np.log2(np.arange(2, min(DISCOUNTED, len(similar)) + 2))
    expected = np.repeat(new / sizes, sizes)[: len(discount)]
    ndcg = float((expected * discount).sum() / discount[: hits[-1]].sum())
    return [precision, ndcg, *(_found(k, edges, hits, sizes, new) for k in CUTS)]


def _found(k: int, edges: np.ndarray, hits: np.ndarray, sizes: np.ndarray, new: np.ndarray) -> float:
    """The chance that one of the first k is relevant, the order within each run being random (hypergeometric)."""
    run = int(np.searchsorted(edges, k))  # the one that the k-th is in
    if run >= len(edges) or hits[run] - new[run] > 0:
        return 1.0
    size, good, drawn = int(sizes[run]), int(new[run]), k - int(edges[run] - sizes[run])
    if size - good < drawn:
        return 1.0
    return 1 - float(np.exp(_ways(size - good, drawn) - _ways(size, drawn)))


def _ways(n: int, k: int) -> float:
    return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
