"""SwAV and DeepCluster v2: views of an image belong to the same cluster."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import distributed
from sslt.data.base import Samples
from sslt.encoders.base import Encoder, evaluating
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, encode_views, full_precision, mlp, n_views, wide
from sslt.objectives.parts.kmeans import kmeans, nearest_centroid
from sslt.objectives.parts.momentum import Queue
from sslt.objectives.parts.prototypes import UnitPrototypes, cross_entropy_of_views, entropy
from sslt.ranges import Count, Natural, Positive, Share

_INITIAL_BATCH = 512  # samples a forward when the memory is filled


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft assignments of rows [N, K] to prototypes, each prototype equally used (Caron et al., 2020, section 3.1 and appendix A).

    exp(scores / ε) with columns scaled to N/K and rows to 1, in turns; rows sum to 1 at the end. Logarithms keep it finite.
    """
    q = scores.double() / epsilon
    for _ in range(iterations):
        q = q - q.logsumexp(0, keepdim=True)
        q = q - q.logsumexp(1, keepdim=True)
    return q.exp().to(scores.dtype)


def _projected(objective: Objective, encoder: Encoder, batch: dict) -> Tensor:
    """Projections [S, B, D] of unit length of `views` and `local` crops, each size in one forward of the encoder."""
    v = n_views(batch["views"])
    pooled = [encode_views(encoder, batch).pooled]
    if "local" in batch:
        pooled.append(encode_views(encoder, {"views": batch["local"]}).pooled)
    z = wide(objective.projector(torch.cat(pooled)))  # type: ignore[operator]
    return F.normalize(z, dim=1).unflatten(0, (-1, len(pooled[0]) // v))


class SwAV(Objective):
    """Swapped assignments between views (Caron et al., 2020, eq. 1 to 3).

    Reads `views` [V, B, ...], whose assignments are found, and `local` [L, B, ...] where there are small crops, which only predict. The
    assignments of a step are those of all ranks' rows together, with the `queue` newest projections (0: none) beside
    them once it is full. Prototypes stay still for the first share `freeze` of the run. epsilon, iterations: of Sinkhorn's algorithm.
    hidden, out: of the projector.
    """

    advice = "try a lower learning rate, another objective.temperature or fewer prototypes"
    needs_full_batches = True
    only_pooled = True
    least_views = 2

    def __init__(
        self,
        encoder: Encoder,
        hidden: Count,
        out: Count,
        prototypes: Count,
        temperature: Positive,
        epsilon: Positive,
        iterations: Count,
        queue: Natural,
        freeze: Share,
    ):
        super().__init__()
        self.temperature, self.epsilon, self.iterations, self.freeze = temperature, epsilon, iterations, freeze
        self.projector, self.prototypes = mlp(encoder.dim, hidden, out), UnitPrototypes(out, prototypes)
        self.queue = Queue(queue, out) if queue else None
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))  # rows that the queue was given
        self.filled: Tensor
        self.full = False

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        if self.queue is not None:
            self.queue.fit(len(samples))

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        v = n_views(batch["views"])
        z = _projected(self, encoder, batch)
        scores = self.prototypes(z, frozen=self.progress < self.freeze)
        with full_precision():
            targets = self.assignments(scores[:v].detach())
            loss = cross_entropy_of_views(targets, F.log_softmax(scores / self.temperature, -1))
        if self.training and self.queue is not None:
            self.queue.push(z[0])
            self.filled += z.shape[1] * distributed.world_size()
        return Loss(loss, {"prototype_entropy": entropy(targets.flatten(0, 1).mean(0))} if self.logs_now else {})

    @torch.no_grad()
    def assignments(self, scores: Tensor) -> Tensor:
        """Soft assignments [V, B, K] of this rank's scores, view by view."""
        b = scores.shape[1]
        first = distributed.rank() * b
        out = []
        past = None
        if self.queue is not None:
            self.full = self.full or int(self.filled) >= len(self.queue.rows)  # asks the device until it is full, then no more
            past = self.prototypes(self.queue.rows) if self.full else None
        for view in scores:
            rows = distributed.gather_rows(view)
            if past is not None:
                rows = torch.cat([rows, past])
            out.append(sinkhorn(rows, self.epsilon, self.iterations)[first : first + b])
        return torch.stack(out)


