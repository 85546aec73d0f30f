"""NT-Xent: SimCLR on images, SimCSE on text, by the same class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import distributed
from sslt.encoders.base import Encoder
from sslt.objectives.base import Loss, Objective, encode_views, full_precision, mlp, n_views, wide
from sslt.ranges import Count, Natural, Positive


class NTXent(Objective):
    """Normalised-temperature cross-entropy between views (Chen et al., 2020, eq. 1; SimCSE: Gao et al., 2021, eq. 4).

    Reads `batch["views"]`, tensors [V, B, ...] with V ≥ 2. Every view of every sample, on all ranks, is a negative of the
    others; with V > 2 the loss is averaged over the V-1 positives of an anchor.

    temperature: of the softmax. hidden, out: widths of the projector; hidden=0 leaves it out.
    norm: BatchNorm inside the projector.
    """

    advice = "try a larger batch_size, another objective.temperature or stronger augmentation, and a lower learning rate"
    needs_full_batches = True
    only_pooled = True
    least_views = 2

    def __init__(self, encoder: Encoder, temperature: Positive, hidden: Natural, out: Count, norm: bool):
        super().__init__()
        self.temperature = temperature
        self.projector = mlp(encoder.dim, hidden, out, norm=norm) if hidden else torch.nn.Identity()

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        v = n_views(batch["views"])
        z = self.projector(encode_views(encoder, batch).pooled)
        with full_precision():
            loss, accuracy = nt_xent(wide(z).unflatten(0, (v, -1)), self.temperature)
        return Loss(loss, {"contrast_accuracy": accuracy})


def nt_xent(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss of projections z [V, B, D], and how often an anchor's nearest other row is a positive (detached).

    Under DDP, z is this rank's share and the negatives are those of all ranks; the mean of the ranks' losses is the loss
    of the joined batch, and its gradient reaches every rank.
    """
    v, b, _ = z.shape
    z = F.normalize(z, dim=-1)
    world, here = distributed.world_size(), distributed.rank()
    everyone = distributed.gather(z.transpose(0, 1)).transpose(0, 1)  # [V, W·B, D]
    n = world * b
    logits = z.flatten(0, 1) @ everyone.flatten(0, 1).T / temperature  # [V·B, V·W·B]
    sample = torch.arange(here * b, (here + 1) * b, device=z.device).repeat(v)
    view = torch.arange(v, device=z.device).repeat_interleave(b)
    logits.scatter_(1, (view * n + sample)[:, None], float("-inf"))  # an anchor is no negative of itself
    others = (view[:, None] + torch.arange(1, v, device=z.device)) % v
    positives = others * n + sample[:, None]  # [V·B, V-1]
    loss = (logits.logsumexp(1) - logits.gather(1, positives).mean(1)).mean()
    with torch.no_grad():
        accuracy = (logits.argmax(1)[:, None] == positives).any(1).float().mean()
    return loss, accuracy
