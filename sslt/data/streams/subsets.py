"""Seeded parts of prepared samples: of their labels, or of rows whatever their labels are."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch

from sslt.data.answers import Answers, Class
from sslt.data.base import Samples, spread, stratified
from sslt.errors import UserError

log = logging.getLogger("sslt")
FEW_SHARDS = 8  # that a few rows are drawn from at least


def label_rows(answers: Answers, fraction: float, per_class: int | None, seed: int) -> np.ndarray | None:
    """The rows of the seeded, stratified part of the `answers` [N] that may be used; None: all of them. No group is divided."""
    if per_class is not None and (not isinstance(per_class, int) or per_class < 1):
        raise UserError(f"labels_per_class={per_class}: give a whole number from 1")
    if per_class is not None and fraction != 1:
        raise UserError(f"label_fraction={fraction} and labels_per_class={per_class}: give one of the two")
    if per_class is None and fraction == 1:
        return None
    if per_class is not None and not isinstance(answers, Class):
        raise UserError(f"labels_per_class={per_class} counts samples of a class, and these have {answers.words}: use label_fraction=")
    if per_class:
        return stratified(answers.strata, per_class=per_class, seed=seed, together=answers.groups, names=answers.space["classes"])
    return stratified(answers.strata, fraction=fraction, seed=seed, together=answers.groups)


def label_subset(samples: Samples, fraction: float, per_class: int | None, seed: int) -> Samples:
    """The samples of `label_rows`."""
    if samples.answers is None:
        return samples
    index = label_rows(samples.answers, fraction, per_class, seed)
    if index is None:
        return samples
    log.info("%d of %d labels are used", len(index), len(samples))
    return samples.subset(index)


def labels_of(samples: Samples) -> torch.Tensor:
    """Class indices [N] as a tensor."""
    return torch.as_tensor(np.asarray(samples.labels)).long()


def in_order(samples: Samples, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of all samples, `size` rows after `size` rows."""
    for start in range(0, len(samples), size):
        yield samples.batch(np.arange(start, min(start + size, len(samples))))


def some(samples: Samples, n: int, seed: int) -> Samples:
    """`n` rows drawn by the seed (all, where there are no more), in order, without a look at their labels.

    Of shards they are drawn in a few of these.
    """
    samples = of_few_shards(samples, n)
    if len(samples) <= n:
        return samples
    return samples.subset(np.sort(np.random.default_rng([seed, 0x50E]).choice(len(samples), n, replace=False)))


def of_few_shards(samples: Samples, n: int) -> Samples:
    """What `n` rows are drawn from without reading all shards: the rows of some, spread evenly, that have four times as many."""
    bounds = samples.shards
    if bounds is None or len(samples) <= n:
        return samples
    typical = max(int(np.median(np.diff(bounds)[np.diff(bounds) > 0])), 1)
    return samples.subset(spread(bounds, max(FEW_SHARDS, -(-4 * n // typical))))
