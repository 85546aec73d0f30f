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
import torch.nn.functional as F
from torch import Tensor

from sslt.data.base import Samples
from sslt.data.image_processor import ImageProcessor
from sslt.encoders.patches import PatchEncoder
from sslt.evaluation.knn import knn_predict
from sslt.evaluation.linear import accuracy, feature_statistics, fit_logistic
from sslt.objectives.patch_kmeans import PatchKMeans

STRENGTHS = (0.5, 2.0, 8.0, 32.0)  # C of texts' linear models: unit rows want little regularisation
L2 = (1e-1, 1e-2, 1e-3, 1e-4)  # of images' logistic regression on standardised features
NEIGHBOURS = (1, 5, 20)
MANY_CLASSES = 20  # above which one-against-rest solvers are used, and NB-SVM is not
MOST_CHARACTERS = 6_000_000  # of training text in which n-grams of characters are counted in seconds
WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
PIXELS, GRADIENTS = 32, 64  # longest sides of images as pixels and patches, and as gradients
FILTERS, STRIDE = 400, 2  # of patches of 6 × 6 pixels, pooled over quarters: 3,000 images a second on a core


class Rows(NamedTuple):
    """What is learned from or told apart: texts, or images as `Samples`; `labels` int64 [N]."""

    items: Any
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Baseline:
    """`method` in words; `accuracy` (0..1) on test; `val_accuracy` of the choice, NaN without validation; `right` [M], by test row."""

    method: str
    accuracy: float
    val_accuracy: float
    right: np.ndarray


class _Fitted(NamedTuple):
    method: str
    val_accuracy: float
    predict: Callable[[Any], np.ndarray]


def strongest(modality: str, train: Rows, val: Rows | None, test: Rows, n_classes: int) -> Baseline:
    """The cheap method that is best on `val`, measured on `test` once; without `val` the first of each kind at a middle strength."""
    found = (_on_texts if modality == "text" else _on_images)(train, val, n_classes)
    best = next(found)
    for other in found if val is not None else ():
        best = other if other.val_accuracy > best.val_accuracy else best
    right = best.predict(test.items) == test.labels
    return Baseline(best.method, float(right.mean()), best.val_accuracy, right)


