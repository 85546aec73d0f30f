"""Masked siamese networks: views with patches left out find the prototypes of the whole view."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import distributed
from sslt.encoders.base import Encoder
from sslt.objectives.base import Loss, encode_views, full_precision, mlp
from sslt.objectives.parts.masking import check_share, random_split
from sslt.objectives.parts.momentum import Taught, Teacher
from sslt.objectives.parts.prototypes import UnitPrototypes, entropy
from sslt.ranges import Count, NonNegative, Positive, Share


class MSN(Taught):
    """Masked siamese networks (Assran et al., 2022, eq. 1 and 2).

    Reads `views` [V, B, C, H, W], of which the first is the target, seen whole by the teacher, and the others are anchors, of whose
    patches the share `share` is left out; and `local` [L, B, C, h, w] where there are small crops, anchors that are seen whole. Each
    anchor's soft assignment to the prototypes is held to the target's, which is sharpened (target_temperature); the entropy of the
    mean assignment over all anchors of all ranks is raised with the weight `spread`, which keeps all prototypes in use (LightlySSL adds
    the constant log K to its negative, and can send targets through Sinkhorn's algorithm, which is not done here). hidden, out: of the
    projector. The teacher is evaluated: the authors' linear evaluation loads their `target_encoder`.
    """

    advice = "try a lower learning rate, a longer schedule.warmup, or teacher temperature and number of prototypes anew"
    modality = "image"
    needs_full_batches = True
    least_views = 2
    evaluated = "teacher"

    def __init__(
        self,
        encoder: Encoder,
        share: Share,
        hidden: Count,
        out: Count,
        prototypes: Count,
        temperature: Positive,
        target_temperature: Positive,
        spread: NonNegative,
        momentum: Share | list[Share],
    ):
        super().__init__()
        encoder.require_tokens(pooled=True)
        check_share("share", share)
        self.share, self.temperature, self.target_temperature, self.spread = share, temperature, target_temperature, spread
        self.projector, self.prototypes = mlp(encoder.dim, hidden, out, layers=3), UnitPrototypes(out, prototypes)
        self.teacher = Teacher(momentum, encoder=encoder, projector=self.projector)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        views = batch["views"]["image"]
        anchors = views[1:].flatten(0, 1)
        tokens = encoder.hideable({"image": anchors}).shape[1]
        visible, _ = random_split(len(anchors), tokens, self.share, anchors.device)
        features = [encoder({"image": anchors, "visible": visible}).pooled]
        if "local" in batch:
            features.append(encode_views(encoder, {"views": batch["local"]}).pooled)
        scores = self.prototypes(self.projector(torch.cat(features))).unflatten(0, (-1, views.shape[1]))  # [A, B, K]
        return self.compare(scores, self.targets(views[0]))

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Sharpened assignments [B, K] of whole images by the teacher."""
        teacher: Any = self.teacher["encoder"]
        scores = self.prototypes(self.teacher["projector"](teacher({"image": images}).pooled))
        with full_precision():
            return F.softmax(scores / self.target_temperature, -1)

    def compare(self, scores: Tensor, targets: Tensor) -> Loss:
        """The loss of anchors' scores [A, B, K] and targets [B, K]."""
        with full_precision():
            log_probs = F.log_softmax(scores / self.temperature, -1)
            agreement = -(targets * log_probs).sum(-1).mean()
            mean = distributed.mean_over_ranks(log_probs.exp().flatten(0, 1))
            evenness = entropy(mean)
            loss = agreement - self.spread * evenness
        return Loss(loss, {"agreement": agreement.detach(), "prototype_entropy": evenness.detach()})
