"""Few-shot draws and their intervals."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from sslt.errors import UserError
from sslt.evaluation import few_shot
from sslt.evaluation.few_shot import few_shot_probe, mean_interval


def _split(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return 2 * torch.eye(3, 10)[y] + torch.randn(n, 10, generator=g), y


def test_interval_against_scipy_and_the_table():
    """Student's t: 2.262 for ten values."""
    from scipy import stats

    values = [0.1, 0.4, 0.35, 0.2, 0.25, 0.3, 0.31, 0.5, 0.22, 0.28]
    mean, half = mean_interval(values)
    low, high = stats.t.interval(0.95, 9, np.mean(values), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert half == pytest.approx(2.262 * np.std(values, ddof=1) / math.sqrt(10), rel=1e-3)
    assert mean_interval([0.5])[0] == 0.5
    assert math.isnan(mean_interval([0.5])[1])
    assert mean_interval([0.5, 0.5]) == (0.5, 0)


def test_more_labels_help_and_the_seed_decides():
    """The curve rises on separable data; the same seed gives the same numbers, another does not."""
    train, test = _split(300, 0), _split(300, 1)
    first = few_shot_probe(*train, *test, 3, shots=(1, 20), draws=5)
    assert set(first) == {"1_shot/accuracy", "1_shot/interval", "20_shot/accuracy", "20_shot/interval"}
    assert first["20_shot/accuracy"] > first["1_shot/accuracy"] > 1 / 3
    assert first == few_shot_probe(*train, *test, 3, shots=(1, 20), draws=5)
    assert first != few_shot_probe(*train, *test, 3, shots=(1, 20), draws=5, seed=1)


def test_draws_are_balanced_and_nested(monkeypatch):
    """k samples of each class, and those of a smaller k among those of a larger."""
    train, test = _split(90, 0), _split(9, 1)
    seen = []

    def spy(x, y, *args, **kwargs):
        seen.append((x, y))
        return torch.zeros(len(x), 3, 10), torch.zeros(len(x), 3)

    monkeypatch.setattr(few_shot, "fit_each", spy)
    few_shot_probe(*train, *test, 3, shots=(5, 2), draws=2)
    assert [[torch.bincount(y).tolist() for y in each] for _, each in seen] == [[[2] * 3] * 2, [[5] * 3] * 2]
    (small, other), (large, _) = ([{tuple(row.tolist()) for row in draw} for draw in x] for x, _ in seen)
    assert small < large and len(large) == 15
    assert other != small


def test_draws_that_do_not_fit_together_are_fitted_in_turns(monkeypatch):
    """However many are fitted at once, each is the same draw, and the numbers are the same."""
    train, test = _split(300, 0), _split(300, 1)
    together = few_shot_probe(*train, *test, 3, shots=(1, 5), draws=5)
    monkeypatch.setattr(few_shot, "TOGETHER", 2 * 15 * train[0].shape[1])
    assert few_shot_probe(*train, *test, 3, shots=(1, 5), draws=5) == pytest.approx(together, abs=0.005)


def test_shots_that_a_class_cannot_give_are_left_out(caplog):
    """A class of two samples allows 1 shot, not 5; a class without samples allows nothing."""
    x, y = _split(90, 0)
    keep = (y != 2) | (torch.arange(90) < 6)
    with caplog.at_level(logging.INFO, "sslt"):
        result = few_shot_probe(x[keep], y[keep], x, y, 3, shots=(1, 5), draws=2)
    assert set(result) == {"1_shot/accuracy", "1_shot/interval"}
    assert "5-shot left out" in caplog.text
    assert few_shot_probe(x, y, x, y, n_classes=4, draws=1) == {}


@pytest.mark.parametrize(("shots", "draws"), [((5, 0), 2), ((-1,), 2), ((1,), 0)])
def test_no_shots_and_no_draws_are_refused(shots, draws):
    """No accuracy is made of nothing."""
    with pytest.raises(UserError, match="must be at least 1"):
        few_shot_probe(*_split(30, 0), *_split(9, 1), 3, shots=shots, draws=draws)
