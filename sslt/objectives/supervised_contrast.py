"""DCL and SupCon: NT-Xent without the positive in its denominator, and with labels saying who is positive."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import distributed
from sslt.encoders.base import Encoder
from sslt.objectives.base import Loss, Objective, encode_views, full_precision, mlp, n_views, wide
from sslt.ranges import Count, Positive


def decoupled(z: Tensor, temperature: float) -> Tensor:
    """Decoupled contrast of projections z [V, B, D] (Yeh et al., 2022, eq. 6): -positive + log Σ over other samples only.

    The sum runs over every view of every other sample, on all ranks.
    """
    v, b, _ = z.shape
    z = F.normalize(z, dim=-1)
    everyone = distributed.gather(z.transpose(0, 1)).transpose(0, 1)  # [V, N, D]
    n = everyone.shape[1]
    logits = (z.flatten(0, 1) @ everyone.flatten(0, 1).T / temperature).view(v, b, v, n)
    own = torch.arange(b, device=z.device) + distributed.rank() * b
    positives = logits[:, torch.arange(b, device=z.device), :, own]  # [B, V, V]
    mask = torch.zeros(b, n, dtype=torch.bool, device=z.device)
    mask[torch.arange(b, device=z.device), own] = True
    negatives = logits.masked_fill(mask[None, :, None, :], float("-inf")).flatten(2).logsumexp(-1)  # [V, B]
    off = ~torch.eye(v, dtype=torch.bool, device=z.device)
    return (negatives - (positives * off).sum(-1).T / (v - 1)).mean()


def supervised(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """L_out of projections z [V, B, D] with labels [B] (Khosla et al., 2020, eq. 2): all rows of an anchor's class are positives."""
    v, b, _ = z.shape
    z = F.normalize(z, dim=-1)
    everyone = distributed.gather(z.transpose(0, 1)).transpose(0, 1).flatten(0, 1)  # [V·N, D]
    classes = distributed.gather_rows(labels).repeat(v)
    n = len(everyone) // v
    anchors = (torch.arange(v, device=z.device)[:, None] * n + torch.arange(b, device=z.device) + distributed.rank() * b).flatten()
    logits = z.flatten(0, 1) @ everyone.T / temperature
    self_ = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, anchors[:, None], True)
    log_p = logits - logits.masked_fill(self_, float("-inf")).logsumexp(1, keepdim=True)
    positive = (labels.repeat(v)[:, None] == classes) & ~self_
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


class _Contrast(Objective):
    """Projections of all views under a temperature."""

    needs_full_batches = True
    only_pooled = True
    least_views = 2

    def __init__(self, encoder: Encoder, temperature: Positive, hidden: Count, out: Count):
        super().__init__()
        self.temperature = temperature
        self.projector = mlp(encoder.dim, hidden, out)

    def projections(self, encoder: Encoder, batch: dict) -> Tensor:
        """[V, B, D] in float32."""
        z = self.projector(encode_views(encoder, batch).pooled)
        return wide(z).unflatten(0, (n_views(batch["views"]), -1))


class DCL(_Contrast):
    """Decoupled contrastive learning (Yeh et al., 2022). Reads `views` [V, B, ...], V ≥ 2."""

    advice = "try a larger batch_size, another objective.temperature or stronger augmentation, and a lower learning rate"

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        z = self.projections(encoder, batch)
        with full_precision():
            return Loss(decoupled(z, self.temperature), {})


class SupCon(_Contrast):
    """Supervised contrastive learning (Khosla et al., 2020). Reads `views` [V, B, ...], V ≥ 2, and `label` [B]."""

    advice = "try a larger batch_size, another objective.temperature or stronger augmentation, and a lower learning rate"
    needs_labels = True

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        z = self.projections(encoder, batch)
        with full_precision():
            return Loss(supervised(z, batch["label"], self.temperature), {})
