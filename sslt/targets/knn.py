"""The weighted k-nearest-neighbour classifier on features: a probe that has nothing to train.

Z. Wu, Y. Xiong, S. Yu, D. Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
section 3.4; k and temperature as usual since Caron et al. 2021 (DINO).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.base import Samples
from sslt.data.streams.subsets import labels_of
from sslt.errors import UserError

NEAREST = "knn_accuracy"
CHUNK_BYTES = 256 * 2**20  # upper bound of one chunk's similarity matrix


def knn_predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, n_classes: int, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Class scores [M, C] of `queries` [M, D] by the vote of their nearest neighbours in `bank` [N, D].

    Each of the k nearest neighbours by cosine similarity s votes for its label (`bank_labels` [N], 0..C-1) with weight
    exp(s / temperature). A row's votes are divided by their sum: the order of classes stays, no weight overflows, and
    a row is a distribution. `k` above N means all N. Runs on the device of `bank`; memory is bounded by chunks over the
    queries. Raises `UserError` for an empty bank, k below 1 or a temperature that is not positive.
    """
    return knn_votes(bank, bank_labels, queries, n_classes, (k,), temperature)[0]


def knn_votes(bank: Tensor, bank_labels: Tensor, queries: Tensor, n_classes: int, ks: Sequence[int], temperature: float = 0.07) -> Tensor:
    """`knn_predict` by each of several numbers of neighbours, which are looked for once: [K, M, C]."""
    if len(bank) == 0:
        raise UserError("k-nearest neighbours need at least one labelled sample to compare with; the bank is empty")
    if min(ks) < 1 or temperature <= 0:
        raise UserError(f"k-nearest neighbours with k={min(ks)}, temperature={temperature}: both must be above 0")
    bank = F.normalize(bank.detach().float(), dim=1)
    labels = bank_labels.to(bank.device).long()
    scores = torch.zeros(len(ks), len(queries), n_classes, device=bank.device)
    rows = max(1, CHUNK_BYTES // (4 * len(bank)))
    for start in range(0, len(queries), rows):
        chunk = F.normalize(queries[start : start + rows].detach().to(bank.device).float(), dim=1)
        similarity, neighbours = (chunk @ bank.T).topk(min(max(ks), len(bank)), dim=1)
        for votes, k in zip(scores, ks, strict=True):
            weights = (similarity[:, :k] / temperature).softmax(1)  # exp(s / T) over its sum
            votes[start : start + rows].scatter_add_(1, labels[neighbours[:, :k]], weights)
    return scores


def nearest(bank: Tensor, of: Samples, queries: Tensor, asked: Samples) -> dict[str, float]:
    """`knn_accuracy` of features `queries` of `asked` by `bank` of `of`, under that name, where these have classes."""
    if of.labels is None or asked.labels is None or of.classes is None:
        return {}
    return {NEAREST: float(knn_accuracy(bank, labels_of(of), queries, labels_of(asked), len(of.classes)))}


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    n_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share (0..1) of `queries` [M, D] whose highest score by `knn_predict` is their label in `query_labels` [M]."""
    if len(queries) == 0:
        raise UserError("k-nearest neighbours have nothing to classify: the split holds no samples")
    pred = knn_predict(bank, bank_labels, queries, n_classes, k, temperature).argmax(1)
    return float((pred == query_labels.to(pred.device)).float().mean())
