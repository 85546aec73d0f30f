"""Item-kNN (Sarwar et al., 2001): what others took who took the same; alone a cheap method, or beside an encoder of histories."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from sslt.data import cache
from sslt.data.answers import Item
from sslt.data.prepare.item_processor import FIRST, ItemSamples
from sslt.data.streams.subsets import some
from sslt.encoders.base import Encoder, evaluating

log = logging.getLogger("sslt")
FORMAT = 1  # raise it when what is found changes
FADES = (1.0, 0.8, 0.6)  # by which an item weighs less than the one after it
SHRINKS = (0, 5, 30)  # added to what counts of users are divided by: two items of one and the same user are no proof
MIDDLE = (5, 0.8)  # without validation
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)  # how far the neighbours' scores spread, where the encoder's spread by 1
LONGEST = 200  # last items of a history that count
CHOSEN_ON = 5000  # validation users that all this is chosen on
MOST_PAIRS = 20_000_000  # of items, above which each keeps its nearest alone
NEAREST = 500
BATCH = 256
Method = Callable[[Tensor], Tensor]  # histories of columns [B, M] → scores of items [B, C]


class Neighbours(nn.Module):
    """Histories → scores of items: Σ over a history's items of fade ** (items after it) · cosine; by popularity where nothing is alike.

    The cosine of two items is that of the users who took them, shrunk: users of both / (√(users of one · users of the other) + shrink).
    pairs: of items with a cosine, kept as a sparse matrix [items, items] by rows. mix [2]: how much an encoder's scores and these count.
    """

    kind: ClassVar = "item_knn"
    ends: Tensor
    columns: Tensor
    cosines: Tensor
    popular: Tensor
    mix: Tensor

    def __init__(self, items: int, pairs: int, shrink: float, fade: float):
        super().__init__()
        self.shrink, self.fade = shrink, fade
        self._alike: sparse.csr_array | None = None
        self.register_buffer("ends", torch.zeros(items + 1, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(pairs, dtype=torch.int32))
        self.register_buffer("cosines", torch.zeros(pairs))
        self.register_buffer("popular", torch.zeros(items))  # 1: the most popular
        self.register_buffer("mix", torch.tensor([0.0, 1.0]))

    @property
    def settings(self) -> dict[str, Any]:
        return {"items": len(self.popular), "pairs": len(self.columns), "shrink": self.shrink, "fade": self.fade}

    @property
    def name(self) -> str:
        return f"item-kNN (shrinkage {self.shrink:g}, fading by {self.fade:g})"

    @classmethod
    def beside(cls, encoder: Encoder, settings: dict[str, Any]) -> Neighbours:
        return cls(**settings)

    @classmethod
    def solve(cls, taken: Sequence[np.ndarray], items: int, shrink: float, fade: float) -> Neighbours:
        """Of what users took: columns of items, [n] of each user."""
        rows = [np.unique(row[-LONGEST:]) for row in taken]
        ends = np.cumsum([0, *map(len, rows)])
        took = sparse.csr_array((np.ones(ends[-1], np.float32), np.concatenate(rows), ends), shape=(len(rows), items))
        both, users = (took.T @ took).tocoo(), took.sum(0)
        size = np.sqrt(users[both.row] * users[both.col]) + shrink
        other = both.row != both.col
        values = (both.data[other] / size[other]).astype(np.float32)
        alike = sparse.csr_array((values, (both.row[other], both.col[other])), shape=(items, items))
        if alike.nnz > MOST_PAIRS:
            alike = nearest(alike, NEAREST)
        found = cls(items, alike.nnz, shrink, fade)
        found.ends, found.columns = torch.from_numpy(alike.indptr).long(), torch.from_numpy(alike.indices).int()
        popular = np.bincount(np.concatenate([row.astype(np.int64) for row in taken]), minlength=items)
        found.cosines, found.popular = torch.from_numpy(alike.data), torch.from_numpy(popular / max(popular.max(), 1)).float()
        return found

    def forward(self, history: Tensor) -> Tensor:
        """Scores [B, C] of histories of columns [B, M], -1 where there is no item that is known."""
        if self._alike is None:
            parts = (self.cosines.cpu().numpy(), self.columns.cpu().numpy(), self.ends.cpu().numpy())
            self._alike = sparse.csr_array(parts, shape=(len(self.popular), len(self.popular)))
        at = history.cpu().numpy()
        rows, places = np.nonzero(at >= 0)
        known = np.cumsum(at[:, ::-1] >= 0, 1)[:, ::-1]  # how many items there are from here on
        after = known[rows, places] - 1
        kept = after < LONGEST
        weights = (self.fade ** after[kept]).astype(np.float32)
        read = sparse.csr_array((weights, (rows[kept], at[rows, places][kept])), shape=(len(at), len(self.popular)))
        scores = torch.from_numpy((read @ self._alike).toarray()).to(self.popular.device)
        return scores + 1e-6 * self.popular

    def add(self, own: Tensor, history: Tensor) -> Tensor:
        """The scores [B, C] of an encoder with these."""
        return self.mix[0] * own + self.mix[1] * self(history).to(own.dtype)


def nearest(alike: sparse.csr_array, n: int) -> sparse.csr_array:
    """The `n` largest values of each row."""
    kept = []
    for start, end in zip(alike.indptr[:-1], alike.indptr[1:], strict=True):
        best = np.argsort(-alike.data[start:end], kind="stable")[:n]
        kept.append(start + np.sort(best))
    ends = np.cumsum([0, *map(len, kept)])
    places = np.concatenate(kept)
    return sparse.csr_array((alike.data[places], alike.indices[places], ends), shape=alike.shape)


class Chosen(NamedTuple):
    """The neighbours that validation prefers, and their score there, NaN without."""

    neighbours: Neighbours
    score: float


def taken(target: Any, samples: ItemSamples) -> list[np.ndarray]:
    """Columns of each user's known items, the answer last."""
    columns = target.columns_of.cpu().numpy()
    rows = [np.asarray(samples.tokens[s : s + n]) for s, n in zip(samples.starts, samples.sizes, strict=True)]
    if samples.following is not None:
        rows = [np.append(row, item) for row, item in zip(rows, samples.following, strict=True)]
    found = [columns[row[row >= FIRST]] for row in rows]
    return [row[row >= 0] for row in found]


