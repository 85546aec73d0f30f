"""How well maps of classes agree: counts of pixels over a whole split, and what follows from them."""

from __future__ import annotations

import numpy as np

from sslt.data.answers import IGNORE, Map
from sslt.targets.metrics.intervals import bootstrap


def agreement(predictions: Map, answers: Map) -> np.ndarray:
    """For each image and class how many pixels are of it in both, in the truth, in the prediction: int64 [N, 3, C].

    Pixels whose truth is `IGNORE` do not count; predicting `IGNORE` elsewhere is wrong of no class. Raises `ValueError` where the maps
    of an image have two sizes.
    """
    n = len(answers.classes)
    counts = np.zeros((len(answers), 3, n), np.int64)
    for i, (found, truth) in enumerate(zip(predictions.values, answers.values, strict=True)):
        if tuple(predictions.shapes[i]) != tuple(answers.shapes[i]):
            raise ValueError(f"the map predicted for image {i} is of size {predictions.shapes[i]}, the true one of {answers.shapes[i]}")
        valid = truth != IGNORE
        found, truth = found[valid], truth[valid]
        for row, of in zip(counts[i], (truth[found == truth], truth, found), strict=True):
            row += np.bincount(of, minlength=n)[:n]
    return counts


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """Mean intersection over union of counts [..., 3, C] over the classes that occur in truth or prediction; NaN where none does."""
    iou = class_iou(counts)
    occurs = ~np.isnan(iou)
    return np.where(occurs.any(-1), np.where(occurs, iou, 0).sum(-1) / occurs.sum(-1).clip(1), np.nan)


def class_iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, [..., C]; NaN where it occurs neither in truth nor in prediction."""
    both, union = counts[..., 0, :], counts[..., 1, :] + counts[..., 2, :] - counts[..., 0, :]
    return np.where(union > 0, both / union.clip(1), np.nan)


def map_metrics(predictions: Map, answers: Map) -> dict[str, float]:
    """`miou`, `accuracy` (share of right pixels) and `class/NAME/iou` over all pixels of a split."""
    counts = agreement(predictions, answers).sum(0)
    pixels = int(counts[1].sum())
    found = {"miou": float(mean_iou(counts)), "accuracy": int(counts[0].sum()) / pixels if pixels else float("nan")}
    return found | {f"class/{name}/iou": float(v) for name, v in zip(answers.classes, class_iou(counts), strict=True)}


def iou_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """By how much the mean IoU of the first counts [N, 3, C] is ahead of the second's, with its 95 % interval over images."""
    return bootstrap(len(first), lambda index: float(mean_iou(first[index].sum(0)) - mean_iou(second[index].sum(0))))


def class_pixels(answers: Map) -> np.ndarray:
    """How many pixels each class has, int64 [C]."""
    n = len(answers.classes)
    return sum((np.bincount(row[row != IGNORE], minlength=n)[:n] for row in answers.values), np.zeros(n, np.int64))
