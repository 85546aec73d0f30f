"""Adaptations that hold the weights near where they came from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslt.adaptation.base import Full
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.ranges import NonNegative, Share
from sslt.sharded.model import full, part_of


class L2SP(Full):
    """λ·‖w - w₀‖² on the encoder, w₀ the weights it starts with (Li et al., 2018, eq. 2 with one coefficient); the head has
    plain weight decay.

    The encoder's own weight decay is off: it would pull to zero. strength: λ.
    """

    def __init__(self, strength: NonNegative, layer_decay: Share):
        super().__init__(layer_decay)
        if strength < 0:
            raise UserError(f"adaptation.strength={strength}: give 0 or more")
        self.strength = strength
        self._start: list[Tensor] = []

    def prepare(self, encoder: Encoder) -> None:
        super().prepare(encoder)
        # a resumed run comes here with the weights it started from, before its checkpoint is read
        self._start = [p.detach().clone() for p in encoder.parameters()]

    def penalty(self, encoder: Encoder) -> Tensor:
        pairs = list(zip(encoder.parameters(), self._start, strict=True))
        self._start = [part_of(w.to(p.device), p) for p, w in pairs]  # the encoder may have moved since, or be sharded
        gaps = [full((p - w).square().sum()) for p, w in zip(encoder.parameters(), self._start, strict=True)]
        return self.strength * torch.stack(gaps).sum()

    def decay_of(self, parameter: nn.Parameter, weight_decay: float, head: bool) -> float:
        return super().decay_of(parameter, weight_decay, head) if head else 0.0
