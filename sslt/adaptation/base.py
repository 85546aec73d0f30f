"""Which weights of an encoder move, how fast and how far: the interface, full fine-tuning and feature extraction."""

from __future__ import annotations

import abc
from typing import Any

from torch import Tensor, nn

from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.ranges import Share


class Adaptation(abc.ABC):
    """Decides what moves, by the group a tensor is in (`Encoder.group_of`) and by its name.

    What does not move is frozen whole: no gradient, no weight decay, BatchNorm statistics as they were, and dropout off
    where nothing around it moves.

    layer_decay: learning rate of a block relative to the one above it (Clark et al., 2020; Bao et al., 2022: 0.65 to 0.9);
    1 is none. Heads keep the full rate.
    """

    changes = False  # whether what moves depends on how far the run is
    total_steps: int | None = None  # optimizer steps of the run, where they are known; set before `prepare`
    frozen = False  # whether the encoder's features are the same all the run, so that they can be computed once

    def __init__(self, layer_decay: Share):
        if not 0 < layer_decay <= 1:
            raise UserError(f"adaptation.layer_decay={layer_decay}: give a number above 0 and up to 1 (1: the same rate everywhere)")
        self.layer_decay = layer_decay
        self._trains: list[tuple[str, bool]] = []

    # ---------------------------------------------------------------- what moves
    @abc.abstractmethod
    def moves(self, name: str, group: int, depth: int) -> bool:
        """Whether the parameter `name`, of group `group` of an encoder with `depth` blocks, moves now."""

    def ever_moves(self, name: str, group: int, depth: int) -> bool:
        """Whether it moves at some time of the run."""
        return self.moves(name, group, depth)

    def prepare(self, encoder: Encoder) -> None:
        """Set what moves at the start. Called once, before the optimizer is made. Raises `UserError` for an encoder it cannot take."""
        self._apply(encoder)

    def thaw(self, encoder: Encoder) -> None:
        """Let all that ever moves want a gradient: a DDP that is made now averages these and no others over ranks."""
        groups, depth = encoder.group_of(), encoder.depth
        for name, p in encoder.named_parameters():
            p.requires_grad_(self.ever_moves(name, groups[name], depth))

    def settle(self, encoder: Encoder) -> None:
        """Set again what moves now."""
        self._apply(encoder)

    def advance(self, encoder: Encoder, epoch: float, progress: float) -> None:
        """Called before every optimizer step with the epochs seen and the share of the budget used up."""

    def after_step(self, encoder: Encoder, step: int) -> None:
        """Called after optimizer step `step` (from 1), gradients still there."""

    def penalty(self, encoder: Encoder) -> Tensor | None:
        """A scalar that is added to the loss."""
        return None

    def _apply(self, encoder: Encoder) -> None:
        groups, depth = encoder.group_of(), encoder.depth
        moving = set()
        for name, p in encoder.named_parameters():
            moves = self.moves(name, groups[name], depth)
            p.requires_grad_(moves)
            if not moves:
                p.grad = None
            else:
                moving.add(name)
        alive = {groups[name] for name in moving}
        self._trains = [(n, _trains(m, n, moving, groups.get(n, 0) in alive)) for n, m in encoder.named_modules() if n]
        if encoder.training:
            self.set_modes(encoder)

    def set_modes(self, encoder: Encoder) -> None:
        """Put frozen modules in eval mode. Called after every `train()`."""
        for name, trains in self._trains:  # by name: the Trainer may have put another module in a BatchNorm's place
            encoder.get_submodule(name).training = trains  # not .eval(): a container's moving children keep their mode

    # ---------------------------------------------------------------- how fast
    def parameter_groups(self, encoder: Encoder, heads: nn.Module, weight_decay: float) -> list[dict]:
        """Optimizer groups of all that ever moves; biases and norm parameters are not decayed, and never in a group with weights.

        Each has `lr_scale`, the factor of the learning rate that is its own.
        """
        groups, depth = encoder.group_of(), encoder.depth
        made: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for name, p in encoder.named_parameters():
            if self.ever_moves(name, groups[name], depth):
                scale = self.layer_decay ** (depth + 1 - groups[name]) * encoder.rate_of(name)
                made.setdefault((scale, self.decay_of(p, weight_decay, head=False), p.dim() > 1), []).append(p)
        for p in heads.parameters():
            if p.requires_grad:
                made.setdefault((1.0, self.decay_of(p, weight_decay, head=True), p.dim() > 1), []).append(p)
        return [{"params": ps, "weight_decay": decay, "lr_scale": scale} for (scale, decay, _), ps in made.items()]

    def decay_of(self, parameter: nn.Parameter, weight_decay: float, head: bool) -> float:
        """Weight decay of a parameter of the encoder or of a head."""
        return weight_decay if parameter.dim() > 1 else 0.0

    # ---------------------------------------------------------------- state
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


def _trains(module: nn.Module, name: str, moving: set[str], alive: bool) -> bool:
    """Whether a module runs in train mode: something of its group moves, and running statistics only with their own weights."""
    own = [f"{name}.{n}" for n, _ in module.named_parameters(recurse=False)]
    if getattr(module, "track_running_stats", False) and own:
        return all(n in moving for n in own)
    return alive


class Full(Adaptation):
    """Everything moves."""

    def moves(self, name: str, group: int, depth: int) -> bool:
        return True


class Probe(Adaptation):
    """Nothing of the encoder moves: a head on frozen features, computed once.

    augment: True shows the head augmented views instead, encoded anew in every step.
    """

    def __init__(self, augment: bool):
        super().__init__(1.0)
        self.frozen = not augment

    def moves(self, name: str, group: int, depth: int) -> bool:
        return False
