"""The linear probe, against scikit-learn on the same objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslt.errors import UserError
from sslt.targets import linear
from sslt.targets.linear import feature_statistics, fit_each, fit_logistic, linear_probe


def _split(n: int, seed: int, d: int = 12, c: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(c, d, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(c, (n,), generator=g)
    return (centres[y] + 1.5 * torch.randn(n, d, generator=g)) * torch.arange(1, d + 1) + 5, y


@pytest.mark.parametrize("l2", [1.0, 1e-1, 1e-2, 1e-3])
def test_coefficients_agree_with_scikit_learn(l2):
    """The optimum of mean CE + l2/2 ||W||², which scikit-learn has at C = 1 / (N l2)."""
    from sklearn.linear_model import LogisticRegression

    x, y = _split(300, 0)
    mean, std = feature_statistics(x)
    x = (x - mean) / std
    weight, bias = fit_logistic(x, y, 4, l2, max_iter=200)
    theirs = LogisticRegression(C=1 / (len(x) * l2), tol=1e-8, max_iter=5000).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weight, theirs.coef_, atol=1e-2)
    # Adding a constant to every bias changes nothing, so only differences compare.
    np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-2)
    assert (x @ weight.T + bias).argmax(1).numpy().tolist() == theirs.predict(x.numpy()).tolist()


def test_many_problems_at_once_end_where_each_does():
    """Of one size, with other samples and labels: weights and biases of each are those of scikit-learn, few samples and many."""
    from sklearn.linear_model import LogisticRegression

    for n in (8, 60):
        splits = [_split(n, seed) for seed in range(3)]
        x = torch.stack([(x - x.mean(0)) / x.std(0) for x, _ in splits])
        y = torch.stack([torch.arange(n).roll(seed) % 4 for seed in range(3)])
        weight, bias = fit_each(x, y, 4, 0.05)
        for i in range(3):
            theirs = LogisticRegression(C=1 / (n * 0.05), tol=1e-8, max_iter=5000).fit(x[i].numpy(), y[i].numpy())
            np.testing.assert_allclose(weight[i], theirs.coef_, atol=2e-3)
            np.testing.assert_allclose(bias[i] - bias[i].mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)


def test_warm_start_ends_at_the_same_optimum():
    """`init` changes the way, not the end."""
    x, y = _split(300, 0)
    x = (x - x.mean(0)) / x.std(0)
    cold = fit_logistic(x, y, 4, 1e-2, max_iter=200)
    warm = fit_logistic(x, y, 4, 1e-2, init=fit_logistic(x, y, 4, 1.0), max_iter=200)
    torch.testing.assert_close(cold[0], warm[0], atol=2e-3, rtol=0)


def test_l2_is_chosen_on_val_alone(monkeypatch):
    """Test labels do not influence the choice, and test is scored with the weights that were chosen."""
    train, val, test = _split(200, 1), _split(200, 2), _split(200, 3)
    result = linear_probe(*train, *val, *test, n_classes=4)
    assert result.accuracy == pytest.approx(float((result.logits_test.argmax(1) == test[1]).float().mean()))
    other = linear_probe(*train, *val, test[0], (test[1] + 1) % 4, n_classes=4)
    assert (other.l2, other.val_accuracy) == (result.l2, result.val_accuracy)
    alone = linear_probe(*train, *val, *test, n_classes=4, l2_grid=(result.l2,))
    assert alone.accuracy == pytest.approx(result.accuracy, abs=0.02)
    monkeypatch.setattr(linear, "accuracy", lambda logits, labels: 0.5)
    assert linear_probe(*train, *val, *test, n_classes=4, l2_grid=(0.1, 10.0, 1.0)).l2 == 10.0  # ties: the strongest


def test_everything_is_standardised_by_the_statistics_of_train():
    """So that a sample's logits do not depend on the samples that are scored with it, and val is measured as test is."""
    train, val, test = _split(200, 1), _split(200, 2), _split(200, 3)
    result = linear_probe(*train, *val, *test, n_classes=4)
    few = linear_probe(*train, *val, test[0][:3], test[1][:3], n_classes=4)
    torch.testing.assert_close(few.logits_test, result.logits_test[:3])
    swapped = linear_probe(*train, *test, *test, n_classes=4)
    assert swapped.val_accuracy == swapped.accuracy
    mean, std = train[0].numpy().mean(0), train[0].numpy().std(0)
    x, unseen = ((torch.from_numpy((s[0].numpy() - mean) / std)) for s in (train, test))
    weight, bias = fit_logistic(x, train[1], 4, 0.1)
    alone = linear_probe(*train, *val, *test, n_classes=4, l2_grid=(0.1,))
    torch.testing.assert_close(alone.logits_test, unseen @ weight.T + bias, rtol=1e-3, atol=1e-3)


