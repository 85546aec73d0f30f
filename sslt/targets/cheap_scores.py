"""The strongest cheap method for answers that are not one class: linear models on what of a sample needs no training.

Texts: TF-IDF of words and characters. Images: pixels, oriented gradients with colour, whitened patches. How a linear model is fitted is
the target's (`Fit`); description and regularisation are chosen on validation, and the chosen one alone is asked about the test rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslt.data.base import Samples
from sslt.data.streams.subsets import some
from sslt.targets import linear
from sslt.targets.base import Rows
from sslt.targets.described import MOST_IMAGES, Solver, by_each_description
from sslt.targets.metrics.multilabel import mean_average_precision
from sslt.targets.tf_idf import TfIdf

STRENGTHS = (0.1, 0.5, 2.0, 8.0)  # of texts' linear models, the weaker the more regularised: C, or 1 / alpha; unit rows want little
MOST_FITS = 100  # of these, over answers and strengths: each takes about a second
Scores = Callable[[Any], np.ndarray]


class Fit(NamedTuple):
    """How a linear model is fitted.

    texts: (sparse rows, answers, strength) → scores of rows. images: on descriptions. score: of scores and answers, the higher the better.
    """

    name: str
    texts: Callable[[Any, np.ndarray, float], Scores]
    images: Solver
    score: Callable[[np.ndarray, np.ndarray], float]


class Found(NamedTuple):
    """The method in words; its scores of the test rows, and of those of validation; what it reached there, NaN without."""

    method: str
    scores: np.ndarray
    val_scores: np.ndarray | None
    val_score: float


def strongest(fit: Fit, modality: str, train: Rows, val: Rows | None, test: Rows) -> Found:
    """What the cheap method that is best on `val` says of `test`; without `val` the first one at a middle strength."""
    best: tuple[float, str, Scores, np.ndarray | None] | None = None
    for name, scores in (_on_texts if modality == "text" else _on_images)(fit, train, val):
        held = None if val is None else scores(val.one_each)
        score = math.nan if val is None or held is None else fit.score(held, np.asarray(val.answers.values))
        if best is None or score > best[0]:
            best = score, name, scores, held
        if val is None:
            break
    assert best is not None
    return Found(f"{best[1]}, {fit.name}", best[2](test.one_each), best[3], best[0])


def _on_texts(fit: Fit, train: Rows, val: Rows | None) -> Iterator[tuple[str, Scores]]:
    vectors, y = TfIdf(list(train.one_each)), np.asarray(train.answers.values)
    for strength in strengths(y[:1].size, val is not None):
        scores = fit.texts(vectors.rows, y, strength)
        yield vectors.name, lambda items, scores=scores: scores(vectors.of(items))  # type: ignore[misc]


def _on_images(fit: Fit, train: Rows, val: Rows | None) -> Iterator[tuple[str, Scores]]:
    items, held = some(train.items, MOST_IMAGES, 0), None if val is None else val.items
    truths = (_answers(items), None if held is None else _answers(held))
    for rows in by_each_description(items, held):
        weight, bias = rows.linear(fit.images, truths)
        yield rows.describe.name, lambda asked, d=rows.describe, w=weight, b=bias: (d.of(asked) @ w.T + b).double().numpy()  # type: ignore[misc]


def _answers(samples: Samples) -> Tensor:
    assert samples.answers is not None
    return torch.from_numpy(np.asarray(samples.answers.values))


def each_label(x: Any, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights [D, C] and biases [C] of scikit-learn's logistic regression of each label of `y` bool [N, C] on rows [N, D].

    Of a label that is on all rows, or on none, its share.
    """
    from sklearn.linear_model import LogisticRegression

    n, counts = len(y), y.sum(0)
    weights, bias = np.zeros((x.shape[1], y.shape[1])), np.log((counts + 0.5) / (n - counts + 0.5))
    for c in np.flatnonzero((counts > 0) & (counts < n)):
        model = LogisticRegression(C=strength, solver="liblinear").fit(x, y[:, c])
        weights[:, c], bias[c] = model.coef_[0], model.intercept_[0]
    return weights, bias


def logistic_of_each(x: Any, y: np.ndarray, strength: float) -> Scores:
    """Logits [M, C] of `each_label`."""
    weights, bias = each_label(x, y, strength)
    return lambda rows: rows @ weights + bias


def strengths(answers: int, chosen: bool) -> tuple[float, ...]:
    """Of texts' linear models of so many answers those that are tried; where nothing can be chosen, or they are many, a middle one."""
    return STRENGTHS if chosen and answers * len(STRENGTHS) <= MOST_FITS else STRENGTHS[2:3]


def one_against_rest(x: Tensor, y: Tensor, val: tuple[Tensor, Tensor] | None, l2: Sequence[float]) -> tuple[Tensor, Tensor, float]:
    """`linear.probe_weights` of each label of `y` [N, C] against the rest, by the mean average precision."""
    return linear.probe_weights(x, y, val, y.shape[1], l2, precision)


OF_LABELS = Solver("labels", one_against_rest)


def precision(scores: Tensor, truth: Tensor) -> float:
    """`mean_average_precision` of tensors [N, C]."""
    return mean_average_precision(scores.cpu().numpy(), truth.cpu().numpy())
