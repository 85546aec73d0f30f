"""Measures of numbers that were told, computed once over a whole split."""

from __future__ import annotations

import numpy as np

from sslt.errors import UserError


def number_metrics(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """`spearman` and `pearson` (-1..1), `mae` in the numbers' own unit, `r2` (1 at best) of `predicted` [N] for `truth` [N].

    Rank correlation is Pearson's of mean ranks. Where one side is constant both correlations are 0; where the truth is, `r2` is 1 for
    predictions that all are right and 0 otherwise, as scikit-learn has it.

    Raises `UserError` for an empty split and for predictions that are not finite.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if predicted.shape != truth.shape or truth.ndim != 1:
        raise ValueError(f"predictions {predicted.shape} and truth {truth.shape} do not fit")
    if not len(truth):
        raise UserError("there is nothing to evaluate: the split holds no samples with a number")
    if bad := int((~np.isfinite(predicted)).sum()):
        raise UserError(f"the model's outputs are not numbers for {bad} of {len(truth)} samples: lower the learning rate, and train again")
    wrong, off = np.abs(predicted - truth), np.abs(truth - truth.mean())
    constant, unit = bool((truth == truth[0]).all()), max(float(off.max()), np.finfo(float).tiny)  # so that no square leaves the range
    return {
        "spearman": spearman(predicted, truth),
        "pearson": correlation(predicted, truth),
        "mae": float(wrong.mean()),
        "r2": float(not wrong.any()) if constant else 1 - float(np.square(wrong / unit).sum() / np.square(off / unit).sum()),
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of `a` and `b` [N]; 0 where one of them is constant."""
    from scipy.stats import rankdata

    return correlation(rankdata(a), rankdata(b))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's of `a` and `b` [N]; 0 where one of them is constant."""
    if (a == a[0]).all() or (b == b[0]).all():  # asked of the numbers: a mean's rounding leaves a constant some variance
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()  # squares of very large or small numbers would not be numbers
    return float(np.clip((a * b).sum() / np.sqrt(np.square(a).sum() * np.square(b).sum()), -1, 1))
