"""The numbers of a classifier, against scikit-learn and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslt.errors import UserError
from sslt.targets.metrics.classes import calibration_bins, classification_metrics, confusion_matrix


def _problem(n: int = 400, c: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(c, (n,), generator=g)
    return torch.randn(n, c, generator=g) + 1.5 * torch.eye(c)[labels], labels


def test_agrees_with_scikit_learn():
    """Accuracy, macro averages, per-class values and nll, with one class absent and one never predicted."""
    from sklearn import metrics as sk

    logits, labels = _problem()
    labels[labels == 4] = 0
    logits[:, 4] = -20
    logits[:, 3] -= 20  # occurs among the labels, is never predicted
    classes = list("abcde")
    ours = classification_metrics(logits, labels, classes)
    pred = logits.argmax(1).numpy()
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, pred))
    probabilities = logits.double().softmax(1).numpy()  # scikit-learn clips at the precision of what it is given
    assert ours["nll"] == pytest.approx(sk.log_loss(labels, probabilities, labels=range(5)), rel=1e-5)
    macro = sk.precision_recall_fscore_support(labels, pred, average="macro", zero_division=0)
    assert [ours["precision"], ours["recall"], ours["f1"]] == pytest.approx(macro[:3])
    each = sk.precision_recall_fscore_support(labels, pred, labels=range(5), zero_division=0)
    for measure, values in zip(("precision", "recall", "f1", "support"), each, strict=True):
        assert [ours[f"class/{c}/{measure}"] for c in classes] == pytest.approx(values)


def test_confusion_matrix_has_true_classes_in_rows():
    """The orientation, which a symmetric example would not show."""
    matrix = confusion_matrix(torch.tensor([1, 1, 2, 0]), torch.tensor([0, 0, 2, 0]), 3)
    assert matrix.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    assert np.issubdtype(matrix.dtype, np.integer)


def test_calibration_error_against_loops():
    """ECE by its definition, bins open below and closed above, confidences of exactly 1 in the last bin."""
    logits, labels = _problem()
    logits[:50] *= 100
    p, pred = logits.softmax(1).max(1)
    expected = 0.0
    for m in range(15):
        inside = [i for i in range(len(p)) if m / 15 < float(p[i]) <= (m + 1) / 15]
        if inside:
            confidence = sum(float(p[i]) for i in inside) / len(inside)
            accuracy = sum(bool(pred[i] == labels[i]) for i in inside) / len(inside)
            expected += len(inside) / len(p) * abs(accuracy - confidence)
    assert classification_metrics(logits, labels, list("abcde"))["ece"] == pytest.approx(expected, abs=1e-9)
    assert calibration_bins(logits, labels).counts.sum() == len(labels)


def test_known_values():
    """A perfect, certain classifier, and one that says nothing."""
    labels = torch.tensor([0, 1, 2, 1])
    sure = classification_metrics(1000 * torch.eye(3)[labels], labels, list("abc"))
    assert (sure["accuracy"], sure["f1"], sure["ece"], sure["nll"]) == (1, 1, 0, 0)
    unsure = classification_metrics(torch.zeros(4, 3), labels, list("abc"))
    assert unsure["nll"] == pytest.approx(np.log(3))
    assert classification_metrics(torch.zeros(2, 1), torch.zeros(2), ["only"])["accuracy"] == 1


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (torch.zeros(0, 3), torch.zeros(0), "nothing to evaluate"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "label 3"),
        (torch.full((2, 3), float("nan")), torch.tensor([0, 1]), "diverged"),
    ],
)
def test_impossible_input_is_explained(logits, labels, says):
    """An empty split, foreign labels and a diverged model get a message rather than a number."""
    with pytest.raises(UserError, match=says):
        classification_metrics(logits, labels, list("abc"))
