"""Masked language modelling."""

from __future__ import annotations

from torch import Tensor

from sslt.encoders.base import Encoder
from sslt.objectives.base import Loss, Objective
from sslt.objectives.parts.vocabulary import hits, vocabulary_loss


class MaskedLM(Objective):
    """Cross-entropy of the words that were chosen for masking (Devlin et al., 2019, section 3.1).

    Reads what `MaskTokens` makes: `inputs`, `positions` [B, K] of the chosen tokens and `targets` [B, K], their true ids. The head is that
    of the encoder's family, and stays with it. Logits are computed at the K positions only, so their cost is that of the 15 %.
    """

    writes = True
    advice = "train for longer: hidden words teach late what a pooled text means; where time is short, +task=simcse compares whole texts"

    def __init__(self, encoder: Encoder):
        super().__init__()
        encoder.require_writing("masked")
        encoder.keep_words()

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        states = encoder.word_states(batch["inputs"], batch["positions"]).flatten(0, 1)  # [B·K, D]
        weight, bias = encoder.output_layer()
        targets, n = batch["targets"].flatten(), batch["n_targets"].clamp(min=1)
        loss = vocabulary_loss(states, weight, targets, bias) / n
        return Loss(loss, {"masked_accuracy": hits(states, weight, targets, bias) / n} if self.logs_now else {})

    def units(self, batch: dict) -> int | Tensor:
        return batch["n_targets"]
