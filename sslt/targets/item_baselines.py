"""What a trained recommender has to beat: what is popular, and what others took who took the same (item-kNN: Sarwar et al., 2001)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse

from sslt.data.answers import Item
from sslt.data.prepare.item_processor import FIRST, ItemSamples
from sslt.data.streams.subsets import some
from sslt.targets.base import Cheap

FADES = (1.0, 0.8, 0.6)  # by which an item weighs less than the one after it
SHRINKS = (0, 5, 30)  # added to what counts of users are divided by: two items of one and the same user are no proof
LONGEST = 200  # last items of a history that count
CHOSEN_ON = 5000  # validation users that fade and shrinkage are chosen on
BATCH = 256
Scores = Callable[[list[np.ndarray]], np.ndarray]  # histories (ids) → scores float32 [B, C]


def strongest(target: Any, train: ItemSamples, val: ItemSamples | None, test: ItemSamples) -> Cheap:
    """The one that is best on `val`, else item-kNN at middle settings; beside it the metrics of popularity and of the best item-kNN."""
    columns = target.columns_of.cpu().numpy()
    taken = [row[columns[row] >= 0] for row in _sequences(train)]
    popular = np.bincount(columns[np.concatenate(taken)], minlength=len(target.ids)).astype(np.float32)
    methods: dict[str, Scores] = {"popularity": lambda rows: np.broadcast_to(popular, (len(rows), len(popular))).copy()}
    behind = popular / (1e6 * max(popular.max(), 1))  # where nothing is alike
    for shrink in SHRINKS:
        alike = _alike([columns[row] for row in taken], len(popular), shrink)
        for fade in FADES:
            methods[_named(shrink, fade)] = lambda rows, alike=alike, fade=fade: _alike_to(rows, columns, alike, fade) + behind  # type: ignore[misc]
    score = {name: math.nan for name in methods}
    name = _named(SHRINKS[1], FADES[1])
    if val is not None:
        held = some(val, CHOSEN_ON, 0)
        assert isinstance(held, ItemSamples)
        score = {name: target.score(_answers(target, held, how), held.answers) for name, how in methods.items()}
        name = max(score, key=lambda n: score[n])
    neighbours = max((n for n in methods if n != "popularity"), key=lambda n: score[n]) if val is not None else name
    found = {n: _answers(target, test, methods[n]) for n in ("popularity", neighbours)}
    beside = {
        f"{short}/{k}": v
        for short, n in (("popularity", "popularity"), ("item-knn", neighbours))
        for k, v in target.measure(found[n], test.answers).items()
        if k.endswith("@10")
    }
    return Cheap(name, found[name], score[name], beside)


def _named(shrink: float, fade: float) -> str:
    return f"item-kNN (shrinkage {shrink:g}, fading by {fade:g})"


def _sequences(samples: ItemSamples) -> list[np.ndarray]:
    """Ids of each user's items, the answer last."""
    rows = [samples.tokens[s : s + n] for s, n in zip(samples.starts, samples.sizes, strict=True)]
    after = samples.following
    rows = [np.asarray(r) for r in rows] if after is None else [np.append(r, i) for r, i in zip(rows, after, strict=True)]
    return [row[row >= FIRST] for row in rows]


def _alike(rows: list[np.ndarray], n: int, shrink: float) -> sparse.csr_array:
    """Cosines [n, n] of items by the users who took them, shrunk: users of both / (√(users of one · users of the other) + shrink).

    0 of an item with itself.
    """
    rows = [np.unique(row[-LONGEST:]) for row in rows]
    ends = np.cumsum([0, *map(len, rows)])
    took = sparse.csr_array((np.ones(ends[-1], np.float32), np.concatenate(rows), ends), shape=(len(rows), n))
    both, users = (took.T @ took).tocoo(), took.sum(0)
    size = np.sqrt(users[both.row] * users[both.col]) + shrink
    values = np.where(both.row == both.col, 0, both.data / size).astype(np.float32)
    return sparse.csr_array((values, (both.row, both.col)), shape=(n, n))


def _alike_to(rows: list[np.ndarray], columns: np.ndarray, alike: sparse.csr_array, fade: float) -> np.ndarray:
    """Σ over the items of a history of fade ** (items after it) · cosine, float32 [B, C]."""
    found = [columns[row[-LONGEST:]] for row in rows]
    weights = [np.where(c >= 0, fade ** np.arange(len(c))[::-1], 0.0).astype(np.float32) for c in found]
    ends = np.cumsum([0, *map(len, found)])
    history = sparse.csr_array((np.concatenate(weights), np.maximum(np.concatenate(found), 0), ends), shape=(len(rows), alike.shape[0]))
    return (history @ alike).toarray()


def _answers(target: Any, samples: ItemSamples, how: Scores) -> Item:
    """What scores say of all rows, a few of them in memory at a time."""
    order = list(samples.ordered_batches(BATCH))
    parts = []
    for index in order:
        rows = [np.asarray(samples.tokens[s : s + n]) for s, n in zip(samples.starts[index], samples.sizes[index], strict=True)]
        batch = {k: v.to(target.ids.device) for k, v in samples.batch(index).items()}
        parts.append(target.ranked(torch.from_numpy(how(rows)).to(target.ids.device), batch))
    return Item.join(parts).take(np.argsort(np.concatenate(order)))