def majority(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Share (0..1) of the test rows that are of the class most frequent in training."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean of `a` - `b` (bool [M], by row) with its 95 % interval, from the paired differences (normal approximation)."""
    d = a.astype(float) - b.astype(float)
    half = 1.96 * float(d.std(ddof=1)) / math.sqrt(len(d)) if len(d) > 1 else math.inf
    return float(d.mean()), float(d.mean()) - half, float(d.mean()) + half


# -------------------------------------------------------------------- texts
def _on_texts(train: Rows, val: Rows | None, n_classes: int) -> Iterator[_Fitted]:
    """Linear models on sparse counts; scikit-learn's vectorisers and solvers."""
    from scipy.sparse import hstack

    texts = list(train.items)
    unspaced = _without_spaces(texts)
    kind = "characters" if unspaced else "words"
    words = _fitted_vectoriser("char" if unspaced else "word", (1, 3) if unspaced else (1, 2), texts)
    parts = [words]
    if not unspaced and sum(map(len, texts)) <= MOST_CHARACTERS:
        parts.append(_fitted_vectoriser("char_wb", (2, 5), texts))
        kind += " and characters"

    def vectors(items: Sequence[str]) -> Any:
        return hstack([part.transform(items) for part in parts]).tocsr()

    name = "logistic regression" if n_classes <= MANY_CLASSES else "linear SVM"
    x = vectors(texts)
    score, model = best_linear(x, train.labels, None if val is None else (vectors(val.items), val.labels), n_classes)
    yield _Fitted(f"TF-IDF of {kind}, {name}", score, lambda items: model.predict(vectors(items)))
    if n_classes <= MANY_CLASSES:
        yield _nb_svm(train, val, words, n_classes)


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
    return LogisticRegression(C=strength, max_iter=300, tol=1e-3)


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
    """Logistic regression and nearest neighbours on three descriptions of the pixels."""
    described = {"pixels": pixels, "oriented gradients and colour": gradients_and_colour, "whitened patches": whitened_patches(train.items)}
    for name, describe in described.items():
        x, y = _described(train.items, describe), torch.from_numpy(train.labels)
        mean, std = feature_statistics(x)
        held = None if val is None else (_described(val.items, describe), torch.from_numpy(val.labels))
        yield _logistic(name, describe, (x, y), held, (mean, std), n_classes)
        yield _neighbours(name, describe, (x, y), held, mean, n_classes)


Described = tuple[Tensor, Tensor]


def _logistic(
    name: str, describe: Callable[[Tensor], Tensor], train: Described, val: Described | None, moments: tuple[Tensor, Tensor], n_classes: int
) -> _Fitted:
    mean, std = moments
    x = (train[0] - mean) / std
    best: tuple[float, tuple[Tensor, Tensor]] | None = None
    fit: tuple[Tensor, Tensor] | None = None
    for l2 in L2 if val is not None else L2[1:2]:
        fit = fit_logistic(x, train[1], n_classes, l2, init=fit)
        score = math.nan if val is None else accuracy((val[0] - mean) / std @ fit[0].T + fit[1], val[1])
        if best is None or score > best[0]:
            best = score, fit
    assert best is not None
    weight, bias = best[1]

    def predict(items: Samples) -> np.ndarray:
        return (((_described(items, describe) - mean) / std) @ weight.T + bias).argmax(1).numpy()

    return _Fitted(f"{name}, logistic regression", best[0], predict)


def _neighbours(
    name: str, describe: Callable[[Tensor], Tensor], train: Described, val: Described | None, mean: Tensor, n_classes: int
) -> _Fitted:
    def scores(x: Tensor, k: int) -> Tensor:
        return knn_predict(train[0] - mean, train[1], x - mean, n_classes, k)

    tried = [(math.nan if val is None else accuracy(scores(val[0], k), val[1]), k) for k in (NEIGHBOURS if val is not None else (5,))]
    score, best = max(tried, key=lambda t: t[0])
    return _Fitted(f"{name}, kNN (k={best})", score, lambda items: scores(_described(items, describe), best).argmax(1).numpy())


def _described(samples: Samples, describe: Callable[[Tensor], Tensor]) -> Tensor:
    """`describe` of all images, [N, D]."""
    parts = [describe(samples.batch(np.arange(i, min(i + 512, len(samples))))["image"]) for i in range(0, len(samples), 512)]
    return torch.cat(parts)


def pixels(images: Tensor) -> Tensor:
    """Grey levels 0..1 of uint8 images [B, C, H, W], at most `PIXELS` on a side, [B, C·h·w]."""
    return _at_most(images, PIXELS).flatten(1)


def gradients_and_colour(images: Tensor) -> Tensor:
    """Histograms of oriented gradients, and of colours where there are some, of uint8 images [B, C, H, W] → [B, D]."""
    x = _at_most(images, GRADIENTS)
    parts = [oriented_gradients(x)]
    if x.shape[1] == 3:
        parts.append(_colours(x))
    return torch.cat(parts, 1)


def whitened_patches(train: Samples) -> Callable[[Tensor], Tensor]:
    """Rectified responses of uint8 images [B, C, H, W] to `FILTERS` whitened patches drawn from `train`, pooled over quarters, [B, D].

    Patches as they come do nearly as well as centroids of them (Coates & Ng, 2011, "The importance of encoding versus training"), and cost
    no training. Larger images are made smaller first.
    """
    channels, *sides = train.batch(np.arange(1))["image"].shape[1:]
    processor = ImageProcessor(min(PIXELS, *sides), channels, [0.5] * channels, [0.25] * channels)
    with torch.random.fork_rng(devices=[]):  # what is random in a run does not depend on whether it has a baseline
        encoder = PatchEncoder(processor, FILTERS, 6, STRIDE, cells=2, contrast=0.0025, mirror=False, width=1)
        PatchKMeans(encoder, patches=FILTERS, epsilon=0.03, threshold=0.5).prepare(encoder, train, batch_size=1)

    @torch.no_grad()
    def describe(images: Tensor) -> Tensor:
        return encoder.numbers(encoder.inputs({"image": images})["image"])

    return describe


def oriented_gradients(x: Tensor, bins: int = 9) -> Tensor:
    """Histograms of oriented gradients of images [B, C, H, W] (Dalal & Triggs, 2005) → [B, D].

    Of the channels the one with the strongest gradient counts; a pixel votes for the two nearest of `bins` directions over 180°; about
    8 × 8 cells (of at least two pixels); blocks of 2 × 2 cells have length 1, are clipped at 0.2 and have length 1 again.
    """
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx, dy = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    size, channel = (dx.square() + dy.square()).max(1, keepdim=True)
    dx, dy, size = dx.gather(1, channel), dy.gather(1, channel), size.sqrt()
    place = torch.remainder(torch.atan2(dy, dx), math.pi) * (bins / math.pi) - 0.5
    low = place.floor()
    votes = torch.zeros(x.shape[0], bins, *x.shape[2:], device=x.device)
    for offset, share in ((0, 1 - (place - low)), (1, place - low)):
        votes.scatter_add_(1, torch.remainder(low.long() + offset, bins), size * share)
    cell = max(2, -(-min(x.shape[2:]) // 8))
    cells = F.avg_pool2d(votes, cell, ceil_mode=True, count_include_pad=False)
    if min(cells.shape[2:]) < 2:
        return F.normalize(cells.flatten(1), dim=1)
    blocks = F.unfold(cells, 2)  # [B, bins·4, places]
    blocks = F.normalize(F.normalize(blocks, dim=1).clamp(max=0.2), dim=1)
    return blocks.flatten(1)


def _colours(x: Tensor, levels: int = 4) -> Tensor:
    """Shares of the `levels`³ colours in each quarter of images [B, 3, H, W] → [B, 4·levels³], as square roots (Hellinger)."""
    code = (x * levels).long().clamp(max=levels - 1)
    code = (code[:, 0] * levels + code[:, 1]) * levels + code[:, 2]
    h, w = (n // 2 for n in code.shape[1:])
    quarters = [code[:, :h, :w], code[:, :h, w:], code[:, h:, :w], code[:, h:, w:]]
    counts = [F.one_hot(q.flatten(1), levels**3).float().mean(1) for q in quarters if q.numel()]
    return torch.cat(counts, 1).sqrt()


def _at_most(images: Tensor, side: int) -> Tensor:
    """Images as floats 0..1, made smaller where they are larger than `side`."""
    x = images.float() / 255
    longest = max(x.shape[2:])
    return x if longest <= side else F.interpolate(x, scale_factor=side / longest, mode="area")
