"""Averaged weights: what a run saves and measures in place of the weights that its last step left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from sslt.distributed import local
from sslt.encoders.batch_norm import batch_norms
from sslt.errors import UserError
from sslt.sharded.model import full

_STATISTICS = ("running_mean", "running_var")


class Average(nn.Module):
    """An exponential moving average over optimizer steps of the weights that move (Polyak & Juditsky, 1992).

    Step t (from 1) makes each m·average + (1-m)·weight with m = min(decay, (1+t)/(10+t)), so that a short run does not stay where it
    began. BatchNorm's running statistics are averaged in the same way, as they belong to the weights of the same steps (timm's
    `ModelEmaV3` averages them, torch's `AveragedModel` copies them). torch's copies a whole model, too; here a frozen base, large beside
    its adapter, has no copy. The weights are found by name in the model that every method gets: in training, parts of it are replaced.
    Raises `UserError` for a decay outside 0..1.
    """

    alike_on_ranks = True

    def __init__(self, decay: float, model: nn.Module, moving: Iterable[Tensor]):
        super().__init__()
        if not isinstance(decay, float) or not 0 < decay < 1:
            raise UserError(f"ema={decay}: give how much of the average stays in a step, above 0 and below 1 (0.999), or null for none")
        self.decay = decay
        statistics = [getattr(m, name) for m in batch_norms(model) if m.track_running_stats for name in _STATISTICS]
        wanted = {id(x) for x in (*moving, *statistics)}
        live = {name: x for name, x in _tensors(model).items() if id(x) in wanted}
        for name, x in live.items():
            self.register_buffer(name.replace(".", "/"), x.detach().clone())

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Move towards the weights that optimizer step `step` (from 1) has left."""
        mine, theirs = ([local(x) for x in tensors] for tensors in self._pairs(model))
        torch._foreach_lerp_(mine, theirs, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average and the weights as they are; twice is not at all."""
        for mine, theirs in zip(*self._pairs(model), strict=True):
            if local(theirs) is theirs:
                mine.data, theirs.data = theirs.data, mine.data
            else:  # a sharded one's memory is known by its place
                before = local(theirs).clone()
                local(theirs).copy_(local(mine))
                local(mine).copy_(before)

    def gather(self) -> None:
        """Make all of it whole on every rank."""
        for name, x in list(self.named_buffers()):
            self.register_buffer(name, full(x))

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, `model` has the other weights."""
        self.swap(model)
        try:
            yield
        finally:
            self.swap(model)

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        mine, live = dict(self.named_buffers()), _tensors(model)
        return list(mine.values()), [live[name.replace("/", ".")] for name in mine]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
