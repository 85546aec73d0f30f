"""The strongest cheap method on the same rows: what a trained encoder has to beat to be worth its training.

Texts: TF-IDF of words and characters with logistic regression (a linear SVM where classes are many) and NB-SVM (Wang & Manning, 2012).
Images: pixels, histograms of oriented gradients with colour (Dalal & Triggs, 2005), and responses to whitened patches (Coates & Ng, 2011),
each with logistic regression and with nearest neighbours. Method and regularisation are chosen on validation; the chosen one alone is
asked about the test rows.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslt.data.base import Samples
from sslt.data.streams.subsets import some
from sslt.encoders.descriptions import DESCRIPTIONS, Description
from sslt.targets.knn import knn_predict
from sslt.targets.linear import accuracy, feature_statistics, probe_weights

STRENGTHS = (0.5, 2.0, 8.0, 32.0)  # C of texts' linear models: unit rows want little regularisation
L2 = (1e-1, 1e-2, 1e-3, 1e-4)  # of images' logistic regression on standardised features
NEIGHBOURS = (1, 5, 20)
MOST_IMAGES = 60_000  # that methods learn from: their descriptions stand in memory
MANY_CLASSES = 20  # above which one-against-rest solvers are used, and NB-SVM is not
MOST_CHARACTERS = 6_000_000  # of training text in which n-grams of characters are counted in seconds
WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


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
    texts = list(train.items)
    kind, vectors, words = tf_idf(texts)
    name = "logistic regression" if n_classes <= MANY_CLASSES else "linear SVM"
    x = vectors(texts)
    score, model = best_linear(x, train.labels, None if val is None else (vectors(val.items), val.labels), n_classes)
    yield _Fitted(f"{kind}, {name}", score, lambda items: model.predict(vectors(items)))
    if n_classes <= MANY_CLASSES:
        yield _nb_svm(train, val, words, n_classes)


def tf_idf(texts: Sequence[str]) -> tuple[str, Callable[[Sequence[str]], Any], Any]:
    """TF-IDF fitted to texts: its name in words, what makes sparse rows of texts, and the vectoriser of words (or characters) in it."""
    from scipy.sparse import hstack

    unspaced = _without_spaces(texts)
    kind = "characters" if unspaced else "words"
    words = _fitted_vectoriser("char" if unspaced else "word", (1, 3) if unspaced else (1, 2), texts)
    parts = [words]
    if not unspaced and sum(map(len, texts)) <= MOST_CHARACTERS:
        parts.append(_fitted_vectoriser("char_wb", (2, 5), texts))
        kind += " and characters"

    def vectors(items: Sequence[str]) -> Any:
        return hstack([part.transform(items) for part in parts]).tocsr()

    return f"TF-IDF of {kind}", vectors, words


def _without_spaces(texts: Sequence[str]) -> bool:
    """Whether most letters are of scripts that put no spaces between words."""
    some = "".join(texts[:: max(1, len(texts) // 500)])
    return len(WITHOUT_SPACES.findall(some)) > 0.3 * max(1, sum(c.isalpha() for c in some))


def _fitted_vectoriser(analyzer: str, lengths: tuple[int, int], texts: Sequence[str], **kwargs: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    rare = 1 if len(texts) < 2000 else 2  # n-grams that occur once say nothing but take most of the room
    word = {"token_pattern": r"(?u)\b\w+\b"} if analyzer == "word" else {}
    made = TfidfVectorizer(sublinear_tf=True, analyzer=analyzer, ngram_range=lengths, min_df=rare, dtype=np.float32, **word, **kwargs)
    try:
        return made.fit(texts)
    except ValueError:  # nothing occurs often enough, or there is nothing but signs
        return made.set_params(min_df=1, analyzer="char").fit([t or " " for t in texts])


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


def _nb_svm(train: Rows, val: Rows | None, words: Any, n_classes: int) -> _Fitted:
    """NB-SVM (Wang & Manning, 2012, section 2.3): presence of n-grams, scaled by their log-count ratio, one class against the rest."""
    from sklearn.feature_extraction.text import CountVectorizer

    keep = ("analyzer", "ngram_range", "token_pattern", "dtype")
    counter = CountVectorizer(binary=True, vocabulary=words.vocabulary_, **{k: words.get_params()[k] for k in keep})
    x, held = counter.transform(train.items), None if val is None else counter.transform(val.items)
    classes = np.unique(train.labels)
    rest = classes if len(classes) > 2 else classes[1:]
    ratios = []
    for c in rest:
        inside, outside = (np.asarray(x[train.labels == c].sum(0) + 1), np.asarray(x[train.labels != c].sum(0) + 1))
        ratios.append(np.log(inside / inside.sum()) - np.log(outside / outside.sum()))

    def predict(models: list[Any], rows: Any) -> np.ndarray:
        scores = np.stack([m.decision_function(rows.multiply(r).tocsr()) for m, r in zip(models, ratios, strict=True)], 1)
        return classes[scores.argmax(1)] if len(rest) > 1 else classes[(scores[:, 0] > 0).astype(int)]

    best: tuple[float, list[Any]] | None = None
    for strength in STRENGTHS if val is not None else STRENGTHS[1:2]:
        models = [_svm(strength / 100).fit(x.multiply(r).tocsr(), train.labels == c) for c, r in zip(rest, ratios, strict=True)]
        score = math.nan if val is None else float((predict(models, held) == val.labels).mean())
        if best is None or score > best[0]:
            best = score, models
    assert best is not None
    models = best[1]
    return _Fitted("NB-SVM of words", best[0], lambda items: predict(models, counter.transform(items)))


def _svm(strength: float) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=strength)


# -------------------------------------------------------------------- images
def _on_images(train: Rows, val: Rows | None, n_classes: int) -> Iterator[_Fitted]:
    """Logistic regression and nearest neighbours on each description, of at most `MOST_IMAGES` of the training images."""
    if len(train.labels) > MOST_IMAGES:
        items = some(train.items, MOST_IMAGES, 0)
        train = Rows(items, np.asarray(items.labels))
    for describe in descriptions(train.items):
        x, y = describe.of(train.items), torch.from_numpy(train.labels)
        held = None if val is None else (describe.of(val.items), torch.from_numpy(val.labels))
        yield _logistic(describe, (x, y), held, n_classes)
        yield _neighbours(describe, (x, y), held, n_classes)


def descriptions(images: Samples) -> Iterator[Description]:
    """Each of the descriptions, learned from these images."""
    channels, *sides = images.batch(np.arange(1))["image"].shape[1:]
    for kind in DESCRIPTIONS.values():
        describe = kind(channels, min(sides))
        describe.learn(images)
        yield describe


Described = tuple[Tensor, Tensor]


def _logistic(describe: Description, train: Described, val: Described | None, n_classes: int) -> _Fitted:
    weight, bias, _ = probe_weights(*train, val, n_classes, L2 if val is not None else L2[1:2])
    score = math.nan if val is None else accuracy(val[0] @ weight.T + bias, val[1])
    return _Fitted(f"{describe.name}, logistic regression", score, lambda items: (describe.of(items) @ weight.T + bias).argmax(1).numpy())


def _neighbours(describe: Description, train: Described, val: Described | None, n_classes: int) -> _Fitted:
    mean, _ = feature_statistics(train[0])

    def scores(x: Tensor, k: int) -> Tensor:
        return knn_predict(train[0] - mean, train[1], x - mean, n_classes, k)

    tried = [(math.nan if val is None else accuracy(scores(val[0], k), val[1]), k) for k in (NEIGHBOURS if val is not None else (5,))]
    score, best = max(tried, key=lambda t: t[0])
    return _Fitted(f"{describe.name}, kNN (k={best})", score, lambda items: scores(describe.of(items), best).argmax(1).numpy())
