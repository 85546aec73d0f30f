"""The next item of a history, at each of its places."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sslt import lanes
from sslt.data.prepare.item_processor import FIRST
from sslt.data.views.base import Views
from sslt.data.views.item_views import NONE, Histories
from sslt.encoders.base import Encoder
from sslt.errors import UserError, nearest
from sslt.objectives.base import Loss, Objective
from sslt.objectives.parts.item_losses import LOSSES, item_loss
from sslt.ranges import Count, Share


class Sasrec(Objective):
    """Each item from those before it (SASRec: Kang & McAuley, 2018), by an encoder that reads from left to right.

    The loss is the softmax over all items unless `loss` says otherwise (`parts/item_losses.py`): it, not the architecture, is what
    BERT4Rec is ahead by (Klenitskiy & Vasilev, 2023). Reads what `Histories` makes: `inputs`, `targets` [B, T], `n_targets`. Scores are
    products with the item embeddings.
    """

    modality = "items"
    writes = True
    way: ClassVar[str] = "causal"  # that the encoder writes in
    advice = "train for longer, or lower the dropout: histories are short"

    def __init__(self, encoder: Encoder, loss: str, negatives: Count, calibration: Share):
        super().__init__()
        if loss not in LOSSES:
            raise UserError(f"objective.loss={loss}: give {', '.join(LOSSES)}{nearest(loss, LOSSES)}")
        encoder.require_writing(self.way)
        if self.way == "masked":
            encoder.keep_words()
        self.kind, self.negatives, self.calibration = loss, negatives, calibration

    def check_views(self, views: Views) -> None:
        if type(views) is not Histories:
            raise UserError(f"views={type(views).__name__} show no histories of items: leave views=histories")

    def states(self, encoder: Encoder, batch: dict[str, Any]) -> Tensor:
        """What tells the targets [B, T], float [B, T, D]."""
        return encoder.word_states(batch["inputs"])

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        counted = batch["targets"] != NONE
        states, targets = self.states(encoder, batch)[counted], batch["targets"][counted] - FIRST
        weight, bias = encoder.output_layer()
        rows = counted.nonzero()[:, 0]
        own = batch["inputs"]["tokens"][rows] - FIRST if self.kind == "bce" else targets[:, None]
        out = None if bias is None else bias[FIRST:]
        with lanes.rows(rows):
            loss = item_loss(self.kind, states, weight[FIRST:], targets, out, own, self.negatives, self.calibration)
        return Loss(loss / batch["n_targets"].clamp(min=1), {})

    def units(self, batch: dict) -> int | Tensor:
        return batch["n_targets"]
