"""Heads that say which of many prototypes a sample is like: what DINO, iBOT, MSN and SwAV share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt import distributed
from sslt.objectives.base import full_precision, wide


class UnitPrototypes(nn.Module):
    """Cosines [..., K] of rows [..., D] with K learned unit vectors.

    frozen: the prototypes stay where they are in this step (DINO's and SwAV's first steps), while gradients pass to the rows.
    """

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, rows: Tensor, frozen: bool = False) -> Tensor:
        weight = F.normalize(wide(self.weight), dim=1)
        if frozen:
            weight = weight.detach() + 0 * weight  # with a gradient of zero: DDP waits for one from every parameter
        with full_precision():
            return F.normalize(wide(rows), dim=-1) @ weight.T


def head(dim: int, hidden: int, out: int) -> nn.Sequential:
    """The projector of DINO (Caron et al., 2021, appendix C): three linear layers with GELU, without BatchNorm."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out))


class Centre(nn.Module):
    """A running mean [K] of the teacher's scores over all ranks, taken off before its softmax (Caron et al., 2021, eq. 4)."""

    def __init__(self, count: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(count))
        self.mean: Tensor

    def forward(self, scores: Tensor) -> Tensor:
        """Scores [..., K] less the mean of earlier batches."""
        return scores - self.mean

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """Move towards the mean of scores [..., K]."""
        now = distributed.sum_over_ranks(wide(scores.flatten(0, -2).mean(0))) / distributed.world_size()
        self.mean.lerp_(now, 1 - self.momentum)


def entropy(p: Tensor) -> Tensor:
    """-Σ p log p over the last axis of probabilities [..., K]: 0 if sure, log K if all are equally likely; its gradient is finite at 0."""
    return -(p * p.clamp(min=1e-12).log()).sum(-1)


def cross_entropy_of_views(targets: Tensor, log_probs: Tensor) -> Tensor:
    """Mean of H(target, prediction) = -Σ p log q over samples and pairs of different views.

    targets [V, B, K] and log_probs [S, B, K], whose first V views are the same as the targets'.
    """
    v, s = len(targets), len(log_probs)
    with full_precision():
        pairs = -torch.einsum("vbk,sbk->vs", targets, log_probs) / targets.shape[1]
    same = torch.eye(v, s, device=pairs.device, dtype=torch.bool)
    return pairs.masked_fill(same, 0).sum() / (v * s - v)


def ramp(start: float, end: float, until: float, progress: float) -> float:
    """From start to end on a straight line over the first share `until` of the run, then end."""
    return end if progress >= until else start + (end - start) * progress / until
