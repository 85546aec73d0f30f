"""BYOL and SimSiam: predict one view's projection from the other's, without negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.encoders.base import Encoder
from sslt.objectives.base import Loss, Objective, encode_views, full_precision, mlp, n_views, wide
from sslt.objectives.parts.momentum import Taught, Teacher
from sslt.ranges import Count, Share


def cosine_to_others(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean of 2 - 2·cos over predictions [V, B, D] and the targets [V, B, D] of every other view (Grill et al., 2020, eq. 2)."""
    v = len(predicted)
    predicted, target = F.normalize(wide(predicted), dim=-1), F.normalize(wide(target), dim=-1)
    others = torch.stack([target.roll(-i, 0) for i in range(1, v)])  # [V-1, V, B, D]: for view a, each b ≠ a once
    return (2 - 2 * (predicted * others).sum(-1)).mean()


class BYOL(Taught):
    """Bootstrap your own latent (Grill et al., 2020): the online network predicts a momentum teacher's projection of the other view.

    Reads `views` [V, B, ...], V ≥ 2; the loss is the mean over all ordered pairs of views (the paper adds the two directions, and
    LightlySSL's is -cos: half of this one, less one). All views go through each network in one forward, so a BatchNorm sees them
    together. momentum: of the `Teacher`. hidden, out: of projector and predictor.
    The student is evaluated: of all networks the paper keeps the online encoder alone (section 3.1).
    """

    advice = "try a lower learning rate, a longer schedule.warmup or a teacher that follows more slowly (objective.momentum)"
    needs_full_batches = True
    only_pooled = True
    least_views = 2

    def __init__(self, encoder: Encoder, hidden: Count, out: Count, momentum: Share | list[Share]):
        super().__init__()
        self.projector, self.predictor = mlp(encoder.dim, hidden, out), mlp(out, hidden, out)
        self.teacher = Teacher(momentum, encoder=encoder, projector=self.projector)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        v = n_views(batch["views"])
        predicted = self.predictor(self.projector(encode_views(encoder, batch).pooled))
        with torch.no_grad():
            target = self.teacher["projector"](encode_views(self.teacher["encoder"], {"views": batch["views"]}).pooled)  # type: ignore[arg-type]
        with full_precision():
            loss = cosine_to_others(predicted.unflatten(0, (v, -1)), target.unflatten(0, (v, -1)))
        return Loss(loss, {"similarity": 1 - loss.detach() / 2})


class SimSiam(Objective):
    """Simple siamese learning (Chen & He, 2021, algorithm 1): as BYOL, but the target is the network itself, without gradient.

    Reads `views` [V, B, ...], V ≥ 2. The value is on BYOL's scale, 2 - 2·cos (the paper's is -cos: half of it, less one).
    hidden, out: of the projector; bottleneck: of the predictor.
    """

    advice = "try a lower learning rate, a longer schedule.warmup or a larger batch_size"
    needs_full_batches = True
    only_pooled = True
    least_views = 2

    def __init__(self, encoder: Encoder, hidden: Count, out: Count, bottleneck: Count):
        super().__init__()
        self.projector = mlp(encoder.dim, hidden, out, layers=3, last_norm=True)
        self.predictor = mlp(out, bottleneck, out)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        v = n_views(batch["views"])
        z = self.projector(encode_views(encoder, batch).pooled)
        predicted = self.predictor(z)
        with full_precision():
            loss = cosine_to_others(predicted.unflatten(0, (v, -1)), z.detach().unflatten(0, (v, -1)))
            spread = F.normalize(wide(z.detach()), dim=-1).std(0).mean()  # 1/√D without collapse (section 4.1)
        return Loss(loss, {"similarity": 1 - loss.detach() / 2, "spread": spread})
