"""Several data sets as one: prepared samples row after row, and sources for what must be fitted to all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sslt.data import cache
from sslt.data.answers import Answers
from sslt.data.base import Raw, Samples, Source


class Joined(Samples):
    """The rows of the first of `parts`, then those of the second, and so on; all prepared by one processor.

    There are answers where every part has them, and then of one kind and space (`ValueError` otherwise).
    rows: int64, those of all rows that are samples, in order (None: all).
    """

    def __init__(self, parts: Sequence[Samples], rows: np.ndarray | None = None):
        self.parts, self.chosen = list(parts), rows
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.rows = np.arange(self.starts[-1]) if rows is None else np.asarray(rows, np.int64)
        found = [p.answers for p in self.parts if p.answers is not None]
        self.answers = Answers.join(found).take(self.rows) if len(found) == len(self.parts) else None
        self.fingerprint = cache.digest("joined", [p.fingerprint for p in self.parts], self.rows)
        self.skipped = sum(p.skipped for p in self.parts)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray | None:
        found = [p.lengths for p in self.parts]
        return None if any(n is None for n in found) else np.concatenate([n for n in found if n is not None])[self.rows]

    @property
    def padding(self) -> dict[str, int]:
        return self.parts[0].padding | ({} if self.answers is None else self.answers.fills)

    @property
    def shards(self) -> np.ndarray | None:
        """Those of the parts, a part without as one; None where no part has any, or rows were chosen."""
        found = [p.shards for p in self.parts]
        if self.chosen is not None or all(b is None for b in found):
            return None
        bounds = [np.array([0, len(p)]) if b is None else b for p, b in zip(self.parts, found, strict=True)]
        return np.concatenate([[0], *(b[1:] + start for b, start in zip(bounds, self.starts[:-1], strict=True))])

    def fetch(self, shards: Sequence[int]) -> None:
        first = 0
        for part in self.parts:
            bounds = part.shards
            count = 1 if bounds is None else len(bounds) - 1
            part.fetch([] if bounds is None else [s - first for s in shards if first <= s < first + count])
            first += count

    def held(self) -> Joined:
        return Joined([p.held() for p in self.parts], self.chosen)

    def lengths_of(self, index: np.ndarray) -> np.ndarray | None:
        shares = self._shares(self.rows[index])
        found = [(place, part.lengths_of(own)) for part, (place, own) in zip(self.parts, shares, strict=True) if len(own)]
        if not found or any(n is None for _, n in found):
            return None
        out = np.empty(len(index), np.int64)
        for place, lengths in found:
            if lengths is not None:
                out[place] = lengths
        return out

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        """What the parts' batches have in common, in the order of `index`; rows of text are padded to the longest."""
        index = np.asarray(index, np.int64)
        made, places = [], []
        for part, (place, own) in zip(self.parts, self._shares(self.rows[index]), strict=True):
            if len(own):
                made.append(part.batch(own))
                places.append(place)
        back = torch.from_numpy(np.argsort(np.concatenate(places)))
        untold = {} if self.answers is not None else {k: 0 for p in self.parts if p.answers is not None for k in p.answers.fills}
        names = [k for k in made[0] if k != "index" and k not in untold and all(k in m for m in made)]
        out = {k: _stack([m[k] for m in made], self.padding.get(k, 0))[back] for k in names}
        return {**out, "index": torch.from_numpy(index)}

    def subset(self, index: np.ndarray) -> Joined:
        return Joined(self.parts, self.rows[np.asarray(index)])

    def uncut(self) -> Joined:
        return Joined([p.uncut() for p in self.parts], self.chosen)

    def packed(self, length: int) -> Joined:
        if self.chosen is None:
            return Joined([p.packed(length) for p in self.parts])
        shares = zip(self.parts, self._shares(self.rows), strict=True)
        return Joined([part.subset(own).packed(length) for part, (_, own) in shares if len(own)])

    def _shares(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each part, which of `rows` are its own: their places in `rows`, and its own numbers for them."""
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        places = [np.flatnonzero(owner == i) for i in range(len(self.parts))]
        return [(place, rows[place] - self.starts[i]) for i, place in enumerate(places)]


def _stack(parts: list[Tensor], fill: int) -> Tensor:
    """Rows one below the other; of tensors [B, L, ...] with different L, each filled up to the longest."""
    width = max(p.shape[1] for p in parts) if parts[0].dim() > 1 else 0
    if any(p.dim() > 1 and p.shape[1] != width for p in parts):
        parts = [F.pad(p, [0, 0] * (p.dim() - 2) + [0, width - p.shape[1]], value=fill) for p in parts]
    return torch.cat(parts)


class Corpus(Source):
    """The unlabelled texts of several sources as one: what a tokenizer for all of them is trained on."""

    val_fraction = test_fraction = 0.0
    classes = None

    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)
        self.modality, self.name = self.sources[0].modality, " and ".join(s.name for s in self.sources)

    def own_splits(self) -> tuple[str, ...]:
        return ("unlabeled",)

    def read(self, split: str) -> Raw:
        return Raw([text for source in self.sources for text in source.get("unlabeled").items])

    def fingerprint(self) -> str:
        return cache.digest("corpus", [(s.fingerprint(), s.val_fraction, s.test_fraction) for s in self.sources])
