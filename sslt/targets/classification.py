"""Supervised classification."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.answers import Class, Space
from sslt.data.base import Samples, Source
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, encode_views, wide
from sslt.ranges import Share
from sslt.targets import baselines, fusion, linear
from sslt.targets.base import Cheap, Rows, Target, as_tensors
from sslt.targets.metrics.classes import classification_metrics, confusion_matrix

log = logging.getLogger("sslt")
WITHOUT_VALIDATION = (1e-2,)  # strength of the probe where nothing can choose it
FEW = 20  # classes up to which each has its probability written out


class Classification(Target[Class]):
    """Cross-entropy of a linear head on the pooled features.

    Reads `views` [V, B, ...] and `label` [B]. dropout: on the features. label_smoothing: Szegedy et al. (2016), section 7.
    beside: models whose scores are added to the head's where it answers, and that training does not see (late fusion).
    """

    answer = Class
    primary = "accuracy"
    watched = ("f1", "nll")
    called = "this classifier"
    fuses = True

    def __init__(self, encoder: Encoder, space: Space, dropout: Share, label_smoothing: Share):
        super().__init__(encoder, space)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, len(space["classes"]))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.label_smoothing = label_smoothing
        self.beside = nn.ModuleList()

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        labels = Class.moved(batch)["label"]
        logits = wide(self.head(self.dropout(encode_views(encoder, batch).pooled)))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            accuracy = (logits.argmax(-1) == labels).float().mean()
        return Loss(loss, {"accuracy": accuracy})

    def scores(self, encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor:
        """Logits [B, C] of inputs of the encoder."""
        logits = self.logits(encoder(inputs).pooled)
        return logits + sum(model(encoder, inputs) for model in self.beside)

    def logits(self, pooled: Tensor) -> Tensor:
        """The head's logits [B, C] of pooled features [B, D]."""
        return self.head(pooled.to(self.head.weight.dtype))

    # ---------------------------------------------------------------- answers
    def predict(self, encoder: Encoder, batch: dict[str, Any]) -> Class:
        logits = self.scores(encoder, encoder.inputs(batch)).float().cpu()
        return Class(logits.argmax(1).numpy(), self.space, scores=logits.numpy())

    def measure(self, predictions: Class, answers: Class) -> dict[str, float]:
        return classification_metrics(_logits(predictions), torch.from_numpy(np.asarray(answers.values)).long(), answers.classes)

    def errors(self, predictions: Class, answers: Class) -> np.ndarray:
        """-log p of the true class."""
        return F.cross_entropy(_logits(predictions), torch.from_numpy(np.asarray(answers.values)), reduction="none").numpy()

    def loss(self, predictions: Class, answers: Class) -> float:
        return float(F.cross_entropy(_logits(predictions), torch.from_numpy(np.asarray(answers.values))))

    def difference(self, a: Class, b: Class, answers: Class) -> tuple[float, float, float]:
        """Of the shares of right rows, by the normal approximation of the paired differences."""
        return baselines.difference(*(np.asarray(p.values) == np.asarray(answers.values) for p in (a, b)))

    def rows(self, predictions: Class) -> list[dict[str, Any]]:
        shares, names = _logits(predictions).softmax(1), predictions.classes
        best, labels = shares.max(1).values.tolist(), np.asarray(predictions.values).tolist()
        found: list[dict[str, Any]] = [{"prediction": names[i], "score": round(p, 4)} for i, p in zip(labels, best, strict=True)]
        if len(names) <= FEW:
            for row, each in zip(found, shares.tolist(), strict=True):
                row["scores"] = {c: round(p, 4) for c, p in zip(names, each, strict=True)}
        return found

    def columns(self, predictions: Class) -> dict[str, list[str]]:
        shares, names = _logits(predictions).softmax(1), predictions.classes
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
        figures.reliability(_logits(predictions), labels, folder / "plots" / "reliability.png")
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

    def solve(self, train: tuple[Tensor, Class], val: tuple[Tensor, Class] | None) -> bool:
        """Set the head to logistic regression on features [N, D] of `train`, its strength chosen on `val`.

        The problem is convex: an optimizer's rate, steps and start play no part in the result (`targets/linear.py`).
        """
        (x, y), held = as_tensors(train), val and as_tensors(val)
        strengths = linear.L2_GRID if held else WITHOUT_VALIDATION
        weight, bias, l2 = linear.probe_weights(x, y, held, self.head.out_features, strengths)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)
        log.info("the head starts as the linear probe of the encoder (l2 %g)", l2)
        return True

    def fuse(self, encoder: Encoder, predictions: Class, train: Samples, val: Samples | None, device: torch.device) -> dict[str, float]:
        return fusion.add(encoder, self.head, self.beside, _logits(predictions), train, val, device)

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap:
        best = baselines.strongest(
            modality, _labelled(train), None if val is None else _labelled(val), test.one_each, self.head.out_features
        )
        return Cheap(best.method, Class(best.predicted, self.space), best.val_accuracy)

    def trivial(self, train: Class, test: Class) -> dict[str, float]:
        return {"majority/accuracy": baselines.majority(np.asarray(train.values), np.asarray(test.values))}


def _labelled(rows: Rows) -> baselines.Rows:
    return baselines.Rows(rows.one_each, np.asarray(rows.answers.values))


def _logits(predictions: Class) -> Tensor:
    """Scores [N, C]; of answers without any those of somebody who is sure of them."""
    if predictions.scores is not None:
        return torch.from_numpy(np.asarray(predictions.scores))
    sure = F.one_hot(torch.from_numpy(np.asarray(predictions.values)).long(), len(predictions.classes)).float()
    return sure * math.log(1e6)
