"""Several splits as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sslt.data import cache
from sslt.data.base import Samples


class Joined(Samples):
    """The rows of several samples one after the other; all of one kind, prepared alike, with the same classes.

    rows: int64, those that count (None: all, in order).
    """

    def __init__(self, parts: Sequence[Samples], rows: np.ndarray | None = None):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.rows = np.arange(self.ends[-1]) if rows is None else rows
        self.classes = parts[0].classes
        labels = [part.labels for part in parts if part.labels is not None]
        self.labels = np.concatenate(labels)[self.rows] if len(labels) == len(self.parts) else None
        self.fingerprint = cache.digest([part.fingerprint for part in parts], self.rows)
        self.skipped = sum(part.skipped for part in parts)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray | None:
        lengths = [part.lengths for part in self.parts]
        known = [n for n in lengths if n is not None]
        return np.concatenate(known)[self.rows] if len(known) == len(lengths) else None

    def batch(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """As the parts' own, in the order of `index`; token rows are padded to the longest of all parts."""
        rows = self.rows[index]
        owner = np.searchsorted(self.ends, rows, side="right")
        order, made = [], []
        for i in np.unique(owner):
            place = np.flatnonzero(owner == i)
            order.append(place)
            made.append(self.parts[i].batch(rows[place] - (self.ends[i] - len(self.parts[i]))))
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        joined = {key: torch.cat(_padded([part[key] for part in made], self._filler(key)))[back] for key in made[0]}
        return {**joined, "index": torch.from_numpy(np.asarray(index, np.int64))}

    def _filler(self, key: str) -> int:
        special = getattr(self.parts[0], "special", None)
        return special[2] if special is not None and key == "tokens" else 0

    def subset(self, index: np.ndarray) -> Joined:
        return Joined(self.parts, self.rows[index])


def _padded(parts: list[torch.Tensor], filler: int) -> list[torch.Tensor]:
    """Rows [B, L] brought to the widest L; other shapes as they are."""
    if parts[0].dim() != 2:
        return parts
    width = max(part.shape[1] for part in parts)
    return [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=filler) for part in parts]
