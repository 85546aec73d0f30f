"""From scores of beginnings and ends to the best span."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sslt.targets.passages import Passages


class Best(NamedTuple):
    """Of B rows: the score of the best span [B], its first and last token in the context [B, 2]."""

    score: Tensor
    tokens: Tensor


def best_spans(start: Tensor, end: Tensor, windows: Passages, rows: int, longest: int) -> Best:
    """The span of at most `longest` tokens with the highest start + end, over all windows of a row. start, end: [N, W].

    Every legal span is looked at. Of equal ones the first and shortest wins; a row without any token of its context has the score -inf.
    """
    outside = torch.finfo(start.dtype).min
    start, end = (x.masked_fill(~windows.in_context, -torch.inf) for x in (start, end))
    best, first, length = start + end, torch.arange(start.shape[1], device=start.device).expand_as(start), torch.zeros_like(windows.at)
    for more in range(1, min(longest, start.shape[1])):
        found = start[:, :-more] + end[:, more:]
        better = found > best[:, :-more]
        best[:, :-more] = torch.where(better, found, best[:, :-more])
        length[:, :-more] = torch.where(better, more, length[:, :-more])
    score, where = best.max(1)
    first = windows.at.gather(1, where[:, None])[:, 0]
    spans = torch.stack([first, first + length.gather(1, where[:, None])[:, 0]], 1)
    top = torch.full((rows,), -torch.inf, dtype=score.dtype, device=score.device)
    top = top.scatter_reduce(0, windows.row, score, "amax")
    winner = torch.full((rows,), len(score), device=score.device)
    number = torch.arange(len(score), device=score.device)
    winner = winner.scatter_reduce(0, windows.row, torch.where(score >= top[windows.row], number, len(score)), "amin")
    return Best(top.clamp(min=outside), spans[winner.clamp(max=len(score) - 1)])


NEVER = -1e30  # a score that no softmax notices, and that has a gradient, as -inf has not


def over_row(x: Tensor, windows: Passages, rows: int) -> Tensor:
    """log Σ exp over all that the windows [N, W] of a row have, [B]; about `NEVER` where they have nothing else."""
    each = x.logsumexp(1)
    top = torch.full((rows,), NEVER, dtype=x.dtype, device=x.device).scatter_reduce(0, windows.row, each.detach(), "amax")
    total = torch.zeros_like(top).index_add(0, windows.row, (each - top[windows.row]).exp())
    return total.clamp(min=torch.finfo(x.dtype).tiny).log() + top


def some_windows(windows: Passages, holds: Tensor, most: int) -> Tensor:
    """Numbers of at most `most` windows of each row: those that hold its answer [N] first, the others drawn."""
    order = (torch.rand(len(holds), device=holds.device) - holds.float()).argsort()
    order = order[windows.row[order].argsort(stable=True)]
    count = windows.row.bincount()
    place = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[windows.row]
    return order[place < most].sort().values
