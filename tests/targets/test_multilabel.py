"""Protects the target of several labels: its loss, its solution in closed form, its thresholds, and what it says of rows."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from vector_encoder import VectorEncoder

from sslt.data.answers import Labels
from sslt.errors import UserError
from sslt.targets import linear
from sslt.targets.base import Rows
from sslt.targets.multilabel import Multilabel

SPACE = {"classes": ["a", "b", "c"]}


def Toy() -> VectorEncoder:
    """Its features are its inputs."""
    return VectorEncoder(nn.Identity(), 5)


def target(dropout: float = 0.0) -> Multilabel:
    torch.manual_seed(0)
    made = Multilabel(Toy(), SPACE, dropout)  # type: ignore[arg-type]
    nn.init.normal_(made.head.weight)  # scores far enough apart that a mistake shows
    return made


@torch.no_grad()
def answers_of(made: Multilabel, x: torch.Tensor) -> Labels:
    return made.predict(Toy(), {"x": x})  # type: ignore[arg-type]


def labels(n: int, seed: int = 0, share: float = 0.4) -> Labels:
    return Labels(np.random.default_rng(seed).random((n, 3)) < share, SPACE)


def rows_with_signal(n: int, seed: int) -> tuple[torch.Tensor, Labels]:
    """Features [n, 5] and labels that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)) * [1, 10, 0.1, 1, 1] + 3
    scores = (x - 3) @ np.array([[2, 0, 0], [0, 0.2, 0], [0, 0, 20], [1, 0, 0], [0, 0, 0]]) + rng.normal(size=(n, 3))
    return torch.from_numpy(x).float(), Labels(scores > [0, 1, 2], SPACE)


def test_the_loss_equals_the_loop():
    """Every view, sample and label counts once, by itself."""
    made, g = target(), torch.Generator().manual_seed(1)
    answers = labels(4)
    batch = {"views": {"x": torch.randn(2, 4, 5, generator=g)}, **answers.batch(np.arange(4))}
    w, bias = made.head.weight.detach().numpy().astype(float), made.head.bias.detach().numpy().astype(float)
    losses = []
    for view in batch["views"]["x"].numpy().astype(float):
        for x, truth in zip(view, answers.values, strict=True):
            for score, there in zip(w @ x + bias, truth, strict=True):
                p = 1 / (1 + math.exp(-score))
                losses.append(-math.log(p if there else 1 - p))
    assert made(Toy(), batch).value.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert made.units(batch) == 4


def test_right_answers_are_the_best_and_shuffled_ones_worse():
    """Answers as predictions have no doubt; no label at all is a prediction, and counted as one."""
    made, answers = target(), labels(200)
    perfect = made.measure(answers, answers)
    assert perfect["map"] == perfect["f1"] == perfect["micro_f1"] == perfect["auroc"] == 1
    shuffled = made.measure(answers.take(np.random.default_rng(0).permutation(200)), answers)
    assert shuffled["map"] < 0.6 and shuffled["f1"] < 0.6 and abs(shuffled["auroc"] - 0.5) < 0.1
    empty = made.measure(Labels(np.zeros((200, 3), bool), SPACE), answers)
    assert empty["f1"] == 0 and empty["map"] == pytest.approx(answers.values.mean(0).mean())
    assert made.trivial(answers, answers) == {"prevalence/map": pytest.approx(empty["map"])}
    assert not made.errors(answers, answers).round(4).any() and made.errors(Labels(~answers.values, SPACE), answers).min() > 10


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
@pytest.mark.parametrize("n", [300, 4])
def test_one_against_the_rest_is_scikit_learns(l2, n):
    """With fewer rows than features, and with a label that is on no row, too."""
    x, answers = rows_with_signal(n, 0)
    y = torch.from_numpy(answers.values)
    y[:, 1] &= n > 4
    mean, std = linear.feature_statistics(x)
    z = (x - mean) / std
    weight, bias = linear.fit_logistic(z, y, 3, l2, max_iter=500, gram=z.T @ z / n if n > 5 else None)
    for c in range(3):
        if y[:, c].any() and not y[:, c].all():
            reference = LogisticRegression(C=1 / (n * l2), tol=1e-8, max_iter=1000).fit(z.numpy(), y[:, c].numpy())
            assert weight[c].tolist() == pytest.approx(reference.coef_[0].tolist(), abs=5e-3)
            assert float(bias[c]) == pytest.approx(float(reference.intercept_[0]), abs=5e-3)
        elif not y[:, c].any():
            assert float((z @ weight[c] + bias[c]).max()) < -3


