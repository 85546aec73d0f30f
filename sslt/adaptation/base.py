"""Full fine-tuning, feature extraction, and moving the last blocks only."""

from __future__ import annotations

import abc

from torch import nn

from sslt.encoders.base import Encoder
from sslt.errors import UserError


class Adaptation(abc.ABC):
    """Decides, group by group (`Encoder.group_of`), what moves.

    What does not move is frozen whole: no gradient, no weight decay, BatchNorm statistics as they were, dropout off.
    """

    @abc.abstractmethod
    def moves(self, group: int, depth: int) -> bool:
        """Whether group `group` of an encoder with `depth` blocks moves."""

    def prepare(self, encoder: Encoder) -> None:
        """Set `requires_grad`. Called once, before the optimizer is made."""
        groups, depth = encoder.group_of(), encoder.depth
        for name, p in encoder.named_parameters():
            p.requires_grad_(self.moves(groups[name], depth))

    def set_modes(self, encoder: Encoder) -> None:
        """Put frozen modules in eval mode. Called after every `train()`."""
        groups, depth = encoder.group_of(), encoder.depth
        for name, module in encoder.named_modules():
            if name and not self.moves(groups[name], depth):
                module.training = False  # not .eval(): a container's moving children keep their mode

    def parameter_groups(self, encoder: Encoder, heads: nn.Module, weight_decay: float) -> list[dict]:
        """Optimizer groups; biases and norm parameters are not decayed."""
        moving = [(n, p) for m in (encoder, heads) for n, p in m.named_parameters() if p.requires_grad]
        decay = [p for n, p in moving if p.dim() > 1]
        plain = [p for n, p in moving if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return [g for g in groups if g["params"]]


class Full(Adaptation):
    """Everything moves."""

    def moves(self, group: int, depth: int) -> bool:
        return True


class Probe(Adaptation):
    """Nothing of the encoder moves: a head on frozen features."""

    def moves(self, group: int, depth: int) -> bool:
        return False


class Partial(Adaptation):
    """The last `blocks` blocks move (with what follows them); the stem and earlier blocks are frozen."""

    def __init__(self, blocks: int):
        if blocks < 1:
            raise UserError(f"adaptation.blocks={blocks}: give at least 1, or choose adaptation=probe")
        self.blocks = blocks

    def prepare(self, encoder: Encoder) -> None:
        if self.blocks > encoder.depth:
            raise UserError(f"adaptation.blocks={self.blocks}, but this encoder has {encoder.depth} blocks")
        super().prepare(encoder)

    def moves(self, group: int, depth: int) -> bool:
        return group > depth - self.blocks
