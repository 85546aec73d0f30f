"""Bringing the features of two domains together by their statistics: MMD and CORAL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sslt import distributed
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, full_precision, wide
from sslt.objectives.parts.layers import encode_at
from sslt.ranges import Count


class Alignment(Objective):
    """Compares two streams: reads `{source: batch, target: batch}`, the source first, each with `views` [V, B, ...].

    What a run gives to every alignment: the encoder, `width` (of the features that are aligned), `task` (the objective that
    classifies the source, for those that ask for its predictions) and `layer` (dotted name of the module whose output is
    aligned, averaged over positions; None: the pooled features). The encoder's forward is shared with the other objectives on
    a stream; where `layer` is named, this one must come first.
    """

    needs_full_batches = True  # statistics of a batch, and gathers over ranks, ask for batches of one size

    def __init__(self, layer: str | None):
        super().__init__()
        self.layer = layer

    def features(self, encoder: Encoder, batch: dict) -> tuple[Tensor, Tensor]:
        """Features [N, D] of the source and [M, D] of the target."""
        source, target = batch.values()
        return encode_at(encoder, source, self.layer), encode_at(encoder, target, self.layer)


class MMD(Alignment):
    """Squared maximum mean discrepancy under a mean of Gaussian kernels (Gretton et al., 2012; Long et al., 2015, DAN).

    factors: a kernel exp(-|x - y|² / (f·m)) each, where m is the median of the squared distances between the rows of both
    domains. unbiased: the U-statistic (Gretton et al., eq. 3), which is below 0 by chance where domains agree; otherwise the
    V-statistic (eq. 5), never below 0 and too large by O(1/N). Under DDP, of the rows of all ranks.
    """

    def __init__(self, encoder: Encoder, width: Count, task: Any, layer: str | None, factors: list[float], unbiased: bool):
        super().__init__(layer)
        if not factors or min(factors) <= 0:
            raise UserError(f"shift.objective.factors={list(factors)}: give factors of the bandwidth, above 0")
        self.factors, self.unbiased = list(factors), unbiased

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        source, target = self.features(encoder, batch)
        with full_precision():
            return Loss(mmd(distributed.gather(wide(source)), distributed.gather(wide(target)), self.factors, self.unbiased), {})


class CORAL(Alignment):
    """Distance of the covariances, |C_s - C_t|² / 4d² in the Frobenius norm (Sun & Saenko, 2016, eq. 1).

    Under DDP, covariances of the rows of all ranks.
    """

    def __init__(self, encoder: Encoder, width: Count, task: Any, layer: str | None):
        super().__init__(layer)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        source, target = self.features(encoder, batch)
        with full_precision():
            return Loss(coral(distributed.gather(wide(source)), distributed.gather(wide(target))), {})


def mmd(x: Tensor, y: Tensor, factors: list[float], unbiased: bool) -> Tensor:
    """The squared MMD between rows x [N, D] and y [M, D]; see `MMD`. No gradient flows through the bandwidth."""
    n = len(x)
    z = torch.cat([x, y])
    z = z - z.mean(0).detach()  # shorter vectors, so that less is lost where their products are subtracted
    squares = z.square().sum(1)
    distance = (squares[:, None] + squares - 2 * z @ z.T).clamp(min=0)
    with torch.no_grad():
        above = torch.ones_like(distance, dtype=torch.bool).triu(1)
        median = distance[above].median().clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-distance / (f * median)) for f in factors]).mean(0)
    xx, yy, xy = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    if not unbiased:
        return xx.mean() + yy.mean() - 2 * xy.mean()
    return _mean_of_pairs(xx) + _mean_of_pairs(yy) - 2 * xy.mean()


def _mean_of_pairs(kernel: Tensor) -> Tensor:
    """The mean of a kernel matrix [N, N] without its diagonal."""
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / max(n * (n - 1), 1)


def coral(x: Tensor, y: Tensor) -> Tensor:
    """|cov(x) - cov(y)|² / 4d² of rows x [N, d] and y [M, d], covariances with N - 1 and M - 1."""
    difference = _covariance(x) - _covariance(y)
    return difference.square().sum() / (4 * x.shape[1] ** 2)


def _covariance(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x.T @ x / max(len(x) - 1, 1)