def test_the_solved_head_answers_on_features_as_they_are():
    """Of several strengths the one whose order of rows is best on validation; without it one that is given."""
    made, (x, y), (vx, vy) = target(), rows_with_signal(300, 0), rows_with_signal(300, 1)
    for held in ((vx, vy), None):
        nn.init.zeros_(made.head.weight)
        assert made.solve((x, y), held)
        said = answers_of(made, vx)
        assert made.measure(said, vy)["map"] > 0.85


def test_thresholds_are_set_on_validation_and_part_of_the_state():
    """The labels that are given change with them, scores do not; a label that validation never has keeps one half."""
    made, (x, y) = target(), rows_with_signal(400, 2)
    made.solve((x, y), None)
    rare = Labels(y.values & (np.arange(400)[:, None] % 8 == 0), SPACE)  # a head that is too sure: most of what it finds is not there
    rare.values[:, 2] = False
    before = answers_of(made, x)
    made.calibrate(before, rare)
    after = answers_of(made, x)
    assert np.array_equal(before.scores, after.scores) and float(made.thresholds[2]) == 0
    assert made.measure(after, rare)["f1"] > made.measure(before, rare)["f1"] + 0.02
    again = target()
    again.load_state_dict(made.state_dict())
    assert np.array_equal(answers_of(again, x).values, after.values)


def test_nothing_to_tell_apart_is_refused():
    """Each label on all rows or on none; a label that no training row has is only told of."""
    source = SimpleNamespace(name="mine")
    with pytest.raises(UserError, match="of the 4 training samples of mine none has a label"):
        Multilabel.check(source, Labels(np.zeros((4, 3), bool), SPACE))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="on all of them or on none"):
        Multilabel.check(source, Labels(np.tile([True, False, True], (4, 1)), SPACE))  # type: ignore[arg-type]
    Multilabel.check(source, Labels(np.array([[True, False, True], [False, False, True]]), SPACE))  # type: ignore[arg-type]


def test_rows_and_columns_name_the_labels():
    """Probabilities where there are scores; true answers have none."""
    made = target()
    said = Labels(np.array([[True, False, True], [False, False, False]]), SPACE, scores=np.array([[2.0, -1, 0], [-3, -3, -3]]))
    first, second = made.rows(said)
    assert first == {"prediction": ["a", "c"], "scores": {"a": 0.8808, "b": 0.2689, "c": 0.5}} and second["prediction"] == []
    assert made.columns(said)["labels"] == ["a; c", ""] and made.columns(said)["probability/b"] == ["0.2689", "0.0474"]
    assert made.rows(Labels(said.values, SPACE)) == [{"prediction": ["a", "c"]}, {"prediction": []}]


def test_cheap_methods_find_words():
    """TF-IDF tells labels that single words give away; a label on no training row has its share."""
    rng = np.random.default_rng(0)

    def rows(n: int) -> Rows:
        has = rng.random((n, 3)) < [0.4, 0.3, 0.0]
        noise = rng.choice(["x", "y", "z"], (n, 4))
        return Rows([" ".join([*w, *(["apple"] if a else []), *(["pear"] if b else [])]) for w, (a, b, _) in zip(noise, has, strict=True)],
                    Labels(has, SPACE))  # fmt: skip

    train, val, test = rows(120), rows(60), rows(60)
    for held in (val, None):
        best = target().cheapest("text", train, held, test)
        assert target().measure(best.predictions, test.answers)["map"] == 1 and "TF-IDF of words" in best.method
        assert math.isnan(best.val_score) if held is None else best.val_score == 1
        assert best.predictions.values.shape == (60, 3) and not best.predictions.values[:, 2].any()
