"""Hidden items of a history, from those on both sides of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sslt.encoders.base import Encoder
from sslt.objectives.sasrec import Sasrec


class Bert4Rec(Sasrec):
    """Items that were hidden, from all others (BERT4Rec: Sun et al., 2019), by an encoder that reads both ways.

    Reads what `Histories` makes: `inputs`, `positions` [B, K] of the hidden items, `targets` [B, K], `n_targets`. Losses as SASRec's.
    """

    way = "masked"
    advice = "train for longer: of a history few items are hidden at a time, so that it learns later than +task=sasrec"

    def states(self, encoder: Encoder, batch: dict[str, Any]) -> Tensor:
        return encoder.word_states(batch["inputs"], batch["positions"])
