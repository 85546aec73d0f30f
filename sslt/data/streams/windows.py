"""The order of an epoch over shards: they are permuted, and then the rows within each window of `WINDOW` of them.

So what is read at a time lies in few shards, each of which is read in one window of an epoch alone. The order is a function of
(seed, epoch) and of where shards begin; only the windows that are asked for are made: 10⁸ rows take no more memory than a window's.
"""

from __future__ import annotations

import numpy as np

WINDOW = 16  # shards
_MADE = 4  # windows that are remembered: those that a batch, or a group of batches, lies in, and the one behind


class ShardedOrder:
    """Orders of the epochs of rows whose shards begin at `bounds`, int64 [S + 1] (`Samples.shards`)."""

    def __init__(self, bounds: np.ndarray, seed: int):
        self.bounds, self.seed = np.asarray(bounds, np.int64), seed
        self.filled = np.flatnonzero(np.diff(self.bounds))
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        self._rows: dict[tuple[int, int], np.ndarray] = {}

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """What stands at the places start to stop of an epoch's order, int64 [stop - start]."""
        starts = self._starts(epoch)
        found = [self._window(epoch, w)[max(start - starts[w], 0) : stop - starts[w]] for w in range(*self._within(epoch, start, stop))]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def shards(self, epoch: int, window: int) -> np.ndarray:
        """Which shards a window is of; none where there is no such window."""
        return self._permuted(epoch)[window * WINDOW : (window + 1) * WINDOW]

    def window_of(self, epoch: int, place: int) -> int:
        """The window that a place of an epoch's order is in."""
        return int(np.searchsorted(self._starts(epoch), place, side="right")) - 1

    def _within(self, epoch: int, start: int, stop: int) -> tuple[int, int]:
        return (self.window_of(epoch, start), self.window_of(epoch, stop - 1) + 1) if stop > start else (0, 0)

    def _permuted(self, epoch: int) -> np.ndarray:
        return self._known(epoch)[0]

    def _starts(self, epoch: int) -> np.ndarray:
        """The place that each window begins at."""
        return self._known(epoch)[1]

    def _known(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self.seed, epoch, 0x5A4D]).permutation(self.filled)
            places = np.concatenate([[0], np.cumsum(np.diff(self.bounds)[order])])
            self._epoch = epoch, order, places[:-1:WINDOW]
        return self._epoch[1:]

    def _window(self, epoch: int, window: int) -> np.ndarray:
        if (epoch, window) not in self._rows:
            shards = self.shards(epoch, window)
            rows = np.concatenate([np.arange(self.bounds[s], self.bounds[s + 1]) for s in shards])
            np.random.default_rng([self.seed, epoch, window, 0x3017D]).shuffle(rows)
            while len(self._rows) >= _MADE:
                self._rows.pop(next(iter(self._rows)))
            self._rows[epoch, window] = rows
        return self._rows[epoch, window]
