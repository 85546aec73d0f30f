"""Measures of answers with any number of labels, computed once over a whole split."""

from __future__ import annotations

import numpy as np

from sslt.errors import UserError


def multilabel_metrics(scores: np.ndarray, predicted: np.ndarray, truth: np.ndarray, classes: list[str]) -> dict[str, float]:
    """Every number about `scores` float [N, C] and the labels `predicted` bool [N, C] of the true labels `truth` bool [N, C].

    `map`: the mean over classes of average precision, `auroc`: of the area under the ROC curve; `f1`: the mean over classes, `micro_f1`:
    over all decisions together; `class/<name>/ap`. All lie in 0..1. Means run over the classes for which a number is defined: average
    precision for those that occur, the area for those that occur and do not always, F1 for those that occur or are predicted. Where there
    is no such class, `map`, `f1` and `micro_f1` are 0, as scikit-learn has it, and `auroc` is not there.

    Raises `UserError` for an empty split and for scores that are not numbers.
    """
    scores, predicted, truth = np.asarray(scores, np.float64), np.asarray(predicted, bool), np.asarray(truth, bool)
    if truth.shape != (len(truth), len(classes)) or scores.shape != truth.shape or predicted.shape != truth.shape:
        raise ValueError(f"scores {scores.shape}, predictions {predicted.shape} and truth {truth.shape} do not fit {len(classes)} classes")
    if not len(truth):
        raise UserError("there is nothing to evaluate: the split holds no labelled samples")
    if bad := int(np.isnan(scores).any(1).sum()):
        raise UserError(f"the model's outputs are not numbers for {bad} of {len(scores)} samples: lower the learning rate, and train again")
    precision, area = average_precision(scores, truth), roc_area(scores, truth)
    hits, all_of = (predicted & truth).sum(0), predicted.sum(0) + truth.sum(0)
    occurs = all_of > 0
    metrics = {
        "map": _mean(precision),
        "f1": float((2 * hits[occurs] / all_of[occurs]).mean()) if occurs.any() else 0.0,
        "micro_f1": float(2 * hits.sum() / max(all_of.sum(), 1)),
    }
    if np.isfinite(area).any():
        metrics["auroc"] = _mean(area)
    return metrics | {f"class/{name}/ap": float(p) for name, p in zip(classes, precision, strict=True) if np.isfinite(p)}


def mean_average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """`map` alone."""
    return _mean(average_precision(np.asarray(scores, np.float64), np.asarray(truth, bool)))


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of each class, [C], from float [N, C] and bool [N, C]; NaN where it does not occur.

    The mean over true rows of the precision among all rows that score at least as high: rows of equal score count together, and nothing
    is interpolated (Σ (R_n - R_{n-1}) · P_n). All classes at once, as intervals need hundreds of these.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked, hit = np.take_along_axis(scores, order, 0), np.take_along_axis(truth, order, 0)
    n = len(scores)
    last = np.full(ranked.shape, n - 1)  # of the rows that score as much as this one
    last[:-1] = np.where(ranked[:-1] != ranked[1:], np.arange(n - 1)[:, None], n - 1)
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
    precision = np.take_along_axis(hit.cumsum(0), last, 0) / (last + 1)
    count = truth.sum(0)
    return np.where(count > 0, (precision * hit).sum(0) / np.maximum(count, 1), np.nan)


def roc_area(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of each class, [C]: the share of pairs of a row with and one without it that are in order, ties half; NaN without such pairs."""
    from scipy.stats import rankdata

    inside = truth.sum(0).astype(np.float64)
    pairs = inside * (len(truth) - inside)
    in_order = (rankdata(scores, axis=0) * truth).sum(0) - inside * (inside + 1) / 2
    return np.where(pairs > 0, in_order / np.maximum(pairs, 1), np.nan)


def best_thresholds(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of each class, [C], the score above which F1 is best: halfway between two scores; 0 where the class does not occur.

    Of equally good ones the highest. None is so low that all rows have a class that fewer than half of them should, as F1 would have it of
    scores that tell nothing: then no row has it. Float [N, C] and bool [N, C].
    """
    found = np.zeros(scores.shape[1])
    for c in np.flatnonzero(truth.any(0)):
        order = np.argsort(-scores[:, c], kind="stable")
        ranked, hits = scores[order, c].astype(np.float64), truth[order, c].cumsum()
        below = np.append(ranked[1:], ranked[-1] - 1)
        f1 = np.where(ranked != below, 2 * hits / (np.arange(1, len(ranked) + 1) + hits[-1]), -1)  # rows of one score are not divided
        if 2 * hits[-1] < len(ranked):
            f1[-1] = -1
        best = int(f1.argmax())
        found[c] = (ranked[best] + below[best]) / 2 if f1[best] >= 0 else ranked[0]
    return found


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0
