"""Protects the curve over labels: which labels a share holds, and how many labels a score is worth."""

from __future__ import annotations

import math

import pytest
import torch

from sslt.errors import UserError
from sslt.evaluation.label_curve import labels_needed, linear_curve, named_points
from sslt.targets.linear import linear_probe


def split(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    return torch.eye(4, 12)[y] + 0.8 * torch.randn(n, 12, generator=g), y


def test_all_labels_are_the_linear_probe():
    """A fraction of 1 is the probe itself; fewer labels score less and are counted."""
    train, val, test = split(800, 0), split(100, 1), split(400, 2)
    found = linear_curve(train, val, test, 4, [1.0, 0.02], seed=0)
    assert found["linear/accuracy"] == linear_probe(*train, *val, *test, 4).accuracy
    assert (found["linear/labels"], found["linear_2pct/labels"]) == (800, 16)
    assert found["linear_2pct/accuracy"] < found["linear/accuracy"]
    assert found == linear_curve(train, val, test, 4, [1.0, 0.02], seed=0)


def test_points_of_both_kinds_of_probe():
    """k-shot probes count k labels of each class, linear ones what they say."""
    metrics = {"5_shot/accuracy": 0.5, "5_shot/interval": 0.1, "linear/accuracy": 0.9, "linear/labels": 800, "knn/accuracy": 0.8}
    assert sorted(named_points(metrics, {"classes": list("abcd")}).values()) == [(20, 0.5), (800, 0.9)]


@pytest.mark.parametrize(
    ("score", "needed"),
    [(0.1, 10), (0.2, 10), (0.3, math.sqrt(1000)), (0.4, 100), (0.5, 10 ** (2 + 1 / 3 * 2)), (0.9, math.inf)],
)
def test_labels_needed_are_read_off_the_logarithmic_curve(score, needed):
    """Between 10 labels at 20 % and 100 at 40 %, 30 % takes √1000; a dip in between is luck; beyond the curve is infinity."""
    curve = [(10, 0.2), (100, 0.4), (1000, 0.35), (10_000, 0.7)]
    if score == 0.5:
        needed = math.exp(math.log(100) + (0.5 - 0.4) / (0.7 - 0.4) * (math.log(10_000) - math.log(100)))
    assert labels_needed(curve, score) == pytest.approx(needed)


def test_a_fraction_is_a_share():
    """One line for 10 in place of 0.1."""
    with pytest.raises(UserError, match=r"curve\.fractions: 10"):
        linear_curve(split(8, 0), split(8, 1), split(8, 2), 4, [10], seed=0)


def test_probes_with_as_many_labels_are_told_apart():
    """10 of each of 10 classes, and a tenth of 1,000."""
    metrics = {"10_shot/accuracy": 0.8, "linear_10pct/accuracy": 0.85, "linear_10pct/labels": 100}
    assert named_points(metrics, {"classes": list("abcdefghij")}) == {"10_shot": (100, 0.8), "linear_10pct": (100, 0.85)}
