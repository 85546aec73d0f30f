"""k-means on the device: visual words, cluster assignments."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.objectives.base import full_precision, wide

_ROWS = 1 << 14  # whose distances to all centres are held at a time


def nearest_centroid(x: Tensor, centres: Tensor) -> Tensor:
    """Index [N] of the centre [K, D] nearest to each row of x [N, D]."""
    half = centres.square().sum(1) / 2
    with full_precision():  # or near ones would all be the same
        return torch.cat([(half - part @ centres.T).argmin(1) for part in x.split(_ROWS)])


@torch.no_grad()
def kmeans(x: Tensor, k: int, *, steps: int, seed: int, unit: bool = False) -> Tensor:
    """Centres [k, D] of rows x [N, D] by Lloyd's algorithm, from k rows drawn by `seed`; a function of its arguments.

    unit: centres of length 1, for rows of length 1 (spherical k-means: Dhillon & Modha, 2001). A centre that loses all its rows
    goes to a row drawn at random, those of the largest cluster first. Needs N ≥ k.
    """
    x = wide(x)
    rng = torch.Generator().manual_seed(seed)
    centres = x[torch.randperm(len(x), generator=rng)[:k].to(x.device)].clone()
    spare = torch.randint(len(x), (steps, k), generator=rng).to(x.device)
    for step in range(steps):
        nearest = nearest_centroid(x, centres)
        count = torch.bincount(nearest, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        # rows for centres without any, which take them in turn: those of the largest cluster stand first
        largest = (nearest[spare[step]] == count.argmax()).float()
        candidates = spare[step][largest.argsort(descending=True, stable=True)]
        turn = ((count == 0).cumsum(0) - 1).clamp(min=0)
        centres = torch.where((count > 0).unsqueeze(1), sums / count.clamp(min=1).unsqueeze(1), x[candidates[turn]])
        if unit:
            centres = F.normalize(centres, dim=1)
    return centres
