"""Any number of labels for each sample."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.answers import Labels, Space
from sslt.data.base import Samples, Source
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, encode_views, wide
from sslt.ranges import Share
from sslt.targets import cheap_scores, fusion, linear, softening
from sslt.targets.base import Cheap, Rows, Target, as_tensors
from sslt.targets.metrics.multilabel import best_thresholds, mean_average_precision, multilabel_metrics

log = logging.getLogger("sslt")
WITHOUT_VALIDATION = (1e-2,)  # strength of the solved head where nothing can choose it
FEW = 20  # labels up to which each has its probability written out


class Multilabel(Target[Labels]):
    """Binary cross-entropy of a linear head on the pooled features, each label by itself.

    Reads `views` [V, B, ...] and `labels` [B, C]. dropout: on the features. A label is given where its logit is above its threshold, which
    is the one of the best F1 on validation (Lewis et al., 2004, "SCut") and goes with the head; 0, a probability of one half, without.
    beside: models whose scores are added to the head's where it answers, and that training does not see (late fusion).
    """

    answer = Labels
    fuses = only_pooled = True
    primary = "map"
    watched = ("f1", "micro_f1")
    calibrates = True

    def __init__(self, encoder: Encoder, space: Space, dropout: Share):
        super().__init__(encoder, space)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, len(space["classes"]))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.zeros(len(space["classes"])))
        self.beside = nn.ModuleList()

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        logits = wide(self.head(self.dropout(encode_views(encoder, batch).pooled)))
        return Loss(F.binary_cross_entropy_with_logits(logits, Labels.moved(batch)["labels"].to(logits.dtype)), {})

    # ---------------------------------------------------------------- answers
    def outputs(self, encoder: Encoder, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`logits` [B, C]."""
        inputs = encoder.inputs(batch)
        logits = self.head(encoder(inputs).pooled.to(self.head.weight.dtype))
        return {"logits": (logits + sum(model(encoder, inputs) for model in self.beside)).float()}

    def read(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> Labels:
        logits = outputs["logits"].cpu().numpy()
        return Labels(logits > self.thresholds.cpu().numpy(), self.space, scores=logits)

    def calibrate(self, predictions: Labels, answers: Labels) -> None:
        found = best_thresholds(_logits(predictions), np.asarray(answers.values))
        self.thresholds.copy_(torch.from_numpy(found))

    def measure(self, predictions: Labels, answers: Labels) -> dict[str, float]:
        return multilabel_metrics(_logits(predictions), predictions.values, answers.values, answers.classes)

    def score(self, predictions: Labels, answers: Labels) -> float:
        return mean_average_precision(_logits(predictions), answers.values)

    def errors(self, predictions: Labels, answers: Labels) -> np.ndarray:
        """-log p of a row's labels and of the others not being there, summed."""
        logits, truth = (torch.from_numpy(np.asarray(x)).double() for x in (_logits(predictions), answers.values))
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1).numpy()

    def loss(self, predictions: Labels, answers: Labels) -> float:
        return float(self.errors(predictions, answers).mean()) / len(answers.classes)

    def rows(self, predictions: Labels) -> list[dict[str, Any]]:
        names = predictions.classes
        found: list[dict[str, Any]] = [
            {"prediction": [names[i] for i in np.flatnonzero(row)]} for row in np.asarray(predictions.values, bool)
        ]
        if predictions.scores is not None and len(names) <= FEW:
            for row, shares in zip(found, _shares(predictions).tolist(), strict=True):
                row["scores"] = {c: round(p, 4) for c, p in zip(names, shares, strict=True)}
        return found

    def columns(self, predictions: Labels) -> dict[str, list[str]]:
        shares = _shares(predictions)
        labels = {"labels": ["; ".join(row["prediction"]) for row in self.rows(predictions)]}
        return labels | {f"probability/{c}": [f"{p:.4f}" for p in shares[:, i].tolist()] for i, c in enumerate(predictions.classes)}

    # ---------------------------------------------------------------- before training, and beside it
    @classmethod
    def check(cls, source: Source, answers: Labels | None = None) -> None:
        """Raise `UserError` where each label is on all samples or on none; tell of those that no training sample has."""
        if answers is None:
            return
        counts, names = np.asarray(answers.values).sum(0), answers.classes
        if not ((counts > 0) & (counts < len(answers))).any():
            what = "none has a label" if not counts.any() else "each label is on all of them or on none"
            raise UserError(f"of the {len(answers)} training samples of {source.name} {what}: there is nothing to tell apart")
        if missing := [names[i] for i in np.flatnonzero(counts == 0)]:
            log.warning("no training sample of %s has the label %s", source.name, ", ".join(f"'{name}'" for name in missing[:5]))

    def solve(self, train: tuple[Tensor, Labels], val: tuple[Tensor, Labels] | None) -> bool:
        """Set the head to logistic regression of each label against the rest, of the strength with the best `map` on `val`."""
        (x, y), held = as_tensors(train), val and as_tensors(val)
        weight, bias, l2 = cheap_scores.one_against_rest(x, y, held, linear.L2_GRID if held else WITHOUT_VALIDATION)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)
        log.info("the head starts as logistic regression of each label on the encoder's features (l2 %g)", l2)
        return True

    def soften(self, encoder: Encoder, batches: Iterable[dict[str, Any]]) -> None:
        loss = partial(F.binary_cross_entropy_with_logits, reduction="sum")
        softening.soften(self.head, encoder, batches, lambda b: Labels.moved(b)["labels"].float(), loss)

    def fuse(self, encoder: Encoder, predictions: Labels, train: Samples, val: Samples | None, device: torch.device) -> dict[str, float]:
        own = torch.from_numpy(_logits(predictions))
        return fusion.add(fusion.LABELS, encoder, self.head, self.beside, own, train, val, device)

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap:
        fit = cheap_scores.Fit(
            "logistic regression of each label", cheap_scores.logistic_of_each, cheap_scores.OF_LABELS, mean_average_precision
        )
        best = cheap_scores.strongest(fit, modality, train, val, test)
        least = 0.0 if val is None or best.val_scores is None else best_thresholds(best.val_scores, np.asarray(val.answers.values))
        return Cheap(best.method, Labels(best.scores > least, self.space, scores=best.scores), best.val_score)

    def trivial(self, train: Labels, test: Labels) -> dict[str, float]:
        """Every row scored alike: a label's average precision is then its share of the rows."""
        return {"prevalence/map": mean_average_precision(np.zeros(test.values.shape), test.values)}


def _logits(predictions: Labels) -> np.ndarray:
    """Scores [N, C]; of answers without any those of somebody who is sure of them."""
    if predictions.scores is not None:
        return np.asarray(predictions.scores)
    return np.where(np.asarray(predictions.values, bool), math.log(1e6), -math.log(1e6))


def _shares(predictions: Labels) -> np.ndarray:
    return torch.from_numpy(_logits(predictions)).double().sigmoid().numpy()
