"""Adaptations that choose by block: the last ones, one after another, first the head and then all."""

from __future__ import annotations

import abc
import fnmatch
import math

from sslt.adaptation.base import Adaptation
from sslt.encoders.base import Encoder
from sslt.errors import UserError, nearest
from sslt.ranges import Natural, Share


class Partial(Adaptation):
    """The last `blocks` blocks move (with what follows them), and parameters whose names match one of `patterns`.

    patterns: shell patterns of parameter names, as `*.attention.*` or `*norm*`; blocks=0 leaves these alone to move.
    """

    def __init__(self, blocks: Natural, patterns: list[str], layer_decay: Share):
        super().__init__(layer_decay)
        if blocks < 0 or (blocks == 0 and not patterns):
            raise UserError(f"adaptation.blocks={blocks}: give at least 1, name patterns, or choose adaptation=probe")
        self.blocks, self.patterns = blocks, list(patterns)

    def prepare(self, encoder: Encoder) -> None:
        if self.blocks > encoder.depth:
            raise UserError(f"adaptation.blocks={self.blocks}, but this encoder has {encoder.depth} blocks")
        names = [n for n, _ in encoder.named_parameters()]
        for pattern in self.patterns:
            if not fnmatch.filter(names, pattern):
                hint = nearest(pattern.strip("*."), names) or f" (parameters are named like {names[len(names) // 2]})"
                raise UserError(f"adaptation.patterns: '{pattern}' matches no parameter of this encoder{hint}")
        super().prepare(encoder)

    def moves(self, name: str, group: int, depth: int) -> bool:
        return group > depth - self.blocks or any(fnmatch.fnmatch(name, p) for p in self.patterns)


class Bias(Adaptation):
    """Biases alone move (BitFit: Ben Zaken et al., 2022); norm layers' statistics stand still with their weights."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def prepare(self, encoder: Encoder) -> None:
        if not any(n.rpartition(".")[2] == "bias" for n, _ in encoder.named_parameters()):
            raise UserError("adaptation=bitfit moves biases, and this encoder has none: choose another adaptation=")
        super().prepare(encoder)

    def moves(self, name: str, group: int, depth: int) -> bool:
        return name.rpartition(".")[2] == "bias"


class _Staged(Adaptation):
    """What moves grows with the run: `level` groups from the top; 0 is the head alone."""

    changes = True
    level = 0

    def moves(self, name: str, group: int, depth: int) -> bool:
        return group > depth - self.level

    def ever_moves(self, name: str, group: int, depth: int) -> bool:
        return True

    def advance(self, encoder: Encoder, epoch: float, progress: float) -> None:
        level = self.level_at(epoch, progress, encoder.depth + 1)
        if level != self.level:
            self.level = level
            self._apply(encoder)

    @abc.abstractmethod
    def level_at(self, epoch: float, progress: float, groups: int) -> int:
        """How many groups move."""


class Gradual(_Staged):
    """Gradual unfreezing (Howard & Ruder, 2018, section 3.3): first the head, then one block after another from the top.

    every: "epoch" frees a block with every epoch, the last block with the first one; "progress" spreads the steps evenly
    over the first `over` of the run, whatever bounds it.
    """

    def __init__(self, every: str, over: Share, layer_decay: Share):
        super().__init__(layer_decay)
        if every not in ("epoch", "progress"):
            raise UserError(f"adaptation.every={every}: give epoch or progress{nearest(every, ('epoch', 'progress'))}")
        if not 0 < over <= 1:
            raise UserError(f"adaptation.over={over}: give the share of the run, above 0 and up to 1, after which all moves")
        self.every, self.over = every, over

    def level_at(self, epoch: float, progress: float, groups: int) -> int:
        if self.every == "epoch":
            return min(int(epoch) + 1, groups)
        return min(math.floor(progress / self.over * groups + 1e-9), groups)


class ProbeThenFull(_Staged):
    """Linear probing, then full fine-tuning (LP-FT: Kumar et al., 2022): the head alone for the first `probe` of the run."""

    def __init__(self, probe: Share, layer_decay: Share):
        super().__init__(layer_decay)
        if not 0 < probe < 1:
            raise UserError(f"adaptation.probe={probe}: give the share of the run for the head alone, between 0 and 1")
        self.probe = probe

    def level_at(self, epoch: float, progress: float, groups: int) -> int:
        return groups if progress >= self.probe else 0
