"""Restoring a text: T5's spans, BART's infilling, the rest of a text. What is read and what is to be written is the views' to say."""

from __future__ import annotations

from torch import Tensor

from sslt.data.views.base import Views
from sslt.data.views.text_corruption import Corruption
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective
from sslt.objectives.parts.vocabulary import IGNORED, mean_loss


class Restore(Objective):
    """Cross-entropy of what is written after what is read, each token given those before it (Raffel et al., 2020; Lewis et al., 2020).

    Reads `inputs`, `outputs` [B, M] and `outputs_mask` [B, M] of a `Corruption`. By an encoder without a decoder beside it both are one
    row, in which what is read is seen from the left alone.
    """

    modality = "text"
    writes = True
    advice = "train for longer: words that are restored teach late what a whole text means; where time is short, +task=crops compares texts"

    def __init__(self, encoder: Encoder):
        super().__init__()
        encoder.require_writing("seq2seq", "causal")

    def check_views(self, views: Views) -> None:
        if not isinstance(views, Corruption):
            raise UserError("this objective restores texts, and these views leave them whole: choose views=t5_spans, infill or prefix")

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        outputs, mask = batch["outputs"], batch["outputs_mask"]
        states = encoder.reply_states(batch["inputs"], outputs, mask).flatten(0, 1)
        return mean_loss(states, outputs.masked_fill(~mask, IGNORED).flatten(), *encoder.output_layer(), self.logs_now)

    def units(self, batch: dict) -> int | Tensor:
        return batch["outputs_mask"].sum()
