"""Masked language modelling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.encoders.base import Encoder
from sslt.objectives.base import Loss, Objective, wide


class MaskedLM(Objective):
    """Cross-entropy of the words that were chosen for masking (Devlin et al., 2019, section 3.1).

    Reads what `MaskTokens` makes: `inputs`, `positions` [B, K] of the chosen tokens and `targets` [B, K], their true ids.
    Vocabulary logits are computed at the K positions only, so their cost is that of the 15 %, not of the text.
    The output matrix is the encoder's token embedding.
    """

    advice = "train for longer: hidden words teach late what a pooled text means; where time is short, +task=simcse compares whole texts"

    def __init__(self, encoder: Encoder):
        super().__init__()
        embeddings = getattr(encoder, "token_embeddings", None)
        if embeddings is None:
            from sslt.errors import UserError

            raise UserError("masked language modelling needs a text encoder with token embeddings: encoder=bert_tiny")
        width = embeddings.weight.shape[1]
        self.transform = nn.Sequential(nn.Linear(encoder.dim, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(embeddings.weight.shape[0]))

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        tokens = encoder(batch["inputs"]).tokens
        index = batch["positions"].unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        chosen = self.transform(tokens.gather(1, index).flatten(0, 1))  # [B·K, D]
        logits = F.linear(chosen, encoder.token_embeddings.weight, self.bias)  # type: ignore[union-attr, arg-type]
        targets = batch["targets"].flatten()
        n = batch["n_targets"]
        loss = F.cross_entropy(wide(logits), targets, ignore_index=-100, reduction="sum") / n.clamp(min=1)
        logs = {}
        if self.logs_now:
            with torch.no_grad():
                logs["masked_accuracy"] = ((logits.argmax(-1) == targets) & (targets != -100)).sum() / n.clamp(min=1)
        return Loss(loss, logs)

    def units(self, batch: dict) -> int | Tensor:
        return batch["n_targets"]
