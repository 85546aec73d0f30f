"""The momentum teacher and the queue of past features: what BYOL, MoCo, DINO and others share."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sslt import distributed
from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.encoders.dropout import silence
from sslt.errors import UserError
from sslt.objectives.base import Objective


class Teacher(nn.Module):
    """An exponential moving average of modules (Tarvainen & Valpola, 2017): same shapes, no gradient.

    It starts as a copy (`begin`), without dropout and stochastic depth, as DINO's and data2vec's authors have it. After each step every
    parameter becomes m·teacher + (1-m)·student, where m goes from a first to a last value over the run on half a cosine (Grill et al.,
    2020, section 3.2, with 1 as the last: 1 - (1-m₀)(cos πp + 1)/2). Buffers (BatchNorm statistics) are the teacher's own: it sees the
    views itself. momentum: the first value, which rises to 1, or [first, last]; two of the same are a constant, as in MoCo.
    """

    def __init__(self, momentum: float | Sequence[float], **modules: nn.Module):
        super().__init__()
        ends = [momentum, 1.0] if isinstance(momentum, (int, float)) else list(momentum)
        if len(ends) != 2 or not all(isinstance(m, (int, float)) and 0 <= m <= 1 for m in ends):
            raise UserError(
                f"objective.momentum={momentum}: give a number from 0 (the student itself) to 1 (never moves), or two, [first, last]"
            )
        self.first, self.last = ends
        self.copies = nn.ModuleDict({name: _twin(m).requires_grad_(False) for name, m in modules.items()})
        silence(self.copies)

    def __getitem__(self, name: str) -> nn.Module:
        return self.copies[name]

    def begin(self, **modules: nn.Module) -> None:
        """Take over what the students hold before the first step: an encoder may have been given weights since it was copied."""
        for name, module in modules.items():
            self.copies[name].load_state_dict(module.state_dict())

    def momentum_at(self, progress: float) -> float:
        return self.last - (self.last - self.first) * (math.cos(math.pi * progress) + 1) / 2

    @torch.no_grad()
    def follow(self, progress: float, **modules: nn.Module) -> None:
        """Move towards the students, at `progress` 0..1 of the run."""
        m = self.momentum_at(progress)
        mine: list[Tensor] = [distributed.local(p) for name in modules for p in self.copies[name].parameters()]
        theirs = [distributed.local(p.detach()) for module in modules.values() for p in module.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - m)


def _twin(module: nn.Module) -> nn.Module:
    """A copy; of an encoder, with the same processor."""
    processor = getattr(module, "processor", None)
    return copy.deepcopy(module, {id(processor): processor})


class Taught(Objective):
    """An objective with a momentum teacher of the encoder and of those modules of its own that have the names of `teacher.copies`.

    Both encoders are what pretraining leaves behind. evaluated: `student` unless a class says otherwise.
    """

    teacher: Teacher

    def encoders(self, encoder: Encoder) -> dict[str, Encoder]:
        return {"student": encoder, "teacher": cast(Encoder, self.teacher["encoder"])}

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        self.teacher.begin(encoder=encoder)

    def after_step(self, encoder: Encoder) -> None:
        own = {name: self.get_submodule(name) for name in self.teacher.copies if name != "encoder"}
        self.teacher.follow(self.progress, encoder=encoder, **own)


LONGEST = 4096  # of a queue whose size is not given


class Queue(nn.Module):
    """The newest `size` normalised features [size, D] of all ranks, oldest overwritten first (He et al., 2020, section 3.1).

    Starts with random unit vectors. Part of the state dict, so that a resumed run goes on with it. size None: 4,096, or one for
    each sample where `fit` finds fewer.
    """

    alike_on_ranks = True

    def __init__(self, size: int | None, dim: int):
        super().__init__()
        if size is not None and size < 1:
            raise UserError(f"objective.queue={size}: give at least 1")
        self.features: Tensor
        self.given, size = size is not None, size or LONGEST
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("features", nn.functional.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @property
    def rows(self) -> Tensor:
        """[size, D]; a copy, since the next `push` writes in place and a loss may still need these."""
        return self.features.clone()

    def fit(self, samples: int) -> None:
        """Make place for no more than all `samples`, or most would meet a past of their own; `UserError` if that was asked for."""
        places = len(self.features)
        if self.given and places > samples:
            raise UserError(f"objective.queue={places} is more than the {samples} samples: give fewer, or null")
        self.features = self.features[:samples].clone()

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Add the rows [B, D] or [B, V, D] of this rank's samples, with those of the other ranks.

        Sample by sample in the order of the joint batch: where there is no place for all, the same ones stay on any number of ranks.
        """
        features, place = self.features, cast(Tensor, self.place)
        rows = distributed.gather_rows(rows.detach().to(features.dtype), by_turns=True).flatten(0, -2)[-len(features) :]
        index = (place + torch.arange(len(rows), device=features.device)) % len(features)
        features[index] = rows
        place.copy_((place + len(rows)) % len(features))