def choose(target: Any, train: ItemSamples, val: ItemSamples | None) -> Chosen:
    """By `val`, how much is shrunk and how fast items fade; at middle settings without. Kept on disk by the content of both.

    target: `NextItem`, which ranks.
    """
    about = [target.ids.tolist(), target.cheap_settings, train.fingerprint, None if val is None else val.fingerprint]

    def make(folder: Path) -> dict[str, Any]:
        rows, n = taken(target, train), len(target.ids)
        found = Chosen(Neighbours.solve(rows, n, *MIDDLE), math.nan) if val is None else _best(target, rows, n, val)
        for name, tensor in found.neighbours.state_dict().items():
            np.save(folder / f"{name}.npy", tensor.numpy())
        return {"settings": found.neighbours.settings, "score": None if val is None else found.score}

    entry = cache.get_or_make("neighbours", cache.digest("neighbours", FORMAT, *about), make)
    neighbours = Neighbours(**entry.meta["settings"])
    neighbours.load_state_dict({name: torch.from_numpy(np.array(entry[name])) for name in neighbours.state_dict()})
    return Chosen(neighbours, math.nan if entry.meta["score"] is None else entry.meta["score"])


def _best(target: Any, rows: list[np.ndarray], n: int, val: ItemSamples) -> Chosen:
    found = []
    for shrink in SHRINKS:
        neighbours = Neighbours.solve(rows, n, shrink, FADES[0])
        for fade in FADES:
            neighbours.fade = fade
            found.append((score(target, val, neighbours), neighbours, fade))
    best, neighbours, neighbours.fade = max(found, key=lambda f: f[0])
    return Chosen(neighbours, best)


def answers(target: Any, samples: Any, method: Method) -> Item:
    """What a method alone answers, a few rows in memory at a time."""
    parts, order = [], []
    for index, batch in batches(target, samples):
        order.append(index)
        parts.append(target.ranked(method(batch["columns"]).to(target.ids.device), batch))
    return Item.join(parts).take(np.argsort(np.concatenate(order)))


def score(target: Any, samples: Any, method: Method) -> float:
    """The primary metric of a method alone, on `CHOSEN_ON` rows."""
    held = some(samples, CHOSEN_ON, 0)
    return float(target.score(answers(target, held, method), held.answers))


def batches(target: Any, samples: Any, size: int = BATCH) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Rows and their batches on the target's device, with `columns` of the items in a history."""
    for index in samples.ordered_batches(size):
        batch = {k: v.to(target.ids.device) for k, v in samples.batch(index).items()}
        yield np.asarray(index), batch | {"columns": target.columns_of[batch["history"]]}


def stand_beside(target: Any, encoder: Encoder, train: ItemSamples, val: ItemSamples) -> tuple[Neighbours, dict[str, float]]:
    """Neighbours, with the mixture of their scores and the encoder's that is best on `val`; and what each has there."""
    neighbours = choose(target, train, val).neighbours.to(target.ids.device)
    held = some(val, CHOSEN_ON, 0)
    mixes: list[tuple[float, float]] = []
    parts: dict[tuple[float, float], list[Item]] = {}
    order = []
    with evaluating(encoder), evaluating(target):
        for index, batch in batches(target, held):
            own, others = target.scores(encoder, batch), neighbours(batch["columns"])
            if not mixes:  # by how they spread in the first batch
                ratio = float(own.std() / others.std().clamp(min=1e-12))
                mixes = [(1.0, 0.0), *((1.0, share * ratio) for share in SHARES), (0.0, 1.0)]
                parts = {mix: [] for mix in mixes}
            order.append(index)
            for a, b in mixes:
                parts[a, b].append(target.ranked(a * own + b * others, batch))
    rows = np.argsort(np.concatenate(order))
    found = {mix: float(target.score(Item.join(p).take(rows), held.answers)) for mix, p in parts.items()}
    best = max(found, key=lambda mix: found[mix])
    neighbours.mix = neighbours.mix.new_tensor(best)
    name = target.primary
    log.info("on validation the encoder has %s %.1f, %s %.1f, both together %.1f (late_fusion=false: the encoder alone)",
             name, 100 * found[1.0, 0.0], neighbours.name, 100 * found[0.0, 1.0], 100 * found[best])  # fmt: skip
    if not best[0]:
        log.warning(
            "the encoder adds nothing to %s, which alone ranks the items: train it for longer, or on more histories", neighbours.name
        )
    return neighbours, {f"val/encoder_{name}": found[1.0, 0.0], f"val/{neighbours.kind}_{name}": found[0.0, 1.0]}
