"""The strongest cheap method on the same rows: what a trained encoder has to beat to be worth its training.

Texts: TF-IDF of words and characters with logistic regression (a linear SVM where classes are many) and NB-SVM (Wang & Manning, 2012).
Images: pixels, histograms of oriented gradients with colour (Dalal & Triggs, 2005), and responses to whitened patches (Coates & Ng, 2011),
each with logistic regression and with nearest neighbours. Method and regularisation are chosen on validation; the chosen one alone is
asked about the test rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslt.data.streams.subsets import some
from sslt.targets.described import MOST_IMAGES, DescribedRows, Solver, Truths, by_each_description
from sslt.targets.knn import knn_votes
from sslt.targets.linear import accuracy, feature_statistics, probe_weights
from sslt.targets.tf_idf import TfIdf

STRENGTHS = (0.5, 2.0, 8.0, 32.0)  # C of texts' linear models: unit rows want little regularisation
NEIGHBOURS = (1, 5, 20)
MANY_CLASSES = 20  # above which one-against-rest solvers are used, and NB-SVM is not


class Rows(NamedTuple):
    """What is learned from or told apart: texts, or images as `Samples`; `labels` int64 [N]."""

    items: Any
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Baseline:
    """`method` in words; `predicted` int64 [M], by test row; `val_accuracy` (0..1) of the choice, NaN without validation."""

    method: str
    predicted: np.ndarray
    val_accuracy: float


class _Fitted(NamedTuple):
    method: str
    val_accuracy: float
    predict: Callable[[Any], np.ndarray]


def strongest(modality: str, train: Rows, val: Rows | None, test: Any, n_classes: int) -> Baseline:
    """What the cheap method that is best on `val` says of the items `test`; without `val` the first of each kind at a middle strength."""
    found = (_on_texts if modality == "text" else _on_images)(train, val, n_classes)
    best = next(found)
    for other in found if val is not None else ():
        best = other if other.val_accuracy > best.val_accuracy else best
    return Baseline(best.method, np.asarray(best.predict(test), np.int64), best.val_accuracy)


def majority(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Share (0..1) of the test rows that are of the class most frequent in training.

    Of several that are, as where so many of each class were labelled, the one that most test rows are of: the first would make a bar that
    the answer of the commonest is far above.
    """
    counts = np.bincount(train_labels)
    return max(float((test_labels == common).mean()) for common in np.flatnonzero(counts == counts.max()))


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean of `a` - `b` (bool [M], by row) with its 95 % interval, from the paired differences (normal approximation)."""
    d = a.astype(float) - b.astype(float)
    half = 1.96 * float(d.std(ddof=1)) / math.sqrt(len(d)) if len(d) > 1 else math.inf
    return float(d.mean()), float(d.mean()) - half, float(d.mean()) + half


# -------------------------------------------------------------------- texts
def _on_texts(train: Rows, val: Rows | None, n_classes: int) -> Iterator[_Fitted]:
    """Linear models on sparse counts; scikit-learn's vectorisers and solvers."""
    vectors = TfIdf(list(train.items))
    name = "logistic regression" if n_classes <= MANY_CLASSES else "linear SVM"
    held = None if val is None else (vectors.of(val.items), val.labels)
    score, model = best_linear(vectors.rows, train.labels, held, n_classes)
    yield _Fitted(f"{vectors.name}, {name}", score, lambda items: model.predict(vectors.of(items)))
    if n_classes <= MANY_CLASSES:
        yield _nb_svm(vectors, train.labels, held)


