"""Few-shot probes: how far a handful of labels per class goes on frozen features."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sslt.errors import UserError
from sslt.targets.linear import accuracy, feature_statistics, fit_each

L2 = 0.1  # fixed, as k labels per class leave none to choose it by; strong, as they are few
MAX_ITER = 50
TOGETHER = 1 << 24  # numbers of draws that are fitted at once: 64 MB

log = logging.getLogger("sslt")


def few_shot_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    n_classes: int,
    shots: Sequence[int] = (1, 5, 10, 20),
    draws: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """Test accuracy of logistic regression on k labels per class: mean and 95% interval over `draws` draws.

    Returns `"<k>_shot/accuracy"` (0..1) and `"<k>_shot/interval"` (half-width) for every k in `shots`; a k that some
    class cannot give is left out with a note. The draws are nested: those of a smaller k are part of those of a larger
    one, so that a curve over k shows the effect of labels rather than of luck.

    Features [N, D] are standardised by all of `train_x`, without its labels: unlabelled samples are what a
    self-supervised encoder has in plenty, the deviation of 512 features cannot be told from ten samples, and one rule
    for every k keeps the numbers comparable.
    """
    if draws < 1 or any(k < 1 for k in shots):
        raise UserError(f"few-shot probe with shots={list(shots)}, draws={draws}: all must be at least 1")
    if len(test_x) == 0:
        raise UserError("the few-shot probe has nothing to classify: the test split holds no samples")
    labels = train_y.detach().cpu().numpy()
    counts = np.bincount(labels, minlength=n_classes)
    possible = sorted({k for k in shots if k <= counts.min()})
    if left_out := sorted(set(shots) - set(possible)):
        log.info(
            "few-shot probe: %s left out, because the smallest class has %d training samples",
            ", ".join(f"{k}-shot" for k in left_out),
            counts.min(),
        )
    if not possible:
        return {}

    mean, std = feature_statistics(train_x)
    test_x = (test_x.detach().to(train_x.device).float() - mean) / std
    ranked = np.stack([_ranked_by_class(labels, n_classes, np.random.default_rng([seed, i]), max(possible)) for i in range(draws)])

    results: dict[str, float] = {}
    for k in possible:
        index = ranked[:, :, :k].reshape(draws, -1)
        values: list[float] = []
        together = max(1, TOGETHER // (index.shape[1] * train_x.shape[1]))
        for rows in np.split(index, range(together, draws, together)):
            support = (train_x[rows].detach().float() - mean) / std
            weight, bias = fit_each(support, train_y[rows], n_classes, L2, max_iter=MAX_ITER)
            values += [accuracy(test_x @ w.T + b, test_y) for w, b in zip(weight, bias, strict=True)]
        results[f"{k}_shot/accuracy"], results[f"{k}_shot/interval"] = mean_interval(values)
    return results


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of `values` and the half-width of its 95% interval by Student's t; NaN half-width for a single value."""
    if len(values) == 0:
        raise ValueError("no values to average")
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, math.nan
    from scipy.special import stdtrit

    deviation = float(np.std(values, ddof=1))
    return mean, float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))


def _ranked_by_class(labels: np.ndarray, n_classes: int, rng: np.random.Generator, most: int) -> np.ndarray:
    """Indices [C, most] of `most` random samples of each class, without replacement, in random order."""
    order = rng.permutation(len(labels))
    return np.stack([order[labels[order] == c][:most] for c in range(n_classes)])
