"""The objective's interface."""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslt.encoders.base import Encoder, Features


class Loss(NamedTuple):
    """`value`: scalar mean over `units` (samples, masked tokens). `logs`: scalars to record, detached.

    The number of units lets the learner weigh batches of different size rightly when gradients are accumulated or averaged over ranks.
    """

    value: Tensor
    units: int | Tensor
    logs: dict[str, Tensor]


class Objective(nn.Module, abc.ABC):
    """(encoder, batch) → `Loss`. Parameters of an objective (heads, projectors) train with the encoder and stay behind.

    The constructor takes the encoder for its shapes and keeps no reference to it.
    """

    logs_now = True  # False in steps whose logs nobody reads: what is only shown need not be computed
    needs_full_batches = False  # True where samples of a batch are compared with each other

    @abc.abstractmethod
    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        """The loss on a batch that the stream's views have made."""


def encode_views(encoder: Encoder, views: dict[str, Tensor]) -> Features:
    """Encode `views`, each tensor [V, B, ...], in one forward; features come back as [V·B, ...], view by view."""
    return encoder({name: x.flatten(0, 1) for name, x in views.items()})


def n_views(views: dict[str, Tensor]) -> int:
    """V."""
    return len(next(iter(views.values())))


def mlp(dim: int, hidden: int, out: int, *, norm: bool = True) -> nn.Sequential:
    """Linear → BatchNorm → ReLU → Linear, the projector of most joint-embedding methods."""
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=not norm), *([nn.BatchNorm1d(hidden)] if norm else []), nn.ReLU(inplace=True), nn.Linear(hidden, out)
    )


def full_precision() -> torch.autocast:
    """A context in which similarities and log-sums are computed in float32 whatever the trainer's precision."""
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", enabled=False)
