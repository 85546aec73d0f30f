"""Protects the classifier: cross-entropy with label smoothing over views, dropout on features, scores for prediction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sslt.encoders.base import Features
from sslt.targets.classification import Classification


class Toy(nn.Module):
    """An encoder of vectors: its features are its inputs."""

    chunk_size = None

    dim = 5

    def forward(self, inputs):
        return Features(inputs["x"], inputs["x"].unsqueeze(1))


def objective(n_classes: int = 3, dropout: float = 0.0, label_smoothing: float = 0.0) -> Classification:
    torch.manual_seed(0)
    head = Classification(Toy(), {"classes": [str(i) for i in range(n_classes)]}, dropout, label_smoothing)
    nn.init.normal_(head.head.weight)  # scores far enough apart that a mistake shows
    return head


def batch(v: int, b: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return {"views": {"x": torch.randn(v, b, 5, generator=g)}, "label": torch.arange(b) % 3}


def reference(head: Classification, made: dict, smoothing: float) -> tuple[float, float]:
    """Mean over views and samples of -Σ_c q_c log softmax_c, q smoothed by Szegedy et al. (2016), section 7; accuracy."""
    w, bias = head.head.weight.detach().numpy().astype(float), head.head.bias.detach().numpy().astype(float)
    losses, right = [], 0
    for view in made["views"]["x"].numpy().astype(float):
        for x, y in zip(view, made["label"].tolist(), strict=True):
            scores = w @ x + bias
            logs = scores - math.log(sum(math.exp(s) for s in scores))
            q = [smoothing / len(scores) + (1 - smoothing) * (c == y) for c in range(len(scores))]
            losses.append(-sum(qc * lc for qc, lc in zip(q, logs, strict=True)))
            right += int(np.argmax(scores)) == y
    return sum(losses) / len(losses), right / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("v", [1, 3])
def test_equals_the_loop(v, smoothing):
    """Value, accuracy and count; with several views every view is scored against its sample's label."""
    head, made = objective(label_smoothing=smoothing), batch(v, 7)
    loss = head(Toy(), made)
    value, accuracy = reference(head, made, smoothing)
    assert loss.value.item() == pytest.approx(value, rel=1e-5)
    assert loss.logs["accuracy"].item() == pytest.approx(accuracy)
    assert head.units(made) == 7


def test_starts_near_chance():
    """The fresh head scores all classes alike: the loss starts at log C."""
    torch.manual_seed(0)
    loss = Classification(Toy(), {"classes": [str(i) for i in range(10)]}, 0.0, 0.0)(Toy(), batch(1, 64))
    assert loss.value.item() == pytest.approx(math.log(10), abs=0.02)


def test_dropout_only_in_training():
    """Features are dropped while training and never when scoring."""
    head, made = objective(dropout=0.5), batch(1, 16)
    head.train()
    torch.manual_seed(1)
    first, second = (head(Toy(), made).value.item() for _ in range(2))
    assert first != second
    head.eval()
    assert head(Toy(), made).value.item() == pytest.approx(reference(head, made, 0.0)[0], rel=1e-5)


def test_logits_are_the_scores_the_loss_is_made_of():
    """Prediction and training use the same scores; half-precision features are taken too."""
    head, made = objective().eval(), batch(1, 8)
    pooled = made["views"]["x"][0]
    expected = torch.nn.functional.cross_entropy(head.logits(pooled), made["label"])
    assert head(Toy(), made).value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert head.logits(pooled.half()).dtype == torch.float32


def test_gradient_reaches_head_and_features():
    """Fine-tuning needs both."""
    head, made = objective(), batch(1, 8)
    made["views"]["x"].requires_grad_()
    head(Toy(), made).value.backward()
    assert made["views"]["x"].grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize(("times", "factor"), [(1.0, 1.0), (0.1, 1.0), (100.0, None)])
def test_a_head_that_is_too_sure_of_training_views_is_softened(times, factor):
    """It starts no worse than guessing, at the best of the factors, and answers what it answered; one that is not too sure stays."""
    head, made = objective(), [batch(2, 40, seed) for seed in (1, 2)]
    with torch.no_grad():
        first = torch.cat([m["views"]["x"].flatten(0, 1) for m in made])
        truth = torch.cat([m["label"].repeat(2) for m in made])
        noise = torch.randn(3, 5)
        answers = torch.linalg.lstsq(torch.cat([first, torch.ones(len(first), 1)], 1), nn.functional.one_hot(truth, 3).float()).solution
        head.head.weight.copy_((answers[:5].T + 0.02 * noise) * times)
        head.head.bias.copy_(answers[5] * times)
        before, said = head.head.weight.clone(), head.head(first).argmax(1)
    head.soften(Toy(), made)
    found = float(head.head.weight[0, 0] / before[0, 0])
    loss = lambda scale: nn.functional.cross_entropy(scale * (first @ before.T + head.head.bias / found), truth).item()  # noqa: E731
    assert torch.equal(head.head(first).argmax(1), said)
    assert loss(found) == min(loss(2.0**-k) for k in range(25)) < math.log(3) and (factor is None or found == factor)


def test_softening_leaves_the_modes_of_the_encoder():
    encoder, head = Toy().train(), objective()
    head.soften(encoder, [batch(1, 9)])
    assert encoder.training and all(p.requires_grad for p in head.parameters())
