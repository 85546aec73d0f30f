"""Protects the target of a number: its loss, its solution in closed form, and that units of the numbers do not matter."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn
from vector_encoder import VectorEncoder

from sslt.data.answers import Number
from sslt.errors import UserError
from sslt.targets import linear
from sslt.targets.base import Rows
from sslt.targets.regression import Regression


def Toy() -> VectorEncoder:
    """Its features are its inputs."""
    return VectorEncoder(nn.Identity(), 5)


def target(huber: float | None = None) -> Regression:
    torch.manual_seed(0)
    made = Regression(Toy(), {}, 0.0, huber)  # type: ignore[arg-type]
    nn.init.normal_(made.head.weight)
    return made


@torch.no_grad()
def answers_of(made: Regression, x: torch.Tensor) -> Number:
    return made.predict(Toy(), {"x": x})  # type: ignore[arg-type]


def rows_with_signal(n: int, seed: int, unit: float = 1.0, zero: float = 0.0) -> tuple[torch.Tensor, Number]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)) * [1, 10, 0.1, 1, 1] + 3
    return torch.from_numpy(x).float(), Number(((x - 3) @ [1, 0.1, 10, 0, 0] + 0.3 * rng.normal(size=n)) * unit + zero, {})


@pytest.mark.parametrize("huber", [None, 0.5])
def test_the_loss_equals_the_loop(huber):
    """In deviations of the training numbers from their mean; an error beyond `huber` of them counts by its size."""
    made, answers = target(huber), Number(np.array([2.0, 4.0, 9.0]), {})
    train = Number(np.array([1.0, 3.0, 11.0]), {})
    made.prepare(Toy(), SimpleNamespace(answers=train), 3)  # type: ignore[arg-type]
    batch = {"views": {"x": torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))}, **answers.batch(np.arange(3))}
    w, bias = made.head.weight.detach().numpy().astype(float)[0], float(made.head.bias)
    losses = []
    for view in batch["views"]["x"].numpy().astype(float):
        for x, number in zip(view, answers.values, strict=True):
            off = abs(float(w @ x) + bias - (number - train.values.mean()) / train.values.std())
            losses.append(off**2 if huber is None else off**2 / 2 if off < huber else huber * (off - huber / 2))
    assert made(Toy(), batch).value.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_right_answers_are_the_best_and_shuffled_ones_worse():
    """And a constant, which is all that can be told without a look, has no order and the error of the mean."""
    made, answers = target(), rows_with_signal(200, 0)[1]
    assert made.measure(answers, answers) == pytest.approx({"spearman": 1, "pearson": 1, "mae": 0, "r2": 1})
    assert abs(made.measure(answers.take(np.random.default_rng(0).permutation(200)), answers)["spearman"]) < 0.2
    mean = Number(np.full(200, answers.values.mean()), {})
    constant = made.measure(mean, answers)
    assert constant["spearman"] == 0 and made.trivial(answers, answers) == {"mean/mae": pytest.approx(constant["mae"])}
    assert constant["r2"] == pytest.approx(0) and not made.errors(answers, answers).any()


@pytest.mark.parametrize("n", [200, 4])
@pytest.mark.parametrize("l2", [1.0, 1e-2])
def test_ridge_is_scikit_learns(n, l2):
    """On standardised features, with fewer rows than features, too."""
    x, answers = rows_with_signal(n, 0, unit=7, zero=100)
    weight, bias, chosen = linear.ridge_weights(x, torch.from_numpy(answers.values), None, [l2])
    mean, std = linear.feature_statistics(x)
    reference = Ridge(alpha=n * l2).fit(((x - mean) / std).double().numpy(), answers.values)
    said = reference.predict(((x - mean) / std).double().numpy())
    assert chosen == l2 and (x @ weight + bias).tolist() == pytest.approx(said.tolist(), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("noise", [0.1, 3.0, 100.0])
def test_ridge_is_as_strong_as_validation_wants_it(noise):
    """The strength whose squared error on validation is least, by another solver; a feature that does not vary changes nothing."""
    (x, y), (vx, vy) = rows_with_signal(40, 0), rows_with_signal(400, 1)
    told = torch.from_numpy(y.values + noise * np.random.default_rng(3).normal(size=40))
    x, vx = (torch.cat([part, torch.full((len(part), 1), 5.0)], 1) for part in (x, vx))
    chosen = linear.ridge_weights(x, told, (vx, torch.from_numpy(vy.values)), linear.L2_GRID)[2]
    mean, std = linear.feature_statistics(x)
    z, vz = (((part - mean) / std).numpy() for part in (x, vx))
    wrong = {l2: np.square(Ridge(alpha=40 * l2).fit(z, told).predict(vz) - vy.values).mean() for l2 in linear.L2_GRID}
    assert wrong[chosen] == pytest.approx(min(wrong.values()), rel=1e-4)


def test_few_numbers_count_most_what_features_differ_by(monkeypatch):
    """Eight numbers for 40 features, of which the largest component is the number: validation finds that, as with classes."""

    def rows(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 40, generator=g)
        x[:, 0] *= 6
        return x @ torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(5)))[0], 7 * x[:, 0] + 100

    def error() -> float:
        weight, bias, _ = linear.ridge_weights(*rows(8, 0), rows(100, 1), linear.L2_GRID)
        x, y = rows(1000, 2)
        return float((x @ weight + bias - y).square().mean() / y.var())

    found = error()
    monkeypatch.setattr(linear, "_axes", lambda rows: ())
    assert found < 0.5 * error()


@pytest.mark.parametrize(("unit", "zero"), [(1, 0), (1e-3, 0), (50, 2000), (-1, 0)])
def test_the_solved_head_tells_numbers_in_their_own_unit(unit, zero):
    """Whatever that is, and where it has its zero."""
    (x, y), (vx, vy) = rows_with_signal(300, 0, unit, zero), rows_with_signal(300, 1, unit, zero)
    for held in ((vx, vy), None):
        made = target()
        assert made.solve((x, y), held)
        found = made.measure(answers_of(made, vx), vy)
        assert found["r2"] > 0.9 and found["spearman"] > 0.95
    assert abs(float(made.head.weight.detach().abs().max())) < 20  # the head itself works in deviations


def test_numbers_that_are_all_the_same_are_refused():
    """In one line that names them."""
    with pytest.raises(UserError, match=r"all 3 training samples of mine have the number 2\.5"):
        Regression.check(SimpleNamespace(name="mine"), Number(np.full(3, 2.5), {}))  # type: ignore[arg-type]
    made = target()
    made.prepare(Toy(), SimpleNamespace(answers=Number(np.full(3, 2.5), {})), 3)  # type: ignore[arg-type]
    assert float(made.std) == 1  # nothing is divided by zero


def test_rows_and_columns_hold_the_number():
    """With as many digits as float32 has."""
    said = Number(np.array([1 / 3, -2.0, 1234567.8]), {})
    assert target().rows(said) == [{"prediction": 0.3333333}, {"prediction": -2.0}, {"prediction": 1234568.0}]
    assert target().columns(said) == {"number": ["0.3333333", "-2", "1234568"]}


def test_cheap_methods_count_words():
    """TF-IDF tells a number that is given away by words."""
    rng = np.random.default_rng(0)

    def rows(n: int) -> Rows:
        words = rng.choice(["good", "bad", "so", "so"], (n, 5))
        return Rows([" ".join(w) for w in words], Number(np.array([(w == "good").sum() - (w == "bad").sum() for w in words], float), {}))

    train, val, test = rows(150), rows(60), rows(60)
    for held in (val, None):
        best = target().cheapest("text", train, held, test)
        assert target().measure(best.predictions, test.answers)["spearman"] > 0.9 and "ridge" in best.method
        assert math.isnan(best.val_score) == (held is None)