def test_works_inside_inference_mode_and_with_constant_features():
    """Probes run where gradients are off; dead features must not become NaN."""
    (x, y) = _split(100, 0)
    with torch.inference_mode():
        x = torch.cat([x, torch.full((100, 1), 1234.567), torch.zeros(100, 1)], 1)
        result = linear_probe(x, y, x, y, x, y, 4)
    assert result.accuracy > 0.8
    assert torch.isfinite(result.logits_test).all()


def test_features_that_say_nothing_give_the_most_frequent_class():
    """An encoder that has collapsed is measured like any other."""
    x, y = torch.full((30, 4), 0.7), torch.arange(30) % 3 % 2
    result = linear_probe(x, y, x, y, x, y, 2)
    assert result.accuracy == pytest.approx(2 / 3) and not result.logits_test.argmax(1).any()


def test_impossible_input_is_explained():
    """Empty splits, diverged features, an empty grid."""
    x, y = _split(20, 0)
    with pytest.raises(UserError, match="'val' has none"):
        linear_probe(x, y, x[:0], y[:0], x, y, 4)
    with pytest.raises(UserError, match="diverged"):
        linear_probe(x * float("nan"), y, x, y, x, y, 4)
    with pytest.raises(UserError, match="l2"):
        linear_probe(x, y, x, y, x, y, 4, l2_grid=())


def _wide(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """200 features in which what differs most, along a direction that none of them has for itself, is the class of two."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 200, generator=g)
    x[:, 0] = 3 * (2.0 * y - 1) + 1.5 * x[:, 0]
    return x @ torch.linalg.qr(torch.randn(200, 200, generator=torch.Generator().manual_seed(5)))[0], y


def test_few_labels_count_most_what_features_differ_by(monkeypatch):
    """Ten labels of 200 features: what varies most says the class, which no label has to tell. With labels enough nobody looks for it."""
    val, test = _wide(200, 1), _wide(1000, 2)
    found = np.mean([linear_probe(*_wide(10, 3 + i), *val, *test, 2).accuracy for i in range(5)])
    logits = linear_probe(*_wide(10, 3), *val, *test, 2).logits_test
    weight, bias, _ = linear.probe_weights(*_wide(10, 3), val, 2, linear.L2_GRID)
    torch.testing.assert_close(logits, test[0] @ weight.T + bias)
    monkeypatch.setattr(linear, "_axes", lambda rows: ())
    without = np.mean([linear_probe(*_wide(10, 3 + i), *val, *test, 2).accuracy for i in range(5)])
    assert found > without + 0.08
    monkeypatch.setattr(linear, "_axes", None)
    linear_probe(*_wide(200, 3), *val, *test, 2)


@pytest.mark.parametrize("n", [300, 25])
def test_components_are_those_of_numpy(n, monkeypatch):
    """Uncorrelated, each times a power of its deviation; mean variance 1; the directions that a decomposition of other make finds."""
    monkeypatch.setattr(linear, "POWERS", (0.0, 1.0, 2.0))
    rows = _wide(n, 0)[0]
    centred = rows.double().numpy() - rows.double().numpy().mean(0)
    _, deviations, directions = np.linalg.svd(centred / n**0.5, full_matrices=False)
    for power, axes in zip(linear.POWERS, linear._axes(rows), strict=True):
        across = np.cov((rows @ axes).double().numpy().T, bias=True)
        kept = deviations[deviations > 1e-3 * deviations[0]]
        expected = np.sort(kept ** (2 + 2 * power))
        np.testing.assert_allclose(across, np.diag(expected / expected.sum() * 200), atol=1e-3 * across.max())
        strongest = axes[:, -1] / axes[:, -1].norm()
        assert abs(float(strongest.double().numpy() @ directions[0])) == pytest.approx(1, abs=1e-5)
    assert not list(linear._axes(torch.full((30, 4), 0.7)))


@pytest.mark.parametrize(("ahead", "taken"), [(0.4, 0), (0.6, 1)])
def test_components_are_taken_where_they_are_better_by_more_than_chance(ahead, taken, monkeypatch):
    """By half a standard error of the share that is right on validation."""
    scores = iter([0.8, 0.8 + ahead * (0.8 * 0.2 / 50) ** 0.5, 0.8])
    fits = [linear.Fit(score, l2, torch.zeros(2, 200), torch.zeros(2)) for l2, score in zip((0.1, 0.2, 0.3), scores, strict=True)]
    left = iter(fits)
    monkeypatch.setattr(linear, "_best_fit", lambda x, *others: next(left)._replace(weight=torch.zeros(2, x.shape[1])))
    assert linear.probe_weights(*_wide(10, 3), _wide(50, 1), 2, linear.L2_GRID)[2] == fits[taken].l2
