"""What every target has whose answers are classes: metrics, errors, rows, figures, and the cheap methods beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.answers import Class
from sslt.data.base import Source
from sslt.errors import UserError
from sslt.targets import baselines
from sslt.targets.base import Cheap, Rows, Target
from sslt.targets.metrics.classes import classification_metrics, confusion_matrix

FEW = 20  # classes up to which each has its probability written out


class OfClasses(Target[Class]):
    """Answers with one of several classes; predictions hold logits [N, C] as `scores`."""

    answer = Class
    primary = "accuracy"
    watched = ("f1", "nll")
    called = "this classifier"

    def measure(self, predictions: Class, answers: Class) -> dict[str, float]:
        return classification_metrics(logits_of(predictions), torch.from_numpy(np.asarray(answers.values)).long(), answers.classes)

    def errors(self, predictions: Class, answers: Class) -> np.ndarray:
        """-log p of the true class."""
        return F.cross_entropy(logits_of(predictions), torch.from_numpy(np.asarray(answers.values)), reduction="none").numpy()

    def loss(self, predictions: Class, answers: Class) -> float:
        return float(F.cross_entropy(logits_of(predictions), torch.from_numpy(np.asarray(answers.values))))

    def difference(self, a: Class, b: Class, answers: Class) -> tuple[float, float, float]:
        """Of the shares of right rows, by the normal approximation of the paired differences."""
        return baselines.difference(*(np.asarray(p.values) == np.asarray(answers.values) for p in (a, b)))

    def rows(self, predictions: Class) -> list[dict[str, Any]]:
        shares, names = logits_of(predictions).softmax(1), predictions.classes
        best, labels = shares.max(1).values.tolist(), np.asarray(predictions.values).tolist()
        found: list[dict[str, Any]] = [{"prediction": names[i], "score": round(p, 4)} for i, p in zip(labels, best, strict=True)]
        if len(names) <= FEW:
            for row, each in zip(found, shares.tolist(), strict=True):
                row["scores"] = {c: round(p, 4) for c, p in zip(names, each, strict=True)}
        return found

    def columns(self, predictions: Class) -> dict[str, list[str]]:
        shares, names = logits_of(predictions).softmax(1), predictions.classes
        best = shares.max(1).values.tolist()
        return {"label": [names[i] for i in np.asarray(predictions.values)], "probability": [f"{p:.4f}" for p in best]} | {
            f"probability/{c}": [f"{p:.4f}" for p in shares[:, i].tolist()] for i, c in enumerate(names)
        }

    def figures(self, folder: Path, split: str, predictions: Class, answers: Class) -> None:
        """The confusion matrix, as a picture and as numbers, and how far probabilities can be trusted."""
        from sslt.runs import write_json
        from sslt.targets import figures

        names, labels = answers.classes, torch.from_numpy(np.asarray(answers.values))
        matrix = confusion_matrix(torch.from_numpy(np.asarray(predictions.values)), labels, len(names))
        figures.confusion(matrix, names, folder / "plots" / "confusion.png")
        figures.reliability(logits_of(predictions), labels, folder / "plots" / "reliability.png")
        write_json(folder / f"confusion_{split}.json", {"classes": names, "rows_true_columns_predicted": matrix.tolist()})

    # ---------------------------------------------------------------- before training, and beside it
    @classmethod
    def check(cls, source: Source, answers: Class | None = None) -> None:
        """Raise `UserError` where all labels are alike: nothing can be learned, or got wrong."""
        names = source.classes or []
        found = range(len(names)) if answers is None else np.unique(np.asarray(answers.values))
        if len(found) == 1:
            of = "" if answers is None else f"{len(answers)} training "
            raise UserError(
                f"all {of}samples of {source.name} are of one class, '{names[int(found[0])]}': with nothing to tell apart, any encoder "
                f"gets 100 %; is it the right column, or folder?"
            )

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap:
        best = baselines.strongest(
            modality, _labelled(train), None if val is None else _labelled(val), test.one_each, len(self.space["classes"])
        )
        return Cheap(best.method, Class(best.predicted, self.space), best.val_accuracy)

    def trivial(self, train: Class, test: Class) -> dict[str, float]:
        return {"majority/accuracy": baselines.majority(np.asarray(train.values), np.asarray(test.values))}


def _labelled(rows: Rows) -> baselines.Rows:
    return baselines.Rows(rows.one_each, np.asarray(rows.answers.values))


def logits_of(predictions: Class) -> Tensor:
    """Scores [N, C]; of answers without any those of somebody who is sure of them."""
    if predictions.scores is not None:
        return torch.from_numpy(np.asarray(predictions.scores))
    sure = F.one_hot(torch.from_numpy(np.asarray(predictions.values)).long(), len(predictions.classes)).float()
    return sure * math.log(1e6)
