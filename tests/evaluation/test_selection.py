"""Protects what judges a model without target labels: criteria and distances against known values and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sslt.evaluation.selection import (
    density_ratio,
    distance_weights,
    information_maximisation,
    proxy_a_distance,
    target_risk,
    weighted_risk,
)


def normal(n: int, d: int = 2, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)) + shift).float()


# -------------------------------------------------------------------- information maximisation
def test_information_of_known_predictions():
    """Unsure everywhere: 0. Sure, but of one class: 0. Sure, all classes alike: log C."""
    assert information_maximisation(torch.zeros(6, 3)) == pytest.approx(0)
    one = torch.full((6, 3), -100.0)
    one[:, 1] = 100
    assert information_maximisation(one) == pytest.approx(0, abs=1e-12)
    assert information_maximisation(200 * torch.eye(3).repeat(2, 1)) == pytest.approx(math.log(3))


def test_information_equals_its_formula():
    """H(mean p) - mean H(p), row by row."""
    logits = normal(7, 4)
    rows = [[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in logits.tolist()]
    entropy = lambda p: -sum(v * math.log(v) for v in p)  # noqa: E731
    mean = [sum(r[c] for r in rows) / 7 for c in range(4)]
    assert information_maximisation(logits) == pytest.approx(entropy(mean) - sum(map(entropy, rows)) / 7, rel=1e-6)


# -------------------------------------------------------------------- importance weighting
def test_the_density_ratio_of_two_gaussians():
    """N(1, 1) against N(0, 1) in one dimension: exp(x - 1/2), whatever the sizes of the samples."""
    source, target = normal(4000, 1), normal(2000, 1, seed=1, shift=1.0)
    at = torch.tensor([[-1.0], [0.0], [0.5], [1.0], [2.0]])
    expected = torch.exp(at[:, 0] - 0.5)
    assert torch.allclose(density_ratio(source, target, at).float(), expected, rtol=0.15)


@pytest.mark.parametrize("control", [False, True])
def test_the_weighted_risk_equals_its_formula(control):
    """Sugiyama et al. (2007): mean of w·l; You et al. (2019): with η = -cov(w·l, w) / var(w), plus η mean(w) - η."""
    rng = np.random.default_rng(0)
    losses, w = rng.random(9), rng.random(9) * 3
    risk = float((losses * w).mean())
    if control:
        cov = np.cov(losses * w, w)
        eta = -cov[0, 1] / cov[1, 1]
        risk += eta * w.mean() - eta
    assert weighted_risk(torch.from_numpy(losses), torch.from_numpy(w), control) == pytest.approx(risk, rel=1e-10)


def test_the_control_variate_knows_a_constant_loss():
    """Whatever the weights, a loss of 0.3 everywhere is one of 0.3 on the target; without the control variate it is not."""
    losses, w = torch.full((5,), 0.3), torch.tensor([0.1, 0.2, 2.0, 1.0, 0.4])
    assert weighted_risk(losses, w, True) == pytest.approx(0.3)
    assert weighted_risk(losses, w, False) != pytest.approx(0.3)
    assert weighted_risk(losses, torch.full((5,), 2.0), True) == pytest.approx(0.6)  # weights that do not vary tell nothing


def test_the_target_risk_follows_the_target():
    """Two classifiers, equally good on the source: the one that errs where the target lies has the larger estimate."""
    source, target, held = normal(500), normal(500, seed=1, shift=1.0), normal(500, seed=2)
    right_side = held[:, 0] > 0.0
    labels = torch.zeros(500).long()
    wrong_there, wrong_elsewhere = (torch.stack([torch.where(s, -1.0, 1.0), torch.zeros(500)], 1) for s in (right_side, ~right_side))
    bad, good = (target_risk(source, target, held, logits, labels) for logits in (wrong_there, wrong_elsewhere))
    assert bad > good + 0.3


# -------------------------------------------------------------------- distances between domains
def test_the_a_distance_of_known_domains():
    """Nearly 0 for draws of one distribution, 2 for domains apart, between for domains that overlap; symmetric in size."""
    same = proxy_a_distance(normal(1000), normal(1000, seed=1), 0)
    apart = proxy_a_distance(normal(200), normal(300, seed=1, shift=20.0), 0)
    near = proxy_a_distance(normal(1000), normal(1000, seed=1, shift=1.0), 0)
    error = 0.5 * (1 - math.erf(math.sqrt(2) / 2 / math.sqrt(2)))  # of the best line between N(0, I) and N(1, I) in the plane
    assert 0 <= same < 0.3 and apart == 2
    assert near == pytest.approx(2 * (1 - 2 * error), abs=0.2)


def test_the_a_distance_is_measured_on_rows_it_was_not_fitted_to():
    """Few rows in many dimensions can always be told apart by memory: without a held-out half the distance would be 2."""
    assert proxy_a_distance(normal(60, 200), normal(60, 200, seed=1), 0) < 1


def test_two_rows_of_each_domain_have_an_a_distance():
    """One of each to learn from, one to measure on."""
    assert proxy_a_distance(normal(2), normal(2, seed=1, shift=20.0), 0) == 2


def test_the_a_distance_is_repeatable():
    x, y = normal(100), normal(90, seed=1, shift=0.5)
    assert proxy_a_distance(x, y, 3) == proxy_a_distance(x, y, 3)
    with pytest.raises(ValueError, match="two samples"):
        proxy_a_distance(x, y[:1], 0)


def test_near_sources_weigh_more():
    """exp(-d / T) over its sum."""
    weights = distance_weights([2.0, 1.0, 1.0], 0.5)
    e = [math.exp(-4), math.exp(-2), math.exp(-2)]
    assert weights == pytest.approx([v / sum(e) for v in e])
