"""Protects measures of numbers: each equals an independent reference, and none is NaN whatever is constant."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score

from sslt.errors import UserError
from sslt.targets.metrics.numbers import number_metrics


def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(name))
    truth = rng.normal(size=50)
    said = truth + rng.normal(size=50)
    match name:
        case "ties":
            truth, said = np.round(truth), np.round(said)
        case "turned over":
            said = -truth
        case "far off":
            truth, said = truth + 1e6, said + 1e6
        case "two rows":
            truth, said = truth[:2], said[:2]
        case "float32":
            said = said.astype(np.float32)
        case "one that is far off":
            truth[3] = 1e6
    return said, truth


@pytest.mark.parametrize("name", ["random", "ties", "turned over", "far off", "two rows", "float32", "one that is far off"])
def test_each_number_is_that_of_scipy_and_scikit_learn(name):
    """With mean ranks for ties, and in the numbers' own unit."""
    said, truth = pair(name)
    found = number_metrics(said, truth)
    assert found["spearman"] == pytest.approx(stats.spearmanr(said, truth).statistic)
    assert found["pearson"] == pytest.approx(stats.pearsonr(said, truth).statistic)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, said))
    assert found["r2"] == pytest.approx(r2_score(truth, said))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9 + 0.1])
def test_what_is_constant_correlates_with_nothing(constant):
    """Though its mean may be off by a rounding, which would make a correlation of the errors of rounding."""
    rows, other = np.full(49, constant), np.random.default_rng(0).normal(size=49)
    for said, truth in ((rows, other), (other, rows), (rows, rows)):
        found = number_metrics(said, truth)
        assert found["spearman"] == found["pearson"] == 0 and all(math.isfinite(v) for v in found.values())
    assert number_metrics(rows, rows)["r2"] == 1 and number_metrics(other, rows)["r2"] == 0
    assert number_metrics(np.array([1.0]), np.array([2.0])) == {"spearman": 0, "pearson": 0, "mae": 1, "r2": 0}


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_units_do_not_matter(unit):
    """Squares of numbers that have squares out of range are not taken."""
    said, truth = pair("random")
    small, usual = number_metrics(said * unit, truth * unit), number_metrics(said, truth)
    assert {k: small[k] for k in ("spearman", "pearson", "r2")} == pytest.approx({k: usual[k] for k in ("spearman", "pearson", "r2")})


def test_a_split_without_rows_and_outputs_that_are_no_numbers_are_refused():
    """In a line each."""
    with pytest.raises(UserError, match="nothing to evaluate"):
        number_metrics(np.zeros(0), np.zeros(0))
    with pytest.raises(UserError, match="not numbers for 2 of 3"):
        number_metrics(np.array([0.0, np.nan, np.inf]), np.zeros(3))
    with pytest.raises(ValueError, match="do not fit"):
        number_metrics(np.zeros(3), np.zeros(2))
