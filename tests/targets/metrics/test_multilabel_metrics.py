"""Protects measures of several labels: each equals an independent reference, on ties, absent labels and constant scores too."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from sslt.errors import UserError
from sslt.targets.metrics.multilabel import average_precision, best_thresholds, multilabel_metrics, roc_area


def case(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, C] and truth [N, C] of a kind of split."""
    rng = np.random.default_rng(len(name))
    scores, truth = rng.normal(size=(60, 5)), rng.random((60, 5)) < 0.3
    match name:
        case "ties":
            scores = np.round(scores)
        case "constant":
            scores[:] = 0.5
        case "absent and always there":
            truth[:, 1], truth[:, 3] = False, True
        case "one row":
            scores, truth = scores[:1], np.array([[True, False, True, False, False]])
        case "one label":
            scores, truth = scores[:, :1], truth[:, :1]
        case "no two alike, float32":
            scores = scores.astype(np.float32)
        case "ruled out":
            scores[rng.random(scores.shape) < 0.5] = -np.inf
    return scores, truth


CASES = ["random", "ties", "constant", "absent and always there", "one row", "one label", "no two alike, float32", "ruled out"]


@pytest.mark.parametrize("name", CASES)
def test_each_number_is_that_of_scikit_learn(name):
    """Means run over the labels for which it defines a number: average precision of those that occur, the area where both values do."""
    scores, truth = case(name)
    predicted = scores > 0
    names = [f"c{i}" for i in range(truth.shape[1])]
    found = multilabel_metrics(scores, predicted, truth, names)
    finite = np.where(np.isinf(scores), -1e9, scores)  # its curves take no infinities
    there = [c for c in range(truth.shape[1]) if truth[:, c].any()]
    each = {c: average_precision_score(truth[:, c], finite[:, c]) for c in there}
    assert found["map"] == pytest.approx(np.mean(list(each.values())))
    assert {k: v for k, v in found.items() if k.startswith("class/")} == pytest.approx({f"class/c{c}/ap": v for c, v in each.items()})
    occurs = [c for c in range(truth.shape[1]) if truth[:, c].any() or predicted[:, c].any()]
    assert found["f1"] == pytest.approx(np.mean([f1_score(truth[:, c], predicted[:, c]) for c in occurs]))
    assert found["micro_f1"] == pytest.approx(f1_score(truth.ravel(), predicted.ravel(), zero_division=0.0))
    areas = [roc_auc_score(truth[:, c], finite[:, c]) for c in there if not truth[:, c].all()]
    assert found.get("auroc", -1) == pytest.approx(np.mean(areas) if areas else -1)


def test_nothing_to_find_is_no_number_out_of_range():
    """A split without a label: nothing is found where nothing is, and what is undefined is not there."""
    found = multilabel_metrics(np.zeros((4, 2)), np.zeros((4, 2), bool), np.zeros((4, 2), bool), ["a", "b"])
    assert found == {"map": 0.0, "f1": 0.0, "micro_f1": 0.0}


def test_a_split_without_rows_and_outputs_that_are_no_numbers_are_refused():
    """In a line each, before a library fails on them; other shapes are a mistake of the caller."""
    with pytest.raises(UserError, match="nothing to evaluate"):
        multilabel_metrics(np.zeros((0, 2)), np.zeros((0, 2), bool), np.zeros((0, 2), bool), ["a", "b"])
    with pytest.raises(UserError, match="not numbers for 1 of 3"):
        multilabel_metrics(np.array([[0.0], [np.nan], [1]]), np.zeros((3, 1), bool), np.ones((3, 1), bool), ["a"])
    with pytest.raises(ValueError, match="do not fit"):
        multilabel_metrics(np.zeros((3, 2)), np.zeros((3, 2), bool), np.zeros((3, 2), bool), ["a"])


@pytest.mark.parametrize("name", CASES[:-1])
def test_a_threshold_has_the_best_f1_there_is(name):
    """Of all thresholds that divide the scores; one that lies between two of them. Not all rows have what fewer than half should."""
    scores, truth = case(name)
    chosen = best_thresholds(scores, truth)
    for c in range(truth.shape[1]):
        if not truth[:, c].any():
            assert chosen[c] == 0
            continue
        common = 2 * truth[:, c].sum() >= len(truth)
        tried = [f1_score(truth[:, c], scores[:, c] >= s) for s in np.unique(scores[:, c])[0 if common else 1 :]]
        given = scores[:, c] > chosen[c]
        assert f1_score(truth[:, c], given, zero_division=0) == pytest.approx(max(tried, default=0)) and (common or not given.all())
        assert not (scores[:, c] == chosen[c]).any() or not tried


def test_order_alone_counts():
    """Neither of the curves changes where scores are stretched, and each is turned over where they are."""
    scores, truth = case("random")
    assert average_precision(np.exp(3 * scores) - 7, truth) == pytest.approx(average_precision(scores, truth))
    assert roc_area(-scores, truth) == pytest.approx(1 - roc_area(scores, truth))
