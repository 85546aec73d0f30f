"""Score against the number of labels, and what pretraining saves of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sslt.data.answers import Space
from sslt.data.base import stratified
from sslt.errors import UserError
from sslt.targets.linear import linear_probe


def linear_curve(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    n_classes: int,
    fractions: Sequence[float],
    seed: int,
) -> dict[str, float]:
    """Test accuracy of a linear probe on stratified shares of the labels, all from the same features.

    Each split is (features [N, D], labels [N]). Returns `linear_<percent>pct/accuracy` and `…/labels`, the number of
    training labels, for each of `fractions` (0..1). The regularisation of each is chosen on the validation split, which
    keeps its labels whatever the fraction: the curve is over labels to learn from.
    """
    out: dict[str, float] = {}
    for fraction in sorted(fractions):
        if not 0 < fraction <= 1:
            raise UserError(f"curve.fractions: {fraction} is no share of the labels, give numbers above 0 and up to 1")
        index = stratified(np.asarray(train[1]), fraction=fraction, seed=seed) if fraction < 1 else np.arange(len(train[1]))
        found = linear_probe(train[0][index], train[1][index], *val, *test, n_classes)
        out |= {f"{name_of(fraction)}/accuracy": found.accuracy, f"{name_of(fraction)}/labels": len(index)}
    return out


def name_of(fraction: float) -> str:
    """`linear_1pct` for 0.01; `linear` for all labels."""
    return "linear" if fraction == 1 else f"linear_{100 * fraction:g}pct"


SCORE = "test/accuracy"  # of a training from scratch, which probes are held against


def named_points(metrics: dict[str, float], space: Space) -> dict[str, tuple[int, float]]:
    """(labels, accuracy) of every k-shot and linear probe in `metrics`, by the probe's name."""
    points = {}
    for key, value in metrics.items():
        probe, _, what = key.rpartition("/")
        if what != "accuracy":
            continue
        if probe.endswith("_shot"):
            points[probe] = (int(probe.partition("_")[0]) * len(space["classes"]), value)
        elif f"{probe}/labels" in metrics:
            points[probe] = (int(metrics[f"{probe}/labels"]), value)
    return points


def labels_needed(curve: Sequence[tuple[int, float]], score: float) -> float:
    """How many labels a learner with this (labels, score) curve needs to reach `score`.

    Interpolated on the logarithm of the number of labels, along the best score so far (more labels are not worse but by
    luck). Infinite where the curve never gets there; the first point's labels where that is enough.
    """
    if not curve:
        raise ValueError("no curve")
    points = sorted(curve)
    best_n, best = points[0]
    if best >= score:
        return float(best_n)
    for n, value in points[1:]:
        if value >= score:
            share = (score - best) / (value - best)
            return float(math.exp(math.log(best_n) + share * (math.log(n) - math.log(best_n))))
        if value >= best:
            best_n, best = n, value
    return math.inf
