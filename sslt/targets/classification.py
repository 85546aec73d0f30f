"""Supervised classification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.encoders.base import Encoder
from sslt.objectives.base import Loss, Objective, encode_views, n_views, wide
from sslt.ranges import Share


class Classification(Objective):
    """Cross-entropy of a linear head on the pooled features.

    Reads `views` [V, B, ...] and `label` [B]. dropout: on the features. label_smoothing: Szegedy et al. (2016), section 7.
    beside: models whose scores are added to the head's where it answers, and that training does not see (late fusion).
    """

    def __init__(self, encoder: Encoder, n_classes: int, dropout: Share, label_smoothing: Share):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, n_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.label_smoothing = label_smoothing
        self.beside = nn.ModuleList()

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        labels = batch["label"].repeat(n_views(batch["views"]))
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