def _linear(n_classes: int, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if n_classes > MANY_CLASSES:
        return LinearSVC(C=strength / 10, random_state=0)
    return LogisticRegression(C=strength, max_iter=300)  # by tol=1e-3 it stops after ten steps


def best_linear(x: Any, y: np.ndarray, val: tuple[Any, np.ndarray] | None, n_classes: int) -> tuple[float, Any]:
    """scikit-learn's linear model of unit rows `x` whose strength is best on `val` (rows, labels), after its accuracy there.

    Logistic regression, or one class against the rest where they are many. Of equally good ones the more regularised; without `val`
    a middle strength, and NaN.
    """
    best: tuple[float, Any] | None = None
    for strength in STRENGTHS if val is not None else STRENGTHS[2:3]:
        model = _linear(n_classes, strength).fit(x, y)
        score = math.nan if val is None else float(model.score(*val))
        if best is None or score > best[0]:
            best = score, model
    assert best is not None
    return best


def _nb_svm(vectors: TfIdf, y: np.ndarray, val: tuple[Any, np.ndarray] | None) -> _Fitted:
    """NB-SVM (Wang & Manning, 2012, section 2.3): presence of n-grams, scaled by their log-count ratio, one class against the rest.

    Of the texts of `vectors`, `y` their labels; val: their rows, and labels.
    """
    x, held = vectors.present(vectors.rows), None if val is None else vectors.present(val[0])
    classes = np.unique(y)
    rest = classes if len(classes) > 2 else classes[1:]
    ratios = []
    for c in rest:
        inside, outside = (np.asarray(x[y == c].sum(0) + 1), np.asarray(x[y != c].sum(0) + 1))
        ratios.append(np.log(inside / inside.sum()) - np.log(outside / outside.sum()))

    def said(scores: list[np.ndarray]) -> np.ndarray:
        return classes[np.stack(scores, 1).argmax(1)] if len(rest) > 1 else classes[(scores[0] > 0).astype(int)]

    strengths = STRENGTHS if val is not None else STRENGTHS[1:2]
    models: list[list[Any]] = [[] for _ in strengths]  # of each strength, by class
    shown: list[list[np.ndarray]] = [[] for _ in strengths]
    for c, ratio in zip(rest, ratios, strict=True):
        scaled, val_scaled = _scaled(x, ratio), None if held is None else _scaled(held, ratio)
        for i, strength in enumerate(strengths):
            models[i].append(_svm(strength / 100).fit(scaled, y == c))
            if val_scaled is not None:
                shown[i].append(models[i][-1].decision_function(val_scaled))
    scores = [math.nan if val is None else float((said(of) == val[1]).mean()) for of in shown]
    chosen = models[int(np.argmax(scores))]  # of equally good ones the more regularised

    def predict(items: Any) -> np.ndarray:
        rows = vectors.present(vectors.of_words(items))
        return said([model.decision_function(_scaled(rows, ratio)) for model, ratio in zip(chosen, ratios, strict=True)])

    return _Fitted("NB-SVM of words", max(scores), predict)


def _scaled(rows: Any, ratio: np.ndarray) -> Any:
    return rows.multiply(ratio).tocsr()


def _svm(strength: float) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=strength)


# -------------------------------------------------------------------- images
def _on_images(train: Rows, val: Rows | None, n_classes: int) -> Iterator[_Fitted]:
    """Logistic regression and nearest neighbours on each description, of at most `MOST_IMAGES` of the training images."""
    if len(train.labels) > MOST_IMAGES:
        items = some(train.items, MOST_IMAGES, 0)
        train = Rows(items, np.asarray(items.labels))
    truths: Truths = (torch.from_numpy(train.labels), None if val is None else torch.from_numpy(val.labels))
    for rows in by_each_description(train.items, None if val is None else val.items):
        yield _logistic(rows, truths, n_classes)
        yield _neighbours(rows, truths, n_classes)


def of_classes(n: int) -> Solver:
    """Logistic regression of so many classes."""
    return Solver(f"{n} classes", lambda x, y, val, l2: probe_weights(x, y, val, n, l2))


def _logistic(rows: DescribedRows, truths: Truths, n_classes: int) -> _Fitted:
    weight, bias = rows.linear(of_classes(n_classes), truths)
    score = math.nan if rows.val is None or truths[1] is None else accuracy(rows.val @ weight.T + bias, truths[1])
    describe = rows.describe  # and not the rows, whose features need not stay in memory
    return _Fitted(f"{describe.name}, logistic regression", score, lambda items: (describe.of(items) @ weight.T + bias).argmax(1).numpy())


def _neighbours(rows: DescribedRows, truths: Truths, n_classes: int) -> _Fitted:
    mean, _ = feature_statistics(rows.train)

    def votes(x: Tensor, ks: Sequence[int]) -> Tensor:
        return knn_votes(rows.train - mean, truths[0], x - mean, n_classes, ks)

    best, score = 5, math.nan
    if rows.val is not None and truths[1] is not None:
        scores = [accuracy(found, truths[1]) for found in votes(rows.val, NEIGHBOURS)]
        score = max(scores)
        best = NEIGHBOURS[scores.index(score)]
    name = f"{rows.describe.name}, kNN (k={best})"
    return _Fitted(name, score, lambda items: votes(rows.describe.of(items), (best,))[0].argmax(1).numpy())
