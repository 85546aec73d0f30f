"""A number for each sample."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.answers import Number, Space
from sslt.data.base import Samples, Source
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, encode_views, wide
from sslt.ranges import Positive, Share
from sslt.targets import cheap_scores, linear
from sslt.targets.base import Cheap, Rows, Target, as_tensors
from sslt.targets.described import Solver
from sslt.targets.metrics.numbers import number_metrics, spearman

log = logging.getLogger("sslt")
WITHOUT_VALIDATION = (1e-1,)  # strength of the solved head where nothing can choose it


class Regression(Target[Number]):
    """Squared error of a linear head on the pooled features, in deviations of the training numbers from their mean.

    Reads `views` [V, B, ...] and `number` [B]. dropout: on the features. huber: from how many deviations on an error counts by its size
    and not its square (Huber, 1964), so that a few numbers that are far off do not decide; null: nowhere.
    """

    answer = Number
    only_pooled = True
    primary = "spearman"
    watched = ("pearson", "mae")

    def __init__(self, encoder: Encoder, space: Space, dropout: Share, huber: Positive | None):
        super().__init__(encoder, space)
        self.dropout, self.huber = nn.Dropout(dropout), huber
        self.head = nn.Linear(encoder.dim, 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        if isinstance(samples.answers, Number):
            self._standardise(samples.answers)

    def _standardise(self, answers: Number) -> None:
        values = np.asarray(answers.values, np.float64)
        self.mean.fill_(float(values.mean()))
        self.std.fill_(float(values.std()) or 1.0)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        said = wide(self.head(self.dropout(encode_views(encoder, batch).pooled)))[:, 0]
        truth = ((Number.moved(batch)["number"] - self.mean) / self.std).to(said.dtype)
        loss = F.mse_loss(said, truth) if self.huber is None else F.huber_loss(said, truth, delta=self.huber)
        return Loss(loss, {})

    # ---------------------------------------------------------------- answers
    def outputs(self, encoder: Encoder, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`number` [B], in deviations of the training numbers from their mean."""
        pooled = encoder(encoder.inputs(batch)).pooled
        return {"number": self.head(pooled.to(self.head.weight.dtype))[:, 0]}

    def read(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> Number:
        said = outputs["number"].double().cpu()
        return Number((said * self.std.double().cpu() + self.mean.double().cpu()).numpy(), self.space)

    def measure(self, predictions: Number, answers: Number) -> dict[str, float]:
        return number_metrics(predictions.values, answers.values)

    def score(self, predictions: Number, answers: Number) -> float:
        return spearman(np.asarray(predictions.values), np.asarray(answers.values))

    def errors(self, predictions: Number, answers: Number) -> np.ndarray:
        """How far off each number is."""
        return np.abs(np.asarray(predictions.values) - np.asarray(answers.values))

    def loss(self, predictions: Number, answers: Number) -> float:
        """The mean squared error: unlike the order, it tells small changes."""
        return float(np.square(self.errors(predictions, answers)).mean())

    def rows(self, predictions: Number) -> list[dict[str, Any]]:
        return [{"prediction": float(f"{value:.7g}")} for value in np.asarray(predictions.values).tolist()]

    def columns(self, predictions: Number) -> dict[str, list[str]]:
        return {"number": [f"{value:.7g}" for value in np.asarray(predictions.values).tolist()]}

    # ---------------------------------------------------------------- before training, and beside it
    @classmethod
    def check(cls, source: Source, answers: Number | None = None) -> None:
        """Raise `UserError` where all numbers are the same."""
        if answers is not None and len(found := np.unique(np.asarray(answers.values))) == 1:
            raise UserError(
                f"all {len(answers)} training samples of {source.name} have the number {found[0]:g}: there is nothing to tell; is it the "
                f"right column?"
            )

    def solve(self, train: tuple[Tensor, Number], val: tuple[Tensor, Number] | None) -> bool:
        """Set the head to ridge regression on features [N, D] of `train`, its strength chosen on `val`."""
        self._standardise(train[1])
        (x, y), held = as_tensors(train), val and as_tensors(val)
        weight, bias, l2 = linear.ridge_weights(x, y, held, linear.L2_GRID if held else WITHOUT_VALIDATION)
        with torch.no_grad():
            self.head.weight.copy_(weight / self.std)
            self.head.bias.copy_((bias - self.mean) / self.std)
        log.info("the head starts as ridge regression on the encoder's features (l2 %g)", l2)
        return True

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap:
        fit = cheap_scores.Fit("ridge regression", _on_counts, Solver("numbers", linear.ridge_weights), spearman)
        best = cheap_scores.strongest(fit, modality, train, val, test)
        return Cheap(best.method, Number(best.scores, self.space), best.val_score)

    def trivial(self, train: Number, test: Number) -> dict[str, float]:
        """The mean of the training numbers for all."""
        return {"mean/mae": float(np.abs(np.asarray(test.values) - np.asarray(train.values).mean()).mean())}


def _on_counts(x: Any, y: np.ndarray, strength: float) -> cheap_scores.Scores:
    """scikit-learn's ridge regression on sparse rows."""
    from sklearn.linear_model import Ridge

    return Ridge(alpha=1 / strength, solver="sparse_cg").fit(x, y).predict
