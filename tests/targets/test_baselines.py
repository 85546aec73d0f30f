"""Protects what results are held against: NB-SVM against its definition, the choice by validation, every script."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from pictures import Pictures

from sslt.targets import baselines
from sslt.targets.baselines import Rows
from sslt.targets.tf_idf import TfIdf


def test_majority_and_difference_are_known():
    assert baselines.majority(np.array([0, 1, 1, 2]), np.array([1, 0, 1, 1, 2])) == pytest.approx(0.6)
    assert baselines.majority(np.array([0, 0, 1]), np.array([1, 1, 1, 0])) == pytest.approx(0.25)
    assert baselines.majority(np.array([0, 1, 2, 0, 1, 2]), np.array([1, 2, 2, 2])) == pytest.approx(0.75)  # as many labels of each
    a, b = np.array([True] * 60 + [False] * 40), np.array([True] * 50 + [False] * 50)
    mean, low, high = baselines.difference(a, b)
    half = 1.96 * np.std(a.astype(float) - b, ddof=1) / 10
    assert (mean, low, high) == pytest.approx((0.1, 0.1 - half, 0.1 + half))
    assert baselines.difference(a, a) == (0.0, 0.0, 0.0)


def test_the_best_of_all_candidates_on_validation_is_taken(monkeypatch):
    """Whichever place it has; the test rows are shown to that one alone."""
    asked = []

    def fitted(name: str, score: float) -> baselines._Fitted:
        return baselines._Fitted(name, score, lambda items: asked.append(name) or np.zeros(4, int))

    monkeypatch.setattr(baselines, "_on_images", lambda *_: iter([fitted("a", 0.2), fitted("b", 0.9), fitted("c", 0.5)]))
    rows = Rows(None, np.array([0, 0, 0, 1]))
    found = baselines.strongest("image", rows, rows, rows.items, 2)
    assert (found.method, found.predicted.tolist(), asked) == ("b", [0, 0, 0, 0], ["b"])


def test_the_choice_is_by_validation_and_not_by_test(here):
    """Validation likes what nearest neighbours say, which alone is asked about the test rows."""
    rng = np.random.default_rng(1)
    y = np.arange(80) % 2
    x = torch.from_numpy(rng.integers(0, 255, (80, 1, 8, 8)).astype(np.uint8))
    train = Rows(Pictures(x), y)
    best = baselines.strongest("image", train, Rows(Pictures(x), y), Pictures(x), 2)
    assert best.val_accuracy == 1.0 and (best.predicted == y).all()


TEXTS = {
    "english": (["good film", "a fine good story", "bad film", "a bad dull story"], ["good story", "dull film"]),
    "chinese": (["很好的酒店", "服务很好", "很差的酒店", "服务很差"], ["房间很好", "房间很差"]),
}


@pytest.mark.parametrize("language", TEXTS)
def test_texts_with_and_without_spaces(language):
    train, test = TEXTS[language]
    y = np.array([0, 0, 1, 1])
    found = baselines.strongest("text", Rows(train, y), Rows(train, y), test, 2)
    assert found.predicted.tolist() == [0, 1] and ("characters" if language == "chinese" else "words") in found.method


def test_without_validation_there_is_a_result_and_no_choice():
    train, test = TEXTS["english"]
    found = baselines.strongest("text", Rows(train, np.array([0, 0, 1, 1])), None, test, 2)
    assert found.method.startswith("TF-IDF") and math.isnan(found.val_accuracy) and found.predicted.tolist() == [0, 1]


def test_nb_svm_equals_its_definition():
    """Presence of words times the log-ratio of their smoothed counts, and a linear SVM on top (Wang & Manning, section 2)."""
    from sklearn.svm import LinearSVC

    texts = ["a b b c", "a c d", "b d e e", "e f a", "c c f", "d e f"]
    y = np.array([0, 0, 1, 1, 0, 1])
    vectors = TfIdf(texts)
    fitted = baselines._nb_svm(vectors, y, (vectors.rows, y))
    names = sorted(vectors.words.vocabulary_, key=vectors.words.vocabulary_.get)
    pairs = [{*t.split(), *(" ".join(p) for p in itertools.pairwise(t.split()))} for t in texts]
    seen = np.array([[float(w in there) for w in names] for there in pairs])
    p, q = seen[y == 1].sum(0) + 1, seen[y == 0].sum(0) + 1
    ratio = np.log((p / p.sum()) / (q / q.sum()))
    scores = []
    for strength in baselines.STRENGTHS:
        model = LinearSVC(C=strength / 100).fit(seen * ratio, y == 1)
        scores.append(((model.decision_function(seen * ratio) > 0) == y).mean())
    assert fitted.val_accuracy == pytest.approx(max(scores))
    model = LinearSVC(C=baselines.STRENGTHS[int(np.argmax(scores))] / 100).fit(seen * ratio, y == 1)
    asked = ["b e", "f d e", "c"]
    rows = np.array([[float(w in (*t.split(), t)) for w in names] for t in asked])
    rows[1] = [float(w in ("f", "d", "e", "f d", "d e")) for w in names]
    assert (fitted.predict(asked) == (model.decision_function(rows * ratio) > 0)).all()


@pytest.mark.parametrize("texts", [["", "", "x", ""], ["?", "!", "?!", "."]])
def test_texts_that_say_nothing_are_no_crash(texts):
    y = np.array([0, 1, 0, 1])
    found = baselines.strongest("text", Rows(texts, y), None, texts, 2)
    assert len(found.predicted) == 4 and set(found.predicted.tolist()) <= {0, 1}


def test_linear_models_of_texts_are_fitted_to_their_end():
    """Of unit rows with little regularisation: the loss is that of far more steps. By a looser bound they stop after a handful."""
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    x, y = make_classification(1500, 400, n_informative=40, random_state=0)
    x = normalize(x)
    strength = baselines.STRENGTHS[-1]
    ours = baselines._linear(2, strength).fit(x, y)
    best = LogisticRegression(C=strength, max_iter=5000, tol=1e-10).fit(x, y)

    def loss(model) -> float:
        sure = (2 * y - 1) * model.decision_function(x)
        return float(np.logaddexp(0, -sure).sum() + np.square(model.coef_).sum() / 2 / strength)

    assert loss(ours) < 1.001 * loss(best)
