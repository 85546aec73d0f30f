"""Protects the numbers of segmentation: counts of pixels over the whole split, equal to scikit-learn's on what is flattened."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score

from sslt.data.answers import IGNORE, Map
from sslt.targets.metrics.maps import agreement, class_pixels, iou_difference, map_metrics, mean_iou

SPACE = {"classes": [f"c{i}" for i in range(5)]}
SIZES = [(7, 9), (12, 4), (1, 1), (20, 3)]


def random_maps(seed: int, classes: list[int], ignored: float = 0.2) -> Map:
    rng = np.random.default_rng(seed)
    maps = [rng.choice(classes, size).astype(np.uint8) for size in SIZES]
    for m in maps:
        m[rng.random(m.shape) < ignored] = IGNORE
    return Map.of(maps, SPACE)


def flattened(predictions: Map, answers: Map) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted classes of the pixels that count."""
    truth, found = answers.values.flat(), predictions.values.flat()
    return truth[truth != IGNORE], found[truth != IGNORE]


@pytest.mark.parametrize(
    ("true", "predicted"),
    [
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        ([0, 1], [0, 1]),  # classes that occur nowhere
        ([0, 1], [2, 3]),  # nothing in common
        ([0, 1, 2], [0]),  # constant predictions
        ([3], [3]),  # one class only
        ([3], [0, 4]),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_miou_is_sklearns(true, predicted, seed):
    """Macro over the classes that occur in truth or prediction, on pixels that are not ignored; per class, too."""
    answers, predictions = random_maps(seed, true), random_maps(seed + 100, predicted, ignored=0.0)
    y, p = flattened(predictions, answers)
    found = map_metrics(predictions, answers)
    assert found["miou"] == pytest.approx(jaccard_score(y, p, average="macro"), abs=1e-12)
    assert found["accuracy"] == pytest.approx(accuracy_score(y, p), abs=1e-12)
    each = jaccard_score(y, p, average=None, labels=range(5), zero_division=0)
    occurs = set(y.tolist()) | set(p.tolist())
    for c in range(5):
        assert found[f"class/c{c}/iou"] == pytest.approx(each[c] if c in occurs else math.nan, abs=1e-12, nan_ok=True)


def test_the_truth_is_the_best_answer():
    """Ignored pixels in it change nothing; maps of other images are clearly worse."""
    answers = random_maps(1, [0, 1, 2, 3, 4])
    assert map_metrics(answers, answers)["miou"] == 1.0
    same = Map.of([np.full((8, 8), i % 5, np.uint8) for i in range(10)], SPACE)
    assert map_metrics(same.take(np.roll(np.arange(10), 1)), same)["miou"] == 0.0


def test_predicting_nothing_counts():
    """A pixel for which `IGNORE` is predicted is wrong, and of no class."""
    answers = Map.of([np.array([[0, 0, 1, 1]], np.uint8)], SPACE)
    empty = Map.of([np.array([[0, IGNORE, IGNORE, 1]], np.uint8)], SPACE)
    found = map_metrics(empty, answers)
    assert found["miou"] == 0.5 and found["accuracy"] == 0.5


def test_nothing_to_count_is_no_number():
    """All pixels ignored, or no image at all: NaN, not an error and not 0."""
    blank = Map.of([np.full((3, 3), IGNORE, np.uint8)], SPACE)
    for answers in (blank, Map.of([], SPACE)):
        found = map_metrics(answers, answers)
        assert all(math.isnan(v) for v in found.values())


def test_one_number_for_the_split_is_no_mean_of_images():
    """Pixels are pooled: a large image counts more than a small one."""
    answers = Map.of([np.zeros((1, 1), np.uint8), np.ones((10, 10), np.uint8)], SPACE)
    predictions = Map.of([np.ones((1, 1), np.uint8), np.ones((10, 10), np.uint8)], SPACE)
    assert map_metrics(predictions, answers)["miou"] == pytest.approx((0 + 100 / 101) / 2)
    assert mean_iou(agreement(predictions, answers)).tolist() == [0.0, 1.0]


def test_maps_of_two_sizes_are_refused():
    """A transposed map has as many pixels, and must not pass for the same."""
    with pytest.raises(ValueError, match="image 0"):
        map_metrics(Map.of([np.zeros((2, 3), np.uint8)], SPACE), Map.of([np.zeros((3, 2), np.uint8)], SPACE))


def test_differences_have_an_interval():
    """Of the better one it lies above 0; a method is not ahead of itself."""
    truth = random_maps(5, [0, 1, 2], ignored=0.0)
    many = truth.take(np.arange(40) % 4)
    good, bad = agreement(many, many), agreement(random_maps(6, [0, 1, 2]).take(np.arange(40) % 4), many)
    mean, low, high = iou_difference(good, bad)
    assert low > 0 and low <= mean <= high and iou_difference(good, good) == (0.0, 0.0, 0.0)
    assert iou_difference(bad, good)[0] == -mean


def test_pixels_of_each_class():
    """Ignored ones are of none."""
    assert class_pixels(Map.of([np.array([[0, 4, IGNORE]], np.uint8), np.array([[4]], np.uint8)], SPACE)).tolist() == [1, 0, 0, 0, 2]
