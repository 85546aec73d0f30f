"""How much alike the two parts of a sample are: the cosine of their features, each encoded by itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import distributed
from sslt.data.answers import Number, Space
from sslt.data.base import Source
from sslt.data.prepare.parts import below, part, part_names
from sslt.data.views.base import Plain, Views
from sslt.encoders.base import Encoder
from sslt.errors import UserError, nearest
from sslt.objectives.base import Loss, full_precision, wide
from sslt.ranges import Positive
from sslt.targets import overlap
from sslt.targets.base import Cheap, Rows, Target
from sslt.targets.metrics.numbers import number_metrics, spearman

LOSSES = ("mse", "cosent")


class Pairs(Target[Number]):
    """The cosine of the pooled features of both parts; it has no weights, so that an encoder can be measured by it as it is.

    loss: "mse", of the cosine against the score scaled to 0..1 (Sentence-BERT: Reimers & Gurevych, 2019); "cosent", which asks for the
    order of cosines alone (CoSENT: Su, 2022): log(1 + Σ exp(scale · (cos_j - cos_i))) over pairs i, j of the step, of all ranks, of which
    i has the higher score. Reads `a.tokens`, …, `b.tokens`, … and `number` [B]; views are not for it.
    """

    answer = Number
    reads = "parts"
    primary = "spearman"
    watched = ("pearson",)
    trains = False
    called = "the cosine of this encoder's features"

    def __init__(self, encoder: Encoder, space: Space, loss: str, scale: Positive):
        super().__init__(encoder, space)
        if loss not in LOSSES:
            raise UserError(f"objective.loss={loss}: give {' or '.join(LOSSES)}{nearest(loss, LOSSES)}")
        self.kind, self.scale, self.needs_full_batches = loss, scale, loss == "cosent"
        self.low, self.high = float(space["low"]), float(space["high"])

    def cosines(self, encoder: Encoder, batch: dict[str, Any]) -> Tensor:
        """[B], from one forward of both parts."""
        made = [encoder.inputs(part(batch, name)) for name in part_names(batch)]
        a, b = wide(encoder(below(made, encoder.processor.special[2])).pooled).chunk(2)
        with full_precision():
            return F.cosine_similarity(a, b, dim=1)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        cosines = self.cosines(encoder, batch)
        scores = (batch["number"].to(cosines.dtype) - self.low) / (self.high - self.low)
        error = F.mse_loss(cosines, scores)
        loss = error if self.kind == "mse" else cosent(distributed.gather(cosines), distributed.gather(scores), self.scale)
        return Loss(loss, {"mse": error.detach()})

    # ---------------------------------------------------------------- answers
    def outputs(self, encoder: Encoder, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`cosine` [B]."""
        return {"cosine": self.cosines(encoder, batch)}

    def read(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> Number:
        cosines = outputs["cosine"].detach().double().cpu().numpy()
        return Number(self.low + cosines * (self.high - self.low), self.space)

    def measure(self, predictions: Number, answers: Number) -> dict[str, float]:
        found = number_metrics(np.asarray(predictions.values), np.asarray(answers.values))
        return {k: found[k] for k in ("spearman", "pearson")}

    def errors(self, predictions: Number, answers: Number) -> np.ndarray:
        """By what share of all rows a row's place in the order is off: cosines are on no scale of the scores."""
        from scipy.stats import rankdata

        return np.abs(rankdata(predictions.values) - rankdata(answers.values)) / max(len(answers), 1)

    def rows(self, predictions: Number) -> list[dict[str, Any]]:
        return [{"prediction": round(float(v), 4)} for v in predictions.values]

    def columns(self, predictions: Number) -> dict[str, list[str]]:
        return {"prediction": [f"{v:.4f}" for v in predictions.values]}

    # ---------------------------------------------------------------- before training, and beside it
    @classmethod
    def check(cls, source: Source, answers: Number | None = None) -> None:
        if len(source.parts) != 2:
            raise UserError(
                f"objective=pairs compares two parts of a sample, and those of {source.name} have one: choose another objective=, or "
                f"data=text_pairs"
            )
        space = source.space or {}
        if answers is None and not space.get("low", 0) < space.get("high", 1):
            raise UserError(
                f"all pairs of {source.name} have the score {space['low']:g}: there is nothing to learn; is it the right column?"
            )

    def check_encoder(self, encoder: Encoder) -> None:
        """Any encoder of texts will do."""

    def check_views(self, views: Views) -> None:
        if type(views) is not Plain or views.n > 1:
            raise UserError("objective=pairs encodes each part of a pair as it is: leave views=plain with views.n=1")

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap | None:
        """Word overlap, of the kind that orders validation best."""
        held = train if val is None else val
        methods = overlap.methods(train.items)
        scores = {name: spearman(how(held.items), np.asarray(held.answers.values)) for name, how in methods.items()}
        best = max(scores, key=lambda name: scores[name])
        found = self.low + methods[best](test.items) * (self.high - self.low)
        return Cheap(best, Number(found, self.space), math.nan if val is None else scores[best])


def cosent(cosines: Tensor, scores: Tensor, scale: float) -> Tensor:
    """CoSENT of cosines [B] whose pairs have these scores [B]; 0 where all scores are equal."""
    higher = scores[:, None] > scores[None, :]
    apart = scale * (cosines[None, :] - cosines[:, None])[higher]
    return torch.cat([apart.new_zeros(1), apart]).logsumexp(0)
