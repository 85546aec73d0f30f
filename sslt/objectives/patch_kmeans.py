"""K-means on whitened patches: how a dictionary of patches is learned."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import distributed
from sslt.data.base import Samples
from sslt.encoders.base import Encoder, evaluating
from sslt.encoders.patches import PatchEncoder, rows_to_start_on
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, Picture, full_precision, wide
from sslt.objectives.parts.pixels import images_of
from sslt.ranges import Count, NonNegative, Positive

SHRINK = 30.0  # added to the variances of principal components, of which the mean is 1
PATIENCE = 20  # steps without a patch after which a filter is replaced
DRAWN = 48  # filters of a picture


class PatchKMeans(Objective):
    """Spherical k-means on whitened patches in mini-batches (Coates & Ng, 2012, section 3; Sculley, 2010).

    Reads `views` [V, B, C, S, S] and cuts `patches` out of each at random. A whitened patch q belongs to the filter d_k it answers most,
    and is best explained by s d_k with s = d_k·q. The gradient of a filter is d_k - Σ s q / Σ s² over its patches on all ranks: a step of
    rate 1 is the update of Coates & Ng on this batch, and a rate that falls averages over batches. Filters are brought back to length
    1 after each step; one without any patch for `PATIENCE` steps becomes a patch of the batch. The loss is the share of the patches'
    energy that their filters leave unexplained.

    Before training, mean and ZCA whitening (Bell & Sejnowski, 1997) with `epsilon` on the eigenvalues are measured on patches of the
    samples, and the filters of a fresh encoder become patches; an encoder that learned so before keeps its own. At the end the encoder's
    projection becomes the principal components of its map of these images. threshold: where a response
    begins to count, in deviations of a filter's responses (the soft threshold of Coates & Ng). The encoder must be a `PatchEncoder`.
    """

    def __init__(self, encoder: Encoder, patches: Count, epsilon: Positive, threshold: NonNegative):
        super().__init__()
        if not isinstance(encoder, PatchEncoder):
            raise UserError("k-means on patches trains a bank of filters: set encoder=patches, or choose another +task=")
        if patches < 1 or epsilon <= 0:
            raise UserError(f"objective.patches={patches}, objective.epsilon={epsilon}: give at least 1 patch, and more than 0")
        self.patches, self.epsilon, self.threshold = patches, epsilon, threshold
        self.register_buffer("idle", torch.zeros(len(encoder.bank.filters), dtype=torch.long))  # steps since a patch came
        self.idle: Tensor
        self.spare: Tensor | None = None  # patches of this step, for filters that have none

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        bank = cast(PatchEncoder, encoder).bank
        k = len(bank.filters)
        if batch_size * self.patches < k:
            raise UserError(
                f"{batch_size} images a step with objective.patches={self.patches} are fewer patches than the {k} filters: "
                f"give more of either, or a smaller encoder.filters"
            )
        self.samples, self.rows = samples, rows_to_start_on(len(samples))
        if bank.learned:
            return
        with full_precision():
            bank.start(self.rows, lambda part: encoder.inputs(samples.batch(part))["image"], self.epsilon, self.threshold)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        bank = cast(PatchEncoder, encoder).bank
        images = images_of(batch)
        with full_precision():
            d = wide(bank.filters)
            with torch.no_grad():
                q = bank.whiten(bank.cut(wide(images), *bank.corners(images, self.patches)))
                responses = q @ d.T
                s, nearest = responses.max(1)
                s = s.clamp(min=0)
                sums = torch.zeros_like(d).index_add_(0, nearest, q * s.unsqueeze(1))
                moments = torch.stack([responses.sum(0), responses.square().sum(0), s.new_zeros(len(d)).index_add_(0, nearest, s.square())])
                total, n = distributed.sum_over_ranks(torch.cat([sums.T, moments])), len(q) * distributed.world_size()
                sums, (first, second, energy) = total[:-3].T, total[-3:]
                found = energy > 0
                target = torch.where(found.unsqueeze(1), sums / energy.clamp(min=1e-12).unsqueeze(1), d)
                deviation = (second / n - (first / n).square()).clamp(min=0).sqrt()
                left = 1 - s.square().sum() / q.square().sum().clamp(min=1e-12)
            pull = ((d - target).square().sum() + (wide(bank.thresholds) - self.threshold * deviation).square().sum()) / 2
        if self.training:
            self.idle.add_(1).masked_fill_(found, 0)
            of_images = q.unflatten(0, (len(images), -1))[: -(-len(d) // self.patches)]
            self.spare = distributed.gather_rows(of_images, by_turns=True).flatten(0, 1)
        # the loss by its value, and what filters and thresholds are drawn to by its gradient
        return Loss(left + pull - pull.detach(), {"filters_without_patch": 1 - found.float().mean()} if self.logs_now else {})

    @torch.no_grad()
    def after_step(self, encoder: Encoder) -> None:
        filters = cast(PatchEncoder, encoder).bank.filters
        if self.spare is not None:
            late = self.idle >= PATIENCE
            # the n-th of them takes the n-th patch: without asking the device how many there are
            fresh = self.spare[(late.cumsum(0) - 1).clamp(0, len(self.spare) - 1)].to(filters.dtype)
            filters.copy_(torch.where(late.unsqueeze(1), fresh, filters))
            self.idle.masked_fill_(late, 0)
        filters.copy_(F.normalize(filters, dim=1))

    @torch.no_grad()
    def finish(self, encoder: Encoder) -> None:
        """Principal components of the map, of the images that the whitening was measured on; each rank makes its share of maps."""
        patches = cast(PatchEncoder, encoder)
        device = patches.centre.device
        rows = np.array_split(self.rows, distributed.world_size())[distributed.rank()]
        with evaluating(encoder), full_precision():
            parts = (self.samples.batch(part)["image"].to(device) for part in np.array_split(rows, -(-len(rows) // 256)))
            x = distributed.gather_rows(torch.cat([patches.numbers(encoder.inputs({"image": images})["image"]) for images in parts]))
            mean = x.mean(0)
            projection = principal(x - mean, patches.dim)
        patches.centre.copy_(mean)
        patches.projection.copy_(projection)

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        """Patches that the filters are, before whitening."""
        bank = cast(PatchEncoder, encoder).bank
        with full_precision():
            patches = torch.linalg.solve(bank.whitening.double(), bank.filters[:DRAWN].double().T).T.float()
        patches = (patches / patches.abs().amax(1, keepdim=True)).unflatten(1, (bank.channels, bank.side, bank.side))
        p = encoder.processor
        middle, half = (torch.tensor(v, device=patches.device).view(-1, 1, 1) for v in ([0.5 - m for m in p.mean], [0.5] * len(p.mean)))
        std = torch.tensor(list(p.std), device=patches.device).view(-1, 1, 1)
        shown = ((patches * half + middle) / std).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return {"patch_filters": Picture({f"filters {i + 1}-{i + len(row)}": row for i, row in _rows(shown, 12)})}


def principal(centred: Tensor, width: int) -> Tensor:
    """Principal components of rows [N, D] of mean 0 with variances brought closer together, as a projection [width, D].

    Of the numbers over their deviations the first components, each divided by √(λ + `SHRINK`): without the sum, directions that are
    mostly noise would count as much as the first. They are turned at random in the end, as every feature then has about the same
    variance: a probe that standardises features would otherwise undo the sum. Of N rows at most N / 2 components are taken.
    """
    n, d = centred.shape
    deviation = centred.square().mean(0).sqrt()
    scale = torch.where(deviation > 1e-6, 1 / deviation, 0)
    x = centred * scale
    small = x.T @ x if d <= n else x @ x.T  # the same eigenvalues, the smaller of two products
    values, vectors = torch.linalg.eigh(small / n)
    kept = max(1, min(width, n // 2))
    values, vectors = values.flip(0)[:kept].clamp(min=0), vectors.flip(1)[:, :kept]
    if d > n:
        vectors = F.normalize(x.T @ vectors, dim=0)
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0].to(x)
    return (turn[:, :kept] * (values + SHRINK).rsqrt()) @ vectors.T * scale


def _rows(images: Tensor, n: int) -> list[tuple[int, Tensor]]:
    """Whole rows of n images with the number of their first; all of them, where there is no whole row."""
    return [(i, images[i : i + n]) for i in range(0, max(1, len(images) - n + 1), n)]
