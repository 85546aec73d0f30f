"""Barlow Twins, VICReg and W-MSE: agreement of views, with features that are spread and decorrelated over the batch.

Statistics are those of all ranks' rows joined: the gradient of many ranks is that of one with the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import distributed
from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, encode_views, full_precision, mlp, n_views, wide
from sslt.ranges import Count, NonNegative, Share


def _off_diagonal(square: Tensor) -> Tensor:
    return square - torch.diag(square.diagonal())


class _Joined(Objective):
    """Projections [V, N, D] of all ranks' rows, in float32."""

    needs_full_batches = True
    only_pooled = True
    least_views = 2
    projector: torch.nn.Module

    def projections(self, encoder: Encoder, batch: dict) -> Tensor:
        v = n_views(batch["views"])
        z = wide(self.projector(encode_views(encoder, batch).pooled)).unflatten(0, (v, -1))
        return distributed.gather(z.transpose(0, 1)).transpose(0, 1)


class BarlowTwins(_Joined):
    """Cross-correlation of two views made the identity (Zbontar et al., 2021, eq. 1 and 2).

    Reads `views` [V, B, ...]; with V > 2 the mean over pairs. redundancy: λ of the off-diagonal terms. scale: of the whole loss
    (the paper's code has 0.024; 1 is the formula).
    """

    advice = "try a larger batch_size, a lower learning rate or more weight on the terms that keep dimensions apart"

    def __init__(self, encoder: Encoder, hidden: Count, out: Count, redundancy: NonNegative, scale: NonNegative):
        super().__init__()
        self.projector = mlp(encoder.dim, hidden, out, layers=3)
        self.redundancy, self.scale = redundancy, scale

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        z = self.projections(encoder, batch)
        with full_precision():
            var, mean = torch.var_mean(z, 1, keepdim=True, correction=0)
            z = (z - mean) * torch.rsqrt(var + 1e-5)
            pairs = [(a, b) for a in range(len(z)) for b in range(a + 1, len(z))]
            on, off = torch.stack([torch.stack(_terms(z[a].T @ z[b] / z.shape[1])) for a, b in pairs]).mean(0)
            loss = self.scale * (on + self.redundancy * off)
        return Loss(loss, {"invariance": on.detach(), "redundancy": off.detach()})


def _terms(c: Tensor) -> tuple[Tensor, Tensor]:
    """Σ(1 - c_ii)² and Σ_{i≠j} c_ij² of a correlation matrix [D, D]."""
    return (1 - c.diagonal()).square().sum(), _off_diagonal(c).square().sum()


class VICReg(_Joined):
    """Variance, invariance, covariance (Bardes et al., 2022, eq. 1 to 6).

    Reads `views` [V, B, ...]; with V > 2 the invariance is the mean over pairs, variance and covariance means over views
    (for V = 2, half the paper's sums: so its weights of 25, 25, 1 are 25, 50, 2 here; the authors' code and LightlySSL halve the
    sum of the variance as well, so that their 25, 25, 1 are 25, 25, 2 here). The hinge is at deviation 1, ε = 1e-4.
    """

    advice = "try a larger batch_size, a lower learning rate or more weight on the terms that keep dimensions apart"

    def __init__(
        self, encoder: Encoder, hidden: Count, out: Count, invariance: NonNegative, variance: NonNegative, covariance: NonNegative
    ):
        super().__init__()
        self.projector = mlp(encoder.dim, hidden, out, layers=3)
        self.weights = (invariance, variance, covariance)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        z = self.projections(encoder, batch)
        with full_precision():
            pairs = [(a, b) for a in range(len(z)) for b in range(a + 1, len(z))]
            same = torch.stack([(z[a] - z[b]).square().mean() for a, b in pairs]).mean()
            spread = torch.relu(1 - (z.var(1) + 1e-4).sqrt()).mean()
            centred = z - z.mean(1, keepdim=True)
            covariance = centred.transpose(1, 2) @ centred / (z.shape[1] - 1)  # [V, D, D]
            mixed = torch.stack([_off_diagonal(c).square().sum() for c in covariance]).mean() / z.shape[2]
            i, v, c = self.weights
            loss = i * same + v * spread + c * mixed
        return Loss(loss, {"invariance": same.detach(), "variance": spread.detach(), "covariance": mixed.detach()})


class WMSE(_Joined):
    """Whitening MSE (Ermolov et al., 2021, eq. 4 and 5): 2 - 2·cos of views whose projections are whitened over the batch.

    Reads `views` [V, B, ...]. Whitening is by the Cholesky factor of the covariance of `size` samples at a time (null: the
    batch), which must be at least twice `out`; the batch is random already, so it is not shuffled once more for this, as it is in the
    authors' code. shrink: how far the covariance is drawn to the identity.
    """

    advice = "try a larger batch_size, a lower learning rate or more weight on the terms that keep dimensions apart"

    def __init__(self, encoder: Encoder, hidden: Count, out: Count, size: Count | None, shrink: Share):
        super().__init__()
        if size is not None and size < 2 * out:
            raise UserError(f"objective.size={size}: whitening {out} numbers needs at least {2 * out} samples at a time")
        if hidden < out:
            raise UserError(
                f"objective.hidden={hidden}: {hidden} numbers cannot fill the {out} that are whitened: give objective.out or more"
            )
        self.projector = mlp(encoder.dim, hidden, out)
        self.size, self.shrink, self.out = size, shrink, out

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        least = max(self.size or 0, 2 * self.out)
        if batch_size < least:
            raise UserError(f"batch_size={batch_size}: whitening {self.out} numbers needs at least {least} samples a step")

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        z = self.projections(encoder, batch)
        if self.size is not None:  # parts are of the joint batch, whose rows ranks hold by turns
            z = z.unflatten(1, (distributed.world_size(), -1)).transpose(1, 2).flatten(1, 2)
        size = self.size or z.shape[1]
        with full_precision():
            white = torch.stack([torch.cat([self.whiten(part) for part in view.split(size) if len(part) == size]) for view in z])
            white = F.normalize(white, dim=-1)
            pairs = [(a, b) for a in range(len(z)) for b in range(a + 1, len(z))]
            loss = torch.stack([(2 - 2 * (white[a] * white[b]).sum(-1)).mean() for a, b in pairs]).mean()
        return Loss(loss, {"similarity": 1 - loss.detach() / 2})

    def whiten(self, x: Tensor) -> Tensor:
        """x [N, D] with mean 0 and (up to `shrink`) covariance 1."""
        x = x - x.mean(0)
        covariance = x.T @ x / (len(x) - 1)
        covariance = (1 - self.shrink) * covariance + self.shrink * torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
        lower, failed = torch.linalg.cholesky_ex(covariance)
        if x.device.type == "cpu" and int(failed):  # elsewhere it would make the device wait, and NaN stops the run as well
            raise UserError(
                "the projections have collapsed to fewer dimensions than are whitened: set objective.shrink=0.01, or a lower rate"
            )
        return torch.linalg.solve_triangular(lower, x.T, upper=False).T
