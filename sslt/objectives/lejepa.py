"""LeJEPA: views predict their mean, and projections are held to a normal distribution by SIGReg."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from sslt import distributed
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, encode_views, full_precision, mlp, n_views, wide
from sslt.ranges import Count, Positive, Share


def epps_pulley(x: Tensor, knots: int, reach: float) -> Tensor:
    """Distance [M] of samples x [N, M] from the standard normal, by characteristic functions (Epps & Pulley, 1983).

    N ∫ |mean exp(itx) - exp(-t²/2)|² exp(-t²/2) dt over [-reach, reach], by the trapezoid rule on `knots` points of the half
    line (the integrand is even).
    """
    t = torch.linspace(0, reach, knots, device=x.device, dtype=x.dtype)
    step = reach / (knots - 1)
    weight = torch.full_like(t, 2 * step)
    weight[0] = weight[-1] = step
    normal = torch.exp(-t.square() / 2)
    angles = x.unsqueeze(-1) * t  # [N, M, K]
    real = distributed.mean_over_ranks(angles.cos())
    imaginary = distributed.mean_over_ranks(angles.sin())
    gap = (real - normal).square() + imaginary.square()
    return (gap * normal * weight).sum(-1) * (len(x) * distributed.world_size())


class LeJEPA(Objective):
    """Prediction and SIGReg (Balestriero & LeCun, 2025): no teacher, no stop-gradient, no schedule.

    Reads `views` [V, B, ...]. Prediction: mean square distance of each view's projection from the views' mean. SIGReg: the
    Epps-Pulley statistic of the projections on `directions` random directions, drawn anew in every step, the mean over views.
    The loss is (1 - weight)·prediction + weight·SIGReg. knots, reach: of the statistic's integral.
    """

    advice = "try a larger batch_size, a lower learning rate or more weight on the terms that keep dimensions apart"
    needs_full_batches = True
    only_pooled = True
    least_views = 2

    def __init__(self, encoder: Encoder, hidden: Count, out: Count, weight: Share, directions: Count, knots: Count, reach: Positive):
        super().__init__()
        if knots < 2:
            raise UserError(f"objective.knots={knots}: an integral has two ends, give at least 2")
        self.projector = mlp(encoder.dim, hidden, out, layers=3)
        self.weight, self.directions, self.knots, self.reach = weight, directions, knots, reach
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # the seed of the directions, the same on every rank
        self.steps_seen: int | None = None  # the same as a number, so that no step waits for the device

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        v = n_views(batch["views"])
        z = self.projector(encode_views(encoder, batch).pooled)
        steps = cast(Tensor, self.steps)
        with full_precision():
            z = wide(z).unflatten(0, (v, -1))
            prediction = (z - z.mean(0)).square().mean()
            self.steps_seen = int(steps) if self.steps_seen is None else self.steps_seen
            generator = torch.Generator().manual_seed(self.steps_seen)
            a = torch.randn(z.shape[-1], self.directions, generator=generator).to(z)
            spread = (z @ (a / a.norm(dim=0))).transpose(0, 1)  # [B, V, M]
            sigreg = epps_pulley(spread.flatten(1), self.knots, self.reach).mean()
        if self.training:
            steps += 1
            self.steps_seen += 1
        return Loss((1 - self.weight) * prediction + self.weight * sigreg, {"prediction": prediction.detach(), "sigreg": sigreg.detach()})
