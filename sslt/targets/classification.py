"""Supervised classification."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.answers import Class, Space
from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.objectives.base import Loss, encode_views, wide
from sslt.ranges import Share
from sslt.targets import fusion, linear, softening
from sslt.targets.base import as_tensors
from sslt.targets.classes import OfClasses, logits_of

log = logging.getLogger("sslt")
WITHOUT_VALIDATION = (1e-2,)  # strength of the probe where nothing can choose it


class Classification(OfClasses):
    """Cross-entropy of a linear head on the pooled features.

    Reads `views` [V, B, ...] and `label` [B]. dropout: on the features. label_smoothing: Szegedy et al. (2016), section 7.
    beside: models whose scores are added to the head's where it answers, and that training does not see (late fusion).
    """

    fuses = only_pooled = True

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
    def outputs(self, encoder: Encoder, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`logits` [B, C]."""
        return {"logits": self.scores(encoder, encoder.inputs(batch)).float()}

    def read(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> Class:
        logits = outputs["logits"].cpu()
        return Class(logits.argmax(1).numpy(), self.space, scores=logits.numpy())

    # ---------------------------------------------------------------- before training, and beside it
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

    def soften(self, encoder: Encoder, batches: Iterable[dict[str, Any]]) -> None:
        softening.soften(self.head, encoder, batches, lambda b: Class.moved(b)["label"], partial(F.cross_entropy, reduction="sum"))

    def fuse(self, encoder: Encoder, predictions: Class, train: Samples, val: Samples | None, device: torch.device) -> dict[str, float]:
        return fusion.add(fusion.CLASSES, encoder, self.head, self.beside, logits_of(predictions), train, val, device)
