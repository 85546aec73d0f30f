"""MoCo v2 and v3, NNCLR: contrast with a momentum encoder, with a queue, with nearest neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import distributed
from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.objectives.base import Loss, Objective, encode_views, full_precision, mlp, n_views, wide
from sslt.objectives.parts.momentum import Queue, Taught, Teacher
from sslt.ranges import Count, Natural, Positive, Share


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each query [B, D] choosing its key among the keys of all ranks [W·B, D], and its accuracy.

    van den Oord et al. (2018), eq. 4, on unit vectors. `keys` are this rank's [B, D]; gradients reach those of every rank.
    """
    everyone = distributed.gather(keys)
    logits = queries @ everyone.T / temperature
    labels = torch.arange(len(queries), device=queries.device) + distributed.rank() * len(queries)
    return F.cross_entropy(logits, labels), (logits.detach().argmax(1) == labels).float().mean()


def _pairs(v: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(v) for b in range(v) if a != b]


class _WithTeacher(Taught):
    """An encoder and projector with their momentum copies.

    The student is evaluated: the authors' linear evaluations load the query encoder (v3's `base_encoder`).
    """

    needs_full_batches = True
    only_pooled = True
    least_views = 2
    projector: torch.nn.Module

    def keys(self, batch: dict) -> Tensor:
        """Unit-length projections of the teacher [V, B, D]."""
        with torch.no_grad():
            pooled = encode_views(self.teacher["encoder"], {"views": batch["views"]}).pooled  # type: ignore[arg-type]
            z = wide(self.teacher["projector"](pooled))
        return F.normalize(z, dim=1).unflatten(0, (n_views(batch["views"]), -1))


class MoCoV2(_WithTeacher):
    """Momentum contrast with a queue of negatives (He et al., 2020, eq. 1; v2's head and views: Chen et al., 2020b).

    Reads `views` [V, B, ...]; each ordered pair of views is once query and key (the paper's has one direction; this uses
    every view computed). queue: how many past keys are negatives; keys of the present batch join it after the loss. momentum: of the
    `Teacher`; the paper's is constant. BatchNorm sees all views of all ranks together, in place of the paper's shuffling.
    """

    advice = "try a lower learning rate, another objective.temperature or stronger augmentation"

    def __init__(
        self, encoder: Encoder, hidden: Count, out: Count, temperature: Positive, momentum: Share | list[Share], queue: Natural | None
    ):
        super().__init__()
        self.temperature = temperature
        self.projector = mlp(encoder.dim, hidden, out, norm=False)
        self.teacher = Teacher(momentum, encoder=encoder, projector=self.projector)
        self.queue = Queue(queue, out)

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        self.queue.fit(len(samples))

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        v = n_views(batch["views"])
        z = self.projector(encode_views(encoder, batch).pooled)
        k = self.keys(batch)
        with full_precision():
            q, negatives = F.normalize(wide(z), dim=1).unflatten(0, (v, -1)), self.queue.rows
            losses, right = [], []
            for a, b in _pairs(v):
                logits = torch.cat([(q[a] * k[b]).sum(1, keepdim=True), q[a] @ negatives.T], 1) / self.temperature
                losses.append(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=z.device)))
                right.append((logits.detach().argmax(1) == 0).float().mean())
        if self.training:
            self.queue.push(k.transpose(0, 1))
        return Loss(torch.stack(losses).mean(), {"contrast_accuracy": torch.stack(right).mean()})


class MoCoV3(_WithTeacher):
    """Momentum contrast without a queue (Chen et al., 2021, algorithm 1): symmetric, with a predictor, negatives of the batch.

    Reads `views` [V, B, ...]. The loss is scaled by 2·temperature as in the paper, and is the mean over the directions where theirs is
    the sum. The first layer of a ViT is not frozen (their section 4.2 does, for stability at large batches).
    """

    advice = "try a lower learning rate, another objective.temperature or stronger augmentation"

    def __init__(self, encoder: Encoder, hidden: Count, out: Count, temperature: Positive, momentum: Share | list[Share]):
        super().__init__()
        self.temperature = temperature
        self.projector = mlp(encoder.dim, hidden, out, layers=3, last_norm=True)
        self.predictor = mlp(out, hidden, out, last_norm=True)
        self.teacher = Teacher(momentum, encoder=encoder, projector=self.projector)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        v = n_views(batch["views"])
        z = self.predictor(self.projector(encode_views(encoder, batch).pooled))
        k = self.keys(batch)
        with full_precision():
            q = F.normalize(wide(z), dim=1).unflatten(0, (v, -1))
            found = [info_nce(q[a], k[b], self.temperature) for a, b in _pairs(v)]
            loss = 2 * self.temperature * torch.stack([x for x, _ in found]).mean()
        return Loss(loss, {"contrast_accuracy": torch.stack([x for _, x in found]).mean()})


class NNCLR(Objective):
    """Nearest-neighbour contrast (Dwibedi et al., 2021, eq. 3): the positive is the nearest past projection to the other view's.

    Reads `views` [V, B, ...]. queue: how many past projections are looked through; those of the first view join it. As in the
    paper, a neighbour's negatives are the batch's other predictions alone (LightlySSL's example has neighbours among them too).
    """

    advice = "try a lower learning rate, another objective.temperature or stronger augmentation"
    needs_full_batches = True
    only_pooled = True
    least_views = 2

    def __init__(self, encoder: Encoder, hidden: Count, out: Count, temperature: Positive, queue: Natural | None):
        super().__init__()
        self.temperature = temperature
        self.projector = mlp(encoder.dim, hidden, out, layers=3, last_norm=True)
        self.predictor = mlp(out, hidden, out)
        self.queue = Queue(queue, out)

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        self.queue.fit(len(samples))

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        v = n_views(batch["views"])
        z = self.projector(encode_views(encoder, batch).pooled)
        p = self.predictor(z)
        with full_precision():
            z, p = (F.normalize(wide(x), dim=1).unflatten(0, (v, -1)) for x in (z, p))
            rows = self.queue.rows
            neighbours = rows[(z.detach() @ rows.T).argmax(-1)]  # [V, B, D]
            found = [info_nce(neighbours[b], p[a], self.temperature) for a, b in _pairs(v)]
        if self.training:
            self.queue.push(z[0])
        loss = torch.stack([x for x, _ in found]).mean()
        return Loss(loss, {"contrast_accuracy": torch.stack([x for _, x in found]).mean()})