class DeepClusterV2(Objective):
    """Deep clustering (Caron et al., 2018), version 2 (Caron et al., 2020, section 4 and appendix D).

    Reads `views` [V, B, ...], `local` where there are small crops, and `index` [B]. A memory holds one projection of every sample, of the
    last time it was seen. At the start and after every epoch, spherical k-means over the memory gives every sample a cluster, once for each
    number in `clusters`; the centres are the prototypes, which gradients do not move, and all views are to find their sample's cluster.
    Ranks share one memory. hidden, out: of the projector. steps: of k-means.
    """

    advice = "try a lower learning rate, another objective.temperature or fewer prototypes"
    needs_full_batches = True
    only_pooled = True
    alike_on_ranks = True

    def __init__(self, encoder: Encoder, hidden: Count, out: Count, clusters: list[Count], temperature: Positive, steps: Count):
        super().__init__()
        self.temperature, self.steps = temperature, steps
        self.projector = mlp(encoder.dim, hidden, out)
        if not clusters:
            raise UserError("objective.clusters=[]: give at least one number of clusters")
        for i, k in enumerate(clusters):
            self.register_buffer(f"centres{i}", torch.zeros(k, out))
        self.clusters, self.out = list(clusters), out
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # steps; 0: the memory is not filled yet
        self.seen: Tensor
        self.steps_seen = 0  # the same as a number, so that no step waits for the device

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        if max(self.clusters) > len(samples) or min(self.clusters) < 2:
            raise UserError(f"objective.clusters={self.clusters}: give numbers from 2 to the {len(samples)} samples")
        n = len(samples)
        self.register_buffer("memory", torch.zeros(n, self.out))
        self.register_buffer("assigned", torch.zeros(len(self.clusters), n, dtype=torch.long))
        self.epoch_steps = max(1, n // batch_size)
        self.samples = samples

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        if self.training:
            self.steps_seen = self.steps_seen or int(self.seen)
            if self.steps_seen == 0:
                self.fill(encoder)
            if self.steps_seen % self.epoch_steps == 0:
                self.cluster(self.steps_seen // self.epoch_steps)
            self.steps_seen += 1
            self.seen += 1
        z = _projected(self, encoder, batch)
        index = batch["index"]
        targets = cast(Tensor, self.assigned)[:, index]  # [heads, B]
        with full_precision():
            losses = []
            for i in range(len(self.clusters)):
                scores = z @ self.centres(i).T / self.temperature  # [S, B, K]
                losses.append(F.cross_entropy(scores.flatten(0, 1), targets[i].repeat(len(z))))
        if self.training:
            with torch.no_grad():
                everyone = distributed.gather_rows(index)
                cast(Tensor, self.memory)[everyone] = distributed.gather_rows(z[0].detach())
        return Loss(torch.stack(losses).mean(), {})

    def centres(self, i: int) -> Tensor:
        """[K, D] of the i-th clustering."""
        return cast(Tensor, getattr(self, f"centres{i}"))

    @torch.no_grad()
    def fill(self, encoder: Encoder) -> None:
        """One pass over the samples as they are, each rank its share."""
        memory = cast(Tensor, self.memory)
        rows = np.array_split(np.arange(len(memory)), distributed.world_size())[distributed.rank()]
        found = []
        with evaluating(encoder), evaluating(self):
            for i in range(0, len(rows), _INITIAL_BATCH):
                batch = {k: x.to(memory.device) for k, x in self.samples.batch(rows[i : i + _INITIAL_BATCH]).items()}
                found.append(F.normalize(wide(self.projector(encoder(encoder.inputs(batch)).pooled)), dim=1))
        memory.copy_(distributed.gather_rows(torch.cat(found)))

    @torch.no_grad()
    def cluster(self, epoch: int) -> None:
        """New centres and assignments of all samples."""
        memory, assigned = cast(Tensor, self.memory), cast(Tensor, self.assigned)
        for i, k in enumerate(self.clusters):
            self.centres(i).copy_(kmeans(memory, k, steps=self.steps, seed=epoch * len(self.clusters) + i, unit=True))
            assigned[i] = nearest_centroid(memory, self.centres(i))
