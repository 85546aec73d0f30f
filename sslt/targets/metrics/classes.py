"""Measures of a classifier's predictions, computed once over a whole split.

Macro averages and F1 do not decompose over batches, so every function here takes all predictions at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.errors import UserError

N_BINS = 15  # of the expected calibration error, as in Guo et al. 2017


def classification_metrics(logits: Tensor, labels: Tensor, classes: list[str]) -> dict[str, float]:
    """Every number about the predictions `logits` [N, C] of the true `labels` [N], under flat names.

    `accuracy`, `precision`, `recall`, `f1` (the last three macro averages), `ece`, `nll` (mean negative log-likelihood
    in nats), and `class/<name>/precision`, `.../recall`, `.../f1`, `.../support` for each class. All but `nll` and
    `support` lie in 0..1.

    A ratio 0/0 counts as 0, and macro averages run over the classes that occur among labels or predictions: the
    conventions of scikit-learn with `zero_division=0`.

    Raises `UserError` for an empty split, for labels that are no index into `classes`, and for logits that are not
    numbers.
    """
    logits, labels = _checked(logits, labels, len(classes))
    matrix = confusion_matrix(logits.argmax(1), labels, len(classes))
    precision, recall, f1 = _per_class(matrix)
    support = matrix.sum(1)
    occurs = (support + matrix.sum(0)) > 0

    metrics = {
        "accuracy": float(np.trace(matrix) / matrix.sum()),
        "precision": float(precision[occurs].mean()),
        "recall": float(recall[occurs].mean()),
        "f1": float(f1[occurs].mean()),
        "ece": calibration_bins(logits, labels).error,
        "nll": float(F.cross_entropy(logits, labels, reduction="none").double().mean()),
    }
    for i, name in enumerate(classes):
        metrics[f"class/{name}/f1"] = float(f1[i])
        metrics[f"class/{name}/precision"] = float(precision[i])
        metrics[f"class/{name}/recall"] = float(recall[i])
        metrics[f"class/{name}/support"] = float(support[i])
    return metrics


def confusion_matrix(pred: Tensor, labels: Tensor, n_classes: int) -> np.ndarray:
    """Counts [C, C] (int64) of predicted indices `pred` [N] against `labels` [N]: rows true, columns predicted."""
    pairs = labels.detach().cpu().long() * n_classes + pred.detach().cpu().long()
    return torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes).numpy()


class CalibrationBins(NamedTuple):
    """Predictions by confidence: per bin the number of them, their mean confidence and their accuracy (0 if empty)."""

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy, weighted by count."""
        return float((self.counts * np.abs(self.confidence - self.accuracy)).sum() / self.counts.sum())


def calibration_bins(logits: Tensor, labels: Tensor, n_bins: int = N_BINS) -> CalibrationBins:
    """Predictions in `n_bins` equal-width bins ((m-1)/M, m/M] of confidence (Guo et al. 2017, equation 3).

    `logits` [N, C], `labels` [N]; arrays of the result are [n_bins]. Raises `UserError` as `classification_metrics`.
    """
    # torchmetrics gives a confidence of exactly 1 (common in float32) a bin of its own, hence no use of it here.
    logits, labels = _checked(logits, labels, logits.shape[1])
    top, pred = logits.softmax(1).max(1)
    confidence = top.double().numpy()
    correct = (pred == labels).numpy().astype(float)
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    filled = np.maximum(counts, 1)
    return CalibrationBins(
        counts,
        np.bincount(bins, weights=confidence, minlength=n_bins) / filled,
        np.bincount(bins, weights=correct, minlength=n_bins) / filled,
    )


def _checked(logits: Tensor, labels: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Both on the CPU, in float32 and int64, after the checks that `classification_metrics` promises."""
    logits, labels = logits.detach().cpu().float(), labels.detach().cpu().long()
    if logits.ndim != 2 or logits.shape[1] != n_classes or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {list(logits.shape)} and labels {list(labels.shape)} do not fit {n_classes} classes")
    if len(labels) == 0:
        raise UserError("there is nothing to evaluate: the split holds no labelled samples")
    if int(labels.min()) < 0 or int(labels.max()) >= n_classes:
        wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise UserError(
            f"the split holds the label {wrong}, but the model tells {n_classes} classes apart (0 to {n_classes - 1}); "
            "evaluate on data with the classes it was trained on"
        )
    # -inf is a legitimate logit (a class ruled out); NaN and +inf give no prediction.
    bad = int((logits.isnan() | (logits == float("inf"))).any(1).sum())
    if bad:
        raise UserError(
            f"the model's outputs are not numbers for {bad} of {len(labels)} samples: its training has diverged; "
            "lower the learning rate or start again from an earlier checkpoint"
        )
    return logits, labels


def _per_class(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1, each [C], from a confusion matrix [C, C]; 0/0 is 0."""
    hit = np.diag(matrix).astype(float)
    predicted, true = matrix.sum(0), matrix.sum(1)
    return (
        hit / np.maximum(predicted, 1),
        hit / np.maximum(true, 1),
        2 * hit / np.maximum(predicted + true, 1),
    )
