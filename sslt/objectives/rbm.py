"""Contrastive divergence: what a restricted Boltzmann machine learns by."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from sslt import distributed
from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.encoders.rbm import RBMEncoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, Picture, full_precision, wide
from sslt.objectives.parts.pixels import images_of
from sslt.ranges import Count

DRAWN = 12  # images of a picture
CHAIN = 200  # rounds of sampling before a picture


class RBM(Objective):
    """CD-k (Hinton, 2002) and persistent contrastive divergence (Tieleman, 2008).

    Reads `views` [V, B, C, S, S]. The loss is the mean free energy of the data less that of what k rounds of Gibbs sampling make of it;
    held fixed, the latter's gradient is the update rule: ⟨vhᵀ⟩ of the data less ⟨vhᵀ⟩ of the model. As a number it says nothing.
    persistent: sampling goes on from where the step before left it, a chain for every sample of a step on all ranks. The encoder must be
    an `RBMEncoder`. Logs the square error of E[v | P(h | v)], the usual (and weak) sign of progress.
    """

    advice = "train for longer, or by a task that compares views (+task=simclr): what generates pixels need not tell classes apart"
    needs_full_batches = True

    def __init__(self, encoder: Encoder, k: Count, persistent: bool):
        super().__init__()
        if not isinstance(encoder, RBMEncoder):
            raise UserError("contrastive divergence trains a Boltzmann machine: set encoder=rbm, or choose another +task=")
        if k < 1:
            raise UserError(f"objective.k={k}: give at least 1 round of sampling")
        self.k, self.persistent = k, persistent
        self.numbers, self.binary = encoder.numbers, encoder.binary

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        if self.persistent:
            draw = torch.rand if self.binary else torch.randn
            start = draw(batch_size, self.numbers, generator=torch.Generator().manual_seed(0))
            self.register_buffer("chains", start.round() if self.binary else start)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        machine = cast(RBMEncoder, encoder)
        with full_precision():
            v = machine.visible(wide(images_of(batch)))
            end = machine.gibbs(self.starts(v), self.k)
            value = machine.free_energy(v).mean() - machine.free_energy(end).mean()
            if self.persistent and self.training:
                cast(Tensor, self.chains).copy_(distributed.gather_rows(end, by_turns=True))
            logs = {}
            if self.logs_now:
                with torch.no_grad():
                    again = machine.visible_mean(machine.hidden_probability(v))
                    logs["reconstruction"] = (again - v).square().mean()
        return Loss(value / self.numbers, logs)

    def starts(self, v: Tensor) -> Tensor:
        """Where this rank's chains begin: at its own samples, or where they were left."""
        if not self.persistent:
            return v
        return cast(Tensor, self.chains)[distributed.rank() :: distributed.world_size()].to(v.dtype)

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        machine = cast(RBMEncoder, encoder)
        images = images_of(batch)[:DRAWN]
        v = machine.visible(images)
        new = machine.visible_mean(machine.hidden_probability(machine.gibbs(v, CHAIN)))
        again = machine.visible_mean(machine.hidden_probability(v))
        weights = machine.layer.weight
        strongest = weights[weights.norm(dim=1).topk(min(DRAWN, len(weights))).indices]
        filters = (strongest / strongest.abs().amax(1, keepdim=True)).unflatten(1, images.shape[1:])
        rows = {"truth": images, "reconstruction": machine.images(again), f"after {CHAIN} rounds": machine.images(new)}
        return {"rbm": Picture(rows), "rbm_filters": Picture({"filters": filters})}
